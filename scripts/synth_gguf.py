#!/usr/bin/env python3
"""Writes a synthetic model of a real model's shape: right keys, names, types and sizes, random weights of a
sane scale. For measurements of speed and memory; its text is noise.

    scripts/synth_gguf.py llama-8b --vocab VOCAB.gguf --out model.gguf
    scripts/synth_gguf.py qwen3-30b-a3b --layers 12 --out model.gguf       a part of the layers
    scripts/synth_gguf.py qwen3.6-35b-a3b --mtp --out model.gguf           with a block of multi-token prediction
    scripts/synth_gguf.py mixtral-8x7b --split 4 --out model.gguf          in files as llama.cpp splits them
    scripts/synth_gguf.py --list                                           the shapes, and how large they are

Shapes are those of the published configurations of the models they are named after; fine-moe is nobody's.
Types follow Q4_K_M: Q4_K in general, Q6_K for the output and, in the layers that llama-quantize raises (the
first and the last eighth, every third between), for attn_v and ffn_down; Q8_0 for keys and values of eight
experts, for attn_k_b, whose rows are too short, and for the gates of a delta net. gpt-oss has MXFP4 experts,
and Q8_0 elsewhere, as its files have. A cut of deepseek-v3 keeps a third of its layers dense, at most three. `--vocab` is any GGUF whose
tokenizer is copied, texts then make sense as tokens; without it the tokenizer is `no_vocab`, of the model's
own size, and prompts are ids.

Weights are cut at random places from a pool of random blocks, so that a file is written as fast as the disk
takes it, in some 400 MB of memory, whatever its size.
"""
import argparse, sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as T

POOL = 1 << 26  # bytes of random blocks of a format
PIECE = 1 << 24  # bytes written at once, at most


@dataclass(frozen=True)
class Shape:
    """A model's sizes, in GGUF's terms."""
    arch: str
    layers: int
    embd: int
    heads: int
    kv: int
    head: int
    ffn: int
    vocab: int
    rope_base: float
    context: int
    experts: int = 0
    used: int = 0
    expert_ffn: int = 0
    eps: float = 1e-5
    tied: bool = False
    rot: int = 0  # dimensions of a head that are turned; 0: all
    mtp: int = 0  # blocks of multi-token prediction, after the layers
    more: dict = field(default_factory=dict)  # further keys of the architecture


def llama(**sizes):
    return Shape(arch="llama", **{"rope_base": 500000.0, "context": 131072, "vocab": 128256, **sizes})


GPT_OSS = {
    "attention.sliding_window": 128, "rope.scaling.type": "yarn", "rope.scaling.factor": 32.0,
    "rope.scaling.original_context_length": 4096,
}
GEMMA3 = {
    "attention.sliding_window": 1024, "rope.scaling.type": "linear", "rope.scaling.factor": 8.0,
    "rope.freq_base_swa": 10000.0,
}
QWEN36 = {
    "rope.dimension_sections": [11, 11, 10, 0], "full_attention_interval": 4,
    "expert_shared_feed_forward_length": 512, "ssm.conv_kernel": 4, "ssm.state_size": 128,
    "ssm.group_count": 16, "ssm.time_step_rank": 32, "ssm.inner_size": 4096,
}
DEEPSEEK3 = {
    "attention.q_lora_rank": 1536, "attention.kv_lora_rank": 512, "attention.key_length": 576,
    "attention.value_length": 512, "attention.key_length_mla": 192, "attention.value_length_mla": 128,
    "expert_shared_count": 1, "expert_weights_scale": 2.5, "expert_weights_norm": True,
    "expert_gating_func": 2, "expert_group_count": 8, "expert_group_used_count": 4,
    "rope.scaling.type": "yarn", "rope.scaling.factor": 40.0, "rope.scaling.original_context_length": 4096,
    "rope.scaling.yarn_log_multiplier": 0.1,
}
SHAPES = {
    "llama-1b": llama(layers=16, embd=2048, heads=32, kv=8, head=64, ffn=8192),
    "llama-8b": llama(layers=32, embd=4096, heads=32, kv=8, head=128, ffn=14336),
    "mixtral-8x7b": llama(layers=32, embd=4096, heads=32, kv=8, head=128, ffn=14336, experts=8, used=2,
                          rope_base=1e6, context=32768, vocab=32000),
    "mixtral-8x22b": llama(layers=56, embd=6144, heads=48, kv=8, head=128, ffn=16384, experts=8, used=2,
                           rope_base=1e6, context=65536, vocab=32768),
    # Many small experts: the routing of today's models in the simplest graph.
    "fine-moe": llama(layers=10, embd=2048, heads=32, kv=4, head=64, ffn=1024, experts=128, used=8,
                      rope_base=1e6, context=32768, vocab=32000),
    "qwen3-30b-a3b": Shape(arch="qwen3moe", layers=48, embd=2048, heads=32, kv=4, head=128, ffn=6144,
                           experts=128, used=8, expert_ffn=768, vocab=151936, rope_base=1e6, context=40960,
                           eps=1e-6),
    "gpt-oss-20b": Shape(arch="gpt-oss", layers=24, embd=2880, heads=64, kv=8, head=64, ffn=2880, experts=32,
                         used=4, expert_ffn=2880, vocab=201088, rope_base=150000.0, context=131072,
                         more=GPT_OSS),
    "gemma-3-4b": Shape(arch="gemma3", layers=34, embd=2560, heads=8, kv=4, head=256, ffn=10240, vocab=262144,
                        rope_base=1e6, context=131072, eps=1e-6, tied=True, more=GEMMA3),
    "qwen3.6-35b-a3b": Shape(arch="qwen35moe", layers=40, embd=2048, heads=16, kv=2, head=256, rot=64, ffn=0,
                             experts=256, used=8, expert_ffn=512, vocab=248320, rope_base=1e7,
                             context=262144, eps=1e-6, more=QWEN36),
    "deepseek-v3": Shape(arch="deepseek2", layers=61, embd=7168, heads=128, kv=1, head=192, rot=64, ffn=18432,
                         experts=256, used=8, expert_ffn=2048, vocab=129280, rope_base=10000.0,
                         context=163840, eps=1e-6, more=DEEPSEEK3),
}


@dataclass(frozen=True)
class Tensor:
    """A tensor to be written: sizes in numpy's order, and what its values are about."""
    name: str
    shape: tuple[int, ...]
    kind: T
    std: float
    mean: float = 0.0

    @property
    def nbytes(self):
        size, nbytes = gguf.GGML_QUANT_SIZES[self.kind]
        return int(np.prod(self.shape)) // size * nbytes


def norm(name, n):
    return Tensor(name + ".weight", (n,), T.F32, 0.0, 1.0)


@dataclass(frozen=True)
class Layer:
    """A layer being written: its prefix, and the types of its weights."""
    s: Shape
    i: int

    @property
    def prefix(self):
        return f"blk.{self.i}."

    @property
    def next(self):
        """Whether it predicts further tokens."""
        return self.i >= self.s.layers

    @property
    def dense_count(self):
        return min(3, max(1, self.s.layers // 3)) if self.s.arch == "deepseek2" else 0

    @property
    def small(self):
        """What adds to the residual stream is small, so that it stays sane over many layers."""
        return 0.04 / np.sqrt(2 * self.s.layers)

    @property
    def plain(self):
        return T.Q8_0 if self.s.arch == "gpt-oss" else T.Q4_K

    @property
    def raised(self):
        """Of attn_v and ffn_down, which llama-quantize raises in some layers."""
        layers, eighth = self.s.layers, self.s.layers // 8
        more = self.i < eighth or self.i >= 7 * layers // 8 or (self.i - eighth) % 3 == 2
        return T.Q6_K if more and self.s.arch != "gpt-oss" else self.plain

    def matrix(self, name, rows, columns, kind=None, std=0.02):
        """A matrix, and its bias where the architecture has them."""
        return linear(self.prefix + name, (rows, columns), kind or self.plain, std, self.s.arch == "gpt-oss")


def tensors(s):
    """Every tensor, in file order."""
    gpt_oss, gemma = s.arch == "gpt-oss", s.arch == "gemma3"
    embedding = T.Q8_0 if gpt_oss else T.Q6_K if s.tied else T.Q4_K
    yield Tensor("token_embd.weight", (s.vocab, s.embd), embedding, s.embd ** -0.5 if gemma else 1.0)
    for i in range(s.layers + s.mtp):
        yield from layer(Layer(s, i))
    yield norm("output_norm", s.embd)
    if not s.tied:
        yield Tensor("output.weight", (s.vocab, s.embd), T.Q8_0 if gpt_oss else T.Q6_K, 0.02)


def layer(l):
    s, b = l.s, l.prefix
    yield norm(b + "attn_norm", s.embd)
    if s.arch == "deepseek2":
        yield from latent_attention(l)
    elif s.arch == "qwen35moe" and not l.next and (l.i + 1) % s.more["full_attention_interval"]:
        yield from delta_net(l)
    else:
        yield from attention(l)
    if s.arch in ("gemma3", "gpt-oss", "qwen35moe"):
        yield norm(b + "post_attention_norm", s.embd)
    if s.arch not in ("gpt-oss", "qwen35moe"):
        yield norm(b + "ffn_norm", s.embd)
    if s.experts and l.i >= l.dense_count:
        yield from experts(l)
    else:
        yield from network(l, "", s.ffn)
    if s.arch == "gemma3":
        yield norm(b + "post_ffw_norm", s.embd)
    if l.next:
        yield Tensor(b + "nextn.eh_proj.weight", (s.embd, 2 * s.embd), l.plain, 0.02)
        for name in ("enorm", "hnorm", "shared_head_norm"):
            yield norm(b + "nextn." + name, s.embd)


def network(l, kind, n):
    """A feed-forward network of `n` inner values, a shared expert's too."""
    s = l.s
    yield from l.matrix(f"ffn_gate{kind}", n, s.embd)
    yield from l.matrix(f"ffn_up{kind}", n, s.embd)
    yield from l.matrix(f"ffn_down{kind}", s.embd, n, l.raised, l.small)


def attention(l):
    s, b = l.s, l.prefix
    eight = s.experts == 8
    gated = s.arch == "qwen35moe"  # queries come with gates
    yield from l.matrix("attn_q", s.heads * s.head * (2 if gated else 1), s.embd)
    yield from l.matrix("attn_k", s.kv * s.head, s.embd, T.Q8_0 if eight else None)
    yield from l.matrix("attn_v", s.kv * s.head, s.embd, T.Q8_0 if eight else l.raised)
    yield from l.matrix("attn_output", s.embd, s.heads * s.head, std=l.small)
    if s.arch == "gpt-oss":
        yield Tensor(b + "attn_sinks.weight", (s.heads,), T.F32, 1.0)
    if s.arch in ("gemma3", "qwen3moe", "qwen35moe"):
        yield norm(b + "attn_q_norm", s.head)
        yield norm(b + "attn_k_norm", s.head)


def delta_net(l):
    s, b = l.s, l.prefix
    heads, values = s.more["ssm.time_step_rank"], s.more["ssm.inner_size"]
    mixed = 2 * s.more["ssm.group_count"] * s.more["ssm.state_size"] + values
    yield from l.matrix("attn_qkv", mixed, s.embd)
    yield from l.matrix("attn_gate", values, s.embd)
    yield Tensor(b + "ssm_conv1d.weight", (mixed, s.more["ssm.conv_kernel"]), T.F32, 0.5)
    yield Tensor(b + "ssm_dt.bias", (heads,), T.F32, 1.0)
    yield Tensor(b + "ssm_a", (heads,), T.F32, 0.01, -0.1)
    yield from l.matrix("ssm_beta", heads, s.embd, T.Q8_0)
    yield from l.matrix("ssm_alpha", heads, s.embd, T.Q8_0)
    yield norm(b + "ssm_norm", s.more["ssm.state_size"])
    yield from l.matrix("ssm_out", s.embd, values, std=l.small)


def latent_attention(l):
    s, b = l.s, l.prefix
    queries, latents = s.more["attention.q_lora_rank"], s.more["attention.kv_lora_rank"]
    plain, values = s.head - s.rot, s.more["attention.value_length_mla"]
    yield from l.matrix("attn_q_a", queries, s.embd)
    yield norm(b + "attn_q_a_norm", queries)
    yield from l.matrix("attn_q_b", s.heads * s.head, queries)
    yield from l.matrix("attn_kv_a_mqa", latents + s.rot, s.embd)
    yield norm(b + "attn_kv_a_norm", latents)
    yield Tensor(b + "attn_k_b.weight", (s.heads, latents, plain), T.Q8_0, 0.02)
    yield Tensor(b + "attn_v_b.weight", (s.heads, values, latents), l.raised, 0.02)
    yield from l.matrix("attn_output", s.embd, s.heads * values, std=l.small)


def experts(l):
    s, b, n, f = l.s, l.prefix, l.s.experts, l.s.expert_ffn or l.s.ffn
    gpt_oss = s.arch == "gpt-oss"
    plain, down = (T.MXFP4, T.MXFP4) if gpt_oss else (l.plain, l.raised)
    yield from linear(b + "ffn_gate_inp", (n, s.embd), T.F32, 0.02, gpt_oss)
    if s.arch == "deepseek2":
        yield Tensor(b + "exp_probs_b.bias", (n,), T.F32, 0.01)
    yield from linear(b + "ffn_gate_exps", (n, f, s.embd), plain, 0.02, gpt_oss)
    yield from linear(b + "ffn_up_exps", (n, f, s.embd), plain, 0.02, gpt_oss)
    yield from linear(b + "ffn_down_exps", (n, s.embd, f), down, l.small, gpt_oss)
    if s.arch == "qwen35moe":
        yield Tensor(b + "ffn_gate_inp_shexp.weight", (s.embd,), T.F32, 0.02)
        yield from network(l, "_shexp", s.more["expert_shared_feed_forward_length"])
    if s.arch == "deepseek2":
        yield from network(l, "_shexp", f * s.more["expert_shared_count"])


def linear(name, shape, kind, std, bias):
    """A matrix, and its bias where it has one."""
    yield Tensor(name + ".weight", shape, kind, std)
    if bias:
        yield Tensor(name + ".bias", shape[:-1], T.F32, std)


def random_blocks(rng, kind, n, std):
    """Bytes of n blocks whose values have about this standard deviation."""
    size = gguf.GGML_QUANT_SIZES[kind][1]
    b = rng.integers(0, 256, (n, size), dtype=np.uint8)
    half = lambda value: np.frombuffer(np.float16(value).tobytes(), np.uint8)
    if kind == T.Q4_K:  # d, dmin, scales[12], qs[128]: d * scale * q - dmin * min
        b[:, 4:8] &= 0x3F  # of the first four parts the scales, and the mins alike
        b[:, 8:12] = b[:, 4:8]
        b[:, 12:16] = (b[:, 12:16] & 0x0F) * 0x11  # of the last four
        d = float(np.float16(std / (26 * 4.6)))
        b[:, 0:2], b[:, 2:4] = half(d), half(7.5 * d)
    elif kind == T.Q6_K:  # ql[128], qh[64], scales i8[16], d
        b[:, 208:210] = half(std / (74 * 18.5))
    elif kind == T.Q8_0:  # d, qs i8[32]
        b[:, 0:2] = half(std / 74)
    elif kind == T.MXFP4:  # a power of two biased by 127, qs[16]: doubled values of root mean square 5.9
        b[:, 0] = round(128 + np.log2(std / 5.9))
    else:
        raise ValueError(f"no synthetic blocks of {kind.name}")
    return b


class Blocks:
    """Random blocks of each format, and tensors cut from them."""

    def __init__(self, seed):
        self.rng, self.pools = np.random.default_rng(seed), {}

    def pieces(self, tensor):
        """The tensor's bytes, a piece after another."""
        if tensor.kind == T.F32:
            values = tensor.mean + tensor.std * self.rng.standard_normal(tensor.shape)
            yield values.astype(np.float32).tobytes()
            return
        size = gguf.GGML_QUANT_SIZES[tensor.kind][1]
        left, pool = tensor.nbytes // size, self.pool(tensor.kind, tensor.std)
        while left:
            start = int(self.rng.integers(0, len(pool) // 2))
            n = min(left, len(pool) - start, PIECE // size)
            yield pool[start:start + n].data
            left -= n

    def pool(self, kind, std):
        key = (kind, round(float(np.log2(std)), 3))
        if key not in self.pools:
            # Few formats and scales are alive at a time; the oldest goes.
            if len(self.pools) == 4:
                del self.pools[next(iter(self.pools))]
            self.pools[key] = random_blocks(self.rng, kind, POOL // gguf.GGML_QUANT_SIZES[kind][1], std)
        return self.pools[key]


def keys(w, s, title, vocabulary):
    """All metadata; the tokenizer's from a file, where one is given."""
    w.add_name(title)
    w.add_context_length(s.context); w.add_embedding_length(s.embd); w.add_block_count(s.layers + s.mtp)
    w.add_head_count(s.heads); w.add_head_count_kv(s.kv); w.add_rope_dimension_count(s.rot or s.head)
    if s.ffn:
        w.add_feed_forward_length(s.ffn)
    if "attention.key_length" not in s.more:
        w.add_key_length(s.head); w.add_value_length(s.head)
    w.add_rope_freq_base(s.rope_base); w.add_layer_norm_rms_eps(s.eps); w.add_vocab_size(s.vocab)
    w.add_file_type(38 if s.arch == "gpt-oss" else 15)  # MXFP4 experts, or Q4_K_M
    if s.experts:
        w.add_expert_count(s.experts); w.add_expert_used_count(s.used)
    if s.expert_ffn:
        w.add_expert_feed_forward_length(s.expert_ffn)
    if s.mtp:
        w.add_nextn_predict_layers(s.mtp)
    if Layer(s, 0).dense_count:
        w.add_leading_dense_block_count(Layer(s, 0).dense_count)
    for name, value in s.more.items():
        kind = gguf.GGUFValueType.get_type(value)
        unsigned = kind == gguf.GGUFValueType.INT32
        part = gguf.GGUFValueType.INT32 if kind == gguf.GGUFValueType.ARRAY else None
        w.add_key_value(f"{s.arch}.{name}", value, gguf.GGUFValueType.UINT32 if unsigned else kind, part)
    if vocabulary is None:
        w.add_tokenizer_model("no_vocab")
        return
    for f in vocabulary.fields.values():
        if f.name.startswith("tokenizer."):
            array = f.types[0] == gguf.GGUFValueType.ARRAY
            w.add_key_value(f.name, f.contents(), f.types[0], f.types[-1] if array else None)


def parts_of(all_tensors, count, deal):
    """The tensors in `count` parts of about the same size: layer after layer, or dealt to the smallest part so far."""
    share, done, parts = sum(t.nbytes for t in all_tensors) / count, 0, [[] for _ in range(count)]
    if deal:
        for t in all_tensors:
            min(parts, key=lambda part: sum(t.nbytes for t in part)).append(t)
        return parts
    for t in all_tensors:
        parts[min(count - 1, int(done / share))].append(t)
        done += t.nbytes
    return parts


def write(s, title, out, vocabulary, split, deal, seed):
    """Writes the model; returns its files."""
    all_tensors, blocks, paths = list(tensors(s)), Blocks(seed), []
    for no, part in enumerate(parts_of(all_tensors, split, deal)):
        name = f"{out.stem}-{no + 1:05}-of-{split:05}.gguf" if split > 1 else out.name
        paths.append(out.with_name(name))
        w = gguf.GGUFWriter(paths[-1], s.arch)
        if no == 0:
            keys(w, s, title, vocabulary)
        if split > 1:
            w.add_uint16("split.no", no); w.add_uint16("split.count", split)
            w.add_int32("split.tensors.count", len(all_tensors))
        for t in part:
            w.add_tensor_info(t.name, t.shape, np.dtype(np.float32), t.nbytes, raw_dtype=t.kind)
        w.write_header_to_file(); w.write_kv_data_to_file(); w.write_ti_data_to_file()
        file = w.fout[0]
        for t in part:
            w.write_padding(file, file.tell())
            for piece in blocks.pieces(t):
                file.write(piece)
            if sys.stderr.isatty():
                print(f"\r{paths[-1].name} {t.name:40}", end="", file=sys.stderr)
        w.write_padding(file, file.tell())
        w.close()
        print(f"{paths[-1]} {paths[-1].stat().st_size / 1e9:.2f} GB", file=sys.stderr)
    return paths


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("shape", nargs="?", choices=SHAPES, metavar="SHAPE", help=", ".join(SHAPES))
    a.add_argument("--out", type=Path)
    a.add_argument("--vocab", type=Path, help="a GGUF whose tokenizer is copied")
    a.add_argument("--layers", type=int)
    a.add_argument("--mtp", action="store_true", help="with a block of multi-token prediction")
    a.add_argument("--split", type=int, default=1, help="number of files")
    a.add_argument("--deal", action="store_true", help="every layer lies in all of the files: for several disks")
    a.add_argument("--seed", type=int, default=0)
    a.add_argument("--list", action="store_true")
    o = a.parse_args()
    if o.list:
        for name, s in SHAPES.items():
            size = sum(t.nbytes for t in tensors(s))
            print(f"{name:15} {s.arch:9} {s.layers} layers, {size / 1e9:.2f} GB")
        return
    if not o.shape or not o.out:
        a.error("a shape and --out are needed")
    s = SHAPES[o.shape]
    s = replace(s, layers=o.layers or s.layers, mtp=int(o.mtp))
    vocabulary = gguf.GGUFReader(o.vocab) if o.vocab else None
    if vocabulary:
        s = replace(s, vocab=len(vocabulary.get_field("tokenizer.ggml.tokens").data))
    write(s, f"synthetic {o.shape}", o.out, vocabulary, o.split, o.deal, o.seed)


if __name__ == "__main__":
    main()
