"""The conversations that every template renders: tools, reasoning, documents, parts, hard characters."""

TOOLS = [
    {"type": "function", "function": {
        "name": "weather", "description": "The weather of a place — °C <now> & \"soon\".",
        "parameters": {"type": "object", "properties": {
            "place": {"type": "string", "description": "Town, e.g. 'Zürich'"},
            "unit": {"type": "string", "enum": ["celsius", "fahrenheit"], "default": "celsius"},
            "days": {"type": "integer", "description": "How many"},
            "limits": {"type": "array", "items": {"type": "number"}},
            "where": {"type": "object", "properties": {"lat": {"type": "number"}, "lon": {"type": "number"}},
                      "required": ["lat"]},
            "when": {"oneOf": [{"type": "string", "default": "now"}, {"type": "integer"}]},
            "either": {"type": ["string", "null"]},
            "exact": {"type": "boolean", "default": False},
            "step": {"type": "number", "default": 1e-7},
        }, "required": ["place"]}}},
    {"type": "function", "function": {
        "name": "now", "description": "  The time.  ",
        "parameters": {"type": "object", "properties": {}, "required": []}}},
    {"type": "function", "function": {
        "name": "search", "description": "搜索", "return": {"type": "string"},
        "parameters": {"type": "object", "properties": {
            "queries": {"type": "array", "items": {"type": "object", "properties": {
                "text": {"type": "string"}, "weight": {"type": "number"}}, "required": []}},
            "top": {"type": "integer", "default": 10}}, "required": ["queries", "top"]}}},
]

DOCUMENTS = [
    {"title": "One", "text": "First text, with \"quotes\" & <tags>.\nTwo lines."},
    {"title": "Zwei", "text": "Ein zweiter Text: naïve 中文 🙂", "id": 7, "score": 0.5},
]

ARGUMENTS = {
    "place": "Saint-\"Étienne\"\n\\ 中", "unit": "celsius", "days": 3,
    "limits": [1.5, 1e-7, 1e20, -2.0, 10], "where": {"lat": 45.0, "lon": None}, "exact": True, "when": "",
    "either": None, "step": 0.1,
}


def call(name, arguments, number):
    return {"type": "function", "id": f"call{number:05}", "function": {"name": name, "arguments": arguments}}


def tool(content, number, name):
    return {"role": "tool", "content": content, "tool_call_id": f"call{number:05}", "name": name}


SYSTEM = {"role": "system", "content": "Be brief."}
HI = {"role": "user", "content": "Hi <b>&\n"}
HELLO = {"role": "assistant", "content": "  Hello!\n"}
QUESTION = {"role": "user", "content": "How warm is it?"}

WITH_CALL = [
    QUESTION,
    {"role": "assistant", "content": "", "reasoning_content": "\nI have to ask.\n",
     "tool_calls": [call("weather", ARGUMENTS, 1)]},
    tool("21 °C, \"mild\"", 1, "weather"),
]

CONVERSATIONS = {
    "question": {"messages": [QUESTION]},
    "system": {"messages": [SYSTEM, QUESTION]},
    "plain": {"messages": [SYSTEM, HI, HELLO, QUESTION]},
    "answered": {"messages": [HI, HELLO]},
    "two in a row": {"messages": [HI, QUESTION]},
    "late system": {"messages": [HI, HELLO, {"role": "system", "content": "Now be long."}, QUESTION]},
    "hard characters": {"messages": [
        {"role": "system", "content": " \t{{ x }} {% y %} \\n é 🙂 \u2028 \"'`<>&\r\n"},
        {"role": "user", "content": "\n\n  a\u00a0b\u3000\u200b\x7f\x01 ½ ﷽ \n"},
        {"role": "assistant", "content": "<think>a</think>b</think>\n\nc"},
        {"role": "user", "content": ""},
    ]},
    "modes": {"messages": [
        {"role": "system", "content": "Be brief. /no_think"}, HI, HELLO,
        {"role": "user", "content": "Why? /nothink"}]},
    "override": {"messages": [{"role": "system", "content": "Only this. /system_override"}, QUESTION]},
    "thought in content": {"messages": [
        QUESTION,
        {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nWarm."},
        {"role": "user", "content": "And now?"},
        {"role": "assistant", "content": "<think>\nHm, hm.\n</think>\n\nCold."}]},
    "reasoning": {"messages": [
        SYSTEM,
        QUESTION,
        {"role": "assistant", "reasoning_content": " Let me see.\n", "content": "Warm."},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "thinking": "Yes.", "content": "Sure."}]},
    "parts": {"messages": [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": [
            {"type": "text", "text": " Look: "},
            {"type": "image"},
            {"type": "text", "text": "what is it? "}]}]},
    "unknown part": {"messages": [{"role": "user", "content": [{"type": "smell", "smell": "x"}]}]},
    "tools offered": {"messages": [SYSTEM, QUESTION], "tools": TOOLS},
    "tools offered alone": {"messages": [QUESTION], "tools": TOOLS[1:2]},
    "tools": {"messages": WITH_CALL, "tools": TOOLS},
    "tools answered": {"messages": [
        SYSTEM,
        *WITH_CALL,
        {"role": "assistant", "content": "21 degrees.", "reasoning_content": "Done."},
        {"role": "user", "content": "Thanks."}], "tools": TOOLS},
    "two calls": {"messages": [
        QUESTION,
        {"role": "assistant", "content": "Two.", "tool_calls": [
            call("now", {}, 1), call("search", {"queries": [{"text": "a'b", "weight": 1.0}], "top": 2}, 2)]},
        tool("12:00", 1, "now"),
        tool("nothing", 2, "search"),
        {"role": "assistant", "content": "Nothing at noon."},
        HI], "tools": TOOLS},
    "call without a wrapper": {"messages": [
        QUESTION,
        {"role": "assistant", "content": "", "tool_calls": [
            {"name": "now", "arguments": {"zone": "UTC", "n": 1}, "id": "call00001"}]},
        tool("12:00", 1, "now")], "tools": TOOLS},
    "arguments as text": {"messages": [
        QUESTION,
        {"role": "assistant", "content": None, "tool_calls": [call("now", "{\"zone\": \"é\"}", 1)]},
        tool("12:00", 1, "now")], "tools": TOOLS},
    "results in parts": {"messages": [
        *WITH_CALL[:2],
        {"role": "tool", "tool_call_id": "call00001",
         "content": [{"output": "21"}, {"type": "text", "text": "x", "n": 0.5}]}], "tools": TOOLS},
    "short id": {"messages": [
        QUESTION,
        {"role": "assistant", "content": "", "tool_calls": [
            {"id": "c1", "function": {"name": "now", "arguments": {}}}]}], "tools": TOOLS},
    "result without a call": {"messages": [QUESTION, tool("21", 1, "weather")], "tools": TOOLS},
    "documents": {"messages": [SYSTEM, QUESTION], "documents": DOCUMENTS},
    "documents and tools": {"messages": [QUESTION], "documents": DOCUMENTS, "tools": TOOLS[:1]},
}
