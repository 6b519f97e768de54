"""Qwen 2 and 3, and their experts: biases of queries, keys and values in one, norms of heads in the other; the text part of
Qwen 3 VL."""
from .core import Family, scaling, shape


def draw_qwen1(d):
    c = d.shape(**d.square(grouped=False), tied=False, scaling=d.scaling(None, "linear", "yarn"))
    return c.but(ff=2 * c.ff)


def qwen1(m, c):
    m.common()
    for b in m.blocks():
        b.norm("attn_norm")
        b.fused_qkv(bias=True)
        b.attention_output()
        b.norm("ffn_norm")
        # The key counts gate and up.
        b.ffn(ff=c.ff // 2)


def draw_qwen2(d):
    return d.shape(**d.square(), scaling=d.scaling(None, "linear", "yarn"), qkv_bias=d.maybe(0.8),
                   logits_bias=d.maybe(0.2))


def qwen2(m, c):
    m.common(output_bias=c.logits_bias)
    for b in m.blocks():
        b.norm("attn_norm")
        b.qkv(bias=c.qkv_bias)
        b.attention_output()
        b.norm("ffn_norm")
        b.ffn()


def draw_qwen2moe(d):
    c = draw_qwen2(d)
    return c.but(tied=False, logits_bias=False, **d.experts(), shared_ff=d.of(None, d.multiple(16, 96)))


def qwen2moe(m, c):
    m.common()
    m.key("expert_feed_forward_length", c.expert_ff)
    m.key("expert_shared_feed_forward_length", c.shared_ff)
    for b in m.blocks():
        b.norm("attn_norm")
        b.qkv(bias=c.qkv_bias)
        b.attention_output()
        b.norm("ffn_norm")
        b.experts()
        b.vector("ffn_gate_inp_shexp.weight", c.embd, c.embd ** -0.5)
        b.ffn("_shexp", c.shared_ff or c.ff)


def draw_qwen3(d):
    return d.shape(scaling=d.scaling(None, "linear", "yarn"), qkv_bias=d.maybe(0.2))


def draw_qwen3moe(d):
    return draw_qwen3(d).but(**d.experts())


def draw_qwen3vl(d):
    c = draw_qwen3(d)
    third = c.rot // 8
    return c.but(sections=d.of([third * 2, third, third, 0], [c.rot // 2, 0, 0, 0], [1, 2, 0, 1]),
                 deepstack=d.of(None, 1, 3))


def draw_qwen3vlmoe(d):
    return draw_qwen3vl(d).but(**d.experts())


def qwen3(m, c):
    m.common()
    m.key("rope.dimension_sections", c.get("sections"))
    m.key("n_deepstack_layers", c.get("deepstack"))
    if c.experts:
        m.key("expert_feed_forward_length", c.expert_ff)
    for b in m.blocks():
        b.norm("attn_norm")
        b.qkv(bias=c.qkv_bias)
        b.norm("attn_q_norm", c.head)
        b.norm("attn_k_norm", c.head)
        b.attention_output()
        b.norm("ffn_norm")
        b.experts() if c.experts else b.ffn()


QWEN2 = shape(seed=111, heads=2, kv=1, qkv_bias=True, logits_bias=False, tied=True, rope_base=1e6)
WIDE = shape(heads=6, qkv_bias=False, rope_base=1e6)
MOE = WIDE.but(heads=4, experts=8, used=3, expert_ff=16)
VL = {"sections": [4, 2, 2, 0], "deepstack": 1}
FAMILIES = [
    Family("qwen", draw_qwen1, qwen1, {"": (shape(seed=113, embd=32, heads=2, kv=2, ff=64), "F32")}),
    Family("qwen2", draw_qwen2, qwen2, {"": (QWEN2, "F32")}),
    Family("qwen2moe", draw_qwen2moe, qwen2moe, {
        "": (QWEN2.but(seed=117, tied=False, experts=4, used=2, expert_ff=16, shared_ff=24), "F32")}),
    Family("qwen3", draw_qwen3, qwen3, {"": (WIDE.but(seed=112, scaling=scaling("yarn", 4.0)), "F32")}),
    Family("qwen3moe", draw_qwen3moe, qwen3, {
        "": (MOE.but(seed=113), "F32"),
        "-q": (MOE.but(seed=214, embd=64, experts=16, used=4, expert_ff=32), "Q8_0:Q4_0"),
    }),
    Family("qwen3vl", draw_qwen3vl, qwen3, {"": (WIDE.but(seed=115, **VL), "F32")}),
    Family("qwen3vlmoe", draw_qwen3vlmoe, qwen3, {"": (MOE.but(seed=116, **VL), "F32")}),
]
