"""Event loops: the same texts, as many at a time as are awaited."""

from __future__ import annotations

import asyncio
import re
import time

import pytest
from conftest import PROMPTS

import wayinfer
from wayinfer import Model, SamplingParams

DRAWN = SamplingParams(max_tokens=16, temperature=0.9, seed=7)
QUESTION = [{"role": "user", "content": "What is 2+2?"}]
ANSWER = "The sum of 2 and 2 is 4."


def endless(model: Model) -> SamplingParams:
    return SamplingParams(temperature=0, logit_bias={id: -100 for id in model.facts["ends"]})


def test_texts_are_the_same(dense: Model) -> None:
    async def work() -> None:
        each = await asyncio.gather(*(dense.agenerate(prompt, DRAWN) for prompt in PROMPTS * 5))
        together = await dense.agenerate(PROMPTS, DRAWN)
        assert [output.text for output in each] == [output.text for output in together] * 5

    asyncio.run(work())
    assert asyncio.run(dense.agenerate("a", DRAWN)).text == dense.generate("a", DRAWN).text


def test_chats_and_streams(demo: Model, dense: Model) -> None:
    async def work() -> None:
        assert (await demo.achat(QUESTION)).text == ANSWER
        assert "".join([piece.text async for piece in demo.achat_stream(QUESTION)]) == ANSWER
        made = "".join([piece.text async for piece in dense.astream("a", DRAWN)])
        assert made == dense.generate("a", DRAWN).text
        session = dense.session().append("a")
        assert "".join([piece.text async for piece in session.agenerate(DRAWN)]) == made

    asyncio.run(work())


def test_sessions_go_on_together(dense: Model) -> None:
    async def text(prompt: str) -> str:
        return "".join([piece.text async for piece in dense.session().append(prompt).agenerate(DRAWN)])

    async def work() -> None:
        made = await asyncio.gather(*(text(prompt) for prompt in PROMPTS))
        assert made == [dense.session().append(prompt).generate(DRAWN).text for prompt in PROMPTS]
        # Left, it stands behind what was taken.
        session = dense.session().append("a")
        before, pieces = session.tokens, session.agenerate(endless(dense))
        taken = [(await pieces.__anext__()).token for _ in range(3)]
        await pieces.aclose()
        assert session.tokens == before + taken

    asyncio.run(work())


def test_errors_reach_who_awaits(dense: Model) -> None:
    with pytest.raises(wayinfer.UsageError, match="at most 128"):
        asyncio.run(dense.agenerate("a", SamplingParams(n=999)))
    with pytest.raises(wayinfer.Unsupported, match="no chat template"):
        asyncio.run(dense.achat(QUESTION))


def test_what_is_cancelled_ends(dense: Model) -> None:
    async def work() -> None:
        task = asyncio.create_task(dense.agenerate(["a"] * 9, endless(dense)))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async for _ in dense.astream("a", endless(dense)):
            break
        assert (await asyncio.wait_for(dense.agenerate("a", DRAWN), 30)).text

    asyncio.run(work())
    running = ["1"]
    for _ in range(100):
        metrics = dense.request("GET", "/metrics").read().decode()
        running = re.findall(r"^wayinfer_running_requests\S* (\S+)$", metrics, re.MULTILINE)
        if running == ["0"]:
            return
        time.sleep(0.05)
    raise AssertionError(f"still running: {running}")
