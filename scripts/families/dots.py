"""dots1 and Ling 2: norms of heads, dense layers before those with experts, a shared network beside these;
how experts are scored, grouped and weighted stands in keys."""
from .core import Family, shape


def draw_routing(d, gatings=(1, 2, 3)):
    """Fields of experts as the keys of such files say."""
    experts = d.groups() if d.maybe(0.4) else d.experts()
    return {**experts, "gating": d.of(*gatings), "weights_norm": d.of(None, True, False),
            "weights_scale": d.of(None, 1.0, d.real(0.5, 3.0)), "choice_bias": d.maybe(0.7)}


def draw_dots1(d):
    # llama.cpp wants as many heads of keys as of queries.
    heads = d.of(1, 2, 3, 4, 6, 8)
    c = d.shape(heads=heads, kv=heads, tied=False, scaling=d.scaling(None, None, "linear", "yarn"),
                qkv_bias=d.maybe(0.3), nextn=0, **draw_routing(d), shared=d.between(1, 3))
    return c.but(dense_layers=d.of(None, 0, d.between(1, c.layers)))


def draw_bailing(d):
    # The queries are as long as the embedding.
    heads = d.of(2, 4, 8)
    fit = [n for n in (8, 16, 32, 64, 128) if heads * n % d.block == 0 and heads * n <= max(256, d.block)]
    head = d.of(*fit)
    c = d.shape(heads=heads, kv=d.of(*(n for n in (1, 2, 4) if heads % n == 0)), head=head,
                embd=heads * head, rot=d.of(head // 2, head), tied=False, nextn=d.between(0, 1),
                scaling=d.scaling(None, None, "linear", "yarn"), **draw_routing(d), shared=d.between(1, 2),
                shared_ff=d.of(None, d.multiple(24, 96)))
    return c.but(dense_layers=d.of(None, 0, d.between(1, c.layers)))


def tensors(m, c):
    m.common()
    m.key("expert_feed_forward_length", c.expert_ff)
    if c.nextn:
        m.key("block_count", c.layers + c.nextn)
        m.key("nextn_predict_layers", c.nextn)
    for i, b in enumerate(m.blocks(c.nextn)):
        b.norm("attn_norm")
        if m.arch == "bailingmoe2":
            b.fused_qkv()
        else:
            b.qkv(bias=c.qkv_bias)
        b.norm("attn_q_norm", c.head)
        b.norm("attn_k_norm", c.head)
        b.attention_output()
        b.norm("ffn_norm")
        if i < (c.dense_layers or 0):
            b.ffn()
        else:
            b.experts()
            if c.choice_bias:
                b.vector("exp_probs_b.bias", c.experts, 0.2)
            b.ffn("_shexp", c.shared * (c.get("shared_ff") or c.expert_ff))
        if i >= c.layers:
            b.next_token()
            b.norm("layer_output_norm")


SIGMOID = shape(layers=3, heads=3, embd=48, experts=8, used=3, expert_ff=16, dense_layers=1, gating=2,
                weights_norm=True, weights_scale=2.5, choice_bias=True)
FAMILIES = [
    Family("dots1", draw_dots1, tensors, {
        "": (SIGMOID.but(seed=301, kv=3, shared=2, qkv_bias=True, nextn=0), "F32")}),
    Family("bailingmoe2", draw_bailing, tensors, {
        "": (SIGMOID.but(seed=302, kv=1, rot=8, shared=1, nextn=1, groups=4, groups_used=2), "F32")}),
]
