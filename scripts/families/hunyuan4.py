"""Hunyuan 4: hyper-connections that leave their streams apart, latent attention with sinks and a gate, to
positions that an indexer chooses, which layers may share; experts of limited values."""
from .core import Family, scaling, shape
from .deepseek import attention, draw_latent, draw_networks, indexer, low_rank_keys
from .deepseek4 import STREAMS, draw_limits, hyper


def draw(d):
    c = draw_latent(d, absorbed=True, direct=False, multiplier=None, tied=False)
    c = draw_networks(d, c, (1, 2, 2, 3, 4)).but(fused=False)
    types = [1] + [int(d.maybe()) for _ in range(c.layers - 1)]
    indexed = d.maybe(0.8)
    if indexed:
        # llama.cpp breaks off where blocks of multi-token prediction are declared too.
        c = c.but(nextn=0)
    return c.but(
        hyper_eps=d.of(1e-6, 1e-3), magnitude=d.of(1.0, 2.0, d.real(0.5, 3.0)),
        limits=d.of(None, draw_limits(d, c.layers + c.nextn)), indexed=indexed,
        index_heads=d.of(6, 8, 12, 16), index_len=d.of(48, 64, 64, 128),
        top_k=d.of(1, 2, 5, 16, 33, 64, 130), types=d.of(1, types, types), unused=False)


def tensors(m, c):
    m.common()
    low_rank_keys(m, c)
    m.key("expert_feed_forward_length", c.expert_ff)
    m.key("hyper_connection.count", STREAMS)
    m.key("hyper_connection.epsilon", c.hyper_eps)
    m.key("hyper_connection.magnitude", c.magnitude)
    m.key("swiglu_clamp_exp", c.limits)
    if c.nextn:
        # llama.cpp loads no block of multi-token prediction.
        m.key("block_count", c.layers + c.nextn)
        m.key("nextn_predict_layers", c.nextn)
    if c.indexed:
        m.key("attention.indexer.head_count", c.index_heads)
        m.key("attention.indexer.key_length", c.index_len)
        m.key("attention.indexer.top_k", c.top_k)
        m.key("attention.indexer.types", c.types)
    hyper(m.top, "output_hc", STREAMS, 1, c.embd)
    for i, b in enumerate(m.blocks()):
        hyper(b, "hc_attn", 2 * STREAMS, 2, c.embd)
        b.norm("attn_norm")
        b.vector("attn_sinks.weight", c.heads)
        attention(m, b, c)
        b.matrix("attn_gate", c.heads * c.v_mla, c.embd)
        if c.indexed:
            indexer(b, c, i)
        hyper(b, "hc_ffn", 2 * STREAMS, 2, c.embd)
        b.norm("ffn_norm")
        if i < (c.dense_layers or 0):
            b.ffn()
        else:
            b.experts()
            if c.choice_bias:
                b.vector("exp_probs_b.bias", c.experts, 0.2)
            b.ffn("_shexp", c.shared * c.expert_ff)


FIXTURE = shape(seed=551, embd=8, layers=2, heads=2, kv=1, head=16, value=8, rot=8, nope=8, v_mla=8,
                absorbed=True, latent=8, q_rank=8, ff=16, experts=4, used=2, expert_ff=8, shared=1,
                dense_layers=1, gating=2, weights_norm=True, weights_scale=2.5, choice_bias=True, groups=0,
                groups_used=0, nextn=0, multiplier=None, scaling=scaling("yarn", 8.0), hyper_eps=1e-6,
                magnitude=2.0, limits=0.8, indexed=True, index_heads=4, index_len=16, top_k=12, types=[1, 0],
                unused=False)
FAMILIES = [Family("hy_v4", draw, tensors, {"": (FIXTURE, "F32")})]
