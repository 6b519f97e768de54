"""Layer norms, and networks without a gate: StarCoder 2 (GELU), Nemotron and Jais 2 (the square of ReLU)."""
from .core import Family, shape
from .qwen import draw_qwen2


def draw_starcoder2(d):
    return draw_qwen2(d).but(fused=d.maybe(0.2), output_bias=True, ffn_bias=True)


def draw_nemotron(d):
    c = draw_starcoder2(d)
    return c.but(tied=False, rot=d.of(c.head, c.head // 2), output_bias=d.maybe(), ffn_bias=d.maybe())


def draw_jais2(d):
    c = draw_nemotron(d)
    return c.but(tied=d.maybe(0.3), rot=c.head, fused=False, output_bias=True, ffn_bias=True)


def tensors(m, c):
    m.common(eps="attention.layer_norm_epsilon", norm_bias=True)
    for b in m.blocks():
        b.norm("attn_norm", bias=True)
        (b.fused_qkv if c.fused else b.qkv)(bias=c.qkv_bias)
        b.attention_output(bias=c.output_bias)
        b.norm("ffn_norm", bias=True)
        b.ffn(gate=False, bias=c.ffn_bias)


STAR = shape(heads=2, kv=1, qkv_bias=True, fused=False, output_bias=True, ffn_bias=True)
FAMILIES = [
    Family("starcoder2", draw_starcoder2, tensors, {"": (STAR.but(seed=191, tied=True), "F32")}),
    Family("nemotron", draw_nemotron, tensors, {"": (STAR.but(seed=192, rot=8), "F32")}),
    Family("jais2", draw_jais2, tensors, {
        "": (STAR.but(seed=193, embd=32, heads=2, kv=1, ff=32), "F32")}),
]
