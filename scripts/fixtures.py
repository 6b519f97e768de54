#!/usr/bin/env python3
"""Makes the random models of fixtures/: right names, shapes and metadata, weights from fixed seeds.

    scripts/fixtures.py OUT_FOLDER [--only NAME...]

The float models are written here; the quantised ones by ggml's own quantiser (`wayinfer-ggml quantize`, the
portable build of scripts/ggml). FIXTURES below is the list; fixtures/README.md is written from it.

Weights are normal with a standard deviation of 1/sqrt(inputs), one in a thousand six times as large, so
that blocks have outliers; embeddings are smaller than what the layers add, with a few large channels; norms
lie around 1; the router's logits spread over a few units, so that near ties are rare.
"""
import argparse, math, subprocess, tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import gguf
import numpy as np

import families
from families import vocabulary
from families.core import F16, F32, REFERENCE, encode, finish

SCRIPTS = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Shape:
    """A model's sizes, in GGUF's terms."""
    seed: int
    title: str
    layers: int = 2
    embd: int = 256
    heads: int = 4
    kv: int = 2
    head: int = 64
    ffn: int = 256
    experts: int = 0
    used: int = 0
    vocab: int = 320
    tokenizer: str = "gpt2"
    rope_base: float = 500000.0
    rope_factors: bool = True
    tied: bool = False


DENSE = Shape(seed=23, title="dense, shaped as Llama 3: GQA 2:1, RoPE factors, an output of its own")
# What needs no blocks of 256 can be smaller.
SMALL = replace(DENSE, embd=80, head=32, ffn=112)
MOE = Shape(seed=2, title="shaped as Mixtral: 8 experts, 2 used, merged expert tensors", ffn=32, experts=8,
            used=2, tokenizer="llama", rope_base=1e6, rope_factors=False)
ODD = Shape(seed=30, title="odd sizes: 3 layers, heads of 24, GQA 3:1, attention wider than the embedding, "
            "a vocabulary of 333, output tied to the embedding", layers=3, embd=96, heads=12, kv=4, head=24,
            ffn=160, vocab=333, tokenizer="llama", rope_base=10000.0, rope_factors=False, tied=True)

MIXED = Shape(seed=41, title="a format a matrix: all that the other models lack", layers=3, kv=1, vocab=264,
              rope_factors=False, tied=True)
# The formats of a layer's matrices: q, k, v, output, gate, up, down.
MIXTURE = [
    ["Q2_K", "Q4_0", "Q4_1", "IQ2_XXS", "IQ2_XS", "IQ2_S", "TQ2_0"],
    ["IQ3_XXS", "Q5_0", "Q5_1", "IQ3_S", "IQ1_S", "IQ1_M", "Q3_K"],
    ["IQ4_XS", "IQ4_NL", "NVFP4", "Q1_0", "Q2_0", "TQ1_0", "MXFP4"],
]
MATRICES = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]

# name -> shape, file type (F32: as written here), what is done afterwards
FIXTURES = {
    "dense-f32": (SMALL, "F32", None),
    "dense-f16": (SMALL, "F16", None),
    "dense-bf16": (SMALL, "BF16", None),
    "dense-q8_0": (replace(SMALL, embd=96, ffn=128), "Q8_0", None),
    "dense-q4_k_m": (DENSE, "Q4_K_M", None),
    "dense-q5_k_m": (replace(DENSE, layers=1), "Q5_K_M", None),
    "moe-q4_k_m": (MOE, "Q4_K_M", None),
    "moe-per-expert-q4_k_m": (MOE, "Q4_K_M", "split experts"),
    "odd-q8_0": (ODD, "Q8_0", None),
    "mixed": (MIXED, "F32", "encode matrices"),
}


def weights(rng, rows, cols, std=None):
    """A matrix of `rows` outputs and `cols` inputs; the leading dimensions of `rows` may be experts."""
    shape = (*rows, cols) if isinstance(rows, tuple) else (rows, cols)
    w = rng.standard_normal(shape) * (std or cols ** -0.5)
    w[rng.random(shape) < 1e-3] *= 6
    return w.astype(F32)


def tensors(s):
    """(name, values) of every tensor, in file order."""
    rng = np.random.default_rng(s.seed)
    norm = lambda n: (1 + 0.2 * rng.standard_normal(n)).astype(F32)
    embedding = rng.standard_normal((s.vocab, s.embd))
    embedding[:, rng.choice(s.embd, 3, replace=False)] *= 5
    # A tied output shares the embedding: its scale keeps the logits within a few units.
    yield "token_embd.weight", (embedding * (s.embd ** -0.5 * 2 if s.tied else 0.4)).astype(F32)
    for i in range(s.layers):
        b = f"blk.{i}."
        yield b + "attn_norm.weight", norm(s.embd)
        yield b + "attn_q.weight", weights(rng, s.heads * s.head, s.embd)
        yield b + "attn_k.weight", weights(rng, s.kv * s.head, s.embd)
        yield b + "attn_v.weight", weights(rng, s.kv * s.head, s.embd)
        yield b + "attn_output.weight", weights(rng, s.embd, s.heads * s.head)
        yield b + "ffn_norm.weight", norm(s.embd)
        if s.experts:
            yield b + "ffn_gate_inp.weight", weights(rng, s.experts, s.embd, 2 * s.embd ** -0.5).astype(F32)
            yield b + "ffn_gate_exps.weight", weights(rng, (s.experts, s.ffn), s.embd)
            yield b + "ffn_up_exps.weight", weights(rng, (s.experts, s.ffn), s.embd)
            yield b + "ffn_down_exps.weight", weights(rng, (s.experts, s.embd), s.ffn)
        else:
            yield b + "ffn_gate.weight", weights(rng, s.ffn, s.embd)
            yield b + "ffn_up.weight", weights(rng, s.ffn, s.embd)
            yield b + "ffn_down.weight", weights(rng, s.embd, s.ffn)
    if s.rope_factors:
        yield "rope_freqs.weight", rope_factors(s)
    yield "output_norm.weight", norm(s.embd)
    if not s.tied:
        yield "output.weight", weights(rng, s.vocab, s.embd, 3 * s.embd ** -0.5)


def rope_factors(s, factor=8.0, low=1.0, high=4.0, original=64):
    """Llama 3's factors, for an original context so short that they matter within a prompt of 83 tokens."""
    factors = []
    for i in range(0, s.head, 2):
        length = 2 * math.pi * s.rope_base ** (i / s.head)
        smooth = min(max((original / length - low) / (high - low), 0.0), 1.0)
        factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, F32)


def writer(path, s):
    """A writer with all metadata of a model of this shape."""
    w = gguf.GGUFWriter(path, "llama")
    w.add_name(s.title)
    w.add_context_length(512); w.add_embedding_length(s.embd); w.add_block_count(s.layers)
    w.add_feed_forward_length(s.ffn); w.add_head_count(s.heads); w.add_head_count_kv(s.kv)
    w.add_key_length(s.head); w.add_value_length(s.head); w.add_rope_dimension_count(s.head)
    w.add_rope_freq_base(s.rope_base); w.add_layer_norm_rms_eps(1e-5); w.add_vocab_size(s.vocab)
    w.add_file_type(gguf.LlamaFileType.ALL_F32)
    if s.experts:
        w.add_expert_count(s.experts); w.add_expert_used_count(s.used)
    vocabulary.add(w, s.tokenizer, s.vocab)
    return w


def write_base(path, s):
    """The float model, all of it F32."""
    w = writer(path, s)
    for name, values in tensors(s):
        w.add_tensor(name, values)
    finish(w)


def encode_matrices(source, path):
    """The same model, each matrix in a format of its own, encoded by ggml: the embedding in Q4_0, the
    others as `MIXTURE` has them."""
    reader = gguf.GGUFReader(source)
    w = like(reader, path)
    for t in reader.tensors:
        if len(t.shape) == 1:
            w.add_tensor(t.name, t.data)
            continue
        _, layer, matrix, *_ = t.name.split(".") if t.name.startswith("blk.") else (None, None, None)
        data, ty = encode(t.data, MIXTURE[int(layer)][MATRICES.index(matrix)] if layer else "Q4_0")
        w.add_tensor(t.name, data, raw_shape=t.data.shape, raw_dtype=ty)
    finish(w)


def like(reader, path, **options):
    """A writer with all metadata of another model."""
    w = gguf.GGUFWriter(path, "llama", **options)
    for f in reader.fields.values():
        if f.name.startswith("GGUF.") or f.name == "general.architecture":
            continue
        if f.types[0] == gguf.GGUFValueType.ARRAY:
            w.add_key_value(f.name, f.contents(), gguf.GGUFValueType.ARRAY, f.types[-1])
        else:
            w.add_key_value(f.name, f.contents(), f.types[0])
    return w


def split_experts(source, path):
    """The same model with one tensor an expert (`blk.0.ffn_gate.3.weight`), its bytes taken over as they
    are."""
    reader = gguf.GGUFReader(source)
    w = like(reader, path)
    for t in reader.tensors:
        if "_exps." not in t.name:
            w.add_tensor(t.name, t.data, raw_dtype=t.tensor_type)
            continue
        stem, _ = t.name.split("_exps.")
        for e, expert in enumerate(t.data):
            w.add_tensor(f"{stem}.{e}.weight", np.ascontiguousarray(expert), raw_dtype=t.tensor_type)
    finish(w)


def split_files(source, folder, count):
    """The same model in `count` files as llama.cpp splits one: tensors in order, the metadata in the first
    file. Returns the files in order."""
    reader = gguf.GGUFReader(source)
    sizes = [int(t.n_bytes) for t in reader.tensors]
    w = like(reader, folder / source.name, split_max_size=sum(sizes) // count + max(sizes) // 2)
    for t in reader.tensors:
        w.add_tensor(t.name, t.data, raw_dtype=t.tensor_type)
    finish(w)
    paths = [folder / f"{source.stem}-{no + 1:05}-of-{count:05}.gguf" for no in range(count)]
    assert len(w.tensors) == count and all(path.is_file() for path in paths), [len(p) for p in w.tensors]
    return paths


def make(name, out):
    """Writes one fixture."""
    shape, ftype, after = FIXTURES[name]
    path = Path(out) / f"{name}.gguf"
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as tmp:
        base = path if ftype == "F32" and not after else Path(tmp) / "base.gguf"
        write_base(base, shape)
        if after == "encode matrices":
            encode_matrices(base, path)
        elif ftype != "F32":
            done = Path(tmp) / "quantised.gguf" if after else path
            subprocess.run([REFERENCE, "quantize", base, done, ftype], check=True)
            if after == "split experts":
                split_experts(done, path)
    return path


DEMO_README = """\
## The demo model

A model that answers: sums and differences of whole numbers from 0 to 99, comparisons, counting, days and
months, spelling, small facts. It was trained from nothing by `scripts/demo/`, whose README says how and what
it reached.

| file | what |
|---|---|
| demo-q4_k_m.gguf | shaped as Mixtral, quantised by ggml to Q4_K_M: 7.35 M parameters, 4 layers, \
embedding 256, 4 heads of 64 (2 for KV), FFN 256, 8 experts (2 used), \
vocabulary 512 (gpt2: a token a digit), a chat template |
| demo-held-out.json | 500 questions that training never showed, with kind and answer; ggml's answers, each \
with the smallest margin of its tokens (first minus second logit), stand in \
`golden/demo-q4_k_m/answers.json` in the same order |""".splitlines()


def readme():
    """fixtures/README.md, from the list."""
    lines = ["# Fixtures", "",
             "Small models that the project made itself. `golden/` holds what ggml computes on them,",
             "`golden/manifest.json` the hashes of it all.", "", *DEMO_README, "",
             "## Random models", "",
             "Weights are random, from fixed seeds: the text is noise, the arithmetic a real model's.",
             "`scripts/goldens.py` makes them (`scripts/fixtures.py` holds the recipe) together with their",
             "goldens. The architecture is llama.", "",
             "| file | what | weights | sizes |", "|---|---|---|---|"]
    for name, (s, ftype, after) in FIXTURES.items():
        weights = "F32, as the script writes it" if ftype == "F32" else f"quantised by ggml to {ftype}"
        if after == "encode matrices":
            weights = "each matrix encoded by ggml in a format of its own"
        elif after:
            weights += ", then one tensor an expert (`blk.0.ffn_gate.3.weight`), bytes as in moe-q4_k_m"
        experts = f", {s.experts} experts ({s.used} used)" if s.experts else ""
        lines.append(f"| {name}.gguf | {s.title} | {weights} | {s.layers} layers, embedding {s.embd}, "
                     f"{s.heads} heads of {s.head} ({s.kv} for KV), FFN {s.ffn}{experts}, "
                     f"vocabulary {s.vocab} ({s.tokenizer}) |")
    lines += ["", "moe-q4_k_m-00001-of-00003.gguf and two more are moe-q4_k_m.gguf in three files.", "",
              "## A model of each family", "",
              "As small as shows what is special about the architecture; `scripts/families` holds the recipes.",
              "",
              "| file | architecture | weights | sizes |", "|---|---|---|---|"]
    for name, (family, config, types) in families.FIXTURES.items():
        matrices, _, experts = types.partition(":")
        weights = f"{matrices}, experts in {experts}" if experts else matrices
        lines.append(f"| {name}.gguf | {family.name} | {weights} | {config.described()} |")
    return "\n".join(lines) + "\n"


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("out", type=Path)
    a.add_argument("--only", nargs="*", default=list(FIXTURES), choices=list(FIXTURES))
    o = a.parse_args()
    for name in o.only:
        path = make(name, o.out)
        print(f"{path} {path.stat().st_size}")
    (o.out / "README.md").write_text(readme())


if __name__ == "__main__":
    main()
