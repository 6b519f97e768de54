"""Qwen3-Next and Qwen 3.5, dense and with experts: gated delta nets, and a few layers of attention whose
queries come with gates. In Qwen3-Next what belongs to a head of keys may lie together, in `ssm_in`."""
import numpy as np

from .core import Family, shape


def recurrent(c):
    """Which blocks are recurrent, those of multi-token prediction included."""
    if c.recurrent:
        return c.recurrent
    return [(i + 1) % (c.interval or 4) != 0 for i in range(c.layers)] + [False] * c.nextn


def draw(d, **changes):
    """A configuration without experts."""
    key_heads = d.of(1, 2, 3, 4)
    value_heads = key_heads * d.of(1, 1, 2, 3)
    c = d.shape(ff=d.multiple(48, 120), key_heads=key_heads, value_heads=value_heads,
                state=d.head(value_heads), taps=d.of(2, 3, 4, 4, 4, 5), interval=d.of(None, 2, 2, 3),
                nextn=int(d.maybe(0.2)), qkv_bias=d.maybe(0.2), fused=d.maybe(0.2),
                scaling=d.scaling(None, None, "linear", "yarn"),
                **changes)
    # llama.cpp wants both kinds of layers.
    flags = [True, False] + [d.maybe() for _ in range(c.layers - 2)]
    d.rng.shuffle(flags)
    flags = flags + [False] * c.nextn
    return c.but(rot=d.of(c.head, c.head // 2, c.head // 4),
                 interval=c.interval if (c.interval or 4) <= c.layers else 2,
                 recurrent=d.of(None, None, flags))


def draw_qwen35(d):
    c = draw(d)
    part = max(c.rot // 8, 1)
    return c.but(sections=d.of([part * 2, part, part, 0], [c.rot // 2, 0, 0, 0], [1, 2, 0, 1]))


def with_experts(d, c):
    return c.but(**d.experts(), shared_ff=d.of(None, d.multiple(16, 96)))


def draw_qwen35moe(d):
    return with_experts(d, draw_qwen35(d))


def draw_qwen3next(d):
    return with_experts(d, draw(d)).but(by_key_head=d.maybe())


def attention(b, c):
    both = 2 * c.heads * c.head
    if c.fused:
        b.matrix("attn_qkv", both + 2 * c.kv * c.head, c.embd, bias=c.qkv_bias)
    else:
        b.matrix("attn_q", both, c.embd, bias=c.qkv_bias)
        b.matrix("attn_k", c.kv * c.head, c.embd, bias=c.qkv_bias)
        b.matrix("attn_v", c.kv * c.head, c.embd, bias=c.qkv_bias)
    b.norm("attn_q_norm", c.head)
    b.norm("attn_k_norm", c.head)
    b.attention_output()


def delta_net(b, c, by_key_head=False, merged=False):
    keys, values = c.key_heads * c.state, c.value_heads * c.state
    if by_key_head:
        b.matrix("ssm_in", 2 * keys + 2 * values, c.embd)
    else:
        b.matrix("attn_qkv", 2 * keys + values, c.embd)
        b.matrix("attn_gate", values, c.embd)
    # The convolution stays in F32, as quantisers leave it.
    b.matrix("ssm_conv1d", 2 * keys + values, c.taps, router=True)
    b.vector("ssm_dt.bias", c.value_heads)
    decays(b, (c.value_heads,))
    if merged:
        b.matrix("ssm_ba", 2 * c.value_heads, c.embd)
    else:
        b.matrix("ssm_beta", c.value_heads, c.embd)
        b.matrix("ssm_alpha", c.value_heads, c.embd)
    b.norm("ssm_norm", c.state)
    b.matrix("ssm_out", c.embd, values)


def decays(b, size):
    """Factors below 0, some of which let a state last and some of which do not."""
    rng = b.model.rng(b.prefix + "ssm_a")
    b.model.add(b.prefix + "ssm_a", -np.exp(rng.standard_normal(size) - 1.5))


def tensors(m, c):
    merged = m.arch == "qwen3next"
    m.common()
    m.key("rope.dimension_sections", c.get("sections"))
    m.key("ssm.conv_kernel", c.taps)
    m.key("ssm.state_size", c.state)
    m.key("ssm.group_count", c.key_heads)
    m.key("ssm.time_step_rank", c.value_heads)
    m.key("ssm.inner_size", c.value_heads * c.state)
    m.key("full_attention_interval", c.interval, default=4)
    m.key("attention.recurrent_layers", c.recurrent)
    if c.experts:
        m.key("expert_feed_forward_length", c.expert_ff)
    for b, is_recurrent in zip(m.blocks_and_next(c.nextn), recurrent(c)):
        b.norm("attn_norm")
        delta_net(b, c, c.get("by_key_head"), merged) if is_recurrent else attention(b, c)
        b.norm("post_attention_norm")
        if c.experts:
            b.experts()
            b.vector("ffn_gate_inp_shexp.weight", c.embd, c.embd ** -0.5)
            b.ffn("_shexp", c.shared_ff or c.ff)
        else:
            b.ffn()


SMALL = shape(embd=32, heads=2, kv=1, rot=8, ff=32, layers=2, key_heads=2, value_heads=4, state=8, taps=4,
              interval=2, nextn=0, qkv_bias=False, fused=False, recurrent=None)
IMAGES = {"sections": [2, 1, 1, 0]}
MOE = {"experts": 4, "used": 2, "expert_ff": 8, "shared_ff": 8}
FAMILIES = [
    Family("qwen35", draw_qwen35, tensors, {"": (SMALL.but(seed=411, **IMAGES), "F32")}, deep=True),
    Family("qwen35moe", draw_qwen35moe, tensors, {"": (SMALL.but(seed=412, **IMAGES, **MOE), "F32")}),
    Family("qwen3next", draw_qwen3next, tensors, {
        "": (SMALL.but(seed=413, by_key_head=False, **MOE), "F32"),
        "-by-head": (SMALL.but(seed=414, by_key_head=True, **MOE), "F32")}),
]
