"""The GLM-4-9B of 2024. GLM 4, with norms around both blocks, and GLM 4.5 to 4.7, with experts."""
from .core import Family, shape
from .dots import draw_routing


def draw_chat(d):
    # llama.cpp wants heads that together are as long as the embedding.
    c = d.shape(**d.square(), qkv_bias=d.maybe(0.8), fused=d.maybe(0.3),
                scaling=d.scaling(None, "linear", "yarn"))
    return c.but(rot=d.of(c.head, c.head // 2))


def chat(m, c):
    m.common()
    for b in m.blocks():
        b.norm("attn_norm")
        (b.fused_qkv if c.fused else b.qkv)(bias=c.qkv_bias)
        b.attention_output()
        b.norm("ffn_norm")
        b.matrix("ffn_up", 2 * c.ff, c.embd)
        b.matrix("ffn_down", c.embd, c.ff)


def draw_dense(d):
    c = d.shape(qkv_bias=d.maybe(), fused=d.maybe(0.2), scaling=d.scaling(None, None, "linear", "yarn"))
    c = c.but(rot=d.of(c.head, c.head // 2), nextn=d.of(0, 0, 1))
    return c.but(sections=d.of(None, None, sections(c.rot), [0, *sections(c.rot)[1:]]))


def draw_experts(d):
    return draw_dense(d).but(**draw_routing(d, (None, 1, 2, 2, 3)), shared=d.of(1, 1, 2),
                             dense_layers=d.between(0, 2), normed=d.maybe())


def sections(rot):
    """How many pairs turn with each of four positions, as files of models that see images have it."""
    return [rot // 8, rot // 8, rot // 2 - 2 * (rot // 8), 0]


def common(m, c):
    m.common()
    m.key("rope.dimension_sections", c.sections)


def dense(m, c):
    common(m, c)
    for b in m.blocks_and_next(c.nextn):
        b.norm("attn_norm")
        (b.fused_qkv if c.fused else b.qkv)(bias=c.qkv_bias)
        b.attention_output()
        b.norm("post_attention_norm")
        b.norm("ffn_norm")
        b.matrix("ffn_up", 2 * c.ff, c.embd)
        b.matrix("ffn_down", c.embd, c.ff)
        b.norm("post_ffw_norm")


def experts(m, c):
    common(m, c)
    m.key("expert_feed_forward_length", c.expert_ff)
    for i, b in enumerate(m.blocks_and_next(c.nextn)):
        b.norm("attn_norm")
        (b.fused_qkv if c.fused else b.qkv)(bias=c.qkv_bias)
        if c.normed:
            b.norm("attn_q_norm", c.head)
            b.norm("attn_k_norm", c.head)
        b.attention_output()
        b.norm("post_attention_norm")
        if i < c.dense_layers:
            b.ffn()
        else:
            b.experts()
            b.vector("exp_probs_b.bias", c.experts, 0.2)
            b.ffn("_shexp", ff=c.shared * c.expert_ff)


GLM = shape(rot=8, fused=False, qkv_bias=True, nextn=0)
CHAT = shape(seed=173, embd=32, heads=2, kv=1, rot=8, ff=32, qkv_bias=True, fused=True)
FAMILIES = [
    Family("chatglm", draw_chat, chat, {"": (CHAT, "F32")}),
    Family("glm4", draw_dense, dense, {"": (GLM.but(seed=171, sections=None), "F32")}),
    Family("glm4moe", draw_experts, experts, {
        "": (GLM.but(seed=172, layers=3, sections=[2, 1, 1, 0], experts=8, used=3, expert_ff=16, shared=1,
                     dense_layers=1, normed=True, gating=2, groups=1, groups_used=1, weights_norm=True,
                     weights_scale=1.5), "F32"),
    }),
]
