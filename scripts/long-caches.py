#!/usr/bin/env python3
"""How far attention over a long KV cache is from ggml's on equal inputs: the figures of `LONG` in src/verify/bounds.rs.

    scripts/long-caches.py                        prompts of 200 and 2,000 tokens, every type of values
    scripts/long-caches.py --kv q8_0/q4_0         one type of keys and values

Nodes of such prompts would take too much room among the goldens. Needs `scripts/ggml/build.sh portable` and the release build
of wayinfer; a minute or two."""
import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "scripts/ggml/target-portable/release/wayinfer-ggml"
MODELS = ("dense-f32", "dense-q8_0", "dense-q4_k_m", "moe-q4_k_m")
CACHES = ("f32", "f16", "q8_0", "q4_0", "q8_0/q4_0", "q8_0/f16", "f16/q8_0")
# Tokens, and which rows of the nodes are kept.
PROMPTS = {"long": (200, "all"), "deep": (2000, "ends")}


def run(*arguments: object) -> str:
    done = subprocess.run([str(a) for a in arguments], capture_output=True, text=True)
    # 1 tells of nodes beyond their bound: these are what is measured.
    if done.returncode not in (0, 1) or not done.stdout and "capture" not in arguments:
        sys.exit(done.stderr or f"failed: {arguments}")
    return done.stdout


def worst(wayinfer: Path, model: str, kv: str, folder: Path) -> dict[str, float]:
    """The worst NMSE of what attention gives, by prompt."""
    found = {}
    for prompt, (_, rows) in PROMPTS.items():
        path = ROOT / f"fixtures/{model}.gguf"
        run(REFERENCE, "capture", "--model", path, "--prompts", folder / "prompts.json", "--only", prompt, "--out", folder,
            "--kv", kv, "--steps", 1, "--greedy", 2, "--rows", rows)
        report = json.loads(run(wayinfer, "trace", "-m", path, "--golden", folder / f"{prompt}.safetensors", "--isolate",
                                "--worst", 10**6, "--json"))
        found[prompt] = max(node["nmse"] for node in report["nodes"] if node["name"] == "kqv_out")
    return found


def main() -> None:
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--kv", choices=CACHES, action="append", help="this cache alone; may be given several times")
    a.add_argument("--wayinfer", type=Path, default=ROOT / "target/release/wayinfer", metavar="FILE")
    o = a.parse_args()
    random.seed(6)
    values: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prompts = {prompt: [random.randrange(3, 250) for _ in range(n)] for prompt, (n, _) in PROMPTS.items()}
        (folder / "prompts.json").write_text(json.dumps(prompts))
        for kv in o.kv or CACHES:
            for model in MODELS:
                found = worst(o.wayinfer, model, kv, folder)
                print(f"{kv:10} {model:14}", *(f"{prompt} {nmse:.2e}" for prompt, nmse in found.items()), flush=True)
                of = kv.split("/")[-1]
                values[of] = max(values.get(of, 0.0), *found.values())
    for of, nmse in values.items():
        print(f"values of {of}: {nmse:.2e}")


if __name__ == "__main__":
    main()
