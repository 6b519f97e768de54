"""Llama 4: attention within chunks of 8192 and layers without rotation (both constants in llama.cpp),
experts that see their input times the weight, a network beside them."""
from .core import Family, factors, shape


def draw(d):
    # Every fourth layer is not rotated. llama.cpp does not run models in which every layer is.
    c = d.shape(layers=d.between(4, 6), scaling=d.scaling(None, None, "linear", "yarn"), factors=d.maybe(0.3),
                base_swa=d.of(None, None, 5000.0), step=d.of(1, 1, 2, 3), qkv_bias=d.maybe(0.2),
                **d.experts())
    # A few prompts reach into the second chunk; such models are narrow.
    if d.maybe(0.1):
        head = c.head if 32 % d.block else 16
        c = c.but(least=8195, layers=4, heads=2, kv=1, head=head, value=head, rot=head, experts=2, used=1,
                  step=2)
    pattern = d.of(None, d.pattern(c.layers))
    return c.but(pattern=[False, *pattern[1:]] if isinstance(pattern, list) else pattern)


def tensors(m, c):
    m.common()
    m.key("expert_feed_forward_length", c.expert_ff)
    m.key("interleave_moe_layer_step", c.step)
    m.key("attention.sliding_window_pattern", c.pattern, default=4)
    m.key("rope.freq_base_swa", c.base_swa)
    if c.factors:
        m.add("rope_freqs.weight", factors(c.rot, c.rope_base, 8.0))
    for i, b in enumerate(m.blocks()):
        b.norm("attn_norm")
        b.qkv(bias=c.qkv_bias)
        b.attention_output()
        b.norm("ffn_norm")
        if (i + 1) % c.step == 0:
            b.experts()
            b.ffn("_shexp", ff=c.expert_ff)
        else:
            b.ffn()


SCOUT = shape(layers=4, step=2, pattern=None, base_swa=None, factors=True, qkv_bias=False, rope_base=5e5)
FAMILIES = [Family("llama4", draw, tensors, {
    "": (SCOUT.but(seed=151, experts=4, used=1, expert_ff=24), "F32"),
})]
