"""Sequences that are kept."""

from __future__ import annotations

import os
from typing import (
    TYPE_CHECKING,
    AsyncIterator,
    Callable,
    Iterator,
    List,
    Literal,
    Optional,
    Sequence,
    Tuple,
    Union,
    overload,
)

from . import _aio, _arrays, _native
from .outputs import Piece
from .sampling import SamplingParams, as_json

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from .model import Model

__all__ = ["Session"]

Text = Union[str, Sequence[int]]


class Generation:
    """A text as it is made. Left, what was taken of it so far stays in its session."""

    def __init__(self, native: _native.Generation) -> None:
        self._native = native

    def __iter__(self) -> Iterator[Piece]:
        return self

    def __next__(self) -> Piece:
        step = self._native.step()
        if step is None:
            raise StopIteration
        token, text, reason = step
        return Piece(text, finish_reason=reason, token=token)


class Session:
    """A sequence that is kept: tokens, what the model remembers of them, and the logits behind the last one.

    Made by `Model.session()`. It may be forked, rewound and saved. Sessions that go on at the same time, in threads or
    tasks of asyncio, share the passes of the model with each other and with requests, `parallel` of them at a time;
    their texts are the same as alone.

    Its memory is part of what the model sets aside for texts (`ram`, `parallel`), as long as it is not dropped; what
    forks have in common is there, and counted, once. Where all is taken by sessions, `OutOfMemory` is raised by what
    would need more, which leaves the session as it was.
    """

    def __init__(self, model: Model, native: _native.Session) -> None:
        self._model = model
        self._native = native

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.drop()

    def __len__(self) -> int:
        """Tokens that it has."""
        return len(self._native)

    def __repr__(self) -> str:
        return f"<wayinfer.Session of {self._model.name!r}>"

    @property
    def tokens(self) -> List[int]:
        """The ids of its tokens, those that were drawn included."""
        return self._native.tokens()

    @property
    def text(self) -> str:
        """What they stand for, control tokens left out."""
        return self._model.detokenize(self.tokens)

    def append(self, text: Text, *, parse_special: bool = True) -> Session:
        """Reads a text, or tokens by their ids, behind those that it has. The first text gets the tokens that the
        model begins texts with. Returns the session.

        Raises `ContextFull` where it does not fit, `OutOfMemory` where sessions have all the memory; none of it is
        read then.
        """
        ids = list(text) if not isinstance(text, str) else self._encode(text, parse_special)
        self._native.append(ids)
        return self

    def _encode(self, text: str, parse_special: bool) -> List[int]:
        return self._model.tokenize(text, add_special=len(self) == 0, parse_special=parse_special)

    @overload
    def generate(self, params: Optional[SamplingParams] = None, *, stream: Literal[False] = False) -> Piece: ...

    @overload
    def generate(self, params: Optional[SamplingParams] = None, *, stream: Literal[True]) -> Iterator[Piece]: ...

    def generate(
        self, params: Optional[SamplingParams] = None, *, stream: bool = False
    ) -> Union[Piece, Iterator[Piece]]:
        """Goes on with the text: all in one `Piece`, or token by token with `stream`. The tokens are the session's from
        then on, the one that ends the text included; `n` and `logprobs` are not looked at.

        A stream may be left at any token, and the session stands behind those that were taken. What is not asked for
        takes no part in passes, and a session may be used otherwise between two tokens.

        Raises `UsageError` in an empty session: there is nothing to go on from. Raises `OutOfMemory` where sessions
        have all the memory; the tokens up to there are the session's.
        """
        native = self._native.generate(as_json((params or SamplingParams()).fields()).decode())
        if stream:
            return Generation(native)
        text, reason = native.rest()
        return Piece(text, finish_reason=reason)

    def agenerate(self, params: Optional[SamplingParams] = None) -> AsyncIterator[Piece]:
        """The same token by token, for asyncio: `async for piece in session.agenerate(..)`."""

        def start() -> Tuple[Iterator[Piece], Callable[[], None]]:
            return self.generate(params, stream=True), lambda: None

        return _aio.iterate(start, ahead=False)

    def sample(self, params: Optional[SamplingParams] = None) -> int:
        """Draws a token, which the session does not get: `append([token])` takes it."""
        return self._native.sample(as_json((params or SamplingParams()).fields()).decode())

    def logits(self) -> npt.NDArray[np.float32]:
        """The logits behind its last token: float32, shape [vocabulary]. Needs NumPy."""
        return _arrays.floats(self._native.logits(), [-1])

    def fork(self) -> Session:
        """Another session with the same past; what both have in common is there once."""
        return Session(self._model, self._native.fork())

    def rewind(self, tokens: int) -> Session:
        """Goes back to the first so many tokens. Returns the session."""
        self._native.rewind(tokens)
        return self

    def save(self, folder: Union[str, os.PathLike[str]]) -> None:
        """Writes it to a folder, which its user alone may read; `Model.load_session` reads it back, on any CPU, to the
        same bits. Full pages of 128 tokens are written, the rest is computed anew. The model's files are read whole
        once, to know them by all their bytes."""
        self._native.save(folder)

    def drop(self) -> None:
        """Frees its memory; nothing can be done with it any more."""
        self._native.close()
