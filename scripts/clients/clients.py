#!/usr/bin/env python3
"""The server as its Python clients see it: openai, anthropic, ollama, langchain-openai.

    clients.py URL KEY [--all]

The server serves the demo under any name and asks for the key. A test of what this server does not have says
so and is skipped; with --all it fails.
"""

import asyncio
import json
import sys
import traceback
import urllib.error
import urllib.request
from enum import Enum

import anthropic
import ollama
import openai
import pydantic
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_openai import ChatOpenAI

URL, KEY = sys.argv[1:3]
ALL = "--all" in sys.argv
QUESTION = "What is 2+2?"
ANSWER = "The sum of 2 and 2 is 4."
MESSAGES = [{"role": "user", "content": QUESTION}]

TESTS = []


def test(path, body=None):
    """A test of what the server has where this does not answer 404 or, with a body that is wrong, 200."""
    def add(function):
        TESTS.append((function, path, body))
        return function
    return add


def has(path, body):
    data = json.dumps(body or {}).encode()
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    try:
        with urllib.request.urlopen(urllib.request.Request(URL + path, data, headers), timeout=120):
            return body is None
    except urllib.error.HTTPError as error:
        return error.code != 404


def raises(kind, call, **want):
    """The error of this kind that a call raises."""
    try:
        call()
    except kind as error:
        for name, value in want.items():
            assert getattr(error, name) == value, f"{name}: {getattr(error, name)!r}, not {value!r}"
        return error
    raise AssertionError(f"no {kind.__name__}")


# What the server refuses where it knows the field, whatever it is.
TOOLS = {"messages": MESSAGES, "max_tokens": 1, "tools": 5}
SCHEMA = {"messages": MESSAGES, "max_tokens": 1, "response_format": 5}

ADD = {
    "type": "object",
    "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 99},
                   "b": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
ADD_TOOL = {"type": "function",
            "function": {"name": "add", "description": "Adds two numbers.", "parameters": ADD}}
FORCED = {"type": "function", "function": {"name": "add"}}


def is_sum(arguments):
    assert set(arguments) == {"a", "b"}, arguments
    assert all(isinstance(n, int) and 0 <= n <= 99 for n in arguments.values()), arguments


class Colour(str, Enum):
    red = "red"
    green = "green"


class Thing(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    colour: Colour
    large: bool


def openai_client(**more):
    return openai.OpenAI(base_url=URL + "/v1", api_key=KEY, max_retries=0, timeout=120, **more)


@test("/v1/chat/completions")
def openai_chat():
    client = openai_client()
    answer = client.chat.completions.create(model="demo", messages=MESSAGES, temperature=0)
    assert answer.choices[0].message.content == ANSWER
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    # Parts, a system message, a conversation.
    parts = [{"type": "text", "text": "What is "}, {"type": "text", "text": "2+2?"}]
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts},
                {"role": "assistant", "content": ANSWER}, {"role": "user", "content": "What is 3+4?"}]
    assert client.chat.completions.create(model="demo", messages=messages, max_completion_tokens=20).choices
    two = client.chat.completions.create(model="demo", messages=MESSAGES, n=2, seed=5, temperature=2,
                                         logprobs=True, top_logprobs=2, max_tokens=9)
    for n, choice in enumerate(two.choices):
        one = client.chat.completions.create(model="demo", messages=MESSAGES, seed=5 + n, temperature=2,
                                             logprobs=True, top_logprobs=2, max_tokens=9).choices[0]
        assert one.message == choice.message and one.logprobs == choice.logprobs, (one, choice)
        assert "".join(token.token for token in choice.logprobs.content) == choice.message.content


@test("/v1/chat/completions")
def openai_chat_streamed():
    client = openai_client()
    stream = client.chat.completions.create(model="demo", messages=MESSAGES, temperature=0, stream=True,
                                            stream_options={"include_usage": True})
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == ANSWER
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 13
    assert len({chunk.id for chunk in chunks}) == 1
    # The helper that puts pieces together.
    with client.chat.completions.stream(model="demo", messages=MESSAGES, temperature=0, logprobs=True) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion().choices[0]
    assert "".join(deltas) == final.message.content == ANSWER
    assert "".join(token.token for token in final.logprobs.content) == ANSWER
    # One that is left midway leaves the server well.
    with client.chat.completions.create(model="demo", messages=MESSAGES, stream=True) as stream:
        next(iter(stream))
    openai_chat()


@test("/v1/chat/completions")
def openai_many():
    async def all_at_once():
        client = openai.AsyncOpenAI(base_url=URL + "/v1", api_key=KEY, max_retries=0, timeout=120)

        async def ask(n, stream):
            message = [{"role": "user", "content": f"What is {n}+{n}?"}]
            answer = await client.chat.completions.create(model="demo", messages=message, temperature=0.5,
                                                          seed=n, stream=stream, max_tokens=20)
            if not stream:
                return answer.choices[0].message.content
            return "".join([chunk.choices[0].delta.content or "" async for chunk in answer])
        whole = await asyncio.gather(*(ask(n, False) for n in range(10)))
        streamed = await asyncio.gather(*(ask(n, True) for n in reversed(range(10))))
        await client.close()
        return whole, streamed[::-1]
    whole, streamed = asyncio.run(all_at_once())
    assert whole == streamed and len(set(whole)) == 10, (whole, streamed)


@test("/v1/completions")
def openai_completions():
    client = openai_client()
    ask = dict(model="demo", prompt="Once", max_tokens=8, seed=3, temperature=1, logprobs=2)
    answer = client.completions.create(**ask)
    assert "".join(answer.choices[0].logprobs.tokens) == answer.choices[0].text
    pieces = client.completions.create(**ask, stream=True)
    assert "".join(piece.choices[0].text for piece in pieces) == answer.choices[0].text


@test("/v1/chat/completions")
def openai_errors():
    client = openai_client()
    create = client.chat.completions.create
    raises(openai.BadRequestError, lambda: create(model="demo", messages=MESSAGES, temperature="hot"),
           param="temperature")
    raises(openai.BadRequestError, lambda: create(model="demo", messages=MESSAGES, n=0, stream=True), param="n")
    long = [{"role": "user", "content": "What is 2+2? " * 500}]
    error = raises(openai.BadRequestError, lambda: create(model="demo", messages=long),
                   code="context_length_exceeded")
    assert "maximum context length is" in error.message, error.message
    picture = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]
    raises(openai.BadRequestError, lambda: create(model="demo", messages=picture), code="unsupported")
    raises(openai.NotFoundError, lambda: client.embeddings.create(model="demo", input="a"))
    raises(openai.NotFoundError, lambda: client.models.retrieve("nothing"))
    stranger = openai.OpenAI(base_url=URL + "/v1", api_key="wrong", max_retries=0)
    raises(openai.AuthenticationError, lambda: stranger.models.list(), code="invalid_api_key")
    assert [model.id for model in client.models.list()] == ["demo"]
    assert client.models.retrieve("demo").id == "demo"


@test("/v1/responses")
def openai_responses():
    client = openai_client()
    answer = client.responses.create(model="demo", input=QUESTION, temperature=0)
    assert answer.output_text == ANSWER and answer.status == "completed", answer
    stream = client.responses.create(model="demo", input=MESSAGES, temperature=0, stream=True,
                                     instructions="Be brief.")
    events = list(stream)
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert events[0].type == "response.created" and events[-1].type == "response.completed"
    assert events[-1].response.output_text == text and text
    raises(openai.BadRequestError, lambda: client.responses.create(model="demo", input="a",
                                                                   previous_response_id="resp_1"))


@test("/v1/chat/completions", TOOLS)
def openai_tools():
    client = openai_client()
    ask = dict(model="demo", messages=MESSAGES, tools=[ADD_TOOL], tool_choice=FORCED, temperature=0,
               max_tokens=200)
    choice = client.chat.completions.create(**ask).choices[0]
    call = choice.message.tool_calls[0]
    assert choice.finish_reason in ("tool_calls", "stop") and call.id and call.function.name == "add", choice
    is_sum(json.loads(call.function.arguments))
    with client.chat.completions.stream(**ask) as stream:
        final = stream.get_final_completion().choices[0].message.tool_calls[0]
    assert final.function.arguments == call.function.arguments and final.id, final
    # What came of the call goes back.
    messages = MESSAGES + [choice.message.model_dump(exclude_none=True),
                           {"role": "tool", "tool_call_id": call.id, "content": "4"}]
    again = client.chat.completions.create(model="demo", messages=messages, tools=[ADD_TOOL],
                                           tool_choice="none", max_tokens=20)
    assert not again.choices[0].message.tool_calls
    wrong = ADD_TOOL | {"function": {"name": "add", "parameters": 5}}
    raises(openai.BadRequestError, lambda: client.chat.completions.create(**ask | {"tools": [wrong]}))
    other = {"type": "function", "function": {"name": "other"}}
    raises(openai.BadRequestError, lambda: client.chat.completions.create(**ask | {"tool_choice": other}))


@test("/v1/chat/completions", SCHEMA)
def openai_schema():
    client = openai_client()
    for seed in range(5):
        answer = client.chat.completions.parse(model="demo", messages=MESSAGES, response_format=Thing, seed=seed,
                                               temperature=1.5, max_tokens=100)
        assert isinstance(answer.choices[0].message.parsed, Thing), answer
    format = {"type": "json_schema", "json_schema": {"name": "sum", "strict": True, "schema": ADD}}
    ask = dict(model="demo", messages=MESSAGES, seed=1, temperature=1.5, max_tokens=100)
    answer = client.chat.completions.create(**ask, response_format=format).choices[0].message.content
    is_sum(json.loads(answer))
    pieces = client.chat.completions.create(**ask, response_format=format, stream=True)
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == answer
    wrong = {"type": "json_schema", "json_schema": {"name": "sum", "schema": {"type": "nothing"}}}
    raises(openai.BadRequestError, lambda: client.chat.completions.create(**ask, response_format=wrong))


def anthropic_client(key=KEY):
    return anthropic.Anthropic(base_url=URL, api_key=key, max_retries=0, timeout=120)


@test("/v1/messages")
def anthropic_messages():
    client = anthropic_client()
    # This client has no temperature of its own any more.
    ask = dict(model="demo", max_tokens=50, messages=MESSAGES, extra_body={"temperature": 0})
    answer = client.messages.create(**ask)
    assert answer.content[0].text == ANSWER and answer.stop_reason == "end_turn", answer
    assert answer.usage.input_tokens > 0 and answer.usage.output_tokens > 0
    with client.messages.stream(**ask) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == final.content[0].text == ANSWER and final.stop_reason == "end_turn", final
    assert final.usage.output_tokens == answer.usage.output_tokens, final
    cut = client.messages.create(**ask | {"max_tokens": 2})
    assert cut.stop_reason == "max_tokens", cut
    stopped = client.messages.create(**ask, stop_sequences=[" and"])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", " and"), stopped
    assert stopped.content[0].text == "The sum of 2", stopped
    system = [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]
    assert client.messages.create(**ask, system=system).content
    count = client.messages.count_tokens(model="demo", messages=MESSAGES)
    assert count.input_tokens == answer.usage.input_tokens + (answer.usage.cache_read_input_tokens or 0), count


@test("/v1/messages")
def anthropic_errors():
    client = anthropic_client()
    ask = dict(model="demo", max_tokens=5, messages=MESSAGES)
    raises(anthropic.BadRequestError, lambda: client.messages.create(
        **ask, extra_body={"temperature": "hot"}))
    raises(anthropic.BadRequestError, lambda: client.messages.create(**ask | {"messages": []}))
    long = [{"role": "user", "content": "What is 2+2? " * 500}]
    error = raises(anthropic.BadRequestError, lambda: client.messages.create(**ask | {"messages": long}))
    assert "prompt is too long" in str(error), error
    raises(anthropic.AuthenticationError, lambda: anthropic_client("wrong").messages.create(**ask))


@test("/v1/messages", {"model": "demo", "max_tokens": 1, "messages": MESSAGES, "tools": 5})
def anthropic_tools():
    client = anthropic_client()
    tools = [{"name": "add", "description": "Adds two numbers.", "input_schema": ADD}]
    ask = dict(model="demo", max_tokens=200, messages=MESSAGES, tools=tools, extra_body={"temperature": 0},
               tool_choice={"type": "tool", "name": "add"})
    answer = client.messages.create(**ask)
    use = next(block for block in answer.content if block.type == "tool_use")
    assert answer.stop_reason == "tool_use" and use.name == "add" and use.id, answer
    is_sum(use.input)
    with client.messages.stream(**ask) as stream:
        final = stream.get_final_message()
    assert next(block for block in final.content if block.type == "tool_use").input == use.input, final
    result = [{"type": "tool_result", "tool_use_id": use.id, "content": "4"}]
    messages = MESSAGES + [{"role": "assistant", "content": answer.model_dump()["content"]},
                           {"role": "user", "content": result}]
    assert client.messages.create(**ask | {"messages": messages, "tool_choice": {"type": "none"}})


def ollama_client(key=KEY):
    return ollama.Client(host=URL, headers={"Authorization": f"Bearer {key}"}, timeout=120)


@test("/api/chat")
def ollama_chat():
    client = ollama_client()
    options = {"temperature": 0}
    answer = client.chat(model="demo", messages=MESSAGES, options=options)
    assert answer.message.content == ANSWER and answer.done and answer.done_reason == "stop", answer
    assert answer.eval_count > 0 and answer.prompt_eval_count > 0
    pieces = list(client.chat(model="demo:latest", messages=MESSAGES, options=options, stream=True))
    assert "".join(piece.message.content or "" for piece in pieces) == ANSWER and pieces[-1].done
    cut = client.chat(model="demo", messages=MESSAGES, options=options | {"num_predict": 2})
    assert cut.done_reason == "length", cut
    raises(ollama.ResponseError, lambda: client.chat(model="demo", messages=[{"role": "king", "content": "a"}]),
           status_code=400)
    raises(ollama.ResponseError, lambda: ollama_client("wrong").chat(model="demo", messages=MESSAGES),
           status_code=401)


@test("/api/generate")
def ollama_generate():
    client = ollama_client()
    options = {"temperature": 0, "num_predict": 20}
    answer = client.generate(model="demo", prompt=QUESTION, options=options)
    assert answer.response == ANSWER and answer.done, answer
    pieces = list(client.generate(model="demo", prompt=QUESTION, options=options, stream=True))
    assert "".join(piece.response for piece in pieces) == ANSWER
    raw = client.generate(model="demo", prompt="Once", raw=True, options=options)
    assert raw.done, raw


@test("/api/show")
def ollama_models():
    client = ollama_client()
    assert [model.model.split(":")[0] for model in client.list().models] == ["demo"]
    shown = client.show("demo")
    assert shown.modelinfo and "completion" in shown.capabilities, shown
    assert client.ps().models is not None


@test("/api/chat", {"model": "demo", "messages": MESSAGES, "stream": False, "tools": 5})
def ollama_tools():
    # No choice can be forced here: the tools reach the template.
    answer = ollama_client().chat(model="demo", messages=MESSAGES, tools=[ADD_TOOL], options={"num_predict": 20})
    assert answer.done


@test("/api/chat", {"model": "demo", "messages": MESSAGES, "stream": False, "format": 5})
def ollama_schema():
    client = ollama_client()
    for seed in range(3):
        answer = client.chat(model="demo", messages=MESSAGES, format=Thing.model_json_schema(),
                             options={"seed": seed, "temperature": 1.5, "num_predict": 100})
        Thing.model_validate_json(answer.message.content)


def langchain_model(**more):
    return ChatOpenAI(base_url=URL + "/v1", api_key=KEY, model="demo", temperature=0, max_retries=0, **more)


@test("/v1/chat/completions")
def langchain_chat():
    model = langchain_model()
    answer = model.invoke(QUESTION)
    assert answer.content == ANSWER and answer.usage_metadata["output_tokens"] == 13, answer
    assert "".join(chunk.content for chunk in model.stream(QUESTION)) == ANSWER
    messages = [SystemMessage("Be brief."), HumanMessage(QUESTION), AIMessage(ANSWER), HumanMessage("What is 1+1?")]
    assert model.invoke(messages).content
    many = model.batch([f"What is {n}+{n}?" for n in range(5)])
    assert len({answer.content for answer in many}) == 5
    probable = langchain_model(logprobs=True, top_logprobs=2).invoke(QUESTION)
    assert len(probable.response_metadata["logprobs"]["content"]) == 12
    raises(openai.BadRequestError, lambda: model.invoke("What is 2+2? " * 500))


@test("/v1/chat/completions", TOOLS)
def langchain_tools():
    def add(a: int, b: int) -> int:
        """Adds two numbers."""
        return a + b
    forced = langchain_model(max_tokens=200).bind_tools([add], tool_choice="add")
    call = forced.invoke(QUESTION).tool_calls[0]
    assert call["name"] == "add" and set(call["args"]) == {"a", "b"}, call
    messages = [HumanMessage(QUESTION), AIMessage("", tool_calls=[call]), ToolMessage("4", tool_call_id=call["id"])]
    assert langchain_model(max_tokens=20).invoke(messages) is not None


@test("/v1/chat/completions", SCHEMA)
def langchain_schema():
    model = langchain_model(max_tokens=100).with_structured_output(Thing, method="json_schema")
    assert isinstance(model.invoke(QUESTION), Thing)


def main():
    failed = 0
    for function, path, body in TESTS:
        name = function.__name__
        if not has(path, body):
            failed += ALL
            print(f"{'FAILED' if ALL else 'skipped'}: {name}: the server has no "
                  + (f"{list(body)[-1]} at {path}" if body else path))
            continue
        try:
            function()
            print(f"ok: {name}")
        except Exception:
            failed += 1
            print(f"FAILED: {name}")
            traceback.print_exc(file=sys.stdout, limit=-3)
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
