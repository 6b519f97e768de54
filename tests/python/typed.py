"""A program that mypy checks strictly: what it says of types is what the package's users see."""

from __future__ import annotations

import asyncio
from typing import List

import numpy as np
import numpy.typing as npt

import wayinfer
from wayinfer.llama_cpp import Llama

QUESTION = [{"role": "user", "content": "What is 2+2?"}]


async def beside(model: wayinfer.Model) -> str:
    answer = await model.achat(QUESTION)
    pieces = [piece.text async for piece in model.achat_stream(QUESTION)]
    assert "".join(pieces) == answer.text
    return answer.text


def main(path: str) -> None:
    params = wayinfer.SamplingParams(max_tokens=8, temperature=0)
    with wayinfer.Model(path, threads=1) as model:
        one: wayinfer.Output = model.generate([1, 2], params)
        many: List[wayinfer.Output] = model.generate(["a", "b"], params)
        pieces: List[wayinfer.Piece] = list(model.generate("a", params, stream=True))
        assert one.text is not None and len(many) == 2 and pieces
        answer: wayinfer.Answer = model.chat(QUESTION)
        print(answer.text, asyncio.run(beside(model)))
        logits: npt.NDArray[np.float32] = model.logits(model.tokenize("a"))
        assert logits.shape[1] == model.vocab
        session = model.session().append("a")
        made: wayinfer.Piece = session.generate(params)
        assert made.finish_reason in ("stop", "length")
        try:
            model.detokenize([model.vocab])
        except wayinfer.UsageError as error:
            hint: str | None = error.hint
            assert hint is None
    llama = Llama(path, n_ctx=0, verbose=False)
    print(llama.create_chat_completion(QUESTION)["choices"][0]["message"]["content"])
    llama.close()
