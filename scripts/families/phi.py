"""Phi 3, 4 and 3.5 MoE: queries, keys and values of one tensor, gate and up of another, LongRoPE."""
from .core import Family, scaling, shape


def draw(d):
    heads = d.of(1, 2, 4, 8)
    kv = d.of(*(n for n in (1, 2, 4) if heads % n == 0))
    fit = [n for n in (16, 24, 32, 48, 64, 96, 128, 256) if heads * n % d.block == 0 and heads * n <= 256]
    head = d.of(*fit)
    c = d.shape(heads=heads, kv=kv, head=head, embd=heads * head, scaling=d.scaling(None, "longrope"),
                rot=d.of(head, head, head // 4 * 2), fused=d.maybe(0.8), window=d.of(0, 7),
                qkv_bias=d.maybe(0.2))
    return c


def draw_experts(d):
    c = draw(d)
    # Factors are as long as half a head there, whatever is rotated.
    return c.but(**d.experts(expert_ff=c.ff), tied=False, fused=d.maybe(), rot=c.head)


def tensors(m, c):
    many = bool(c.experts)
    m.common(output_bias=many, norm_bias=many)
    m.key("attention.sliding_window", c.window)
    if c.scaling:
        m.top.vector("rope_factors_long.weight", c.rot // 2, 0.5, 4.0)
        m.top.vector("rope_factors_short.weight", c.rot // 2, 0.05, 1.0)
    for b in m.blocks():
        b.norm("attn_norm", bias=many)
        (b.fused_qkv if c.fused else b.qkv)(bias=c.qkv_bias)
        b.attention_output(bias=many)
        b.norm("ffn_norm", bias=many)
        if many:
            b.experts()
        else:
            b.matrix("ffn_up", 2 * c.ff, c.embd)
            b.matrix("ffn_down", c.embd, c.ff)


PHI = shape(embd=64, window=16, rot=12, fused=True, qkv_bias=False,
            scaling=scaling("longrope", 8.0, attn_factor=1.19))
FAMILIES = [
    Family("phi3", draw, tensors, {"": (PHI.but(seed=161), "F32")}),
    Family("phimoe", draw_experts, tensors, {
        "": (PHI.but(seed=162, rot=16, fused=False, qkv_bias=True, ff=16, experts=4, used=2, expert_ff=16), "F32"),
    }),
]
