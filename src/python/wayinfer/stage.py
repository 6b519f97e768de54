"""A part of a model's layers, for those who carry rows from one part to the next themselves: `wayinfer.ray.Pipeline`
does it with Ray, MPI or sockets can do it as well.

    first, last = Stage("model.gguf", (0, 16)), Stage("model.gguf", (16, 32))
    ids = first.encode("Once upon a time")
    rows = first.feed([Part(0, 0, ids, wanted=True)])
    last.feed([Part(0, 0, ids, wanted=True)], rows)
    print(last.decode([last.draw(0).token], begins=False))
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple, Union

from . import _native, errors

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["Costs", "Drawn", "Part", "Stage", "costs"]

Size = Union[int, str]


class Part(NamedTuple):
    """Tokens of a sequence in a pass."""

    sequence: int
    """Its number, which whoever feeds it chooses."""
    past: int
    """Tokens that it has had; with 0 it begins anew."""
    tokens: Sequence[int]
    wanted: bool = False
    """Whether the logits behind the last of them are wanted."""


class Drawn(NamedTuple):
    """A token that was drawn."""

    token: int
    position: int
    """Random numbers that the sequence has used."""
    ends: bool
    """Whether it ends the text."""


@dataclass(frozen=True)
class Costs:
    """What a model takes, layer by layer."""

    layers: List[int]
    """Bytes of each layer's weights."""
    active: List[float]
    """Bytes of them that a token is expected to read."""
    before: int
    """Bytes of what stands before the layers, which the first stage has."""
    behind: int
    """Bytes of what stands behind them, which the last stage has; a token reads all of it."""
    borders: List[int]
    """The layers before which the model can be cut."""
    row: int
    """Values of a token that stages pass on, f32."""
    sequence_bytes: int
    """Bytes of a full sequence in a layer, on the average."""
    context: int


def options_of(given: Mapping[str, Any]) -> List[Tuple[str, str]]:
    """Options as the command line has them."""
    names = {"context": "ctx"}
    return [
        (names.get(name, name.replace("_", "-")), str(value)) for name, value in given.items() if value is not None
    ]


def costs(path: Union[str, os.PathLike[str]], **options: Any) -> Costs:
    """What a model takes that is run with these options of `Stage`. No weight is read.

    Raises as `Stage` does.
    """
    raw = json.loads(_native.stage_costs(os.fspath(path), options_of(options)))
    return Costs(
        [cost["bytes"] for cost in raw["layers"]],
        [cost["active"] for cost in raw["layers"]],
        raw["before"]["bytes"],
        raw["behind"]["bytes"],
        raw["borders"],
        raw["row"],
        raw["sequence_bytes"],
        raw["context"],
    )


class Stage:
    """Layers of a model that is ready to run: `layers` are the first one and the one behind the last, all where not
    given. Of the file the headers and what these layers need are read.

    Tokens go into the first stage, rows (little-endian f32, `row_out` for each token) from each stage to the next, and
    the last one has the logits. All of them together give the bits of one machine. Every stage is given the tokens,
    and a stage that is opened anew is fed its sequences from their tokens. Stages belong together where their `id` is
    the same: it is a hash of the program's version, the settings that results depend on, the file's headers and samples
    of its weights.

    ram, context, kv, kv_k, kv_v, threads, isa, gpu, vram, pre: as `wayinfer.Model` has them.
    sequences: so many that memory is set aside for [default: 8].

    It may be used by several threads, and does one thing at a time. Leaving a `with` block, or `close`, frees it.

    Raises `Unsupported` or `FileError` where the model cannot be cut there or run at all, `UsageError`, `OutOfMemory`.
    """

    def __init__(
        self,
        path: Union[str, os.PathLike[str]],
        layers: Optional[Tuple[int, int]] = None,
        *,
        ram: Optional[Size] = None,
        context: Optional[int] = None,
        sequences: Optional[int] = None,
        kv: Optional[str] = None,
        kv_k: Optional[str] = None,
        kv_v: Optional[str] = None,
        threads: Optional[int] = None,
        isa: Optional[str] = None,
        gpu: Union[int, str, None] = None,
        vram: Optional[Size] = None,
        pre: Optional[str] = None,
    ) -> None:
        given = {
            "ram": ram,
            "context": context,
            "sequences": sequences,
            "kv": kv,
            "kv_k": kv_k,
            "kv_v": kv_v,
            "threads": threads,
            "isa": isa,
            "gpu": gpu,
            "vram": vram,
            "pre": pre,
        }
        self._native = _native.Stage(os.fspath(path), layers, options_of(given))
        self.facts: Dict[str, Any] = json.loads(self._native.facts())
        """What is known of it: name, version, id, architecture, layers, all_layers, borders, row_in, row_out, vocab,
        embd, context, batch (tokens of a pass), sequences, sequence_bytes, threads, bos, ends."""

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def id(self) -> str:
        """What all stages of a model have in common."""
        return str(self.facts["id"])

    @property
    def is_last(self) -> bool:
        """Whether it has the logits."""
        return bool(self.facts["layers"][1] == self.facts["all_layers"])

    def feed(self, parts: Sequence[Part], rows: bytes = b"") -> bytes:
        """Runs tokens of some sequences in one pass, of `batch` tokens at most: `rows` are what the stage before gave
        for these parts, nothing in the first stage. The rows for the next one; nothing in the last.

        Raises `UsageError` where a sequence stands elsewhere than `past` says, or rows are not those of the tokens;
        `ContextFull`. Nothing is run then.
        """
        listed = [(part.sequence, part.past, list(part.tokens), part.wanted) for part in parts]
        return self._native.feed(listed, rows)

    def logits(self, sequence: int) -> npt.NDArray[np.float32]:
        """The logits that the last pass has left of a sequence in the last stage."""
        import numpy as np

        return np.frombuffer(self._native.logits(sequence), dtype="<f4")

    def sampler(
        self,
        sequence: int,
        options: Mapping[str, Any],
        prompt: Sequence[int] = (),
        answer: Sequence[int] = (),
        position: int = 0,
    ) -> None:
        """Says how tokens of a sequence are chosen in the last stage: by `temp`, `top_k`, `top_p`, `min_p`,
        `repeat_penalty` and `seed`. `answer` and `position` bring it to where another one stood."""
        listed = options_of(options)
        self._native.sampler(sequence, listed, list(prompt), list(answer), position)

    def draw(self, sequence: int) -> Drawn:
        """The next token of a sequence, by the logits that the last pass has left; it is not fed."""
        return Drawn(*self._native.draw(sequence))

    def rewind(self, sequence: int, past: int) -> int:
        """Takes a sequence back to its first tokens. To how many it went, which may be fewer: all stages have to stand
        at the same."""
        return self._native.rewind(sequence, past)

    def forget(self, sequences: Optional[Sequence[int]] = None) -> None:
        """Frees sequences; all where none are named."""
        self._native.forget(None if sequences is None else list(sequences))

    def encode(self, text: str, add_special: bool = True, parse_special: bool = True) -> List[int]:
        """The ids of a text's tokens."""
        return self._native.encode(text, add_special, parse_special)

    def decode(self, tokens: Sequence[int], special: bool = False, begins: bool = True) -> str:
        """The text of tokens. Where it `begins` with them it has not the space that some tokenizers put before a text;
        what goes on from a prompt keeps its own."""
        return self._native.decode(list(tokens), special, begins)

    def close(self) -> None:
        """Ends it and frees its memory."""
        self._native.close()


def check_stages(facts: Sequence[Mapping[str, Any]]) -> None:
    """Whether stages with these facts, in this order, are one model.

    Raises `UsageError` where versions, models or settings differ, or layers are missing.
    """
    first, at = facts[0], 0
    for number, stage in enumerate(facts):
        if stage["version"] != first["version"]:
            raise errors.UsageError(
                f"stage {number} is of WayInfer {stage['version']}, the first one of {first['version']}"
            )
        if stage["id"] != first["id"]:
            raise errors.UsageError(
                f"stage {number} has another model or other settings than the first one: {stage['id'][:16]} is not"
                f" {first['id'][:16]}"
            )
        if stage["layers"][0] != at:
            raise errors.UsageError(f"stage {number} begins with layer {stage['layers'][0]}, where {at} is needed")
        at = stage["layers"][1]
    if at != first["all_layers"]:
        raise errors.UsageError(f"the last stage ends with layer {at - 1}, of {first['all_layers']}")
