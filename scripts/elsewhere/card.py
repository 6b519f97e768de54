#!/usr/bin/env python3
"""Tests and measures a graphics card: card.py OUT.json [--gpu N] [--rounds N]

Lies beside run.py. First the library's tests of devices, which hold every kernel to the scalar one's bits on the card;
then traces of synthetic models, all nodes of which must be the CPU's to the last bit; then `wayinfer bench` with the
card and without it, in turns. Weights that a token reads, times tokens a second, is what the card gave of its memory's
bandwidth, which the card's data sheet tells. One JSON says all.
"""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

from run import HERE, made, output_of, tests

# Shape, what else synth_gguf.py is told, memory of the card that weights may take, tokens of a prompt and decoded.
WORK = [
    ("llama-8b", [], None, 512, 64),
    ("qwen3-30b-a3b", [], "6G", 512, 32),
    ("qwen3-30b-a3b", [], None, 512, 32),
]
# Small enough to be traced within seconds.
TRACED = [("llama-8b", ["--layers", "2"]), ("fine-moe", ["--layers", "2"])]


def same_nodes(gpu, shape, options):
    """Whether every node of a pass and of three steps has the same bits with the card as without."""
    model, error = made(shape, options)
    if error:
        return {"model": model.name, "error": error}
    ids = HERE / "ids"
    ids.write_bytes(b"".join((7 + 31 * i).to_bytes(4, "little") for i in range(33)))
    saved = []
    for which in (str(gpu), "off"):
        saved.append(HERE / f"nodes-{which}")
        saved[-1].unlink(missing_ok=True)
        trace = ["./wayinfer", "trace", "-m", str(model), "--ids-file", str(ids), "-n", "3", "--gpu", which]
        code, _, err = output_of([*trace, "--save", str(saved[-1])], 200)
        if code or "warning" in err:
            return {"model": model.name, "error": err[-500:]}
    with_card, without = [file.read_bytes() for file in saved]
    return {"model": model.name, "same": with_card == without, "bytes": len(without)}


def bench(model, gpu, vram, prompt, decode):
    command = ["./wayinfer", "bench", "-m", str(model), "-p", str(prompt), "-n", str(decode), "-r", "1", "--json"]
    command += ["--gpu", str(gpu)] + (["--vram", vram] if vram and gpu != "off" else [])
    code, out, err = output_of(command, 300)
    if code or "warning" in err:
        return {"error": err[-500:]}
    said = json.loads(out)
    return {"prefill": said["prefill_tok_s"], "decode": said["decode_tok_s"], "residency": said.get("residency")}


def measure(work, gpu, rounds):
    """A row with the card and one without; rounds alternate, and so does their order."""
    shape, options, vram, prompt, decode = work
    model, error = made(shape, options)
    what = {"model": model.name, "vram": vram, "prompt": prompt, "decode_tokens": decode, "rounds": rounds}
    if error:
        return [{**what, "error": error}]
    found = {gpu: [], "off": []}
    for i in range(rounds):
        for which in list(found) if i % 2 == 0 else reversed(list(found)):
            found[which].append(bench(model, which, vram, prompt, decode))
    rows = []
    for which, runs in found.items():
        wrong = [run for run in runs if "error" in run]
        medians = {kind: statistics.median(run[kind] for run in runs) for kind in ("prefill", "decode")} if not wrong else {}
        rows.append({**what, "gpu": which, **medians, **(wrong[0] if wrong else {"residency": runs[-1]["residency"]})})
    return rows


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("out", type=Path)
    options.add_argument("--gpu", type=int, default=0, help="the device's index in `wayinfer devices`")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--work", type=int, default=len(WORK), help="so many of the models")
    options = options.parse_args()
    start = time.monotonic()
    code, out, err = output_of(["./wayinfer", "devices", "--json"], 60)
    result = {"devices": json.loads(out) if code == 0 else err, "rows": []}
    environment = {**os.environ, "WAYINFER_TEST_DEVICE": str(options.gpu)}
    result["tests"] = tests("device::", env=environment)
    result["nodes"] = [same_nodes(options.gpu, *of) for of in TRACED]
    print(result["devices"], result["tests"], result["nodes"], sep="\n", file=sys.stderr)
    for work in WORK[: options.work]:
        rows = measure(work, options.gpu, options.rounds)
        result["rows"] += rows
        print(*rows, sep="\n", file=sys.stderr)
        result["seconds"] = time.monotonic() - start
        # After each, so that a machine that goes takes nothing with it.
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    is_right = result["tests"]["exit_code"] == 0 and all(of.get("same") for of in result["nodes"])
    sys.exit(0 if is_right else 1)


if __name__ == "__main__":
    main()
