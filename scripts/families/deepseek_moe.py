"""DeepSeekMoE and the first Ling: experts by a softmax over all of them, shared networks beside these."""
from .core import Family, shape


def draw_deepseek(d):
    c = d.shape(**d.square(), tied=False, scaling=d.scaling(None, "linear", "yarn"), qkv_bias=d.maybe(0.2),
                **d.experts(), shared=d.between(1, 3), weights_scale=d.of(None, 1.0, d.real(0.5, 3.0)))
    return c.but(dense_layers=d.of(None, 0, d.between(1, c.layers - 1)))


def draw_bailing(d):
    c = d.shape(tied=False, scaling=d.scaling(None, "linear", "yarn"), qkv_bias=d.maybe(0.2), **d.experts(),
                shared=d.between(1, 3), weights_scale=d.of(None, d.real(0.5, 3.0)),
                weights_norm=d.of(None, True, False), dense_layers=None)
    return c.but(bare=False)


def tensors(m, c):
    m.common()
    m.key("expert_feed_forward_length", c.expert_ff)
    for i, b in enumerate(m.blocks()):
        b.norm("attn_norm")
        b.qkv(bias=c.qkv_bias)
        b.attention_output()
        b.norm("ffn_norm")
        if i < (c.dense_layers or 0):
            b.ffn()
        else:
            b.experts()
            b.ffn("_shexp", c.shared * c.expert_ff)


SMALL = shape(embd=32, heads=2, kv=1, ff=24, experts=6, used=2, expert_ff=16, shared=1, qkv_bias=False)
FAMILIES = [
    Family("deepseek", draw_deepseek, tensors, {
        "": (SMALL.but(seed=421, kv=2, dense_layers=1, weights_scale=2.5), "F32")}),
    Family("bailingmoe", draw_bailing, tensors, {
        "": (SMALL.but(seed=422, dense_layers=None, weights_norm=True, weights_scale=None), "F32")}),
]
