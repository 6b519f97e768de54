#!/usr/bin/env python3
"""Time to the first token of a model that is not in memory yet, wayinfer and llama.cpp in turns: medians.

    sudo scripts/cold-start.py MODEL.gguf [--peer scripts/ggml/target-native/release/wayinfer-ggml]

From the start of the process to the end of the prompt's pass, which gives the first token. Before each run the machine's caches of
files are dropped, which takes root, Linux and an idle machine. --against FILE measures another build of wayinfer in the same turns.
Both programs' `bench` without a warm-up say when the pass began and how fast it was; the model is to fit into memory."""
from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DROP_CACHES = Path("/proc/sys/vm/drop_caches")


def arguments(model: Path, prompt: int, threads: int) -> list[str]:
    return ["-m", str(model), "-p", str(prompt), "-n", "1", "-t", str(threads), "--rounds", "1", "--no-warmup", "--json"]


def first_token(command: list[str], prompt: int) -> float:
    """Seconds from the start of a program to its first token, with nothing of its model in memory."""
    os.sync()
    DROP_CACHES.write_text("3\n")
    started = time.time()
    done = subprocess.run(command, check=True, text=True, capture_output=True)
    return from_report(json.loads(done.stdout), started, prompt)


def from_report(report: dict, started: float, prompt: int) -> float:
    return report["prefill_began_unix_s"] - started + prompt / report["prefill_tok_s"]


def main() -> None:
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("model", type=Path, nargs="?")
    a.add_argument("--wayinfer", type=Path, default=ROOT / "target/release/wayinfer", metavar="FILE")
    a.add_argument("--against", type=Path, metavar="FILE", help="another build of wayinfer")
    a.add_argument("--peer", type=Path, metavar="FILE", help="wayinfer-ggml of scripts/ggml/build.sh native")
    a.add_argument("-p", "--prompt", type=int, default=16, metavar="N", help="tokens of the prompt")
    a.add_argument("-t", "--threads", type=int, default=os.cpu_count(), metavar="N")
    a.add_argument("-r", "--rounds", type=int, default=5, metavar="N")
    a.add_argument("--json", type=Path, metavar="FILE")
    a.add_argument("--self-test", action="store_true")
    o = a.parse_args()
    if o.self_test:
        return self_test()
    if o.model is None:
        a.error("which model?")
    programs = {"wayinfer": [o.wayinfer, "bench"]}
    if o.against:
        programs["the other wayinfer"] = [o.against, "bench"]
    if o.peer:
        programs["llama.cpp"] = [o.peer, "bench-peer"]
    times: dict[str, list[float]] = {name: [] for name in programs}
    for turn in range(o.rounds):
        for name, (program, command) in programs.items():
            run = [str(program), command, *arguments(o.model, o.prompt, o.threads)]
            times[name].append(first_token(run, o.prompt))
            print(f"{turn + 1}: {name} {times[name][-1]:.2f} s", file=sys.stderr, flush=True)
    size = o.model.stat().st_size
    print(f"{o.model.name}, {size / 1e9:.2f} GB, {o.prompt} tokens, {o.threads} threads, medians of {o.rounds} in turns")
    ours = statistics.median(times["wayinfer"])
    for name, seconds in times.items():
        middle = statistics.median(seconds)
        spread = f"{min(seconds):.2f} to {max(seconds):.2f}"
        print(f"{name:20} {middle:6.2f} s ({spread}), {middle / ours:.2f} times wayinfer's, the file at {size / middle / 1e9:.2f} GB/s")
    if o.json:
        o.json.write_text(json.dumps({"model": o.model.name, "prompt": o.prompt, "first_token_s": times}))


def self_test() -> None:
    """What the two reports come to."""
    report = {"prefill_began_unix_s": 1002.5, "prefill_tok_s": 8.0, "decode_tok_s": 3.0}
    assert from_report(report, 1000.0, 16) == 4.5
    run = arguments(Path("m.gguf"), 16, 2)
    assert run[:2] == ["-m", "m.gguf"] and {"--no-warmup", "--json"} <= set(run)
    print("ok")


if __name__ == "__main__":
    main()
