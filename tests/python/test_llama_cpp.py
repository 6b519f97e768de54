"""The names of llama-cpp-python."""

from __future__ import annotations

import json
from typing import Any, Iterator

import pytest
from conftest import fixture

import wayinfer
from wayinfer.llama_cpp import Llama, LlamaGrammar, _hub_name

QUESTION = [{"role": "user", "content": "What is 2+2?"}]
ANSWER = "The sum of 2 and 2 is 4."


@pytest.fixture(scope="module")
def llama() -> Iterator[Llama]:
    llama = Llama(str(fixture("dense-q8_0")), n_ctx=256, n_threads=2, seed=7, verbose=False, n_batch=64, use_mmap=True)
    yield llama
    llama.close()


def test_completions(llama: Llama) -> None:
    answer = llama("Once upon", max_tokens=8, temperature=0)
    text = answer["choices"][0]["text"]
    assert answer["object"] == "text_completion" and "wayinfer" not in answer
    assert answer["usage"]["completion_tokens"] == 8 and answer["choices"][0]["finish_reason"] == "length"
    assert llama.create_completion("Once upon", max_tokens=8, temperature=0, echo=True)["choices"][0]["text"] == (
        "Once upon" + text
    )
    chunks = list(llama.create_completion("Once upon", max_tokens=8, temperature=0, stream=True))
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks if chunk["choices"]) == text
    assert len(llama("a", temperature=0)["choices"][0]["text"]) > 0
    # The seed of the model is that of each text.
    assert llama("a", max_tokens=9)["choices"] == llama("a", max_tokens=9)["choices"]
    drawn = llama.model.generate(
        "a", wayinfer.SamplingParams(max_tokens=9, temperature=0.8, top_k=40, top_p=0.95, min_p=0.05, seed=7)
    )
    assert llama("a", max_tokens=9)["choices"][0]["text"] == drawn.text
    assert llama("a", max_tokens=9, seed=8)["choices"] != llama("a", max_tokens=9)["choices"]
    assert llama.create_completion(llama.tokenize(b"a"), max_tokens=9)["choices"][0]["text"] == drawn.text


def test_chats() -> None:
    llama = Llama("demo", n_ctx=0, verbose=False)
    assert llama.n_ctx() == llama.model.facts["trained_context"]
    answer = llama.create_chat_completion(QUESTION, temperature=0)
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": ANSWER}
    chunks = list(llama.create_chat_completion(QUESTION, temperature=0, stream=True))
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert "".join(delta.get("content") or "" for delta in deltas) == ANSWER
    held = llama.create_chat_completion(
        QUESTION, response_format={"type": "json_object"}, temperature=0, max_tokens=20
    )
    assert held["choices"][0]["message"]["content"].startswith("{")
    nothing = {"type": "object", "properties": {}, "additionalProperties": False}
    tool: Any = {"type": "function", "function": {"name": "f", "parameters": nothing}}
    choice = {"type": "function", "function": {"name": "f"}}
    called = llama.create_chat_completion(QUESTION, tools=[tool], tool_choice=choice, max_tokens=100)
    assert called["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "f"
    grammar = LlamaGrammar.from_string('root ::= "yes"')
    assert llama.create_chat_completion(QUESTION, grammar=grammar)["choices"][0]["message"]["content"] == "yes"
    schema = LlamaGrammar.from_json_schema('{"type": "integer"}')
    made = llama.create_completion("x", grammar=schema, max_tokens=20, temperature=0)["choices"][0]["text"]
    assert isinstance(json.loads(made), int)


def test_tokens(llama: Llama) -> None:
    ids = llama.tokenize("Grüße".encode())
    assert ids[0] == llama.token_bos() and ids == llama.model.tokenize("Grüße")
    assert llama.tokenize(b"a", add_bos=False) == ids[:0] + llama.model.tokenize("a", add_special=False)
    assert llama.detokenize(llama.tokenize("Grüße".encode(), add_bos=False)).strip() == "Grüße".encode()
    assert llama.n_vocab() == llama.model.vocab and llama.n_ctx() == 256
    assert llama.token_eos() in llama.model.facts["ends"]
    assert llama.metadata["general.architecture"] == llama.model.facts["architecture"]
    assert int(llama.metadata[f"{llama.metadata['general.architecture']}.embedding_length"]) == llama.n_embd()


def test_token_by_token(llama: Llama) -> None:
    ids = llama.tokenize(b"Once upon")
    made = []
    for id in llama.generate(ids, temp=0):
        made.append(id)
        if len(made) == 8:
            break
    text = llama("Once upon", max_tokens=8, temperature=0)["choices"][0]["text"]
    assert llama.detokenize(made).decode(errors="replace").strip() == text.strip()
    llama.reset()
    llama.eval(ids)
    state = llama.save_state()
    one = []
    for _ in range(8):
        one.append(llama.sample(temp=0))
        llama.eval(one[-1:])
    assert one == made and llama.n_tokens == len(ids) + 8
    llama.load_state(state)
    assert llama.n_tokens == len(ids) and llama.sample(temp=0) == made[0]
    # Behind a prompt that begins alike.
    again = [id for id, _ in zip(llama.generate(ids, temp=0), range(8))]
    assert again == made


def test_what_would_change_an_answer_is_refused(llama: Llama) -> None:
    path = str(fixture("dense-q8_0"))
    for name, value in {"lora_path": "x", "embedding": True, "rope_freq_scale": 0.5, "chat_handler": 1}.items():
        with pytest.raises(wayinfer.Unsupported, match=name):
            Llama(path, **{name: value})
    with pytest.raises(TypeError, match="n_contexts is not known"):
        Llama(path, n_contexts=1)
    with pytest.raises(wayinfer.Unsupported, match="type_k=99"):
        Llama(path, type_k=99)
    with pytest.raises(wayinfer.Unsupported, match="mirostat_mode"):
        llama("a", mirostat_mode=2)
    with pytest.raises(wayinfer.Unsupported, match="logits_processor"):
        llama.create_completion("a", logits_processor=[1])
    with pytest.raises(TypeError, match="temprature"):
        llama.create_chat_completion(QUESTION, temprature=1)
    assert llama("a", max_tokens=1, mirostat_mode=0, typical_p=1.0, tfs_z=1.0)
    for embed in (llama.embed, llama.create_embedding):
        with pytest.raises(wayinfer.Unsupported, match="embed"):
            embed("a")


def test_names_of_the_hub() -> None:
    assert _hub_name("u/r", "m-q4_k_m.gguf") == "hf:u/r/m-q4_k_m.gguf"
    assert _hub_name("u/r", "*q4_k_m.gguf") == "hf:u/r:q4_k_m"
    assert _hub_name("u/r", "*Q8_0*") == "hf:u/r:Q8_0"
    assert _hub_name("u/r", None) == "hf:u/r"
    with pytest.raises(wayinfer.UsageError, match="is needed"):
        _hub_name("u/r", "[a-z]*")
    with pytest.raises(wayinfer.Unsupported, match="local_dir"):
        Llama.from_pretrained("u/r", "m.gguf", local_dir="x")


def test_what_cannot_be_fetched_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(wayinfer.FileError) as raised:
        Llama.from_pretrained("user/repo", "*q4_k_m.gguf")
    assert "user/repo" in str(raised.value)
