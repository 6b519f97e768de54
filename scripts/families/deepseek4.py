"""DeepSeek V4: hyper-connections between four streams, attention over a window and compressed keys, of which
an indexer chooses in some layers, experts chosen by the token itself in the first layers."""
import numpy as np

from .core import Family, scaling, shape

STREAMS = 4
GATES = (2 + STREAMS) * STREAMS
# Positions of a compressed key, of those that an indexer chooses from and of the others.
CHOSEN, WHOLE = 4, 128


def draw_ratios(d, layers):
    """llama.cpp runs no model without an indexer."""
    ratios = [d.of(0, CHOSEN, CHOSEN, WHOLE) for _ in range(layers)]
    ratios[d.between(0, layers - 1)] = CHOSEN
    return ratios


def draw_limits(d, blocks):
    limit = d.of(0.0, d.real(0.3, 2.0), 10.0)
    return d.of(limit, [d.of(0.0, d.real(0.3, 2.0), limit) for _ in range(blocks)])


def draw(d):
    groups = d.of(1, 2, 4)
    heads = groups * d.of(1, 2, 3)
    # A group of heads is a row of a matrix.
    fit = [n for n in (32, 48, 96, 256) if heads // groups * n % d.block == 0]
    head = d.of(*fit[:3])
    layers, nextn = d.between(2, 5), d.between(0, 1)
    ratios = draw_ratios(d, layers) + [0] * nextn + [0] * d.of(0, 0, 1)
    # Of all 128 positions that a key is made of.
    least = 140 if WHOLE in ratios and d.maybe(0.7) else 0
    c = d.shape(
        layers=layers, heads=heads, kv=1, head=head, value=head, rot=d.of(8, 16, 32), bare=False, tied=False,
        ff=0, window=d.window(), scaling=d.scaling(None, "linear", "yarn", "yarn"), q_rank=d.multiple(16, 64),
        groups_out=groups, out_rank=d.multiple(16, 48), compress_base=d.of(160000.0, 10000.0, 100.0),
        ratios=ratios, index_heads=d.of(12, 16, 24), index_len=d.of(64, 128, 192), top_k=d.of(1, 2, 5, 9, 16, 33),
        iterations=d.of(1, 2, 3, 20), hyper_eps=d.of(1e-6, 1e-3), hashed=d.of(0, 1, 2, layers),
        planes=d.maybe(), nextn=nextn, vision=d.maybe(0.2), gating=4, weights_norm=d.maybe(0.7),
        weights_scale=d.of(1.0, 1.5, 2.5), shared=d.between(1, 2), least=least, **draw_experts(d))
    if c.scaling:
        # The attention's own gain on YaRN is not a file's to change.
        c.scaling["attn_factor"] = None
    limits = draw_limits(d, layers + nextn)
    return c.but(limits=limits, shared_limits=d.of(None, draw_limits(d, layers + nextn)))


def draw_experts(d):
    return d.groups() if d.maybe(0.2) else d.experts(groups=d.of(0, 1))


def keys(m, c):
    m.key("attention.q_lora_rank", c.q_rank)
    m.key("attention.sliding_window", c.window)
    m.key("attention.output_group_count", c.groups_out)
    m.key("attention.output_lora_rank", c.out_rank)
    m.key("attention.compress_rope_freq_base", c.compress_base)
    m.key("attention.compress_ratios", c.ratios)
    m.key("attention.indexer.head_count", c.index_heads)
    m.key("attention.indexer.key_length", c.index_len)
    m.key("attention.indexer.top_k", c.top_k)
    m.key("hyper_connection.count", STREAMS)
    m.key("hyper_connection.sinkhorn_iterations", c.iterations)
    m.key("hyper_connection.epsilon", c.hyper_eps)
    m.key("hash_layer_count", c.hashed)
    m.key("expert_feed_forward_length", c.expert_ff)
    m.key("swiglu_clamp_exp", c.limits)
    m.key("swiglu_clamp_shexp", c.shared_limits)


def hyper(part, name, count, kinds, embd):
    """Gates that lie around 1/2, and differ from token to token."""
    part.matrix(name + "_fn", count, STREAMS * embd)
    part.vector(name + "_base.weight", count)
    part.vector(name + "_scale.weight", kinds, 0.3, 1.0)


def compressor(b, name, ratio, n):
    """What a compressed key of `n` elements is made with."""
    width = 2 * n if ratio == CHOSEN else n
    b.matrix(name + "_kv", width, b.config.embd)
    b.matrix(name + "_gate", width, b.config.embd, 2 * b.config.embd ** -0.5)
    b.model.add(b.prefix + name + "_ape.weight", b.model.rng(b.prefix + name).standard_normal((ratio, width)))
    b.norm(name + "_norm", n)


def attention(b, c, ratio):
    b.vector("attn_sinks.weight", c.heads)
    b.matrix("attn_q_a", c.q_rank, c.embd)
    b.norm("attn_q_a_norm", c.q_rank)
    b.matrix("attn_q_b", c.heads * c.head, c.q_rank)
    b.matrix("attn_kv", c.head, c.embd)
    b.norm("attn_kv_a_norm", c.head)
    cols = c.heads // c.groups_out * c.head
    if c.planes:
        b.matrix("attn_output_a", c.out_rank, cols, experts=c.groups_out)
    else:
        b.matrix("attn_output_a", c.groups_out * c.out_rank, cols)
    b.matrix("attn_output_b", c.embd, c.groups_out * c.out_rank)
    if ratio:
        compressor(b, "attn_compressor", ratio, c.head)
    if ratio == CHOSEN:
        b.matrix("indexer.proj", c.index_heads, c.embd)
        b.matrix("indexer.attn_q_b", c.index_heads * c.index_len, c.q_rank)
        compressor(b, "indexer_compressor", ratio, c.index_len)


def tensors(m, c):
    m.common()
    keys(m, c)
    hyper(m.top, "output_hc", STREAMS, 1, c.embd)
    for i, b in enumerate(m.blocks_and_next(c.nextn)):
        hyper(b, "hc_attn", GATES, 3, c.embd)
        b.norm("attn_norm")
        attention(b, c, c.ratios[i])
        hyper(b, "hc_ffn", GATES, 3, c.embd)
        b.norm("ffn_norm")
        b.experts()
        if i < c.hashed:
            rng = m.rng(b.prefix + "ffn_gate_tid2eid")
            table = [rng.permutation(c.experts)[:c.used] for _ in range(c.vocab)]
            m.add(b.prefix + "ffn_gate_tid2eid.weight", np.array(table), "I32")
        else:
            b.vector("exp_probs_b.bias", c.experts, 0.2)
        if c.vision:
            b.vector("exp_probs_b_vl.bias", c.experts, 0.2)
        b.ffn("_shexp", c.shared * c.expert_ff)


FIXTURE = shape(seed=541, embd=16, layers=3, heads=2, kv=1, head=16, rot=8, ff=0, window=16, q_rank=8,
                groups_out=2, out_rank=8, compress_base=160000.0, ratios=[0, CHOSEN, WHOLE], index_heads=4,
                index_len=64, top_k=4, iterations=3, hyper_eps=1e-6, hashed=1, planes=False, nextn=0,
                vision=False, gating=4, weights_norm=True, weights_scale=1.5, shared=1, experts=4, used=2,
                expert_ff=8, groups=0, limits=0.8, shared_limits=None, scaling=scaling("yarn", 8.0))
FAMILIES = [Family("deepseek4", draw, tensors, {"": (FIXTURE, "F32")})]
