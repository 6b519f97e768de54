#!/usr/bin/env python3
"""Measures kernels on the machine that it runs on: run.py OUT.json [--threads N,..] [--rounds N] [--no-peer]

Lies beside what scripts/elsewhere.sh packs, and needs nothing else but Python. First the library's tests of kernels,
operations and formats, which hold every kernel set that the CPU has to the scalar one's bits; then `wayinfer bench`
on synthetic models with the two best kernel sets, in turns with llama.cpp. One JSON says all.
"""

import argparse
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Shape, what else synth_gguf.py is told, tokens of a prompt and tokens decoded.
WORK = [
    ("llama-1b", [], 512, 32),
    ("llama-1b", [], 4096, 16),
    ("fine-moe", ["--layers", "8"], 512, 32),
    ("llama-8b", ["--layers", "8"], 512, 16),
]
RESULT = re.compile(r"^test result: .* (\d+) passed; (\d+) failed; (\d+) ignored", re.MULTILINE)


def output_of(command, timeout, **more):
    run = subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=HERE, check=False, **more)
    return run.returncode, run.stdout, run.stderr


def cpu():
    code, out, _ = output_of(["lscpu", "--json"], 20)
    return json.loads(out)["lscpu"] if code == 0 else platform.processor()


def tests(*names, **more):
    """The counts of tests by parts of their names, and the end of what was said where something failed."""
    code, out, err = output_of(["./tests", *names], 240, **more)
    found = RESULT.search(out)
    counts = dict(zip(["passed", "failed", "ignored"], map(int, found.groups()))) if found else {}
    return {"exit_code": code, **counts, **({"said": (out + err)[-4000:]} if code else {})}


def kernel_sets():
    """Those that this CPU has, the best first, but the scalar one."""
    _, _, err = output_of(["./wayinfer", "bench", "--isa", "none"], 20)
    names = re.search(r"unknown instruction set 'none' \(([^)]*)\)", err)
    names = reversed(names.group(1).split(", ")) if names else []
    runs = {name: ["./wayinfer", "generate", "-p", "a", "-n", "1", "--isa", name] for name in names}
    return [name for name, run in runs.items() if name != "scalar" and output_of(run, 60)[0] == 0]


def build_peer(log):
    """The program peer, with llama.cpp built for this CPU; None where that can't be done."""
    if not (shutil.which("cmake") and (shutil.which("c++") or shutil.which("g++"))):
        return None
    steps = [
        ["mkdir", "-p", "llama.cpp"],
        ["tar", "-C", "llama.cpp", "-xJf", "llama.cpp.tar.xz"],
        ["cmake", "-B", "build", "-DCMAKE_BUILD_TYPE=Release"],
        ["cmake", "--build", "build", "--target", "peer", "-j", str(os.cpu_count())],
    ]
    for step in steps:
        run = subprocess.run(step, cwd=HERE, stdout=log, stderr=log, timeout=900, check=False)
        if run.returncode:
            return None
    return HERE / "build/peer"


def ours(model, isa, threads, prompt, decode):
    command = ["./wayinfer", "bench", "-m", model, "--isa", isa, "-t", str(threads), "-p", str(prompt), "-n",
               str(decode), "-r", "1", "--json"]
    code, out, err = output_of(command, 200)
    if code:
        return {"error": err[-500:]}
    said = json.loads(out)
    return {"prefill": said["prefill_tok_s"], "decode": said["decode_tok_s"]}


def peers(peer, model, threads, prompt, decode):
    code, out, err = output_of([str(peer), str(model), str(threads), str(prompt), str(decode)], 300)
    return {"error": err[-500:]} if code else json.loads(out)


def medians(rounds):
    """Of prefill and decode over rounds, each alone; errors as they are."""
    wrong = [r for r in rounds if "error" in r]
    if wrong or not rounds:
        return wrong[0] if wrong else {}
    return {kind: statistics.median(r[kind] for r in rounds) for kind in ("prefill", "decode")}


def made(shape, options):
    """A synthetic model, and what went wrong."""
    model = HERE / f"{shape}{''.join(options)}.gguf"
    if not model.exists():
        code, _, err = output_of([sys.executable, "synth_gguf.py", shape, *options, "--out", str(model)], 120)
        if code:
            return model, err[-500:]
    return model, None


def measure(work, sets, threads, rounds, peer):
    """A row for each kernel set, and one of llama.cpp; rounds alternate, and so does their order."""
    shape, options, prompt, decode = work
    model, error = made(shape, options)
    if error:
        return [{"model": model.name, "error": error}]
    runs = [(isa, lambda isa=isa: ours(model, isa, threads, prompt, decode)) for isa in sets]
    if peer:
        runs.append(("llama.cpp", lambda: peers(peer, model, threads, prompt, decode)))
    found = {name: [] for name, _ in runs}
    for i in range(rounds):
        for name, run in runs if i % 2 == 0 else reversed(runs):
            found[name].append(run())
    what = {"model": model.name, "threads": threads, "prompt": prompt, "decode_tokens": decode, "rounds": rounds}
    return [{**what, "run": name, **medians(of)} for name, of in found.items()]


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("out", type=Path)
    options.add_argument("--threads", default=f"{min(16, os.cpu_count())}")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--work", type=int, default=len(WORK), help="so many of the models")
    options.add_argument("--no-peer", action="store_true", help="without llama.cpp")
    options = options.parse_args()
    start = time.monotonic()
    result = {"cpu": cpu(), "cores": os.cpu_count(), "tests": tests("kernels::", "quant::"), "kernel_sets": kernel_sets(), "rows": []}
    print(f"tests: {result['tests']}, kernel sets: {result['kernel_sets']}", file=sys.stderr)
    with open(HERE / "peer.log", "w", encoding="utf-8") as log:
        peer = None if options.no_peer else build_peer(log)
    result["peer"] = peer is not None
    for work in WORK[: options.work]:
        for threads in map(int, options.threads.split(",")):
            rows = measure(work, result["kernel_sets"][:2], threads, options.rounds, peer)
            result["rows"] += rows
            print(*rows, sep="\n", file=sys.stderr)
            result["seconds"] = time.monotonic() - start
            # After each, so that a machine that goes takes nothing with it.
            options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    sys.exit(1 if result["tests"]["exit_code"] else 0)


if __name__ == "__main__":
    main()
