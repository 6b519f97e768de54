"""Arcee's Trinity: norms around both parts of a layer, a gate for each element of what attention gives, every
fourth layer without rotation, the embedding scaled by the root of its length, experts beside a shared
network."""
from .core import Family, shape
from .dots import draw_routing


def draw(d):
    c = d.shape(window=d.window(), base_swa=d.of(None, 500.0), qkv_bias=d.maybe(0.2),
                fused=d.maybe(0.2), shared=d.of(0, 1, 2), scaling=d.scaling(None, None, "linear", "yarn"),
                **draw_routing(d, (None, 1, 2, 3)))
    return c.but(pattern=d.of(None, d.pattern(c.layers)), dense_layers=d.of(None, d.between(0, c.layers)),
                 rot=d.of(c.head, c.head // 2))


def tensors(m, c):
    m.common(embd_std=2 * c.embd ** -0.5 if c.tied else 0.4 * c.embd ** -0.5)
    m.key("attention.sliding_window", c.window)
    m.key("attention.sliding_window_pattern", c.pattern, default=4)
    m.key("rope.freq_base_swa", c.base_swa)
    m.key("expert_feed_forward_length", c.expert_ff)
    for i, b in enumerate(m.blocks()):
        b.norm("attn_norm")
        b.fused_qkv(bias=c.qkv_bias) if c.fused else b.qkv(bias=c.qkv_bias)
        b.norm("attn_q_norm", c.head)
        b.norm("attn_k_norm", c.head)
        b.matrix("attn_gate", c.heads * c.head, c.embd)
        b.attention_output()
        b.norm("post_attention_norm")
        b.norm("ffn_norm")
        if i < (c.dense_layers or 0):
            b.ffn()
        else:
            b.experts()
            b.vector("exp_probs_b.bias", c.experts, 0.2)
            if c.shared:
                b.ffn("_shexp", c.expert_ff * c.shared)
        b.norm("post_ffw_norm")


AFMOE = shape(seed=351, layers=4, window=16, pattern=None, base_swa=None, qkv_bias=False, fused=False,
              shared=1, dense_layers=1, experts=6, used=2, expert_ff=16, gating=2, weights_norm=True,
              weights_scale=2.826)
FAMILIES = [Family("afmoe", draw, tensors, {"": (AFMOE, "F32")})]
