"""LFM2: short convolutions between gates in most layers, attention with norms of heads in the others."""
from .core import Family, shape
from .dots import draw_routing
from .mamba import convolution


def draw_common(d, **changes):
    layers = d.between(2, 5)
    square = d.square()
    kv = square.pop("kv")
    # One layer of each kind at least.
    attends = d.windowed(layers)
    if all(attends):
        attends[d.between(0, layers - 1)] = False
    return d.shape(layers=layers, **square, kv=[kv if attends else 0 for attends in attends],
                   scaling=d.scaling(None, None, "linear", "yarn"), taps=d.of(2, 3, 3, 4, 6),
                   qkv_bias=d.maybe(0.2), **changes)


def draw_lfm2(d):
    return draw_common(d, window=d.of(0, 0, d.window()))


def draw_lfm2moe(d):
    c = draw_common(d, **draw_routing(d))
    return c.but(dense_layers=d.of(None, 0, d.between(1, c.layers)), weights_norm=d.of(None, True),
                 weights_scale=d.of(None, 1.0))


def tensors(m, c):
    m.common()
    # The last norm has another name.
    m.tensors["token_embd_norm.weight"] = m.tensors.pop("output_norm.weight")
    m.key("shortconv.l_cache", c.taps)
    m.key("attention.sliding_window", c.window or None)
    m.key("expert_feed_forward_length", c.expert_ff or None)
    for i, b in enumerate(m.blocks()):
        b.norm("attn_norm")
        if c.kv[i]:
            b.config = c.but(kv=c.kv[i])
            b.qkv(bias=c.qkv_bias)
            b.norm("attn_q_norm", c.head)
            b.norm("attn_k_norm", c.head)
            b.attention_output()
        else:
            b.matrix("shortconv.in_proj", 3 * c.embd, c.embd)
            convolution(b, "shortconv.conv", c.embd, c.taps, bias=False)
            b.matrix("shortconv.out_proj", c.embd, c.embd)
        b.norm("ffn_norm")
        if c.experts and i >= (c.dense_layers or 0):
            b.experts()
            b.vector("exp_probs_b.bias", c.experts, 0.2)
        else:
            b.ffn()


SMALL = shape(layers=3, embd=32, head=8, ff=32, kv=[0, 2, 0], taps=3, qkv_bias=False)
FAMILIES = [
    Family("lfm2", draw_lfm2, tensors, {"": (SMALL.but(seed=411), "F32")}),
    Family("lfm2moe", draw_lfm2moe, tensors, {
        "": (SMALL.but(seed=412, experts=4, used=2, expert_ff=16, dense_layers=1, gating=2,
                       weights_norm=True), "F32")}),
]
