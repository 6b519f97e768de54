"""SmolLM3: every fourth layer is without a rotation."""
from .core import Family, shape


def draw(d):
    return d.shape(layers=d.between(3, 9), scaling=d.scaling(None, None, "linear", "yarn"),
                   qkv_bias=d.maybe(0.3))


def tensors(m, c):
    m.common()
    for b in m.blocks():
        b.norm("attn_norm")
        b.qkv(bias=c.qkv_bias)
        b.attention_output()
        b.norm("ffn_norm")
        b.ffn()


SMOL = shape(seed=341, layers=4, rope_base=5e6, tied=True, qkv_bias=False)
FAMILIES = [Family("smollm3", draw, tensors, {"": (SMOL, "F32")})]
