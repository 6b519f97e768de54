"""Where the layers of a model go, by memory and by measured speed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import List, Optional, Sequence, Tuple, Union

from .. import errors
from ..stage import Costs

__all__ = ["Plan", "StagePlan", "make"]

Size = Union[int, str]

# What a stage takes beside weights and sequences: the program, buffers, page tables.
_BESIDE = 256 << 20
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@dataclass(frozen=True)
class StagePlan:
    """A stage."""

    layers: Tuple[int, int]
    """The first layer, and the one behind the last."""
    weights: int
    """Bytes of its weights."""
    memory: int
    """Bytes that it takes with them: sequences, buffers and the program included."""
    active: float
    """Bytes that a token is expected to read."""
    seconds: float
    """Time of a token in it, by the speed of its memory."""
    ram: Optional[int]
    """Bytes that it may take."""


@dataclass(frozen=True)
class Plan:
    """Stages, one behind another."""

    stages: List[StagePlan]
    row_bytes: int
    """Bytes of a token that stages pass on."""

    @property
    def layers(self) -> List[Tuple[int, int]]:
        """The layers of each."""
        return [stage.layers for stage in self.stages]

    def tokens_per_second(self, latency: float = 0.0, bandwidth: float = math.inf, sequences: int = 1) -> float:
        """Tokens a second of so many sequences at once, where a message between stages takes `latency` seconds and
        `bandwidth` bytes a second: one sequence goes through all stages in turn, and as many sequences as there are
        stages keep the slowest busy. What a pass computes is left out."""
        hop = latency + self.row_bytes / bandwidth
        token = sum(stage.seconds for stage in self.stages) + hop * len(self.stages)
        slowest = max(stage.seconds for stage in self.stages) + hop
        return min(sequences / token, 1.0 / slowest)

    def __str__(self) -> str:
        lines = ["layers      weights      memory       of     time of a token"]
        for stage in self.stages:
            first, end = stage.layers
            ram = "" if stage.ram is None else _gib(stage.ram)
            lines.append(
                f"{first:>3} to {end - 1:<3} {_gib(stage.weights):>10} {_gib(stage.memory):>11} {ram:>10}"
                f" {stage.seconds * 1e3:>8.1f} ms"
            )
        return "\n".join(lines)


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.2f} GiB"


def size_of(size: Size) -> int:
    """Bytes of a size: a number, or a text as 12G and 800M.

    Raises `UsageError` for what is none.
    """
    if isinstance(size, int):
        return size
    text = size.strip().upper().removesuffix("IB").removesuffix("B")
    unit = text[-1:] if text[-1:] in _UNITS else ""
    try:
        number = float(text[: len(text) - len(unit)])
    except ValueError:
        raise errors.UsageError(f"{size!r} is no size; 12G and 800M are") from None
    return int(number * _UNITS[unit])


def make(
    costs: Costs,
    stages: int,
    ram: Optional[Sequence[Size]] = None,
    speeds: Optional[Sequence[float]] = None,
    sequences: int = 8,
) -> Plan:
    """The plan whose slowest stage is the fastest: of each stage the memory that it may take (`ram`), and the bytes a
    second that it reads of its memory (`speeds`, 20e9 where not given).

    Raises `UsageError` where the model has not so many places to be cut at, `OutOfMemory` where it does not fit.
    """
    layers = len(costs.layers)
    budgets = None if ram is None else [size_of(size) for size in ram]
    speeds = list(speeds) if speeds is not None else [20e9] * stages
    if stages < 1 or len(speeds) != stages or (budgets is not None and len(budgets) != stages):
        raise errors.UsageError(f"{stages} stages need as many sizes of memory and speeds")
    places = [0, *costs.borders, layers]
    if stages > len(places) - 1:
        raise errors.UsageError(f"the model can be cut into {len(places) - 1} stages at most, not into {stages}")

    def stage(at: int, first: int, end: int) -> StagePlan:
        weights = sum(costs.layers[first:end])
        active = sum(costs.active[first:end])
        if first == 0:
            weights += costs.before
        if end == layers:
            weights, active = weights + costs.behind, active + costs.behind
        memory = weights + costs.sequence_bytes * (end - first) * sequences + _BESIDE
        return StagePlan(
            (first, end), weights, memory, active, active / speeds[at], None if budgets is None else budgets[at]
        )

    # best[end]: the plan of the stages so far that ends before this layer, and the time of its slowest.
    best: List[Optional[Tuple[float, List[StagePlan]]]] = [None] * (layers + 1)
    best[0] = (0.0, [])
    for at in range(stages):
        reached: List[Optional[Tuple[float, List[StagePlan]]]] = [None] * (layers + 1)
        for first in places:
            before = best[first]
            if before is None:
                continue
            for end in places:
                if end <= first or (end == layers) != (at == stages - 1):
                    continue
                made = stage(at, first, end)
                if made.ram is not None and made.memory > made.ram:
                    continue
                slowest = max(before[0], made.seconds)
                known = reached[end]
                if known is None or slowest < known[0]:
                    reached[end] = (slowest, [*before[1], made])
        best = reached
    found = best[layers]
    if found is None:
        needed = stage(0, 0, layers).memory + (stages - 1) * _BESIDE
        raise errors.OutOfMemory(
            f"the model needs {_gib(needed)} in {stages} stages that can be cut at its layers, and has"
            f" {_gib(sum(budgets or []))}"
        )
    return Plan(found[1], costs.row * 4)
