#!/usr/bin/env python3
"""What types of the KV cache do to the demo: perplexity of held-out conversations, and the divergence of its probabilities
from those with an F16 cache.

    scripts/kv-quality.py

Sixty-four conversations of four held-out questions; the tokens of the answers count. Synthetic weights
are no judge of quality. Needs the release build of wayinfer; a minute."""
import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "fixtures/demo-q4_k_m.gguf"
CACHES = ("f16", "f32", "q8_0", "q8_0/q4_0", "q4_0")
CONVERSATIONS, TURNS = 64, 4
sys.path.append(str(ROOT / "scripts/demo"))
import data as language  # noqa: E402


def run(*arguments: object, **more: str) -> str:
    return subprocess.run([str(a) for a in arguments], check=True, text=True, capture_output=True, **more).stdout


def conversations(wayinfer: Path) -> list[tuple[list[int], list[int]]]:
    """Ids of each conversation, and which of them belong to answers."""
    asked = json.loads((ROOT / "fixtures/demo-held-out.json").read_text())

    def ids_of(text: str) -> list[int]:
        # The template begins with the token that is added as well.
        return json.loads(run(wayinfer, "tokenize", "-m", MODEL, "--special", "--json", "--text", text))[1:]

    all_of_them = []
    for first in range(CONVERSATIONS):
        turns = [asked[(first * TURNS + i) % len(asked)] for i in range(TURNS)]
        said: list[str] = []
        ids: list[int] = []
        answers: list[int] = []
        for turn in turns:
            prompt = language.prompt_text(*said, turn["question"])
            begin, ids = len(ids_of(prompt)), ids_of(prompt + turn["answer"])
            answers += range(begin, len(ids))
            said += [turn["question"], turn["answer"]]
        all_of_them.append((ids, answers))
    return all_of_them


def logits(path: Path) -> np.ndarray:
    """The rows of `result_output`."""
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:8 + size])
    name = next(name for name in header if name.startswith("prefill/result_output"))
    start, end = header[name]["data_offsets"]
    return np.frombuffer(raw[8 + size + start:8 + size + end], dtype="<f4").reshape(header[name]["shape"]).squeeze()


def log_probabilities(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    x -= x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def main() -> None:
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--wayinfer", type=Path, default=ROOT / "target/release/wayinfer", metavar="FILE")
    o = a.parse_args()
    base: list[np.ndarray] = []
    print(f"{'cache':10} perplexity   divergence from f16   same first choice")
    texts = conversations(o.wayinfer)
    for kv in CACHES:
        likelihood, divergence, same, n = 0.0, 0.0, 0, 0
        for i, (ids, answers) in enumerate(texts):
            with tempfile.TemporaryDirectory() as folder:
                saved, tokens = Path(folder) / "nodes.safetensors", Path(folder) / "ids"
                tokens.write_bytes(np.array(ids, "<u4").tobytes())
                run(o.wayinfer, "trace", "-m", MODEL, "--ids-file", tokens, "--kv", kv, "--nodes", "result_output", "-b", len(ids),
                    "--save", saved)
                rows = log_probabilities(logits(saved))
            if kv == "f16":
                base.append(rows)
            before = np.array(answers) - 1
            likelihood += rows[before, np.array(ids)[answers]].sum()
            divergence += (np.exp(base[i]) * (base[i] - rows))[before].sum()
            same += int((rows.argmax(-1) == base[i].argmax(-1))[before].sum())
            n += len(answers)
        print(f"{kv:10} {np.exp(-likelihood / n):10.4f}   {divergence / n:19.2e}   {same / n:17.4f}", flush=True)


if __name__ == "__main__":
    main()
