"""Stages of a model in one process: the bits of the whole."""

import pytest
from conftest import fixture

import wayinfer
from wayinfer.stage import Part, Stage, check_stages, costs

np = pytest.importorskip("numpy")

PROMPT = [5, 9, 14, 3, 7, 21]


def test_stages_are_the_whole():
    path = fixture("dense-q8_0")
    with wayinfer.Model(path, context=64) as model:
        want = model.logits(PROMPT)
    border, layers = costs(path).borders[0], len(costs(path).layers)
    # As plain API of the model, which is opened nowhere.
    first_half = wayinfer.Model.stage(path, (0, border), context=64)
    with first_half as first, Stage(path, (border, layers), context=64) as last:
        assert first.facts["all_layers"] == layers
        check_stages([first.facts, last.facts])
        assert first.id == last.id and last.is_last and not first.is_last
        for past in range(len(PROMPT)):
            parts = [Part(7, past, PROMPT[past : past + 1], wanted=True)]
            assert last.feed(parts, first.feed(parts)) == b""
            assert (last.logits(7).view("u4") == want[past].view("u4")).all()
        # What went back is fed again.
        assert first.rewind(7, 2) == last.rewind(7, 2) == 2
        parts = [Part(7, 2, PROMPT[2:], wanted=True)]
        last.feed(parts, first.feed(parts))
        assert (last.logits(7).view("u4") == want[-1].view("u4")).all()
        first.forget([7])
        with pytest.raises(wayinfer.UsageError, match="no sequence 7"):
            first.feed([Part(7, 2, [1])])


def test_a_sampler_goes_on_where_another_stood():
    with Stage(fixture("dense-q8_0"), context=64) as stage:
        options = {"temp": 1.5, "seed": 3}

        def draw(past, tokens):
            stage.feed([Part(1, past, tokens, wanted=True)])
            return stage.draw(1)

        stage.feed([Part(1, 0, PROMPT, wanted=True)])
        stage.sampler(1, options, PROMPT)
        drawn = [stage.draw(1)]
        for _ in range(8):
            drawn.append(draw(len(PROMPT) + len(drawn) - 1, [drawn[-1].token]))
        answer = [one.token for one in drawn]
        assert len(set(answer)) > 1
        # From the tokens alone, in one pass.
        stage.feed([Part(1, 0, PROMPT + answer[:5], wanted=True)])
        stage.sampler(1, options, PROMPT, answer[:5], drawn[4].position)
        again = [stage.draw(1)]
        for _ in range(3):
            again.append(draw(len(PROMPT) + 4 + len(again), [again[-1].token]))
        assert again == drawn[5:]


def test_a_text_that_goes_on_keeps_its_space():
    with Stage(fixture("lfm2moe"), context=64) as stage:
        tokens = stage.encode("ting", add_special=False)
        assert stage.decode(tokens) == "ting"
        assert stage.decode(tokens, begins=False) == " ting"


def test_what_makes_no_sense_is_an_error():
    path = fixture("dense-q8_0")
    with Stage(path, (1, 2), context=64) as stage:
        row = stage.facts["row_in"] * 4
        for rows in [b"", b"\0" * (row - 4), b"\0" * (row + 1), b"\0" * (2 * row)]:
            with pytest.raises(wayinfer.Error):
                stage.feed([Part(1, 0, [5])], rows)
        with pytest.raises(wayinfer.Error, match="not finite"):
            stage.feed([Part(1, 0, [5])], b"\xff" * row)
        stage.feed([Part(1, 0, [5])], b"\0" * row)
        with pytest.raises(wayinfer.UsageError, match="has 1 tokens here, and 3 elsewhere"):
            stage.feed([Part(1, 3, [5])], b"\0" * row)
        with pytest.raises(wayinfer.UsageError, match="twice"):
            stage.feed([Part(1, 1, [5]), Part(1, 1, [5])], b"\0" * row * 2)
        with pytest.raises(wayinfer.UsageError, match="no sampler"):
            stage.draw(1)
        with pytest.raises(wayinfer.UsageError):
            stage.sampler(1, {"temp": -1})
    with pytest.raises(wayinfer.UsageError, match="closed"):
        stage.feed([])
    for layers in [(0, 0), (1, 99), (5, 1)]:
        with pytest.raises(wayinfer.Error):
            wayinfer.Model.stage(path, layers)
    with pytest.raises(TypeError, match="nothing"):
        wayinfer.Model.stage(path, nothing=1)
    with pytest.raises(wayinfer.FileError):
        Stage("no such file.gguf")
    with pytest.raises(wayinfer.Error, match="cannot be cut between layers"):
        Stage(fixture("hy_v4"), (0, 1))


def test_other_stages_are_told_apart():
    facts = {"version": "1", "id": "a" * 64, "layers": [0, 2], "all_layers": 4}
    rest = {**facts, "layers": [2, 4]}
    check_stages([facts, rest])
    for wrong in [{"version": "2"}, {"id": "b" * 64}, {"layers": [1, 4]}, {"layers": [2, 3]}]:
        with pytest.raises(wayinfer.UsageError):
            check_stages([facts, {**rest, **wrong}])
