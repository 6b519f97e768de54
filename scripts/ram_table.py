"""What `larger-than-ram.py` measures, and its arithmetic: rows, phases, medians, the table. Pure, and tested here."""
from __future__ import annotations

import re, unittest
from dataclasses import dataclass
from statistics import median
from typing import Any, Callable, Iterable

import limits

GIB = 1 << 30
SIDES = ("llama.cpp", "wayinfer")


@dataclass(frozen=True)
class Row:
    name: str
    model: str
    gib: float | None  # of memory; none: what the machine has
    prompt: int
    tokens: int
    phase: str = "decode"  # what is compared
    rounds: int = 3

    @property
    def limit(self) -> int | None:
        return None if self.gib is None else int(self.gib * GIB)


ROWS = [
    Row("mixtral-12g", "mixtral-8x7b", 12, 16, 24),
    Row("mixtral", "mixtral-8x7b", None, 16, 24),
    Row("llama-4g", "llama-8b", 4, 16, 24),
    Row("fine-moe-2g", "fine-moe", 2, 16, 24),
    Row("qwen3-3g", "qwen3-30b-a3b", 3, 16, 24),
    Row("qwen36-8g", "qwen3.6-35b-a3b", 8, 16, 24),
    Row("deepseek-6g", "deepseek-v3", 6, 16, 24),
    Row("prefill-12g", "mixtral-8x7b", 12, 512, 1, phase="prefill"),
]

Measured = dict[str, Any]  # one run, as --json has it


def phases(run: limits.Run, report: Measured, row: Row) -> Measured:
    """What the disk gave in each phase. The program says how long each took and when it began; without the latter, load, prefill
    and decode are taken to follow one another from the start of the process, which is too early by what it does besides."""
    start = run.samples.times[0]
    prefill = report.get("prefill_began_unix_s") or run.started + report["load_s"]
    prefilled = prefill + row.prompt / report["prefill_tok_s"]
    decode = report.get("decode_began_unix_s") or prefilled
    spans = {"load": (start, max(prefill, start)), "prefill": (max(prefill, start), prefilled),
             "decode": (decode, decode + row.tokens / report["decode_tok_s"])}
    return {f"{name}_{by}_bytes": run.samples.between(*span, by_program=by == "program")
            for name, span in spans.items() for by in ("device", "program")}


# What the table shows: each from the runs of a side that did not fail.

def middle(runs: Iterable[Measured], get: Callable[[Measured], float | None]) -> float | None:
    """The median of what there is."""
    values = [value for value in map(get, runs) if value is not None]
    return median(values) if values else None


def quotient(a: float | None, b: float | None) -> float | None:
    return a / b if a is not None and b else None


def total(*values: float | None) -> float | None:
    return sum(values) if all(value is not None for value in values) else None


def residency(run: Measured, *names: str) -> float | None:
    """A number of ours' report, below `residency`."""
    value: Any = run["report"].get("residency")
    for name in names:
        value = value.get(name) if value else None
    return value


def summary(row: Row, runs: list[Measured], model_bytes: int) -> Measured:
    """A row of the table, in numbers: medians over the rounds."""
    good = {side: [run for run in runs if run["side"] == side and not run["failed"]] for side in SIDES}
    theirs, ours = good["llama.cpp"], good["wayinfer"]
    speed = {side: middle(good[side], lambda run: run["report"][f"{row.phase}_tok_s"]) for side in SIDES}
    tokens = row.tokens if row.phase == "decode" else row.prompt
    device = {side: quotient(middle(good[side], lambda run: run[f"{row.phase}_device_bytes"]), tokens) for side in SIDES}
    # The plan speaks of decode, one token at a time.
    plan = middle(ours, lambda run: residency(run, "plan", "disk_bytes_per_token")) if row.phase == "decode" else None
    until_decode = lambda run: total(run["load_device_bytes"], run["prefill_device_bytes"])
    return {
        "row": row.name, "model": row.model, "limit_bytes": row.limit, "phase": row.phase, "rounds": len(ours),
        "llama.cpp_tok_s": speed["llama.cpp"], "wayinfer_tok_s": speed["wayinfer"],
        "ratio": quotient(speed["wayinfer"], speed["llama.cpp"]),
        "llama.cpp_disk_bytes_per_token": device["llama.cpp"], "wayinfer_disk_bytes_per_token": device["wayinfer"],
        "plan_disk_bytes_per_token": plan, "disk_by_plan": quotient(device["wayinfer"], plan),
        "model_read_before_decode": quotient(middle(ours, until_decode), model_bytes),
        "disk_bytes_s": middle(ours, lambda run: residency(run, "disk_bytes_s")),
        "bound_tok_s": middle(ours, lambda run: residency(run, row.phase, "bound_tok_s")),
        "fraction_of_bound": middle(ours, lambda run: residency(run, row.phase, "fraction_of_bound")),
        **{f"{side}_peak_bytes": max((run["peak_bytes"] or 0 for run in runs if run["side"] == side), default=0) or None
           for side in SIDES},
        **{f"{side}_load_s": middle(good[side], lambda run: run["report"]["load_s"]) for side in SIDES},
        **{f"{side}_oom_kills": sum(run["oom_kills"] for run in runs if run["side"] == side) for side in SIDES},
        **{f"{side}_failed": sum(run["failed"] for run in runs if run["side"] == side) for side in SIDES},
    }


def in_units(unit: float, digits: int) -> Callable[[float], str]:
    return lambda value: f"{value / unit:.{digits}f}"


plain, whole, gib = in_units(1, 3), in_units(1, 0), in_units(GIB, 3)
LINES: list[tuple[str, str, Callable[[Any], str]]] = [
    ("model", "model", str),
    ("limit, GiB", "limit_bytes", in_units(GIB, 2)),
    ("phase", "phase", str),
    ("rounds", "rounds", whole),
    ("llama.cpp, tok/s", "llama.cpp_tok_s", plain),
    ("wayinfer, tok/s", "wayinfer_tok_s", plain),
    ("ratio", "ratio", in_units(1, 2)),
    ("llama.cpp, MB a token from disk", "llama.cpp_disk_bytes_per_token", in_units(1e6, 1)),
    ("wayinfer, MB a token from disk", "wayinfer_disk_bytes_per_token", in_units(1e6, 1)),
    ("the plan, MB a token from disk", "plan_disk_bytes_per_token", in_units(1e6, 1)),
    ("wayinfer / the plan", "disk_by_plan", plain),
    ("model read before decode, times", "model_read_before_decode", plain),
    ("disk, GB/s", "disk_bytes_s", in_units(1e9, 2)),
    ("bound, tok/s", "bound_tok_s", plain),
    ("fraction of the bound", "fraction_of_bound", plain),
    ("llama.cpp, peak of the group, GiB", "llama.cpp_peak_bytes", gib),
    ("wayinfer, peak of the group, GiB", "wayinfer_peak_bytes", gib),
    ("llama.cpp, load, s", "llama.cpp_load_s", plain),
    ("wayinfer, load, s", "wayinfer_load_s", plain),
    ("llama.cpp, killed for memory", "llama.cpp_oom_kills", whole),
    ("wayinfer, killed for memory", "wayinfer_oom_kills", whole),
    ("llama.cpp, runs that failed", "llama.cpp_failed", whole),
    ("wayinfer, runs that failed", "wayinfer_failed", whole),
]


def table(summaries: list[Measured]) -> str:
    """The rows of the measurement, side by side."""
    cells = [["", *(s["row"] for s in summaries)]]
    for title, key, show in LINES:
        cells.append([title, *("-" if s[key] is None else show(s[key]) for s in summaries)])
    return aligned(cells)


def aligned(cells: list[list[str]]) -> str:
    """The first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = ["  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:]))]) for row in cells]
    return "\n".join(line.rstrip() for line in lines)


def warnings(run: Measured) -> list[str]:
    """What makes a run doubtful."""
    said = []
    device, program = run["device_bytes"], run["program_bytes"]
    if device is None:
        said.append("the model lies on no block device: bytes from disk are not known")
    elif program and device > 1.05 * program + (64 << 20):
        said.append(f"something else read {(device - program) / 1e9:.2f} GB from the disk meanwhile")
    if not run["failed"] and device is not None and run["decode_device_bytes"] is None:
        said.append("the times it gives do not fit into those of its process: bytes of its phases are not known")
    return said


def last_error(text: str) -> str:
    """The last line that calls itself an error, else the last one."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return ([line for line in lines if "error" in line.lower()] or lines or [""])[-1]


# Budgets.

UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


def least_named(error: str) -> int | None:
    """The least budget that an error names, in bytes."""
    named = re.search(r"([\d.]+) ([KMGT]?i?B) are needed at the least", error)
    return int(float(named[1]) * UNITS[named[2]]) if named else None


def series(first: int, last: int, steps: int) -> list[int]:
    """Budgets from first to last, each larger by the same factor."""
    if steps < 2 or first >= last:
        return [first]
    return [round(first * (last / first) ** (i / (steps - 1))) for i in range(steps)]


def budgets(least: int, first: int, size: int, memory: int, steps: int) -> list[int]:
    """The budgets after the least one: half the model's size, then from `first` to its size, or to the machine's memory where that
    is less; of a model too small for any, twice the least."""
    top = min(size, memory)
    half = [size // 2] if least < size // 2 <= top else []
    rest = series(first, top, steps) if first > least else series(least, top, steps + 1)[1:]
    return half + [budget for budget in rest if least < budget <= top] or [2 * least]


class TableTest(unittest.TestCase):
    """The arithmetic of the table and of budgets."""
    ROW = Row("small", "a-model", 2, 16, 10)

    @staticmethod
    def made(side: str, speed: float, device: float, **more: Any) -> Measured:
        report = {"load_s": 1.5, "prefill_tok_s": 8.0, "decode_tok_s": speed}
        if side == "wayinfer":
            report["residency"] = {"plan": {"disk_bytes_per_token": 4e6}, "disk_bytes_s": 1e9,
                                   "decode": {"bound_tok_s": 10.0, "fraction_of_bound": speed / 10.0}}
        return {"row": "small", "side": side, "failed": False, "report": report, "oom_kills": 0, "peak_bytes": GIB,
                "device_bytes": 200, "program_bytes": 200, "load_device_bytes": 100.0, "prefill_device_bytes": 400.0,
                "decode_device_bytes": device, **more}

    def runs(self) -> list[Measured]:
        killed = {"row": "small", "side": "llama.cpp", "failed": True, "oom_kills": 1, "peak_bytes": 2 * GIB}
        return [self.made("llama.cpp", 2.0, 9e7), self.made("wayinfer", 9.0, 5e7), self.made("wayinfer", 8.0, 4.2e7), killed,
                self.made("llama.cpp", 1.0, 8e7), self.made("wayinfer", 1.0, 4e7)]

    def test_budgets(self) -> None:
        self.assertEqual(budgets(10, 10, 160, 1000, 2), [80, 40, 160])
        self.assertEqual(budgets(10, 40, 160, 1000, 2), [80, 40, 160])
        self.assertEqual(budgets(10, 40, 160, 90, 2), [80, 40, 90])
        self.assertEqual(budgets(10, 10, 160, 40, 2), [20, 40])
        self.assertEqual(budgets(100, 100, 10, 1000, 2), [200])

    def test_summary(self) -> None:
        got = summary(self.ROW, self.runs(), 1000)
        wanted = {"llama.cpp_tok_s": 1.5, "wayinfer_tok_s": 8.0, "ratio": 8.0 / 1.5, "wayinfer_disk_bytes_per_token": 4.2e6,
                  "disk_by_plan": 1.05, "model_read_before_decode": 0.5, "fraction_of_bound": 0.8, "llama.cpp_peak_bytes": 2 * GIB,
                  "wayinfer_peak_bytes": GIB, "llama.cpp_oom_kills": 1, "wayinfer_oom_kills": 0, "llama.cpp_failed": 1, "rounds": 3}
        for key, value in wanted.items():
            self.assertAlmostEqual(got[key], value, msg=key)

    def test_table(self) -> None:
        lines = table([summary(self.ROW, self.runs(), 1000), summary(self.ROW, self.runs()[3:4], 1000)]).splitlines()
        self.assertEqual(lines[0].split(), ["small", "small"])
        self.assertEqual(len(lines), 1 + len(LINES))
        self.assertIn("ratio", lines[7])
        self.assertEqual(lines[7].split()[1:], ["5.33", "-"])  # where all runs failed there is nothing to show
        self.assertEqual(len({len(line) for line in lines}), 1)

    def test_phases(self) -> None:
        samples = limits.Samples([100.0, 101.0, 103.0, 108.0], [0, 1000, 3000, 3500], [0, 900, 2900])
        run = limits.Run(0, "", "", 100.0, 8.0, False, None, 0, samples)
        report = {"load_s": 1.0, "prefill_tok_s": 8.0, "decode_tok_s": 2.0}
        got = phases(run, report, self.ROW)
        self.assertEqual(got, {"load_device_bytes": 1000, "prefill_device_bytes": 2000, "decode_device_bytes": 500,
                               "load_program_bytes": 900, "prefill_program_bytes": 2000, "decode_program_bytes": None})
        told = phases(run, report | {"prefill_began_unix_s": 101.0, "decode_began_unix_s": 103.0, "load_s": 0.9}, self.ROW)
        self.assertEqual(told, got)
        late = phases(run, report | {"load_s": 1.5}, self.ROW)  # would have ended after its process
        self.assertIsNone(late["decode_device_bytes"])

    def test_warnings(self) -> None:
        self.assertEqual(warnings(self.made("wayinfer", 1.0, 1.0)), [])
        self.assertIn("0.30 GB", warnings(self.made("wayinfer", 1.0, 1.0, device_bytes=1.3e9, program_bytes=1e9))[0])
        self.assertEqual(len(warnings(self.made("wayinfer", 1.0, 1.0, decode_device_bytes=None))), 1)

    def test_budgets(self) -> None:
        error = "error: in 1.0 MiB of memory: 1.5 GiB are needed at the least, 200.0 MiB of them for the KV cache"
        self.assertEqual(least_named(error), 3 << 29)
        self.assertIsNone(least_named("error: out of memory"))
        self.assertEqual(last_error(error + "\nhint: less\n"), error)
        self.assertEqual((last_error("one\ntwo\n"), last_error("")), ("two", ""))
        self.assertEqual(series(100, 800, 4), [100, 200, 400, 800])
        self.assertEqual(series(900, 800, 4), [900])
