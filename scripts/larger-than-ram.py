#!/usr/bin/env python3
"""Measures models that are larger than memory: wayinfer and llama.cpp in turns, each run in a process and a memory control group
of its own, from cold caches, on the same disk.

    sudo scripts/larger-than-ram.py --models FOLDER                    the whole table: an hour and more
    sudo scripts/larger-than-ram.py --row fine-moe --model fine-moe=PATH --rounds 1
    sudo scripts/larger-than-ram.py --check-budgets MODEL              no speed: does each budget hold, with the same tokens?
    scripts/larger-than-ram.py --self-test                             the parts that need neither root nor models

The page cache counts against a group's limit, and there is no swap. Bytes from disk are the block device's own count, so nothing
else may run meanwhile. Needs Linux, root, the release build of wayinfer and `scripts/ggml/build.sh native`.
"""
from __future__ import annotations

import argparse, dataclasses, json, os, platform, signal, struct, subprocess, sys, tempfile, unittest
from pathlib import Path
from typing import NoReturn

import limits, ram_table
from ram_table import ROWS, SIDES, Measured, Row, aligned, budgets, last_error, least_named, phases, residency, summary, table, warnings

SCRIPTS = Path(__file__).resolve().parent
WAYINFER = SCRIPTS.parent / "target/release/wayinfer"
PEER = SCRIPTS / "ggml/target-native/release/wayinfer-ggml"
TIMEOUT = 3600.0  # seconds a run


def command(side: str, row: Row, model: Path, o: argparse.Namespace) -> list[str]:
    """One round from a cold start: no round before it would leave anything in memory."""
    load = ["-m", str(model), "-p", str(row.prompt), "-n", str(row.tokens), "-t", str(o.threads)]
    load += ["-r", "1", "--no-warmup", "--json"]
    if side == "llama.cpp":
        return [str(o.peer), "bench-peer", *load]
    return [str(o.wayinfer), "bench", *load, *(["--ram", str(row.limit)] if row.limit else [])]


def measure(side: str, row: Row, number: int, model: Path, controller: limits.Controller, o: argparse.Namespace) -> Measured:
    """Runs one side once, from cold caches but for the program itself."""
    words = command(side, row, model, o)
    limits.drop_caches()
    Path(words[0]).read_bytes()
    run = limits.run(words, controller, row.limit, limits.devices_of(limits.parts_of(model)), o.timeout)
    result: Measured = {"row": row.name, "side": side, "round": number, "limit_bytes": row.limit, **of_run(run, words)}
    if not run.failed:
        result["report"] = json.loads(run.out)
        result |= phases(run, result["report"], row)
    return result


def of_run(run: limits.Run, words: list[str]) -> Measured:
    samples = run.samples
    return {
        "command": words, "exit_code": run.code, "timed_out": run.timed_out, "failed": run.failed, "seconds": run.seconds,
        "peak_bytes": run.peak_bytes, "oom_kills": run.oom_kills,
        "device_bytes": samples.device[-1] - samples.device[0] if samples.device else None,
        "program_bytes": samples.program[-1] if samples.program else None,
        "stderr": run.err[-2000:],
    }


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def stop(text: str, code: int = 2) -> NoReturn:
    say(f"larger-than-ram.py: {text}")
    sys.exit(code)


def outcome(run: Measured) -> str:
    if run["oom_kills"]:
        return "killed for memory"
    if run["timed_out"]:
        return "not done in time"
    return f"exit code {run['exit_code']}: {last_error(run['stderr'])}" if run["failed"] else "done"


def measure_rows(rows: list[Row], models: dict[str, Path], controller: limits.Controller, o: argparse.Namespace) -> bool:
    """Measures and prints the table; whether every run came to its end."""
    runs: list[Measured] = []
    summaries: list[Measured] = []
    for row in rows:
        model, rounds = models[row.model], o.rounds or row.rounds
        size = sum(part.stat().st_size for part in limits.parts_of(model))
        for number in range(rounds):
            for side in SIDES if number % 2 == 0 else SIDES[::-1]:
                run = measure(side, row, number, model, controller, o)
                runs.append(run)
                speed = "" if run["failed"] else f", {row.phase} {run['report'][f'{row.phase}_tok_s']:.3f} tok/s"
                say(f"{row.name}, round {number + 1} of {rounds}, {side}: {outcome(run)}{speed}, {run['seconds']:.1f} s")
                for warning in warnings(run):
                    say(f"warning: {warning}")
                if o.json:
                    write(o.json, runs, summaries, models, controller, o)
        summaries.append(summary(row, [run for run in runs if run["row"] == row.name], size))
    if o.json:
        write(o.json, runs, summaries, models, controller, o)
    print(table(summaries))
    return not any(run["failed"] for run in runs)


def write(out: Path, runs: list[Measured], summaries: list[Measured], models: dict[str, Path], controller: limits.Controller,
          o: argparse.Namespace) -> None:
    """All that is known so far: after every run, for they take long."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    machine = {"kernel": platform.release(), "cpus": os.cpu_count(), "memory_bytes": memory, "control_groups": controller.version.number}
    sizes = {name: {str(part): part.stat().st_size for part in limits.parts_of(model)} for name, model in models.items()}
    known = {"machine": machine, "threads": o.threads, "models": sizes, "table": summaries, "runs": runs}
    fresh = out.with_name(out.name + ".new")
    fresh.write_text(json.dumps(known, indent=1) + "\n")
    fresh.replace(out)


# Budgets: does a run stay within what it was given, and compute the same?

class Budgets:
    """Runs `wayinfer generate` on the same few ids under one budget after the other."""

    def __init__(self, model: Path, controller: limits.Controller, o: argparse.Namespace, ids: Path) -> None:
        self.model, self.controller, self.o, self.ids = model, controller, o, ids
        self.wanted: list[int] = []
        self.runs: list[Measured] = []
        self.cells = [["budget, MiB", "outcome", "peak, MiB", "verdict"]]
        self.faults = 0

    def generate(self, limit: int | None, budget: int | None) -> limits.Run:
        limits.drop_caches()
        words = [str(self.o.wayinfer), "generate", "-m", str(self.model), "--ids-file", str(self.ids), "-n", str(self.o.tokens or 8),
                 "--greedy", "--ignore-eos", "-c", "64", "-t", str(self.o.threads), "--json"]
        words += ["--ram", str(budget)] if budget else []
        run = limits.run(words, self.controller, limit, None, self.o.timeout)
        self.runs.append({"limit_bytes": limit, "budget_bytes": budget, **of_run(run, words)})
        if not run.failed:
            self.runs[-1]["report"] = json.loads(run.out)
        return run

    def check(self, budget: int) -> bool:
        """One budget, in a group of the same size; whether there was a run at all."""
        run = self.generate(budget, budget)
        result = self.runs[-1]
        wrong = []
        if run.failed:
            named = least_named(run.err)
            wrong.append(f"refused, {named / (1 << 20):.1f} MiB wanted" if named else outcome(result))
        elif result["report"]["ids"] != self.wanted:
            wrong.append("other tokens than without a limit")
        if run.peak_bytes is not None and run.peak_bytes > budget:
            wrong.append("more memory than the limit")
        self.faults += bool(wrong)
        result["faults"] = wrong
        peak = "-" if run.peak_bytes is None else f"{run.peak_bytes / (1 << 20):.1f}"
        mode = residency(result, "plan", "mode") if not run.failed else "failed"
        self.cells.append([f"{budget / (1 << 20):.1f}", str(mode), peak, "; ".join(wrong) or "good"])
        say(f"budget {self.cells[-1][0]} MiB: {self.cells[-1][-1]}, {run.seconds:.1f} s")
        return not run.failed

    def first(self, least: int) -> int:
        """1.5 times what is always in memory beside the cache of experts, by the last run; a dense model, of which as much is
        pinned as the budget allows, begins at the least budget."""
        if self.runs[-1]["failed"] or not residency(self.runs[-1], "plan", "experts"):
            return least
        return max(least, int(1.5 * (residency(self.runs[-1], "plan", "pinned_bytes") or 0)))

    def run_all(self, steps: int) -> bool:
        """The least budget that the program names, half the model's size, then from 1.5 times the pinned set to the model's size or
        the machine's memory; whether all is well."""
        free = self.generate(None, None)
        if free.failed:
            stop(f"without a limit: {outcome(self.runs[-1])}", 1)
        self.wanted = self.runs[-1]["report"]["ids"]
        tiny = self.generate(None, 1 << 20)
        least = least_named(tiny.err)
        if tiny.code != 1 or least is None:
            stop(f"a budget of 1 MiB is not refused with the least one that works: {outcome(self.runs[-1])}", 1)
        for _ in range(3):
            if self.check(least):
                break
            # Refused again: the fault is counted; the budget that is named now may do.
            least = least_named(self.runs[-1]["stderr"]) or 2 * least
        size = sum(part.stat().st_size for part in limits.parts_of(self.model))
        memory = limits.available_memory()
        for budget in budgets(least, self.first(least), size, memory, steps):
            self.check(budget)
        print(aligned(self.cells))
        return self.faults == 0


def check_budgets(model: Path, controller: limits.Controller, o: argparse.Namespace) -> bool:
    with tempfile.TemporaryDirectory() as tmp:
        ids = Path(tmp) / "ids"
        ids.write_bytes(struct.pack("<16I", *((3 + 7 * i) % 250 for i in range(16))))  # in every vocabulary
        budgets = Budgets(model, controller, o, ids)
        good = budgets.run_all(o.budgets)
    if o.json:
        o.json.write_text(json.dumps({"model": str(model), "runs": budgets.runs}, indent=1) + "\n")
    return good


def find_models(rows: list[Row], o: argparse.Namespace) -> dict[str, Path]:
    """The file of each row's model: as given by --model, else by its name in --models."""
    found: dict[str, Path] = {}
    for pair in o.model:
        name, _, path = pair.partition("=")
        if name not in {row.model for row in ROWS} or not path:
            stop(f"--model {pair}: NAME=PATH is wanted, NAME one of {', '.join(sorted({row.model for row in ROWS}))}")
        found[name] = Path(path)
    for name in dict.fromkeys(row.model for row in rows):
        if name not in found and o.models:
            files = [o.models / f"{name}.gguf", *sorted(o.models.glob(f"{name}-00001-of-*.gguf"))]
            found |= {name: path for path in files if path.is_file()}
        if name not in found:
            stop(f"no file of the model {name}: give --models FOLDER or --model {name}=PATH, or choose other rows with --row")
        for part in limits.parts_of(found[name]):
            if not part.is_file():
                stop(f"{part}: no such file")
    return {name: found[name] for name in dict.fromkeys(row.model for row in rows)}


def arguments() -> argparse.Namespace:
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--row", action="append", metavar="NAME", help="measure this row alone; may be given several times: a row's or a "
                   f"model's name of {', '.join(f'{row.name} ({row.model})' for row in ROWS)}")
    a.add_argument("--rounds", type=positive, metavar="N", help=f"rounds of each row, medians are shown (default: {ROWS[0].rounds})")
    a.add_argument("--models", type=Path, metavar="FOLDER", help="where NAME.gguf or NAME-00001-of-0000N.gguf lie: "
                   "synthetic models of these shapes do")
    a.add_argument("--model", action="append", default=[], metavar="NAME=PATH", help="the file of one model (of a split one, the first)")
    a.add_argument("--json", type=Path, metavar="FILE", help="write all measurements, as they are made")
    a.add_argument("--check-budgets", type=Path, metavar="MODEL", help="run MODEL in groups limited to its budget, from the least to its "
                   "size: no run may be killed or take more, and all give the tokens of a run without limit")
    a.add_argument("--budgets", type=positive, default=6, metavar="N", help="how many budgets, besides the least and half the size (default: 6)")
    a.add_argument("--tokens", type=positive, metavar="N", help="tokens to decode, for a quick look (default: the row's; 8 with "
                   "--check-budgets)")
    a.add_argument("--threads", type=positive, default=2, metavar="N", help="of both sides (default: 2)")
    a.add_argument("--timeout", type=float, default=TIMEOUT, metavar="S", help=f"seconds a run may take (default: {TIMEOUT:.0f})")
    a.add_argument("--cgroup", type=Path, metavar="FOLDER", help="the control group to make ours in (default: the topmost)")
    a.add_argument("--wayinfer", type=Path, default=WAYINFER, metavar="FILE", help="ours (default: target/release/wayinfer)")
    a.add_argument("--peer", type=Path, default=PEER, metavar="FILE", help="llama.cpp's side (default: scripts/ggml's wayinfer-ggml, native)")
    a.add_argument("--self-test", action="store_true", help="test the parts that need neither root nor models, and end")
    return a.parse_args()


def positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise ValueError
    return value


def chosen(names: list[str] | None, tokens: int | None) -> list[Row]:
    rows = [row for row in ROWS if names is None or row.name in names or row.model in names]
    for name in names or []:
        if not any(name in (row.name, row.model) for row in ROWS):
            stop(f"--row {name}: no such row; there are {', '.join(row.name for row in ROWS)}")
    return [dataclasses.replace(row, tokens=tokens or row.tokens) for row in rows]


def require_programs(o: argparse.Namespace) -> None:
    """Stops at once where a program is not there or cannot measure from a cold start."""
    for program, subcommand in [(o.wayinfer, "bench"), (o.peer, "bench-peer")][:1 if o.check_budgets else 2]:
        if not os.access(program, os.X_OK):
            stop(f"{program}: no such program; build it with `cargo build --release` or `scripts/ggml/build.sh native`")
        known = subprocess.run([program, subcommand, "--help"], capture_output=True, text=True).stdout
        if not o.check_budgets and "--no-warmup" not in known:
            stop(f"{program} {subcommand} has no --no-warmup, without which nothing is measured cold: build it anew")


def interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def main() -> None:
    o = arguments()
    if o.self_test:
        here = unittest.defaultTestLoader
        suite = unittest.TestSuite([*map(here.loadTestsFromModule, (limits, ram_table)), here.loadTestsFromTestCase(CommandTest)])
        sys.exit(0 if unittest.TextTestRunner().run(suite).wasSuccessful() else 1)
    if platform.system() != "Linux" or os.geteuid() != 0:
        stop("needs Linux and root: it limits memory with a control group and drops the page cache before each run (sudo)")
    rows = chosen(o.row, o.tokens)
    models = {} if o.check_budgets else find_models(rows, o)
    require_programs(o)
    signal.signal(signal.SIGTERM, interrupt)
    try:
        controller = limits.memory_controller(o.cgroup)
        good = check_budgets(o.check_budgets, controller, o) if o.check_budgets else measure_rows(rows, models, controller, o)
    except limits.LimitError as e:
        stop(str(e))
    except (json.JSONDecodeError, KeyError) as e:
        stop(f"a program does not give the JSON that is wanted: {e!r}", 1)
    except KeyboardInterrupt:
        stop("interrupted", 130)
    sys.exit(0 if good else 1)


class CommandTest(unittest.TestCase):
    """What the programs are started with."""
    ROW = Row("small", "a-model", 2, 16, 10)

    def test_commands(self) -> None:
        o = argparse.Namespace(threads=2, wayinfer="w", peer="p")
        ours, theirs = (command(side, self.ROW, Path("m.gguf"), o) for side in ("wayinfer", "llama.cpp"))
        self.assertEqual((ours[:2], theirs[:2]), (["w", "bench"], ["p", "bench-peer"]))
        self.assertEqual(ours[2:-2], theirs[2:])
        self.assertEqual(ours[-2:], ["--ram", str(2 << 30)])
        self.assertNotIn("--ram", command("wayinfer", Row("free", "a-model", None, 16, 10), Path("m.gguf"), o))


if __name__ == "__main__":
    main()
