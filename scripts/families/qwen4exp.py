"""Qwen 4 (experimental): gated connections between residual streams, gated delta nets, attention to pools of
positions that an indexer chooses, embeddings of n-grams in one layer, experts."""
import numpy as np

from .core import Family, shape
from .qwen35 import attention, delta_net, draw as draw_qwen, recurrent, with_experts


def draw(d):
    c = with_experts(d, draw_qwen(d))
    part = max(c.rot // 8, 1)
    pool = d.of(2, 3, 4, 8)
    ratios = [d.of(0, pool, pool) for _ in range(c.layers + c.nextn)]
    # llama.cpp wants a layer of attention that chooses, or none.
    if not any(ratio and not delta for ratio, delta in zip(ratios[:c.layers], recurrent(c))):
        ratios = pool
    # llama.cpp's graph has neither.
    return c.but(
        qkv_bias=False, fused=False, next_token=False,
        sections=d.of([part * 2, part, part, 0], [c.rot // 2, 0, 0, 0], [1, 2, 0, 1]),
        streams=d.of(2, 3, 4, 4, 5), rank=d.multiple(8, 40), flat=d.maybe(0.3), index_heads=d.of(6, 8, 11),
        index_len=d.of(*(n for n in (16, 32, 64, 128, 256) if n >= c.rot)), pool=pool,
        ratios=d.of(pool, pool, ratios, ratios, 0, None), top_k=d.of(1, 2, 3, 5, 9, 20),
        gate_up=d.maybe(0.3), ngrams=draw_ngrams(d, c))


def draw_ngrams(d, c):
    """The layer that has n-grams, and their sizes."""
    if d.maybe(0.2):
        return None
    of = [i for i, is_recurrent in enumerate(recurrent(c)) if is_recurrent]
    order, each = d.of(2, 3, 3, 4, 5), d.of(1, 2, 2, 3)
    if c.embd % ((order - 1) * each * d.block):
        order, each = 2, 1
    counts = [d.between(1, 40) for _ in range((order - 1) * each)]
    offsets = [d.between(0, 90) for _ in counts]
    return {"layer": d.of(*of), "order": order, "each": each, "offsets": offsets, "counts": counts,
            "taps": d.of(2, 3, 4), "eos": d.between(0, 15), "more": d.of(0, 0, 7),
            "multipliers": [d.between(1, 2 ** 62) * 2 + 1 for _ in range(order + d.of(0, 0, 1))]}


def keys(m, c):
    m.key("rope.dimension_sections", c.sections)
    m.key("ssm.conv_kernel", c.taps)
    m.key("ssm.state_size", c.state)
    m.key("ssm.group_count", c.key_heads)
    m.key("ssm.time_step_rank", c.value_heads)
    m.key("ssm.inner_size", c.value_heads * c.state)
    m.key("full_attention_interval", c.interval, default=4)
    m.key("attention.recurrent_layers", c.recurrent)
    m.key("expert_feed_forward_length", c.expert_ff)
    m.key("hyper_connection.count", c.streams)
    m.key("hyper_connection.low_rank", c.rank)
    m.key("attention.indexer.head_count", c.index_heads)
    m.key("attention.indexer.key_length", c.index_len)
    m.key("attention.indexer.top_k", c.top_k * c.pool)
    m.key("attention.compress_ratios", c.ratios)


def turns(b, c, name):
    """A norm for each stream."""
    name = b.prefix + name + ".weight"
    values = 1 + 0.2 * b.model.rng(name).standard_normal((c.streams, c.embd))
    b.model.add(name, values.reshape(-1) if c.flat else values)


def connection(b, c, name, inject=True):
    turns(b, c, name + "_norm")
    b.matrix(name + "_down", c.rank, c.streams * c.embd, 2 * (c.streams / c.embd) ** 0.5)
    b.matrix(name + "_up", c.streams * c.embd, c.rank, 2 * c.rank ** -0.5)
    if inject:
        b.matrix(name + "_inject", c.streams, c.streams * c.embd, 2 * (c.streams / c.embd) ** 0.5)


def indexer(b, c):
    b.matrix("indexer.q_proj", c.index_heads * c.index_len, c.embd)
    b.matrix("indexer.k_proj", c.index_len, c.embd)
    b.norm("indexer.q_norm", c.index_len)
    b.norm("indexer.k_norm", c.index_len)


def ngram_keys(m, c, n):
    m.key("ple.layers", [n["layer"]])
    m.key("ple.ngram_size", n["order"])
    m.key("ple.heads_per_ngram", n["each"])
    m.key("ple.conv_kernel", n["taps"])
    m.key("ple.eos_token_id", n["eos"])
    m.key("embedding_length_per_layer_input", c.embd // len(n["counts"]))
    for name, field in (("layer_multipliers", "multipliers"), ("head_offsets", "offsets"),
                        ("head_vocab_sizes", "counts")):
        m.key("ple." + name, [np.uint64(value) for value in n[field]])
    rows = max(at + count for at, count in zip(n["offsets"], n["counts"])) + n["more"]
    m.top.matrix("per_layer_token_embd", rows, c.embd // len(n["counts"]), 0.4)


def ngrams(b, c, n):
    b.matrix("ple_key", c.streams * c.embd, c.embd)
    b.matrix("ple_value", c.embd, c.embd, 2 * c.embd ** -0.5)
    for part in ("key", "query", "conv"):
        turns(b, c, "ple_norm_" + part)
    b.matrix("ple_conv1d", c.streams * c.embd, n["taps"], router=True)


def tensors(m, c):
    m.common()
    # The gated mean of all streams is the norm before the output.
    del m.tensors["output_norm.weight"]
    keys(m, c)
    connection(m.top, c, "output_hc", inject=False)
    if c.ngrams:
        ngram_keys(m, c, c.ngrams)
    blocks = m.blocks_and_next(c.nextn)
    for i, (b, is_recurrent) in enumerate(zip(blocks, recurrent(c))):
        if c.ngrams and c.ngrams["layer"] == i:
            ngrams(b, c, c.ngrams)
        connection(b, c, "hc_attn")
        if is_recurrent:
            delta_net(b, c)
        else:
            indexer(b, c)
            attention(b, c)
        connection(b, c, "hc_ffn")
        b.experts(fused=c.gate_up)
        b.vector("ffn_gate_inp_shexp.weight", c.embd, c.embd ** -0.5)
        b.ffn("_shexp", c.shared_ff or c.ff)
    for b in blocks[c.layers:]:
        # A norm for each stream, and the head's own mean.
        del m.tensors[b.prefix + "nextn.hnorm.weight"]
        turns(b, c, "nextn.hnorm")
        connection(b, c, "nextn.hc_head", inject=False)


NGRAMS = {"layer": 0, "order": 3, "each": 2, "offsets": [0, 13, 30, 47], "counts": [13, 17, 17, 19],
          "taps": 2, "eos": 3, "more": 1, "multipliers": [2654435761, 7046029254386353131, 5165137398914471383]}
FIXTURE = shape(seed=571, embd=16, heads=2, kv=1, head=8, rot=4, ff=16, layers=2, tied=True, key_heads=1,
                value_heads=2, state=4, taps=4, interval=2, nextn=0, qkv_bias=False, fused=False,
                recurrent=None, sections=[1, 1, 0, 0], experts=3, used=2, expert_ff=4, shared_ff=4, streams=2,
                rank=2, flat=False, index_heads=3, index_len=16, pool=2, ratios=[0, 2], top_k=2,
                gate_up=False, ngrams=NGRAMS)
FAMILIES = [Family("qwen4exp", draw, tensors, {"": (FIXTURE, "F32")})]
