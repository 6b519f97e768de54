"""Seed-OSS: the norm that is called after attention is that before the network."""
from .core import Family, shape


def draw(d):
    return d.shape(scaling=d.scaling(None, None, "linear", "yarn"), qkv_bias=d.maybe(0.8))


def tensors(m, c):
    m.common()
    for b in m.blocks():
        b.norm("attn_norm")
        b.qkv(bias=c.qkv_bias)
        b.attention_output()
        b.norm("post_attention_norm")
        b.ffn()


FAMILIES = [Family("seed_oss", draw, tensors, {"": (shape(seed=331, rope_base=1e7, qkv_bias=True), "F32")})]
