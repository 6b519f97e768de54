"""Hunyuan: norms of heads, behind the rotation in the first generation and before it in the third."""
from .core import Family, shape
from .dots import draw_routing


def draw_dense(d):
    return d.shape(scaling=d.scaling(None, None, "linear", "yarn"), qkv_bias=d.maybe(0.3),
                   alpha=d.of(None, None, 1000.0, d.real(1.0, 60.0)), one_expert=d.maybe(0.2), nextn=0)


def draw_moe(d):
    c = d.shape(scaling=d.scaling(None, None, "linear", "yarn"), qkv_bias=d.maybe(0.3), nextn=0)
    return c.but(**d.experts(expert_ff=c.ff), shared=d.of(None, 1),
                 shared_ff=d.of(None, 0, d.multiple(24, 96)))


def draw_v3(d):
    c = d.shape(scaling=d.scaling(None, None, "linear", "yarn"), qkv_bias=d.maybe(0.3), nextn=d.between(0, 1),
                next_token=d.maybe(), fused=d.maybe(0.3), **draw_routing(d, (None, 1, 2, 3)),
                shared=d.of(None, 1), shared_ff=d.of(None, d.multiple(24, 96)))
    return c.but(dense_layers=d.of(None, 0, d.between(1, c.layers)))


def tensors(m, c):
    m.common()
    m.key("rope.scaling.alpha", c.get("alpha"))
    if c.get("one_expert"):
        m.key("expert_count", 1)
        m.key("expert_used_count", 1)
    if c.experts:
        m.key("expert_feed_forward_length", c.expert_ff)
    if c.nextn:
        m.key("block_count", c.layers + c.nextn)
        m.key("nextn_predict_layers", c.nextn)
    # The last blocks may be declared and lie in a file of their own.
    for i, b in enumerate(m.blocks(c.nextn if c.get("next_token") else 0)):
        b.norm("attn_norm")
        b.qkv(bias=c.qkv_bias)
        b.norm("attn_q_norm", c.head)
        b.norm("attn_k_norm", c.head)
        b.attention_output()
        b.norm("ffn_norm")
        if not c.experts or i < (c.get("dense_layers") or 0):
            b.ffn()
        else:
            b.experts(fused=c.get("fused", False))
            if c.get("choice_bias"):
                b.vector("exp_probs_b", c.experts, 0.2)
            b.ffn("_shexp", c.shared_ff or c.expert_ff)
        if i >= c.layers:
            b.next_token()


PLAIN = shape(qkv_bias=False, nextn=0)
MOE = PLAIN.but(experts=8, used=3, shared=1, shared_ff=24)
FAMILIES = [
    Family("hunyuan-dense", draw_dense, tensors, {
        "": (PLAIN.but(seed=321, tied=True, alpha=1000.0, one_expert=False), "F32")}),
    Family("hunyuan-moe", draw_moe, tensors, {
        "": (MOE.but(seed=322, tied=True, ff=16, expert_ff=16, rope_base=11158840.0), "F32")}),
    Family("hy_v3", draw_v3, tensors, {
        "": (MOE.but(seed=323, layers=3, expert_ff=16, dense_layers=1, gating=2, weights_norm=True,
                     weights_scale=2.5, choice_bias=True, nextn=1, next_token=True, fused=False), "F32")}),
]
