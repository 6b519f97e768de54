"""What all families have in common: configurations, how they are drawn, keys and tensors, the file.

Weights are normal with a standard deviation of 1/sqrt(inputs), one in a thousand six times as large, so
that blocks have outliers; norms lie around 1; the router's logits spread over a few units, so that near
ties are rare. Each tensor has a generator of its own, seeded by the model's seed and the tensor's name: a
key more or a tensor less changes no other tensor.
"""
import math, subprocess, tempfile, zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import gguf
import numpy as np

from . import vocabulary

REFERENCE = Path(__file__).resolve().parents[1] / "ggml/target-portable/release/wayinfer-ggml"
F16, F32 = np.float16, np.float32
# Types that are written as they are; whole numbers are looked up.
PLAIN = {"F32": F32, "F16": F16, "I32": np.int32}
# Types that the package does not know by name yet.
NEW_TYPES = {"Q2_0": 42}
# Fields of a configuration that stand in a key as they are, where a family has them.
KEYS = {
    "gating": "expert_gating_func", "weights_norm": "expert_weights_norm", "weights_scale": "expert_weights_scale",
    "groups": "expert_group_count", "groups_used": "expert_group_used_count",
    "shared": "expert_shared_count", "shared_ff": "expert_shared_feed_forward_length",
    "dense_layers": "leading_dense_block_count",
}
# Formats that `mixed` draws from, a tensor after another.
MIXED = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q5_1", "IQ4_NL"]


class Config(dict):
    """A configuration: fields by name. JSON can hold it."""
    __getattr__ = dict.__getitem__

    def but(self, **changes):
        return Config({**self, **changes})

    def described(self):
        """The configuration in a few words."""
        kv = f"/{self.kv}" if self.kv != self.heads else ""
        parts = [f"{self.layers} layers of {self.embd}", f"{self.heads}{kv} heads of {self.head}"]
        parts += [f"{self.used} of {self.experts} experts"] if self.experts else []
        parts += [f"window {self.window}"] if self.window else []
        parts += [self.scaling["type"]] if self.scaling else []
        return ", ".join(parts + (["tied"] if self.tied else []))


def shape(**changes):
    """A configuration of the sizes that fixtures have, with changes; a family may add fields of its own."""
    c = Config(
        seed=1, vocab=104, tokenizer="letters", layers=2, embd=32, heads=4, kv=2, head=16, ff=32,
        context=4096, eps=1e-5, rope_base=10000.0, scaling=None, tied=False, bare=False,
        experts=0, used=0, expert_ff=0, window=0)
    c.update(changes)
    c.setdefault("value", c.head)   # the length of a head's values
    c.setdefault("rot", c.head)     # how much of a head is rotated; 0: nothing, and no key
    return c


def scaling(kind, factor, original=32, attn_factor=None):
    """How RoPE is scaled: the kind, by which factor, from which original context, by how much on top."""
    return {"type": kind, "factor": factor, "original": original, "attn_factor": attn_factor}


class Draw:
    """Random choices of a configuration. `block`: what the inputs of every matrix have to be a multiple
    of."""

    def __init__(self, seed, block=1):
        self.seed, self.block = seed, block
        self.rng = np.random.default_rng([seed, zlib.crc32(b"configuration")])

    def of(self, *values):
        """One of the values."""
        return values[self.rng.integers(len(values))]

    def maybe(self, p=0.5):
        return bool(self.rng.random() < p)

    def between(self, low, high):
        """A whole number, both ends included."""
        return int(self.rng.integers(low, high + 1))

    def real(self, low, high):
        """A number with three digits."""
        return float(f"{self.rng.uniform(low, high):.3g}")

    def multiple(self, low, high, step=8):
        """A multiple of `step` and of the block."""
        step = math.lcm(step, self.block)
        return step * self.between(-(-low // step), max(-(-low // step), high // step))

    def head(self, heads):
        """The length of a head, so that all heads together are a multiple of the block; of so many heads, or of
        as many as a list has for each layer."""
        counts = heads if isinstance(heads, list) else [heads]
        lengths = (8, 16, 24, 32, 40, 48, 64, 96, 128, 256)
        fit = [n for n in lengths if all(count * n % self.block == 0 for count in counts)]
        return self.of(*fit[:max(1, sum(max(counts) * n <= 384 for n in fit))])

    def shape(self, **changes):
        """Random sizes; what is given in `changes` stays."""
        kv = changes.get("kv", self.of(1, 2, 3, 4))
        heads = changes.get("heads", kv * self.of(1, 1, 2, 3, 4))
        return shape(**{
            "seed": self.seed, "layers": self.between(2, 5), "vocab": self.of(100, 120, 128, 150),
            "kv": kv, "heads": heads, "head": self.head(heads),
            "embd": self.multiple(48, 160), "ff": self.multiple(48, 200),
            "eps": self.of(1e-6, 1e-5, 1e-3), "rope_base": self.of(10000.0, 500000.0, 1e6, 100.0),
            "tied": self.maybe(0.3), "bare": self.maybe(0.3), **changes})

    def experts(self, **changes):
        """Fields of experts."""
        count = self.of(2, 3, 4, 8, 16)
        used = self.between(1, min(count, 8))
        return {"experts": count, "used": used, "expert_ff": self.multiple(24, 96), **changes}

    def square(self, grouped=True):
        """Heads that together are as long as the embedding."""
        heads = self.of(1, 2, 4, 8)
        kv = self.of(*(n for n in (1, 2, 4) if heads % n == 0)) if grouped else heads
        fit = [n for n in (8, 16, 24, 32, 64, 128, 256) if heads * n % self.block == 0 and heads * n <= 256]
        head = self.of(*fit)
        return {"heads": heads, "kv": kv, "head": head, "embd": heads * head}

    def groups(self):
        """Fields of experts in groups, of which some are taken."""
        groups = self.of(2, 4)
        each, taken = self.of(2, 4), self.between(1, groups - 1)
        used = self.between(1, taken * each)
        return self.experts(experts=groups * each, used=used, groups=groups, groups_used=taken)

    def window(self):
        return self.of(2, 3, 7, 16, 33, 64, 130)

    def pattern(self, layers):
        """Which layers have a window: every so many is without one, or a list."""
        return self.of(2, 3, 4, self.windowed(layers))

    def windowed(self, layers, more=0):
        """Which layers have a window, as a list, in which further blocks may stand: one of them has."""
        flags = [self.maybe() for _ in range(layers + more)]
        flags[self.between(0, layers - 1)] = True
        return flags

    def scaling(self, *kinds):
        """How RoPE is scaled; the original context lies within the prompt or far beyond what runs have room
        for."""
        kind = self.of(*kinds)
        return kind and scaling(kind, self.of(2.0, 4.0, 8.0, 32.0), self.of(32, 64, 4096),
                                self.of(None, None, self.real(0.7, 1.4)))


@dataclass(frozen=True)
class Family:
    """A family: its `general.architecture`, a random configuration, and what a model of one holds."""
    name: str
    draw: Callable[[Draw], Config]
    tensors: Callable[["Model", Config], None]
    # Configurations of fixtures by what follows the family's name (nothing, "-q"): a shape, and the
    # weights' types.
    fixtures: dict[str, tuple[Config, str]] = field(default_factory=dict)
    # Its fixtures have goldens of the prompt `deep` too, which is longer than a page.
    deep: bool = False


class Model:
    """Keys and tensors of a model, as they are named in the file."""

    def __init__(self, arch, config, types="F32"):
        self.arch, self.config = arch, config
        self.types, _, self.expert_types = types.upper().partition(":")
        self.keys, self.tensors = {}, {}
        self.top = Part(self, "")

    def key(self, name, value, default=None):
        """A key of the architecture; left out where there is no value, and in a bare model where it is the
        default."""
        if value is not None and not (self.config.bare and value == default):
            self.keys[f"{self.arch}.{name}"] = value

    def common(self, eps="attention.layer_norm_rms_epsilon", embd_std=None, output_bias=False,
               norm_bias=False):
        """The keys that every family has, and the tensors outside of blocks: `token_embd`, `output_norm`,
        `output`."""
        c = self.config
        self.key("context_length", c.context)
        self.key("embedding_length", c.embd)
        self.key("block_count", c.layers)
        self.key("vocab_size", c.vocab)
        self.key("feed_forward_length", c.ff or None)
        self.key("attention.head_count", c.heads)
        self.key("attention.head_count_kv", c.kv, default=c.heads)
        whole = c.embd // c.heads if isinstance(c.heads, int) and c.heads and c.embd % c.heads == 0 else None
        self.key("attention.key_length", c.head, default=whole)
        self.key("attention.value_length", c.value, default=whole)
        self.key(eps, c.eps)
        if c.rot:
            self.key("rope.dimension_count", c.rot, default=c.head)
            self.key("rope.freq_base", c.rope_base, default=10000.0)
        if c.scaling:
            self.key("rope.scaling.type", c.scaling["type"])
            self.key("rope.scaling.factor", c.scaling["factor"])
            self.key("rope.scaling.original_context_length", c.scaling["original"])
            self.key("rope.scaling.attn_factor", c.scaling["attn_factor"])
        if c.experts:
            self.key("expert_count", c.experts)
            self.key("expert_used_count", c.used)
        for name, key in KEYS.items():
            self.key(key, c.get(name))
        # A tied output shares the embedding: its scale keeps the logits within a few units.
        self.top.matrix("token_embd", c.vocab, c.embd, embd_std or (c.embd ** -0.5 * 2 if c.tied else 0.4))
        self.top.norm("output_norm", bias=norm_bias)
        if not c.tied:
            self.top.matrix("output", c.vocab, c.embd, 3 * c.embd ** -0.5, bias=output_bias)

    def blocks(self, more=0):
        """The layers, as parts, and further blocks, such as those of multi-token prediction."""
        return [Part(self, f"blk.{i}.") for i in range(self.config.layers + more)]

    def blocks_and_next(self, nextn):
        """The same with so many blocks of multi-token prediction, their keys and what they have besides."""
        if nextn:
            self.key("block_count", self.config.layers + nextn)
            self.key("nextn_predict_layers", nextn)
        blocks = self.blocks(nextn)
        for block in blocks[self.config.layers:]:
            block.next_token()
        return blocks

    def add(self, name, values, kind="F32"):
        assert name not in self.tensors, name
        self.tensors[name] = (np.ascontiguousarray(values, F32), kind)

    def rng(self, name):
        return np.random.default_rng([self.config.seed, zlib.crc32(name.encode())])

    def type_of(self, name, experts):
        kind = self.expert_types or self.types if experts else self.types
        return MIXED[self.rng(name + " type").integers(len(MIXED))] if kind == "MIXED" else kind


class Part:
    """Tensors below a prefix. Names are given without `.weight`; matrices are of so many rows (outputs) and
    columns (inputs)."""

    def __init__(self, model, prefix):
        self.model, self.prefix, self.config = model, prefix, model.config

    def matrix(self, name, rows, cols, std=None, bias=False, experts=0, router=False):
        """A matrix, or one of each expert; a router stays in F32, as quantisers leave it."""
        name = self.prefix + name
        size = (experts, rows, cols) if experts else (rows, cols)
        rng = self.model.rng(name)
        values = rng.standard_normal(size, F32) * F32(std or cols ** -0.5)
        values[rng.random(size, F32) < 1e-3] *= 6
        kind = "F32" if router else self.model.type_of(name, experts)
        self.model.add(name + ".weight", values, kind)
        if bias:
            values = self.model.rng(name + ".bias").standard_normal(size[:-1], F32)
            self.model.add(name + ".bias", values * F32(0.3))

    def vector(self, name, n, std=1.0, mean=0.0):
        """Normal values under exactly this name, such as `attn_sinks.weight` or `exp_probs_b.bias`."""
        name = self.prefix + name
        self.model.add(name, mean + std * self.model.rng(name).standard_normal(n))

    def norm(self, name, n=None, bias=False):
        n = n or self.config.embd
        self.vector(name + ".weight", n, 0.2, 1.0)
        if bias:
            self.vector(name + ".bias", n, 0.2)

    def qkv(self, bias=False):
        c = self.config
        self.matrix("attn_q", c.heads * c.head, c.embd, bias=bias)
        self.matrix("attn_k", c.kv * c.head, c.embd, bias=bias)
        self.matrix("attn_v", c.kv * c.value, c.embd, bias=bias)

    def fused_qkv(self, bias=False):
        c = self.config
        self.matrix("attn_qkv", c.heads * c.head + c.kv * (c.head + c.value), c.embd, bias=bias)

    def attention_output(self, bias=False):
        c = self.config
        self.matrix("attn_output", c.embd, c.heads * c.value, bias=bias)

    def ffn(self, suffix="", ff=None, bias=False, gate=True):
        """A feed-forward network of `ffn_gate`, `ffn_up` and `ffn_down`; suffix `_shexp` for the shared
        expert."""
        c, ff = self.config, ff or self.config.ff
        if gate:
            self.matrix("ffn_gate" + suffix, ff, c.embd, bias=bias)
        self.matrix("ffn_up" + suffix, ff, c.embd, bias=bias)
        self.matrix("ffn_down" + suffix, c.embd, ff, bias=bias)

    def experts(self, ff=None, bias=False, fused=False):
        """The router and the experts, gate and up in one tensor or two."""
        c, ff = self.config, ff or self.config.expert_ff
        self.matrix("ffn_gate_inp", c.experts, c.embd, 2 * c.embd ** -0.5, bias=bias, router=True)
        if fused:
            self.matrix("ffn_gate_up_exps", 2 * ff, c.embd, bias=bias, experts=c.experts)
        else:
            self.matrix("ffn_gate_exps", ff, c.embd, bias=bias, experts=c.experts)
            self.matrix("ffn_up_exps", ff, c.embd, bias=bias, experts=c.experts)
        self.matrix("ffn_down_exps", c.embd, ff, bias=bias, experts=c.experts)

    def next_token(self):
        """What a block of multi-token prediction has besides a layer's tensors."""
        c = self.config
        self.matrix("nextn.eh_proj", c.embd, 2 * c.embd)
        self.norm("nextn.enorm")
        self.norm("nextn.hnorm")
        for own in c.get("nextn_own", []):
            if own == "shared_head_norm":
                self.norm("nextn." + own)
            else:
                std = 0.4 if own == "embed_tokens" else 3 * c.embd ** -0.5
                self.matrix("nextn." + own, c.vocab, c.embd, std)


def factors(rot, base, factor, low=1.0, high=4.0, original=64):
    """Llama 3's factors on RoPE's frequencies, for an original context so short that they matter within a
    short prompt."""
    out = []
    for i in range(0, rot, 2):
        length = 2 * math.pi * base ** (i / rot)
        smooth = min(max((original / length - low) / (high - low), 0.0), 1.0)
        out.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(out, F32)


def encode(values, name):
    """A float matrix in a block format, by ggml: its bytes, and the format's type."""
    with tempfile.TemporaryDirectory() as tmp:
        floats, blocks = Path(tmp) / "floats", Path(tmp) / "blocks"
        floats.write_bytes(np.ascontiguousarray(values, F32).tobytes())
        subprocess.run([REFERENCE, "encode", name, str(values.shape[-1]), floats, blocks], check=True)
        data = np.frombuffer(blocks.read_bytes(), np.int8)
    return data, NEW_TYPES.get(name) or gguf.GGMLQuantizationType[name]


def finish(w):
    w.write_header_to_file(); w.write_kv_data_to_file(); w.write_tensors_to_file(); w.close()


def build(family, config, types="F32"):
    """The keys and tensors of a model."""
    model = Model(family.name, config, types)
    family.tensors(model, config)
    return model


def write(model, path):
    """Writes the file."""
    w = gguf.GGUFWriter(path, model.arch)
    # Not the architecture: llama.cpp looks for special tokens of models whose name has "phi3" in it.
    w.add_name("random weights")
    for name, value in model.keys.items():
        kind = gguf.GGUFValueType.get_type(value)
        # Whole numbers are unsigned in files; those of arrays are not, unless they say so.
        long = kind == gguf.GGUFValueType.ARRAY and isinstance(value[0], np.uint64)
        w.add_key_value(name, value, gguf.GGUFValueType.UINT32 if kind == gguf.GGUFValueType.INT32 else kind,
                        gguf.GGUFValueType.UINT64 if long else None)
    vocabulary.add(w, model.config.tokenizer, model.config.vocab)
    for name, (values, kind) in model.tensors.items():
        if kind in PLAIN:
            w.add_tensor(name, values.astype(PLAIN[kind]))
        else:
            data, ty = encode(values, kind)
            w.add_tensor(name, data, raw_shape=values.shape, raw_dtype=ty)
    finish(w)
