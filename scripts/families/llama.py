"""Llama 1 to 3, Mistral, Mixtral and what else is called `llama`: llama.cpp wants whole heads rotated, keys
as long as values."""
from .core import Family, factors, scaling, shape


def draw(d):
    c = d.shape(scaling=d.scaling(None, None, "linear", "yarn", "longrope"), factors=d.maybe(0.3),
                qkv_bias=d.maybe(0.3), output_bias=d.maybe(0.3), ffn_bias=d.maybe(0.3))
    return c.but(**d.experts(expert_ff=c.ff)) if d.maybe(0.3) else c


def tensors(m, c):
    m.common()
    if c.scaling and c.scaling["type"] == "longrope":
        m.top.vector("rope_factors_long.weight", c.rot // 2, 0.5, 4.0)
        m.top.vector("rope_factors_short.weight", c.rot // 2, 0.05, 1.0)
    elif c.factors:
        m.add("rope_freqs.weight", factors(c.rot, c.rope_base, 8.0))
    for b in m.blocks():
        b.norm("attn_norm")
        b.qkv(bias=c.qkv_bias)
        b.attention_output(bias=c.output_bias)
        b.norm("ffn_norm")
        if c.experts:
            b.experts()
        else:
            b.ffn(bias=c.ffn_bias)


PLAIN = shape(qkv_bias=True, output_bias=True, ffn_bias=True, factors=False)
FAMILIES = [Family("llama", draw, tensors, {
    "-yarn": (PLAIN.but(seed=101, scaling=scaling("yarn", 8.0)), "F32"),
    "-longrope": (PLAIN.but(seed=102, scaling=scaling("longrope", 8.0, attn_factor=1.19)), "F32"),
})]
