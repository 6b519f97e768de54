"""Sessions: the bits of a text that was read in one piece."""

from __future__ import annotations

import gc
import json
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Callable, Iterator

import numpy as np
import pytest
from conftest import cli, fixture

import wayinfer
from wayinfer import Model, SamplingParams

GREEDY = SamplingParams(max_tokens=12, temperature=0)
LONG = "a long text of more than one page of 128 tokens, " * 6


# A plain one, one with windows, one with recurrences.
@pytest.fixture(scope="module", params=["dense-q8_0", "gemma3", "mamba2"])
def model(request: pytest.FixtureRequest) -> Iterator[Model]:
    with Model(fixture(request.param), threads=2) as model:
        yield model


def endless(model: Model, tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens=tokens, temperature=0, logit_bias={id: -100 for id in model.facts["ends"]})


def test_logits_are_those_of_the_whole_text(model: Model) -> None:
    session = model.session().append(LONG)
    tokens = session.tokens
    assert tokens == model.tokenize(LONG) and len(session) == len(tokens) > 128
    whole = model.logits(tokens)
    assert whole.shape == (len(tokens), model.vocab) and whole.dtype == np.float32
    assert np.array_equal(session.logits(), whole[-1])
    in_parts = model.session()
    for at in range(0, len(tokens), 50):
        in_parts.append(tokens[at : at + 50])
        assert np.array_equal(in_parts.logits(), whole[min(at + 50, len(tokens)) - 1])


def test_texts_are_those_of_generate(model: Model) -> None:
    params = endless(model, 20)
    session = model.session().append("Once upon")
    made = session.generate(params)
    assert made.text == model.generate("Once upon", params).text
    assert made.finish_reason == "length"
    # All that was drawn is part of it.
    assert len(session) == len(model.tokenize("Once upon")) + 20
    on = model.session().append(session.tokens)
    assert np.array_equal(on.logits(), session.logits())
    pieces = list(on.generate(params, stream=True))
    assert "".join(piece.text for piece in pieces) == session.generate(params).text
    assert [piece.token for piece in pieces if piece.token is not None] == on.tokens[-20:]


def test_forks_go_their_own_ways(model: Model) -> None:
    session = model.session().append(LONG)
    fork = session.fork()
    fork.append("x")
    session.append("y")
    for each, more in ((fork, "x"), (session, "y")):
        alone = model.session().append(model.tokenize(LONG) + model.tokenize(more, add_special=False))
        assert np.array_equal(each.logits(), alone.logits())
    assert not np.array_equal(fork.logits(), session.logits())


def test_rewound_as_if_it_had_never_been_read(model: Model) -> None:
    session = model.session().append(LONG)
    tokens = session.tokens
    session.generate(endless(model, 5))
    session.rewind(130)
    assert session.tokens == tokens[:130]
    assert np.array_equal(session.logits(), model.logits(tokens[:130])[-1])
    assert len(session.rewind(0)) == 0
    session.append("Once")
    assert np.array_equal(session.logits(), model.logits(model.tokenize("Once"))[-1])
    with pytest.raises(wayinfer.UsageError, match="tokens to go back in, not 9999"):
        session.rewind(9999)


def test_saved_and_read_back(model: Model, tmp_path: Path) -> None:
    session = model.session().append(LONG)
    session.generate(endless(model, 5))
    folder = tmp_path / "kept"
    session.save(folder)
    assert any(path.suffix == ".page" for path in folder.iterdir())
    loaded = model.load_session(folder)
    assert loaded.tokens == session.tokens
    assert np.array_equal(loaded.logits(), session.logits())
    # What is damaged is computed anew.
    for path in folder.glob("*.page"):
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert np.array_equal(model.load_session(folder).logits(), session.logits())


def test_folders_that_hold_no_session(model: Model, demo: Model, tmp_path: Path) -> None:
    with pytest.raises(wayinfer.FileError, match="session.json"):
        model.load_session(tmp_path / "nothing")
    model.session().append("a").save(tmp_path)
    with pytest.raises(wayinfer.FileError, match="the session is of another model"):
        demo.load_session(tmp_path)
    file = tmp_path / "session.json"
    good = json.loads(file.read_text())
    for bad in (b"", b"[]", b"\xff", json.dumps({**good, "format": 9}).encode()):
        file.write_bytes(bad)
        with pytest.raises(wayinfer.FileError, match="session.json"):
            model.load_session(tmp_path)
    file.write_text(json.dumps({**good, "tokens": [model.vocab]}))
    with pytest.raises(wayinfer.FileError, match="is outside the vocabulary"):
        model.load_session(tmp_path)


def test_what_cannot_be(model: Model) -> None:
    session = model.session()
    with pytest.raises(wayinfer.UsageError, match="there are no logits"):
        session.generate(GREEDY)
    with pytest.raises(wayinfer.UsageError, match="outside the vocabulary"):
        session.append([model.vocab])
    with pytest.raises(wayinfer.ContextFull, match="do not fit the context"):
        session.append([1] * (model.context + 1))
    assert len(session) == 0
    session.drop()
    with pytest.raises(wayinfer.UsageError, match="the session has been dropped"):
        session.append("a")


def test_a_session_outlives_the_name_of_its_model() -> None:
    wanted = None
    with Model(fixture("dense-q8_0"), threads=1) as model:
        wanted = model.logits(model.tokenize("a"))[-1]
    session = Model(fixture("dense-q8_0"), threads=1).session()
    gc.collect()
    assert np.array_equal(session.append("a").logits(), wanted)
    session._model.close()
    with pytest.raises(wayinfer.Error):
        session.append("b")


def test_full_contexts_end_texts() -> None:
    with Model(fixture("dense-q8_0"), threads=1, context=40) as model:
        session = model.session().append("a")
        made = session.generate(endless(model, 1000))
        assert made.finish_reason == "length" and len(session) == 41


def test_sampling_draws_what_generating_does(dense: Model) -> None:
    params = SamplingParams(temperature=0.9, seed=5, max_tokens=1)
    session = dense.session().append("Once")
    drawn = session.sample(params)
    assert len(session) == len(dense.tokenize("Once"))
    assert next(iter(session.fork().generate(params, stream=True))).token == drawn


def test_logits_are_the_traces(dense: Model, tmp_path: Path) -> None:
    saved = tmp_path / "trace.safetensors"
    ran = cli("trace", "-m", fixture("dense-q8_0"), "-p", "Once upon a time", "--save", saved, "-t", 1)
    assert ran.code == 0, ran.told
    raw = saved.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    logits = dense.logits(dense.tokenize("Once upon a time"))
    names = [name for name in header if "result_output" in name]
    assert names, sorted(header)[:9]
    start, end = header[names[0]]["data_offsets"]
    traced = np.frombuffer(raw[8 + size + start : 8 + size + end], dtype="<f4")
    assert np.array_equal(logits[-len(traced) // logits.shape[1] :].ravel(), traced)


def test_sessions_go_on_together(model: Model) -> None:
    texts, params = ["Once upon", "a", LONG, "The sum of 2 and 2"], endless(model, 24)
    alone = [model.session().append(text).generate(params).text for text in texts]
    begin = threading.Barrier(len(texts))

    def go_on(number: int) -> str:
        begin.wait()
        session = model.session().append(texts[number])
        if number % 2 == 0:
            return session.generate(params).text
        return "".join(piece.text for piece in session.generate(params, stream=True))

    with ThreadPoolExecutor(len(texts)) as pool:
        made = pool.map(go_on, range(len(texts)))
        beside = model.generate("Z", params).text
        assert list(made) == alone
    assert beside == model.generate("Z", params).text


def test_a_stream_is_left_where_its_reader_stands(model: Model) -> None:
    session = model.session().append(LONG)
    before, params = session.tokens, endless(model, 30)
    pieces = session.generate(params, stream=True)
    taken = [next(pieces).token for _ in range(5)]
    assert session.tokens == before + taken
    assert np.array_equal(session.logits(), model.session().append(before + taken).logits())
    # It goes on behind what has come in between.
    fork = session.append("x").fork()
    assert next(pieces).token == next(fork.generate(params, stream=True)).token
    assert session.tokens == fork.tokens
    del pieces
    assert session.tokens == fork.tokens


def test_forks_are_taken_while_it_goes_on(model: Model) -> None:
    session = model.session().append("Once upon")
    with ThreadPoolExecutor(1) as pool:
        made = pool.submit(session.generate, endless(model, 60))
        forks = [session.fork() for _ in range(8)]
        assert made.result().finish_reason == "length"
    wanted = model.session().append("Once upon")
    wanted.generate(endless(model, 60))
    assert session.tokens == wanted.tokens
    for fork in forks:
        assert fork.tokens == wanted.tokens[: len(fork)]
    assert np.array_equal(forks[-1].logits(), model.logits(forks[-1].tokens)[-1])


def test_a_model_is_closed_while_a_stream_rests() -> None:
    with Model(fixture("dense-q8_0"), threads=1) as model:
        rests = model.session().append("a").generate(endless(model, 1000), stream=True)
        assert next(rests).token is not None
        waits = model.session().append("b").generate(endless(model, 1000), stream=True)
        began = time.monotonic()
    for pieces in (rests, waits):
        with pytest.raises(wayinfer.Error):
            list(pieces)
    assert time.monotonic() - began < 5


def session_bytes(model: Model, wanted: Callable[[float], bool]) -> None:
    """Waits until the model tells of such a number of bytes."""
    told = ["none"]
    for _ in range(100):
        metrics = model.request("GET", "/metrics").read().decode()
        told = re.findall(r"^wayinfer_session_bytes\S* (\S+)$", metrics, re.MULTILINE)
        if wanted(float(told[0])):
            return
        time.sleep(0.05)
    raise AssertionError(f"sessions have {told}")


def test_sessions_have_memory_of_their_model() -> None:
    with Model(fixture("dense-q8_0"), threads=1, parallel=1, context=512) as model:
        large, small = model.session().append([5] * 400), model.session()
        fork = large.fork()
        session_bytes(model, lambda told: told > 0)
        for need in (lambda: small.append("a"), lambda: model.generate("a"), fork.generate):
            with pytest.raises(wayinfer.OutOfMemory, match="there is no room for .* sessions keep") as caught:
                need()
            assert "kv=" in f"{caught.value} {caught.value.hint}"
        assert (len(small), len(fork)) == (0, 400)
        # It goes on in what it has, once that is its own.
        fork.drop()
        assert large.generate(endless(model, 20)).finish_reason == "length"
        large.drop()
        assert len(small.append("a")) > 0
        assert model.generate("a", SamplingParams(max_tokens=4)).completion_tokens > 0
        small.drop()
        session_bytes(model, lambda told: told == 0)
