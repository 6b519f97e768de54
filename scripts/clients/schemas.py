#!/usr/bin/env python3
"""Structured output held to JSON schemas that others wrote: every answer is valid, or the schema is refused.

    schemas.py URL [--key KEY] [--schemas N] [--jobs N] [--canary]

The server serves the demo. The schemas are the parameters of the functions of PyPI's bfcl-eval, those within
the tests of the crate llguidance where cargo has fetched it, and some of our own. Each is asked for four
times: as a response_format and as a forced call of a tool, greedy and sampled with a seed. PyPI's jsonschema
judges the answers. One that max_tokens cut is counted apart: it is none. What is no schema must be refused,
with the field. --schemas takes so many of bfcl-eval's alone, and a third as many of the crate's. With
--canary one answer is altered, which has to be noticed: exit code 1 where it is not.
"""

import argparse
import collections
import concurrent.futures
import glob
import importlib.util
import json
import os
import re
import sys
import time
import urllib.error
import urllib.request

import jsonschema

# The demo was never shown JSON: without a push towards what ends a text, a list and an object it hardly ever
# ends one. A text's end is pushed most: what ends an object may stand in a text too.
ENDS = {'"': 16, "}": 9, "]": 9}
MAX_TOKENS = 320

# Types of other languages, which bfcl-eval has beside those of JSON Schema, by what they are there.
TYPES = {"dict": "object", "HashMap": "object", "float": "number", "double": "number", "long": "integer",
         "tuple": "array", "Array": "array", "ArrayList": "array", "String": "string", "char": "string",
         "Boolean": "boolean", "any": None, "": None}

OWN = [
    {"type": "object", "properties": {"a": {"const": 5}, "b": {"enum": ["x", 1, None, [2]]}},
     "required": ["b", "a"], "additionalProperties": False},
    {"type": "object", "properties": {"tree": {"$ref": "#/$defs/node"}}, "required": ["tree"],
     "$defs": {"node": {"type": "object", "properties": {
         "value": {"type": "integer", "minimum": 0, "maximum": 9},
         "children": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 2}},
         "required": ["value"], "additionalProperties": False}}},
    {"type": "object", "properties": {
        "day": {"type": "string", "format": "date"}, "time": {"type": "string", "format": "time"},
        "id": {"type": "string", "format": "uuid"},
        "code": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
        "short": {"type": "string", "minLength": 2, "maxLength": 5}},
     "required": ["day", "time", "id", "code", "short"], "additionalProperties": False},
    {"type": "object", "properties": {
        "price": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
        "even": {"type": "integer", "multipleOf": 2, "minimum": 10, "maximum": 98},
        "pair": {"type": "array", "prefixItems": [{"type": "boolean"}, {"type": "null"}], "items": False,
                 "minItems": 2}},
     "required": ["price", "even", "pair"], "additionalProperties": False},
    {"type": "object", "properties": {
        "either": {"anyOf": [{"type": "null"}, {"type": "string", "maxLength": 3}]},
        "list": {"type": "array", "minItems": 2, "maxItems": 3, "items": {"type": ["integer", "boolean"]}}},
     "required": ["either", "list"], "additionalProperties": {"type": "boolean"}},
    {"type": "object", "allOf": [{"properties": {"a": {"type": "integer", "minimum": 3}}, "required": ["a"]},
                                 {"properties": {"b": {"type": "boolean"}}, "required": ["b"]}]},
    {"type": "object", "properties": {"é \"quoted\"": {"type": "boolean"}, "": {"type": "null"}},
     "required": ["é \"quoted\"", ""], "additionalProperties": False},
]

# What is no schema, or holds an answer to more than can be done token by token.
REFUSED = [
    {"type": "dict", "properties": {"a": {"type": "string"}}},
    {"type": "object", "properties": {"a": {"type": "float"}}},
    {"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}},
    {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}, "required": ["a"]},
    {"type": "object", "properties": {"a": {"not": {"type": "string"}}}, "required": ["a"]},
    {"type": "object", "properties": {"a": {"$ref": "#/$defs/none"}}},
    {"type": "object", "properties": {"a": False}, "required": ["a"]},
    {"type": "object", "if": {"required": ["a"]}, "then": {"required": ["b"]}},
    {"type": "object", "dependentRequired": {"a": ["b"]}, "properties": {"a": {}, "b": {}}},
    {"type": "object", "required": ["a"],
     "properties": {"a": {"type": "integer", "minimum": 5, "maximum": 4}}},
]

# A literal of the crate's tests with one of these is a schema.
KEYWORDS = set("""type properties items enum const anyOf oneOf allOf $ref pattern format minimum maximum
    exclusiveMinimum exclusiveMaximum multipleOf minLength maxLength minItems maxItems prefixItems required
    additionalProperties patternProperties""".split())


def translated(schema):
    """A schema of bfcl-eval in the types of JSON Schema, without the prose."""
    if isinstance(schema, list):
        return [translated(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = {}
    for key, value in schema.items():
        if key == "properties" and isinstance(value, dict):
            made[key] = {name: translated(part) for name, part in value.items()}
        elif key == "type" and isinstance(value, str):
            if TYPES.get(value, value):
                made[key] = TYPES.get(value, value)
        elif key in ("enum", "required", "const"):
            made[key] = value
        elif key not in ("description", "default", "optional"):
            made[key] = translated(value)
    return made


def bfcl():
    """The parameters of the functions of bfcl-eval."""
    found = importlib.util.find_spec("bfcl_eval")
    if not found:
        sys.exit("bfcl-eval is needed: pip install --no-deps bfcl-eval")
    data = os.path.join(os.path.dirname(found.origin), "data")
    for path in sorted(glob.glob(data + "/*.json") + glob.glob(data + "/multi_turn_func_doc/*.json")):
        for line in open(path, encoding="utf-8"):
            try:
                entry = json.loads(line)
            except ValueError:
                break  # One that is no table of functions.
            functions = entry.get("function") or [entry]
            for function in functions if isinstance(functions, list) else [functions]:
                if isinstance(function.get("parameters"), dict):
                    yield function["parameters"]


def llguidance():
    """The schemas within the crate's tests: literal arguments of json!() that have a schema's keywords."""
    home = os.environ.get("CARGO_HOME", os.path.expanduser("~/.cargo"))
    for path in sorted(glob.glob(home + "/registry/src/*/llguidance-*/tests/test_json_*.rs")):
        text = re.sub(r",(\s*[\]}])", r"\1", open(path, encoding="utf-8").read())
        for place in re.finditer(r"json!\(\s*(?=\{)", text):
            try:
                schema, _ = json.JSONDecoder().raw_decode(text, place.end())
            except ValueError:
                continue  # With Rust in it.
            if KEYWORDS & schema.keys():
                yield schema


def unique(schemas):
    seen = {}
    for schema in schemas:
        seen.setdefault(json.dumps(schema, sort_keys=True), schema)
    return list(seen.values())


def spread(all_of_them, count):
    """So many of a list, evenly."""
    count = min(count, len(all_of_them))
    return [all_of_them[n * len(all_of_them) // count] for n in range(count)]


class Server:
    def __init__(self, url, key):
        self.url, self.headers = url.rstrip("/"), {"Content-Type": "application/json"}
        if key:
            self.headers["Authorization"] = f"Bearer {key}"

    def post(self, path, body):
        """The status and the JSON of a reply."""
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), self.headers)
        try:
            with urllib.request.urlopen(request, timeout=600) as reply:
                return reply.status, json.load(reply)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def bias(self):
        return {str(self.post("/tokenize", {"content": end})[1]["tokens"][0]): by for end, by in ENDS.items()}


WAYS = [(kind, sampled) for kind in ("format", "call") for sampled in (False, True)]


def body_of(schema, kind, seed, bias):
    """A request for an answer of this schema; greedy without a seed."""
    body = {"model": "demo", "messages": [{"role": "user", "content": "What is 2+2?"}],
            "max_tokens": MAX_TOKENS, "logit_bias": bias, "temperature": 0 if seed is None else 1.2}
    if seed is not None:
        body["seed"] = seed
    if kind == "format":
        body["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    else:
        body["tools"] = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
        body["tool_choice"] = {"type": "function", "function": {"name": "f"}}
        body["parallel_tool_calls"] = False
    return body


def answer_of(reply, kind):
    """The JSON text of an answer, or None where it was cut."""
    choice = reply["choices"][0]
    if choice["finish_reason"] == "length":
        return None
    if kind == "format":
        assert choice["finish_reason"] == "stop", choice
        return choice["message"]["content"]
    assert choice["finish_reason"] == "tool_calls", choice
    calls = choice["message"]["tool_calls"]
    assert len(calls) == 1 and calls[0]["function"]["name"] == "f" and calls[0]["id"], choice
    return calls[0]["function"]["arguments"]


def judged(schema, kind, text):
    """Why a text is no answer of a schema, or None."""
    # A call's arguments are an object whatever the schema says; JSON has no NaN.
    def no_constant(name):
        raise ValueError(f"{name} is no JSON")
    try:
        value = json.loads(text, parse_constant=no_constant)
    except ValueError as error:
        return f"no JSON: {error}"
    if kind == "call" and not isinstance(value, dict):
        return "the arguments are no object"
    validator = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)
    try:
        validator.check_schema(schema)
        wrong = next(validator(schema, format_checker=validator.FORMAT_CHECKER).iter_errors(value), None)
    except Exception as error:  # References to nowhere have one of another library's.
        return f"the schema is none: {type(error).__name__}"
    return wrong and f"{wrong.message} at {wrong.json_path}"


def is_refusal(status, reply, kind):
    """Whether a reply says clearly that it is the schema that is wrong, in the field that has it."""
    field = "response_format" if kind == "format" else "tools"
    error = reply.get("error", {})
    return status == 400 and error.get("param") == field and error.get("message", "").startswith(field + ": ")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("--key")
    parser.add_argument("--schemas", type=int)
    parser.add_argument("--jobs", type=int, default=8)
    parser.add_argument("--canary", action="store_true")
    parser.add_argument("--verbose", action="store_true", help="show what is refused and cut")
    options = parser.parse_args()
    server = Server(options.url, options.key)
    bias = server.bias()

    theirs = unique(bfcl())
    sets = {"bfcl-eval": unique(translated(schema) for schema in theirs), "llguidance": unique(llguidance()),
            "own": OWN}
    if options.schemas:
        sets["bfcl-eval"] = spread(sets["bfcl-eval"], options.schemas)
        sets["llguidance"] = spread(sets["llguidance"], options.schemas // 3)
    # With types that JSON Schema has not.
    foreign = [schema for schema in theirs if schema.get("type") in TYPES]
    refused = REFUSED + spread(foreign, options.schemas // 4 if options.schemas else 200)
    tasks = [(name, number, schema, *way) for name, schemas in sets.items()
             for number, schema in enumerate(schemas) for way in WAYS]
    tasks += [("to be refused", number, schema, kind, False)
              for number, schema in enumerate(refused) for kind in ("format", "call")]

    def ask(task):
        name, number, schema, kind, sampled = task
        status, reply = server.post("/v1/chat/completions",
                                    body_of(schema, kind, 1000 + number if sampled else None, bias))
        if status != 200:
            clear = is_refusal(status, reply, kind)
            return "refused" if clear else "wrong", reply["error"]["message"]
        try:
            text = answer_of(reply, kind)
        except AssertionError as error:
            return "wrong", str(error)
        return ("cut", reply["choices"][0]["message"]) if text is None else ("answer", text)

    began = time.time()
    counts = collections.defaultdict(collections.Counter)
    failures, altered = [], False
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        for task, (what, text) in zip(tasks, pool.map(ask, tasks)):
            name, number, schema, kind, sampled = task
            if what == "answer":
                if options.canary and not altered and schema.get("type") == "object":
                    text, altered = f"[{text}]", True
                why = judged(schema, kind, text)
                what = "invalid" if why else "valid"
                text = f"{why}: {text}"
            way = kind + (", sampled" if sampled else "")
            shown = f"{name} {number}, {way}: {text}\n    {json.dumps(schema)}"
            # Of what others use every day nothing may be refused; nothing that is no schema may be answered.
            unexpected = {"bfcl-eval": {"refused"}, "own": {"refused"}, "to be refused": {"valid", "cut"}}
            if what in {"invalid", "wrong"} | unexpected.get(name, set()):
                failures.append(f"{what}: {shown}")
            elif what in ("refused", "cut") and options.verbose:
                print(f"{what}: {shown}")
            counts[name][what] += 1

    print(f"schemas: {', '.join(f'{name} {len(schemas)}' for name, schemas in sets.items())}; "
          f"{len(tasks)} requests in {time.time() - began:.0f} s")
    for name, count in counts.items():
        print(f"  {name:14}" + ", ".join(f"{what} {count[what]}" for what in
                                         ("valid", "refused", "cut", "invalid", "wrong")))
    if options.canary:
        noticed = altered and len(failures) == 1 and failures[0].startswith("invalid")
        print("the altered answer was noticed" if noticed else "THE ALTERED ANSWER WAS NOT NOTICED")
        return 0 if noticed else 1
    for failure in failures[:20]:
        print(failure)
    valid = sum(count["valid"] for count in counts.values())
    cut = sum(count["cut"] for count in counts.values())
    if cut * 5 > valid:
        failures.append("")
        print(f"{cut} answers cut, {valid} valid: too many of them did not end")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
