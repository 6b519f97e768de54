"""MiniMax M2: norms over all heads, partial rotation, experts of which a bias decides."""
from .core import Family, shape


def draw(d):
    c = d.shape(tied=False, scaling=d.scaling(None, None, "linear", "yarn"), fused=d.maybe(0.2),
                qkv_bias=d.maybe(0.2), gating=d.of(1, 2, 2, 2, 3))
    return c.but(**d.experts(expert_ff=c.ff), rot=d.of(c.head, c.head // 2))


def tensors(m, c):
    m.common()
    m.key("expert_feed_forward_length", c.expert_ff)
    for b in m.blocks():
        b.norm("attn_norm")
        (b.fused_qkv if c.fused else b.qkv)(bias=c.qkv_bias)
        b.norm("attn_q_norm", c.heads * c.head)
        b.norm("attn_k_norm", c.kv * c.head)
        b.attention_output()
        b.norm("ffn_norm")
        b.experts()
        b.vector("exp_probs_b.bias", c.experts, 0.2)


FAMILIES = [Family("minimax-m2", draw, tensors, {
    "": (shape(seed=181, rot=8, heads=6, ff=16, experts=8, used=3, expert_ff=16, fused=False, qkv_bias=False,
               gating=2, rope_base=5e6), "F32"),
})]
