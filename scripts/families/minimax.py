"""MiniMax 01: lightning attention and, in some layers, attention; blocks add to their normed inputs. M2:
norms over all heads, partial rotation, experts of which a bias decides. M3: norms of each head, dense layers
before those with experts, a network beside these; attention to chosen blocks of positions."""
from .core import Family, shape


def draw_01(d):
    layers = d.between(2, 5)
    c = d.shape(layers=layers, scaling=d.scaling(None, None, "linear", "yarn"), residual=d.real(0.5, 4.0),
                fused=d.maybe(0.2), qkv_bias=d.maybe(0.2))
    # llama.cpp wants both kinds of layers.
    kinds = [True, False] + [d.maybe() for _ in range(layers - 2)]
    d.rng.shuffle(kinds)
    interval = d.between(2, layers)
    if d.maybe():
        kinds = [i % interval != interval - 1 for i in range(layers)]
        interval, flags = None if interval == 8 else interval, None
    else:
        interval, flags = d.of(None, interval), [bool(kind) for kind in kinds]
    return c.but(**d.experts(expert_ff=c.ff), rot=d.of(c.head, c.head // 2), interval=interval, flags=flags,
                 kinds=[bool(kind) for kind in kinds])


def tensors_01(m, c):
    m.common()
    m.key("residual_scale", c.residual)
    m.key("full_attention_interval", c.interval)
    m.key("attention.recurrent_layers", c.flags)
    for b, lightning in zip(m.blocks(), c.kinds):
        b.norm("attn_norm")
        if lightning:
            values = c.heads * c.head
            b.matrix("attn_qkv", 3 * values, c.embd)
            b.matrix("attn_gate", values, c.embd)
            b.norm("attn_norm_2", values)
        else:
            (b.fused_qkv if c.fused else b.qkv)(bias=c.qkv_bias)
        b.attention_output()
        b.norm("ffn_norm")
        b.experts()


def draw(d):
    c = d.shape(tied=False, scaling=d.scaling(None, None, "linear", "yarn"), fused=d.maybe(0.2),
                qkv_bias=d.maybe(0.2), gating=d.of(1, 2, 2, 2, 3))
    return c.but(**d.experts(expert_ff=c.ff), rot=d.of(c.head, c.head // 2))


def tensors(m, c):
    m.common()
    m.key("expert_feed_forward_length", c.expert_ff)
    for b in m.blocks():
        b.norm("attn_norm")
        (b.fused_qkv if c.fused else b.qkv)(bias=c.qkv_bias)
        b.norm("attn_q_norm", c.heads * c.head)
        b.norm("attn_k_norm", c.kv * c.head)
        b.attention_output()
        b.norm("ffn_norm")
        b.experts()
        b.vector("exp_probs_b.bias", c.experts, 0.2)


def draw_3(d):
    c = d.shape(tied=False, scaling=d.scaling(None, None, "linear", "yarn"), qkv_bias=d.maybe(0.2),
                gating=d.of(1, 2, 2, 2, 3), weights_norm=d.of(None, True, False),
                weights_scale=d.of(None, 1.0, d.real(0.5, 3.0)), shared=d.between(1, 2), **d.experts())
    top_k = d.between(1, 5)
    index_len = d.of(*(n for n in (32, 64, 128) if n >= c.head)) if c.head <= 128 else 256
    c = c.but(rot=d.of(c.head, c.head // 2), dense_layers=d.of(None, 0), index_len=index_len, top_k=top_k,
              local=d.between(0, min(top_k, 2)), block=d.of(4, 8, 16, 32, 64, 128), flash=True)
    if d.maybe(0.7):
        return c
    # Without flash attention llama.cpp attends to everything; with it, dense layers round keys to F16.
    return c.but(dense_layers=d.between(0, c.layers - 1), top_k=8, block=64, flash=False)


def tensors_3(m, c):
    m.common()
    m.key("expert_feed_forward_length", c.expert_ff)
    m.key("attention.indexer.head_count", c.kv)
    m.key("attention.indexer.key_length", c.index_len)
    m.key("attention.indexer.top_k", c.top_k)
    m.key("attention.indexer.block_size", c.block)
    m.key("attention.indexer.local_blocks", c.local)
    for i, b in enumerate(m.blocks()):
        b.norm("attn_norm")
        b.qkv(bias=c.qkv_bias)
        b.norm("attn_q_norm", c.head)
        b.norm("attn_k_norm", c.head)
        b.attention_output()
        b.norm("ffn_norm")
        if i < (c.dense_layers or 0):
            b.ffn()
            continue
        b.experts()
        b.vector("exp_probs_b.bias", c.experts, 0.2)
        b.ffn("_shexp", c.shared * c.expert_ff)
        b.matrix("indexer.q_proj", c.kv * c.index_len, c.embd)
        b.matrix("indexer.k_proj", c.index_len, c.embd)
        b.norm("indexer.q_norm", c.index_len)
        b.norm("indexer.k_norm", c.index_len)


M3 = shape(embd=32, layers=2, heads=4, kv=2, rot=8, ff=32, experts=4, used=2, expert_ff=16, shared=1,
           dense_layers=0, gating=2, weights_norm=True, weights_scale=2.0, qkv_bias=False, rope_base=5e6,
           index_len=16, top_k=3, local=1, block=4, flash=True)
M1 = shape(seed=184, embd=24, heads=2, kv=1, head=8, rot=4, ff=8, experts=4, used=2, expert_ff=8, tied=True,
           residual=2.5, fused=False, qkv_bias=False, interval=2, flags=None, kinds=[True, False])
FAMILIES = [
    Family("minimax-01", draw_01, tensors_01, {"": (M1, "F32")}),
    Family("minimax-m2", draw, tensors, {
        "": (shape(seed=181, rot=8, heads=6, ff=16, experts=8, used=3, expert_ff=16, fused=False,
                   qkv_bias=False, gating=2, rope_base=5e6), "F32")}),
    Family("minimax-m3", draw_3, tensors_3, {
        "": (M3.but(seed=182), "F32"),
        "-dense": (M3.but(seed=183, dense_layers=1, top_k=16, block=16, flash=False), "F32")}),
]
