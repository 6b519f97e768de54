#!/usr/bin/env python3
"""Makes the random models of fixtures/: right names, shapes and metadata, weights from fixed seeds.

    scripts/fixtures.py OUT_FOLDER [--only NAME...]

The float models are written here; the quantised ones by ggml's own quantiser (`wayinfer-ggml quantize`, the portable
build of scripts/ggml). FIXTURES below is the list; fixtures/README.md is written from it.

Weights are normal with a standard deviation of 1/sqrt(inputs), one in a thousand six times as large, so that blocks have
outliers; embeddings are smaller than what the layers add, with a few large channels; norms lie around 1; the router's logits
spread over a few units, so that near ties are rare.
"""
import argparse, math, subprocess, tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import gguf
import numpy as np

SCRIPTS = Path(__file__).resolve().parent
REFERENCE = SCRIPTS / "ggml/target-portable/release/wayinfer-ggml"
F16, F32 = np.float16, np.float32
# Types that the package does not know by name yet.
NEW_TYPES = {"Q2_0": 42}


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
    ffn: int = 512
    experts: int = 0
    used: int = 0
    vocab: int = 320
    tokenizer: str = "gpt2"
    rope_base: float = 500000.0
    rope_factors: bool = True
    tied: bool = False
    router: type = F32


DENSE = Shape(seed=23, title="dense, shaped as Llama 3: GQA 2:1, RoPE factors, an output of its own")
MOE = Shape(seed=2, title="shaped as Mixtral: 8 experts, 2 used, merged expert tensors", ffn=256, experts=8, used=2,
            tokenizer="llama", rope_base=1e6, rope_factors=False)
ODD = Shape(seed=30, title="odd sizes: 3 layers, heads of 40, GQA 3:1, attention wider than the embedding, "
            "a vocabulary of 333, output tied to the embedding", layers=3, embd=288, heads=12, kv=4, head=40, ffn=416,
            vocab=333, tokenizer="llama", rope_base=10000.0, rope_factors=False, tied=True)

MIXED = Shape(seed=41, title="a format a matrix: all that the other models lack", layers=3, kv=1, ffn=256, vocab=264,
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
    "dense-f32": (DENSE, "F32", None),
    "dense-f16": (DENSE, "F16", None),
    "dense-bf16": (DENSE, "BF16", None),
    "dense-q8_0": (DENSE, "Q8_0", None),
    "dense-q4_k_m": (DENSE, "Q4_K_M", None),
    "dense-q5_k_m": (DENSE, "Q5_K_M", None),
    "dense-q6_k": (DENSE, "Q6_K", None),
    "moe-q4_k_m": (MOE, "Q4_K_M", None),
    "moe-per-expert-q4_k_m": (MOE, "Q4_K_M", "split experts"),
    "moe-router-f16-q4_k_m": (replace(MOE, router=F16), "Q4_K_M", None),
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
            yield b + "ffn_gate_inp.weight", weights(rng, s.experts, s.embd, 2 * s.embd ** -0.5).astype(s.router)
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


def byte_letters():
    """GPT-2's printable letter for each byte."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    extra = iter(range(256, 512))
    return [chr(b) if b in kept else chr(next(extra)) for b in range(256)]


PAIRS = ["Ġ t", "h e", "i n", "Ġ a", "r e", "o n", "Ġt he", "e r", "Ġ s", "a t", "e n", "o r", "Ġ w", "Ġ c", "i t", "i s",
         "a n", "Ġ b", "e s", "Ġ f", "e d", "Ġ m", "in g", "o u", "Ġ o", "Ġ p", "a r", "Ġa n", "Ġt o", "Ġ d", "l e", "Ġ h",
         "Ġo f", "i c", "o m", "a s", "Ġan d", "l l", "Ġ in", "Ġ l", "e t", "Ġ n", "r o", "v e", "i on", "Ġw h", "Ġb e",
         "Ġ e", "Ġ g", "i d", "o t", "c h", "o w", "e l", "Ġ re", "u t", "Ġ is", "Ġ y", "Ġy ou", "a l", "g h"]
PIECES = ["▁", *"etaoinshrdlcumwfgypbvkjxqz", "▁t", "he", "in", "▁a", "re", "on", "▁the", "er", "▁s", "at", "en", "or", "▁w", "an",
          "▁an", "▁and", "nd", "ou", "is", "it", "▁is", "it", "ing", "ed", "▁of", "▁o", "to", "▁to"]


def add_tokenizer(w, s):
    """A small real vocabulary: all bytes, and letters or merges until the size is reached."""
    w.add_tokenizer_model(s.tokenizer)
    if s.tokenizer == "gpt2":
        special = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"]
        pairs = PAIRS[:s.vocab - 256 - len(special)]
        tokens = byte_letters() + [p.replace(" ", "") for p in pairs] + special
        assert all(part in tokens for pair in pairs for part in pair.split(" ")), "a merge of an unknown token"
        types = [gguf.TokenType.NORMAL] * (len(tokens) - 3) + [gguf.TokenType.CONTROL] * 3
        w.add_tokenizer_pre("llama-bpe")
        w.add_token_merges(pairs)
        w.add_bos_token_id(len(tokens) - 3); w.add_eos_token_id(len(tokens) - 2)
        w.add_eot_token_id(len(tokens) - 1)
    else:
        pieces = list(dict.fromkeys(PIECES))
        pieces += [chr(c) for c in (*range(ord("A"), ord("Z") + 1), *range(ord("0"), ord("9") + 1))]
        tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)] + pieces
        tokens = tokens[:s.vocab]
        types = [gguf.TokenType.UNKNOWN] + [gguf.TokenType.CONTROL] * 2 + [gguf.TokenType.BYTE] * 256
        types += [gguf.TokenType.NORMAL] * (len(tokens) - len(types))
        w.add_token_scores([0.0] * 259 + [-float(i) for i in range(len(tokens) - 259)])
        w.add_bos_token_id(1); w.add_eos_token_id(2); w.add_unk_token_id(0)
    assert len(set(tokens)) == len(tokens) == s.vocab, (len(set(tokens)), len(tokens), s.vocab)
    w.add_token_list(tokens)
    w.add_token_types(types)
    w.add_add_bos_token(True)


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
    add_tokenizer(w, s)
    return w


def write_base(path, s):
    """The float model: F32, and the router in the shape's own type."""
    w = writer(path, s)
    for name, values in tensors(s):
        w.add_tensor(name, values)
    finish(w)


def encode(values, name):
    """A float matrix in a block format, by ggml: its bytes, and the format's type."""
    with tempfile.TemporaryDirectory() as tmp:
        floats, blocks = Path(tmp) / "floats", Path(tmp) / "blocks"
        floats.write_bytes(np.ascontiguousarray(values, F32).tobytes())
        subprocess.run([REFERENCE, "encode", name, str(values.shape[1]), floats, blocks], check=True)
        return np.frombuffer(blocks.read_bytes(), np.int8), NEW_TYPES.get(name) or gguf.GGMLQuantizationType[name]


def encode_matrices(source, path):
    """The same model, each matrix in a format of its own, encoded by ggml: the embedding in Q4_0, the others as `MIXTURE` has
    them."""
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


def finish(w):
    w.write_header_to_file(); w.write_kv_data_to_file(); w.write_tensors_to_file(); w.close()


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
    """The same model with one tensor an expert (`blk.0.ffn_gate.3.weight`), its bytes taken over as they are."""
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
    """The same model in `count` files as llama.cpp splits one: tensors in order, the metadata in the first file. Returns the
    files in order."""
    reader = gguf.GGUFReader(source)
    sizes = [int(t.n_bytes) for t in reader.tensors]
    w = like(reader, folder / source.name, split_max_size=sum(sizes) // count + max(sizes) // 2)
    for t in reader.tensors:
        w.add_tensor(t.name, t.data, raw_dtype=t.tensor_type)
    finish(w)
    paths = [folder / f"{source.stem}-{no + 1:05}-of-{count:05}.gguf" for no in range(count)]
    assert len(w.tensors) == count and all(path.is_file() for path in paths), [len(part) for part in w.tensors]
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

A model that answers: sums and differences of whole numbers from 0 to 99, comparisons, counting, days and months, spelling, small
facts. It was trained from nothing by `scripts/demo/`, whose README says how and what it reached.

| file | what |
|---|---|
| demo-q4_k_m.gguf | shaped as Mixtral, quantised by ggml to Q4_K_M: 7.35 M parameters, 4 layers, embedding 256, 4 heads of 64 (2 for KV), \
FFN 256, 8 experts (2 used), vocabulary 512 (gpt2: a token a digit), a chat template |
| demo-q4_k_m-00001-of-00003.gguf and two more | the same model in three files |
| demo-held-out.json | 500 questions that training never showed, with kind and answer; ggml's answers, each with the smallest margin \
of its tokens (first minus second logit), stand in `golden/demo-q4_k_m/answers.json` in the same order |""".splitlines()


def readme():
    """fixtures/README.md, from the list."""
    lines = ["# Fixtures", "",
             "Small models that the project made itself. `golden/` holds what ggml computes on them, `golden/manifest.json` the",
             "hashes of it all.", "", *DEMO_README, "",
             "## Random models", "",
             "Weights are random, from fixed seeds: the text is noise, the arithmetic a real model's. `scripts/goldens.py` makes",
             "them (`scripts/fixtures.py` holds the recipe) together with their goldens.", "",
             "| file | what | weights | sizes |", "|---|---|---|---|"]
    for name, (s, ftype, after) in FIXTURES.items():
        weights = "F32, as the script writes it" if ftype == "F32" else f"quantised by ggml to {ftype}"
        if after == "encode matrices":
            weights = "each matrix encoded by ggml in a format of its own"
        elif after:
            weights += ", then one tensor an expert (`blk.0.ffn_gate.3.weight`), the bytes those of moe-q4_k_m"
        if s.router is F16:
            weights += ", the router in F16"
        experts = f", {s.experts} experts ({s.used} used)" if s.experts else ""
        lines.append(f"| {name}.gguf | {s.title} | {weights} | {s.layers} layers, embedding {s.embd}, {s.heads} heads of "
                     f"{s.head} ({s.kv} for KV), FFN {s.ffn}{experts}, vocabulary {s.vocab} ({s.tokenizer}) |")
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
