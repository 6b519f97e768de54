#!/usr/bin/env python3
"""The cache of experts on recorded and on synthetic routing: hits of LRU, of the program's own policy and of Belady's, which
knows the future and is the best possible, in a table.

    scripts/expert-replay.py             # builds and runs `cargo bench --bench experts`; a minute or two
    scripts/expert-replay.py --check     # and holds README.md's table against it
    scripts/expert-replay.py --keep FOLDER   # keeps the traces, in the bench's format
    scripts/expert-replay.py --self-test     # without the program

Recorded: what the demo's experts are for each token of held-out questions and their right answers, by `wayinfer trace`. A
question is one pass over all its tokens, each token of its answer a pass. Synthetic: each layer draws experts by Zipf's law
over an order of its own, or takes those of the token before. A topic gives 70 % of the experts another place in the order; a
prompt is a pass that reads every expert. Misses of a cache that is empty at first count."""
from __future__ import annotations

import argparse
import heapq
import itertools
import json
import random
import subprocess
import sys
import tempfile
import unittest
from array import array
from bisect import bisect
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "fixtures/demo-q4_k_m.gguf"
QUESTIONS = 160
LAYERS, EXPERTS, USED, PASSES = 16, 64, 6, 600
TOPIC, MOVED = 100, 0.7  # passes of a topic; the share of experts whose place in the order changes
PROMPT = 50  # passes from one prompt to the next
ROOMS = (0.125, 0.25, 0.5)  # slots, as a share of all experts
HEAD = "| hits, %: LRU / ours / best possible | room for 12.5 % | room for 25 % | room for 50 % |"


@dataclass(frozen=True)
class Trace:
    """`passes[pass][layer]` has the experts that a pass chose in a layer."""
    layers: int
    experts: int
    used: int
    passes: list[list[list[int]]]

    def text(self) -> str:
        """See `benches/experts.rs`."""
        lines = (" | ".join(" ".join(map(str, chosen)) for chosen in layers) for layers in self.passes)
        return "\n".join([f"{self.layers} {self.experts} {self.used}", *lines]) + "\n"

    def accesses(self) -> list[int]:
        """Experts of all layers under one numbering, in the order in which they are asked for."""
        return [layer * self.experts + expert for layers in self.passes
                for layer, chosen in enumerate(layers) for expert in chosen]

    def slots(self, room: float) -> int:
        return int(self.layers * self.experts * room)


def lru(accesses: list[int], slots: int) -> int:
    """Hits of a cache that evicts what was used longest ago."""
    cached: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for expert in accesses:
        if expert in cached:
            hits += 1
            cached.move_to_end(expert)
            continue
        if len(cached) == slots:
            cached.popitem(last=False)
        cached[expert] = None
    return hits


def belady(accesses: list[int], slots: int) -> int:
    """The most hits that are possible: what is needed last goes, or does not come at all (L. A. Belady, 1966)."""
    never = len(accesses)
    following, later = [never] * len(accesses), {}
    for at in reversed(range(len(accesses))):
        following[at] = later.get(accesses[at], never)
        later[accesses[at]] = at
    cached: dict[int, int] = {}  # when each is needed next
    furthest: list[tuple[int, int]] = []  # the same, negative, with entries that are out of date
    hits = 0
    for expert, needed in zip(accesses, following):
        if expert in cached:
            hits += 1
        elif len(cached) == slots:
            while cached.get(furthest[0][1]) != -furthest[0][0]:
                heapq.heappop(furthest)
            if -furthest[0][0] <= needed:
                continue
            del cached[heapq.heappop(furthest)[1]]
        cached[expert] = needed
        heapq.heappush(furthest, (-needed, expert))
    return hits


def synthetic(seed: int, zipf: float, repeats: float, topic: int = 0, prompt: int = 0) -> Trace:
    """Routing that is drawn; a `topic` and a `prompt` are passes until the next one."""
    rng = random.Random(seed)
    weights = list(itertools.accumulate(1 / rank ** zipf for rank in range(1, EXPERTS + 1)))
    orders = [rng.sample(range(EXPERTS), EXPERTS) for _ in range(LAYERS)]

    def draw(order: list[int]) -> list[int]:
        chosen: set[int] = set()
        while len(chosen) < USED:
            chosen.add(order[bisect(weights, rng.random() * weights[-1])])
        return sorted(chosen)

    now = [draw(order) for order in orders]
    passes = []
    for at in range(PASSES):
        if topic and at and at % topic == 0:
            for order in orders:
                places = rng.sample(range(EXPERTS), int(EXPERTS * MOVED))
                for place, expert in zip(places, [order[place] for place in sorted(places)]):
                    order[place] = expert
        if prompt and at % prompt == 0:
            passes.append([list(range(EXPERTS))] * LAYERS)
            continue
        now = [chosen if rng.random() < repeats else draw(order) for chosen, order in zip(now, orders)]
        passes.append(now)
    return Trace(LAYERS, EXPERTS, USED, passes)


def in_turn() -> Trace:
    """Every expert of a layer in its turn: what LRU evicts is what is needed next."""
    turns = [[(at * USED + i) % EXPERTS for i in range(USED)] for at in range(PASSES)]
    return Trace(LAYERS, EXPERTS, USED, [[turn] * LAYERS for turn in turns])


def tensors(path: Path) -> dict[str, list[list[int]]]:
    """The rows of every node of experts in a file of `wayinfer trace`, by layer."""
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    rows = {}
    for name, entry in json.loads(raw[8:8 + size]).items():
        _, is_choice, layer = name.partition("/ffn_moe_topk-")
        if is_choice:
            values = array("i", raw[8 + size:][slice(*entry["data_offsets"])])
            used = entry["shape"][1]
            rows[int(layer.partition("#")[0])] = [list(values[i:i + used]) for i in range(0, len(values), used)]
    return rows


def record(wayinfer: Path, scratch: Path) -> Iterator[tuple[str, list[list[list[int]]]]]:
    """The kind and the passes of each question, in the order of the file."""
    sys.path.append(str(ROOT / "scripts/demo"))
    import data as language

    def run(*arguments: object) -> str:
        return subprocess.run([wayinfer, *map(str, arguments)], check=True, text=True, capture_output=True).stdout

    def ids_of(text: str) -> list[int]:
        # The template begins with the token that is added as well.
        return json.loads(run("tokenize", "-m", MODEL, "--special", "--json", "--text", text))[1:]

    for asked in json.loads((ROOT / "fixtures/demo-held-out.json").read_text())[:QUESTIONS]:
        prompt = language.prompt_text(asked["question"])
        begin, ids = len(ids_of(prompt)), ids_of(prompt + asked["answer"])
        (scratch / "ids").write_bytes(array("i", ids).tobytes())
        run("trace", "-m", MODEL, "--ids-file", scratch / "ids", "--batch", len(ids), "--nodes", "ffn_moe_topk",
            "--save", scratch / "nodes", "--force")
        rows = [rows for _, rows in sorted(tensors(scratch / "nodes").items())]
        spans = [(0, begin), *((at, at + 1) for at in range(begin, len(ids)))]
        yield asked["kind"], [[sorted(set(itertools.chain(*layer[a:b]))) for layer in rows] for a, b in spans]


def recorded(wayinfer: Path, scratch: Path) -> dict[str, Trace]:
    asked = list(record(wayinfer, scratch))

    def trace(questions: list) -> Trace:
        return Trace(4, 8, 2, [layers for _, passes in questions for layers in passes])

    return {"the demo's, questions mixed": trace(asked),
            "the demo's, kind after kind": trace(sorted(asked, key=lambda question: question[0]))}


def drawn() -> dict[str, Trace]:
    return {"Zipf 0.8": synthetic(1, 0.8, 0.2),
            "Zipf 0.8, changing topics": synthetic(2, 0.8, 0.2, topic=TOPIC),
            "the same, and prompts": synthetic(3, 0.8, 0.2, topic=TOPIC, prompt=PROMPT),
            "uniform, half as the token before": synthetic(4, 0.0, 0.5),
            "uniform": synthetic(5, 0.0, 0.0),
            "every expert in its turn": in_turn()}


def ours(path: Path, slots: list[int], profile: str) -> list[float]:
    """Shares of hits, by `benches/experts.rs`."""
    command = ["cargo", "bench", "--locked", "--quiet", "--profile", profile, "--bench", "experts", "--", path, *slots]
    done = subprocess.run([str(a) for a in command], cwd=ROOT, check=True, text=True, stdout=subprocess.PIPE)
    lines = [list(map(int, line.split())) for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == slots, done.stdout
    return [hits / asked for _, hits, asked in lines]


def rows(traces: dict[str, Trace], folder: Path, profile: str) -> Iterator[str]:
    for number, (name, trace) in enumerate(traces.items()):
        path = folder / f"{number}.txt"
        path.write_text(trace.text())
        accesses, slots = trace.accesses(), [trace.slots(room) for room in ROOMS]
        cells = []
        for count, share in zip(slots, ours(path, slots, profile)):
            least, most = (policy(accesses, count) / len(accesses) for policy in (lru, belady))
            cells.append(" / ".join(f"{hits * 100:.1f}" for hits in (least, share, most)))
        yield " | ".join([f"| {name}", *cells]) + " |"


def main() -> None:
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--wayinfer", type=Path, default=ROOT / "target/release/wayinfer", metavar="FILE")
    a.add_argument("--profile", default="bench", help="of cargo, for the replay")
    a.add_argument("--keep", type=Path, metavar="FOLDER")
    a.add_argument("--check", action="store_true")
    a.add_argument("--self-test", action="store_true")
    o = a.parse_args()
    if o.self_test:
        unittest.main(argv=sys.argv[:1])
    with tempfile.TemporaryDirectory() as scratch:
        folder = o.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        traces = recorded(o.wayinfer, Path(scratch)) | drawn()
        readme = (ROOT / "README.md").read_text().splitlines()
        missing = []
        print(HEAD, "|---" * (1 + len(ROOMS)) + "|", sep="\n")
        for row in rows(traces, folder, o.profile):
            print(row, flush=True)
            missing += [row] if row not in readme else []
    if o.check and missing:
        sys.exit("README.md lacks\n" + "\n".join(missing))


class Policies(unittest.TestCase):
    def test_lru_and_belady(self):
        self.assertEqual((lru([1, 2, 3, 1, 2, 3], 2), belady([1, 2, 3, 1, 2, 3], 2)), (0, 2))
        self.assertEqual((lru([1, 2, 1, 3, 1], 2), belady([1, 2, 1, 3, 1], 2)), (2, 2))
        self.assertEqual(belady([1, 1, 2, 3, 1], 1), 2)

    def test_nobody_beats_belady(self):
        """Every choice there is, of short traces."""
        def most(accesses: tuple[int, ...], slots: int, cached: frozenset = frozenset()) -> int:
            if not accesses:
                return 0
            first, rest = accesses[0], accesses[1:]
            if first in cached:
                return 1 + most(rest, slots, cached)
            choices = [cached]
            choices += [cached | {first}] if len(cached) < slots else [cached - {v} | {first} for v in cached]
            return max(most(rest, slots, choice) for choice in choices)

        rng = random.Random(1)
        for _ in range(200):
            accesses, slots = [rng.randrange(4) for _ in range(9)], rng.randint(1, 3)
            best = most(tuple(accesses), slots)
            self.assertEqual(belady(accesses, slots), best)
            self.assertLessEqual(lru(accesses, slots), best)

    def test_traces_are_what_they_say(self):
        for name, trace in drawn().items():
            self.assertEqual(len(trace.passes), PASSES, name)
            for at, layers in enumerate(trace.passes):
                for chosen in layers:
                    self.assertEqual(len(chosen), len(set(chosen)))
                    is_prompt = "prompts" in name and at % PROMPT == 0
                    self.assertEqual(len(chosen), EXPERTS if is_prompt else USED)
            self.assertEqual(trace, drawn()[name] if name == "uniform" else trace)
        self.assertEqual(Trace(2, 4, 1, [[[1], [3]], [[0, 2], []]]).text(), "2 4 1\n1 | 3\n0 2 | \n")
        # Topics and orders stay orders: each expert has one place.
        chosen = {expert for layers in drawn()["Zipf 0.8, changing topics"].passes for expert in layers[0]}
        self.assertEqual(chosen, set(range(EXPERTS)))


if __name__ == "__main__":
    main()
