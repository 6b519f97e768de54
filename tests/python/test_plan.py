"""Where layers go, and what stages say to each other. Without Ray there is nothing to test."""

import json

import pytest

import wayinfer
from wayinfer.stage import Costs

plan = pytest.importorskip("wayinfer.ray.plan", exc_type=ImportError)
from wayinfer.ray import wire  # noqa: E402

GIB = 1 << 30


def model(borders):
    return Costs([GIB] * 10, [float(GIB)] * 10, 2 * GIB, 2 * GIB, borders, 4096, GIB // 100, 4096)


def test_the_slowest_stage_is_the_fastest():
    made = plan.make(model(list(range(1, 10))), 3)
    assert made.layers[0][0] == 0 and made.layers[-1][1] == 10
    # 12 GiB are read, of which the last stage has the output matrix.
    assert max(stage.active for stage in made.stages) == 4 * GIB
    fast = plan.make(model(list(range(1, 10))), 2, speeds=[10e9, 50e9])
    assert fast.layers == [(0, 2), (2, 10)]


def test_memory_and_borders_are_kept_to():
    made = plan.make(model(list(range(1, 10))), 3, ["5G", "6.6G", "8G"])
    assert all(stage.memory <= stage.ram for stage in made.stages)
    assert plan.make(model([4]), 2).layers == [(0, 4), (4, 10)]
    with pytest.raises(wayinfer.UsageError, match="2 stages at most"):
        plan.make(model([4]), 3)
    with pytest.raises(wayinfer.OutOfMemory, match="needs"):
        plan.make(model([4]), 2, ["1G", "1G"])
    for wrong in ["", "G", "12X", "x"]:
        with pytest.raises(wayinfer.UsageError):
            plan.size_of(wrong)
    assert [plan.size_of(size) for size in ("1.5GiB", "800M", 7)] == [3 * GIB // 2, 800 << 20, 7]


def test_messages_hold_what_was_put_in():
    assert wire.unpack(wire.pack({"a": [1, "\u00e4"]}, b"\0\1")) == ({"a": [1, "\u00e4"]}, b"\0\1")
    whole = wire.pack({"a": 1})
    for wrong in [b"", whole[:10], b"x" * 40, b"WayRows1" + b"\xff" * 8, 3, whole[:16] + b"[" * (len(whole) - 16)]:
        with pytest.raises(wayinfer.UsageError):
            wire.unpack(wrong)


def test_a_conversation_is_known_by_its_beginning():
    from wayinfer.ray.serve import conversation

    def of(**fields):
        return conversation(json.dumps(fields).encode())

    first = [{"role": "system", "content": "s"}, {"role": "user", "content": [{"type": "text", "text": "a"}]}]
    marked = [first[0], {"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {}}]}]
    later = [*marked, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    assert of(messages=first) == of(messages=later, model="m") is not None
    assert of(messages=first[1:]) == of(input="a") == of(prompt="a")
    assert len({of(messages=first), of(messages=first, system="t"), of(prompt="a"), of(prompt="b")}) == 4
    assert of(prompt="x" * 300) == of(prompt="x" * 400)
    for body in [b"", b"{", b"[]", b"{}", b'{"messages": 1}', b'{"prompt": [1, 2]}', b"[" * 100_000, b"\xff"]:
        assert conversation(body) is None
