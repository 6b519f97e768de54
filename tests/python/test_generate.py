"""Texts: those of the command line, whatever way they are asked for."""

from __future__ import annotations

import json
import threading
from typing import Any, List

import pytest
from conftest import PROMPTS, cli, fixture

import wayinfer
from wayinfer import Model, Piece, SamplingParams

DENSE = fixture("dense-q8_0")
QUESTION = [{"role": "user", "content": "What is 2+2?"}]
ANSWER = "The sum of 2 and 2 is 4."
DRAWN = SamplingParams(max_tokens=24, temperature=0.9, seed=7)
GREEDY = SamplingParams(max_tokens=24, temperature=0)


def texts(pieces: List[Piece], index: int = 0) -> str:
    return "".join(piece.text for piece in pieces if piece.index == index)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_text_is_the_command_lines(dense: Model, prompt: str) -> None:
    greedy = cli("generate", "-m", DENSE, "-p", prompt, "--greedy", "-n", 24, "--json").json
    assert dense.generate(prompt, GREEDY).text == greedy["text"]
    drawn = cli("generate", "-m", DENSE, "-p", prompt, "--temp", 0.9, "--seed", 7, "-n", 24, "--json").json
    output = dense.generate(prompt, DRAWN)
    assert (output.text, output.seed) == (drawn["text"], 7)
    assert output.prompt_tokens == len(drawn["prompt_ids"])
    # By its ids, too.
    assert dense.generate(drawn["prompt_ids"], DRAWN).text == drawn["text"]
    if prompt == PROMPTS[0]:
        assert greedy["text"] != drawn["text"], "what draws shows"


def test_chat_is_the_command_lines(demo: Model) -> None:
    said = cli("generate", "-p", "What is 2+2?", "--json").json["text"]
    answer = demo.chat(QUESTION)
    assert answer.text == said == ANSWER == str(answer)
    assert answer.message == {"role": "assistant", "content": ANSWER}
    assert answer.finish_reason == "stop"
    again = demo.chat([*QUESTION, answer.message, {"role": "user", "content": "What is 3+4?"}])
    assert again.text == "The sum of 3 and 4 is 7."


def test_among_others_as_alone(dense: Model) -> None:
    each = [SamplingParams(max_tokens=20, temperature=0.8, seed=seed) for seed in range(len(PROMPTS))]
    together = dense.generate(PROMPTS, each)
    alone = [dense.generate(prompt, params) for prompt, params in zip(PROMPTS, each)]
    assert [output.text for output in together] == [output.text for output in alone]
    assert [output.prompt for output in together] == PROMPTS
    assert len({output.text for output in together}) > 1
    # More than are under way at a time.
    many = dense.generate(["a"] * 50, SamplingParams(max_tokens=3, temperature=0))
    assert [output.text for output in many] == [dense.generate("a", SamplingParams(max_tokens=3, temperature=0)).text] * 50
    assert dense.generate([]) == []


def test_answers_have_seeds_one_after_another(dense: Model) -> None:
    output = dense.generate("a", SamplingParams(max_tokens=12, temperature=1.2, seed=3, n=3))
    alone = [dense.generate("a", SamplingParams(max_tokens=12, temperature=1.2, seed=3 + i)).text for i in range(3)]
    assert [made.text for made in output.outputs] == alone
    assert len(set(alone)) == 3


def test_pieces_are_the_whole(dense: Model, demo: Model) -> None:
    pieces = list(dense.generate("a", DRAWN, stream=True))
    assert texts(pieces) == dense.generate("a", DRAWN).text
    assert len(pieces) > 2 and pieces[-1].finish_reason == "length"
    two = SamplingParams(max_tokens=8, temperature=1, seed=1, n=2)
    pieces = list(dense.generate(["a", "b"], two, stream=True))
    whole = [made.text for output in dense.generate(["a", "b"], two) for made in output.outputs]
    assert [texts(pieces, i) for i in range(4)] == whole
    assert texts(list(demo.chat(QUESTION, stream=True))) == ANSWER


def test_a_stream_ends_where_it_is_closed(dense: Model) -> None:
    endless = SamplingParams(temperature=0, logit_bias={id: -100 for id in dense.facts["ends"]})
    with dense.generate("a", endless, stream=True) as stream:
        first = next(stream)
    assert first.text
    with pytest.raises((StopIteration, wayinfer.Error)):
        while True:
            next(stream)
    assert dense.generate("a", GREEDY).text == dense.generate("a", GREEDY).text


def test_stops_and_reasons(demo: Model) -> None:
    assert demo.chat(QUESTION, SamplingParams(stop=[" is"])).text == "The sum of 2 and 2"
    cut = demo.chat(QUESTION, SamplingParams(max_tokens=3))
    assert (cut.finish_reason, cut.completion_tokens) == ("length", 3)
    assert ANSWER.startswith(cut.text)


def test_formats_are_kept(demo: Model) -> None:
    schema = {"type": "object", "properties": {"sum": {"enum": [3, 4]}}, "additionalProperties": False}
    schema["required"] = ["sum"]
    wanted = {"type": "json_schema", "json_schema": {"name": "sum", "schema": schema}}
    params = SamplingParams(max_tokens=60, temperature=0)
    assert isinstance(json.loads(demo.chat(QUESTION, params, response_format=wanted).text)["sum"], int)
    held = demo.generate("x", SamplingParams(max_tokens=30, temperature=0, regex="[0-9]{3}"))
    assert held.text.isdigit() and len(held.text) == 3
    grammar = SamplingParams(max_tokens=30, temperature=0, grammar='root ::= "yes" | "no"')
    assert demo.generate("x", grammar).text in ("yes", "no")


def test_tools_are_called(demo: Model) -> None:
    parameters = {"type": "object", "properties": {"a": {"enum": [3, 4]}}, "additionalProperties": False}
    tool = {"type": "function", "function": {"name": "add", "parameters": parameters}}
    params = SamplingParams(max_tokens=120, temperature=0)
    answer = demo.chat(QUESTION, params, tools=[tool], tool_choice="required")
    assert answer.finish_reason == "tool_calls"
    call = answer.tool_calls[0]
    assert call["function"]["name"] == "add" and call["id"]
    assert json.loads(call["function"]["arguments"]) in ({}, {"a": 3}, {"a": 4})
    pieces = list(demo.chat(QUESTION, params, tools=[tool], tool_choice="required", stream=True))
    parts = [part["function"].get("arguments", "") for piece in pieces for part in piece.tool_calls]
    assert "".join(parts) == call["function"]["arguments"]


def test_probabilities(dense: Model) -> None:
    params = SamplingParams(max_tokens=4, temperature=0, logprobs=2)
    logprobs = dense.generate("a", params).outputs[0].logprobs
    assert logprobs is not None and len(logprobs["token_logprobs"]) == 4
    assert all(len(top) == 2 for top in logprobs["top_logprobs"])


def test_threads_share_a_model(dense: Model) -> None:
    made: List[Any] = [None] * 4

    def work(at: int) -> None:
        made[at] = [dense.generate(prompt, DRAWN).text for prompt in PROMPTS[at::4]]

    threads = [threading.Thread(target=work, args=(at,)) for at in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [[dense.generate(prompt, DRAWN).text for prompt in PROMPTS[at::4]] for at in range(4)]


def test_requests_in_every_dialect(demo: Model) -> None:
    told = demo.request("POST", "/v1/messages", {"max_tokens": 30, "messages": QUESTION, "temperature": 0}).json()
    assert told["content"][0]["text"] == ANSWER
    call = demo.request("GET", "/health")
    assert (call.status, call.content_type, call.read()) == (200, "application/json", b'{"status":"ok"}')
    assert demo.request("GET", "/no/such/path").status == 404
