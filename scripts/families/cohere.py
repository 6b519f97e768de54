"""Command R, Cohere 2 and its experts: both parts of a layer have one norm and lie side by side, logits have
a factor. Command R has norms of each head from 64 layers on; the others are rotated in layers with a window
alone."""
from .core import Family, shape
from .dots import draw_routing

LAYER_NORM = "attention.layer_norm_epsilon"
RMS_NORM = "attention.layer_norm_rms_epsilon"


def rotated(d, head):
    """How much of a head is rotated."""
    return d.of(head, head, *(n for n in (head // 2, head // 4) if n % 2 == 0 and n))


def draw_command_r(d):
    square = d.square()
    return d.shape(**square, rot=rotated(d, square["head"]), tied=True, layers=d.of(2, 3, 4, 5, 64, 65),
                   logit_scale=d.of(None, 0.0, 1.0, 0.0625, 2.5), qkv_bias=d.maybe(0.2), fused=d.maybe(0.2),
                   scaling=d.scaling(None, "linear", "yarn"))


def draw_cohere2(d):
    square = d.square()
    c = d.shape(**square, rot=rotated(d, square["head"]), tied=True, window=d.window(),
                logit_scale=d.of(0.0, 1.0, 0.25, 2.5), qkv_bias=d.maybe(0.2), fused=d.maybe(0.2),
                scaling=d.scaling(None, None, "linear", "yarn"))
    return c.but(pattern=d.of(None, d.pattern(c.layers)))


def draw_cohere2moe(d):
    c = d.shape(window=d.window(), logit_scale=d.of(0.0, 1.0, 0.25, 2.5), qkv_bias=d.maybe(0.2),
                fused=d.maybe(0.2), scaling=d.scaling(None, None, "linear", "yarn"), rms=d.maybe(0.3),
                shared=d.of(0, 1, 2), shared_ff=d.of(None, d.multiple(24, 96)), fused_experts=d.maybe(0.3),
                nextn=d.of(0, 0, 0, 1), **draw_routing(d, (None, 1, 2, 3)))
    return c.but(pattern=d.of(None, d.pattern(c.layers)), dense_layers=d.between(0, c.layers))


def attention(b, c):
    b.norm("attn_norm")
    b.fused_qkv(bias=c.qkv_bias) if c.fused else b.qkv(bias=c.qkv_bias)
    b.attention_output()


def command_r(m, c):
    m.common(eps=LAYER_NORM)
    m.key("logit_scale", c.logit_scale, default=0.0)
    for b in m.blocks():
        attention(b, c)
        if c.layers >= 64:
            b.vector("attn_q_norm.weight", (c.heads, c.head), 0.2, 1.0)
            b.vector("attn_k_norm.weight", (c.kv, c.head), 0.2, 1.0)
        b.ffn()


def cohere2(m, c):
    m.common(eps=LAYER_NORM)
    m.key("logit_scale", c.logit_scale)
    m.key("attention.sliding_window", c.window)
    m.key("attention.sliding_window_pattern", c.pattern, default=4)
    for b in m.blocks():
        attention(b, c)
        b.ffn()


def cohere2moe(m, c):
    m.common(eps=RMS_NORM if c.rms else LAYER_NORM)
    m.key("logit_scale", c.logit_scale)
    m.key("attention.sliding_window", c.window)
    m.key("attention.sliding_window_pattern", c.pattern, default=4)
    m.key("expert_feed_forward_length", c.expert_ff)
    for i, b in enumerate(m.blocks_and_next(c.nextn)):
        attention(b, c)
        if i < c.dense_layers:
            b.ffn()
            continue
        b.experts(fused=c.fused_experts)
        if c.shared:
            b.ffn("_shexp", c.shared_ff or c.expert_ff * c.shared)


SQUARE = shape(embd=32, head=8, tied=True, qkv_bias=False, fused=False)
COMMAND_R = SQUARE.but(seed=311, layers=3, embd=64, heads=4, kv=2, head=16, rot=16, value=16, ff=48,
                       logit_scale=0.0625)
COHERE2 = SQUARE.but(seed=312, layers=4, rot=8, window=16, pattern=[True, True, True, False],
                     logit_scale=0.25)
COHERE2_MOE = SQUARE.but(
    seed=313, layers=3, embd=48, window=16, pattern=3, logit_scale=0.25, experts=6, used=2, expert_ff=16,
    rms=False, shared=2, shared_ff=None, fused_experts=False, dense_layers=1, nextn=0, gating=2,
    weights_norm=True)
FAMILIES = [
    Family("command-r", draw_command_r, command_r, {"": (COMMAND_R, "F32")}),
    Family("cohere2", draw_cohere2, cohere2, {"": (COHERE2, "F32")}),
    Family("cohere2moe", draw_cohere2moe, cohere2moe, {"": (COHERE2_MOE, "F32")}),
]
