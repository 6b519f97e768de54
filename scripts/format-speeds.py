#!/usr/bin/env python3
"""Measures decoding by format: for each block format a model whose matrices are all of it, wayinfer and llama.cpp in turns.

    scripts/format-speeds.py [--only Q4_0 IQ2_XS ..] [--rounds 5] [--threads 2] [--json FILE]

The models are made one at a time in a temporary folder: some 250 million weights, larger than caches, encoded by ggml from few
random rows that repeat, for only their speed counts. Needs both builds of scripts/ggml, the release build of wayinfer, an idle
machine.
"""
import argparse, json, subprocess, sys, tempfile
from pathlib import Path

import gguf
import numpy as np

import fixtures

SCRIPTS = Path(__file__).resolve().parent
WAYINFER = SCRIPTS.parent / "target/release/wayinfer"
PEER = SCRIPTS / "ggml/target-native/release/wayinfer-ggml"
FORMATS = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ1_S", "IQ1_M",
           "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0", "MXFP4", "NVFP4", "Q1_0", "Q2_0"]
SHAPE = fixtures.Shape(seed=1, title="one format for all matrices", layers=4, embd=2048, heads=16, kv=4, head=128, ffn=8192,
                       rope_factors=False)
ROWS = 64  # that repeat
FEW_ROWS = {"IQ1_S": 2, "IQ2_XXS": 8, "IQ2_XS": 8, "IQ2_S": 8}  # of formats that take their time to encode


def matrices(s):
    """(name, rows, columns) of every matrix."""
    yield "token_embd", s.vocab, s.embd
    for layer in range(s.layers):
        q, kv = s.heads * s.head, s.kv * s.head
        for name, rows, cols in [("attn_q", q, s.embd), ("attn_k", kv, s.embd), ("attn_v", kv, s.embd), ("attn_output", s.embd, q),
                                 ("ffn_gate", s.ffn, s.embd), ("ffn_up", s.ffn, s.embd), ("ffn_down", s.embd, s.ffn)]:
            yield f"blk.{layer}.{name}", rows, cols
    yield "output", s.vocab, s.embd


def iq1_m(rng, rows, cols):
    """Rows of blocks drawn at random, for ggml takes minutes to encode one: 56 bytes, in the highest nibbles of the last four words
    the scale, an f16, lowest nibble first."""
    blocks = rng.integers(0, 256, (rows, cols // 256, 56), np.uint8)
    words = blocks[..., 48:].view("<u2")
    words &= 0x0fff
    words[..., 3] |= 0x1000  # 2^-11
    return blocks.tobytes(), gguf.GGMLQuantizationType.IQ1_M


def rows_of(name, cols):
    """A few random rows in a format: their bytes, and the format's type."""
    if name == "IQ1_M":
        return iq1_m(np.random.default_rng(cols), ROWS, cols)
    values = fixtures.weights(np.random.default_rng(cols), FEW_ROWS.get(name, ROWS), cols)
    if name == "F32":
        return values.tobytes(), gguf.GGMLQuantizationType.F32
    if name == "F16":
        return values.astype(np.float16).tobytes(), gguf.GGMLQuantizationType.F16
    if name == "BF16":
        return (values.view(np.uint32) >> 16).astype(np.uint16).tobytes(), gguf.GGMLQuantizationType.BF16
    data, ty = fixtures.encode(values, name)
    return data.tobytes(), ty


def write(path, name):
    """A model whose matrices are all of one format."""
    w = fixtures.writer(path, SHAPE)
    few = {cols: rows_of(name, cols) for _, _, cols in matrices(SHAPE)}
    for tensor, rows, cols in matrices(SHAPE):
        data, ty = few[cols]
        few_rows = FEW_ROWS.get(name, ROWS)
        row = len(data) // few_rows
        repeated = np.frombuffer((data * -(-rows // few_rows))[:rows * row], np.int8)
        w.add_tensor(tensor + ".weight", repeated, raw_shape=(rows, cols), raw_dtype=ty)
    ones = np.ones(SHAPE.embd, np.float32)
    for layer in range(SHAPE.layers):
        for norm in ("attn_norm", "ffn_norm"):
            w.add_tensor(f"blk.{layer}.{norm}.weight", ones)
    w.add_tensor("output_norm.weight", ones)
    fixtures.finish(w)


def measure(name, o):
    """The reference program's report on one format."""
    with tempfile.TemporaryDirectory() as tmp:
        path = Path(tmp) / f"{name}.gguf"
        write(path, name)
        words = [o.peer, "bench", "-m", path, "-p", "16", "-n", "32", "-t", o.threads, "-r", o.rounds, "--wayinfer", o.wayinfer]
        out = subprocess.run([str(word) for word in [*words, "--json"]], check=True, stdout=subprocess.PIPE).stdout
        return json.loads(out)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=FORMATS, metavar="FORMAT")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write all reports to this file")
    parser.add_argument("--wayinfer", type=Path, default=WAYINFER)
    parser.add_argument("--peer", type=Path, default=PEER)
    o = parser.parse_args()
    reports = {}
    print("| format | llama.cpp, tok/s | wayinfer, tok/s | ratio |\n|---|---|---|---|")
    for name in o.only or FORMATS:
        print(name, file=sys.stderr)
        reports[name] = report = measure(name, o)
        peer, ours = (report[side]["median"]["decode_tok_s"] for side in ("llama.cpp", "wayinfer"))
        print(f"| {name} | {peer:.1f} | {ours:.1f} | {ours / peer:.2f} |", flush=True)
    if o.json:
        o.json.write_text(json.dumps(reports, indent=1))


main()
