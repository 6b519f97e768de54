"""ERNIE 4.5: a plain decoder; dense layers before those with experts, which a bias helps to choose."""
from .core import Family, shape


def draw(d):
    c = d.shape(scaling=d.scaling(None, None, "linear", "yarn"), qkv_bias=d.maybe(0.3), sections=d.maybe(0.2))
    return c


def draw_moe(d):
    c = draw(d).but(**d.experts(), choice_bias=d.maybe(0.7), shared=d.of(None, 2),
                    shared_ff=d.of(None, 0, d.multiple(24, 96)))
    return c.but(dense_layers=d.of(None, 0, d.between(1, c.layers)))


def tensors(m, c):
    m.common()
    if c.sections:
        m.key("rope.dimension_sections", [c.rot // 4, c.rot // 8, c.rot // 8, 0])
    if c.experts:
        m.key("expert_feed_forward_length", c.expert_ff)
        m.key("interleave_moe_layer_step", 1)
    for i, b in enumerate(m.blocks()):
        b.norm("attn_norm")
        b.qkv(bias=c.qkv_bias)
        b.attention_output()
        b.norm("ffn_norm")
        if not c.experts or i < (c.dense_layers or 0):
            b.ffn()
            continue
        b.experts()
        if c.choice_bias:
            b.vector("exp_probs_b.bias", c.experts, 0.05)
        if c.shared_ff:
            b.ffn("_shexp", c.shared_ff)


PLAIN = shape(rope_base=500000.0, qkv_bias=False, sections=False, tied=True)
FAMILIES = [
    Family("ernie4_5", draw, tensors, {"": (PLAIN.but(seed=311), "F32")}),
    Family("ernie4_5-moe", draw_moe, tensors, {
        "": (PLAIN.but(seed=312, layers=3, dense_layers=1, experts=8, used=3, expert_ff=16, choice_bias=True,
                       shared=2, shared_ff=24), "F32")}),
]
