"""Step 3.5: heads by layer, a gate for each head, half of a head rotated in layers that see everything,
limits on SwiGLU, layers with a window by a list."""
from .core import Family, factors, shape
from .dots import draw_routing


def draw(d):
    layers, nextn = d.between(2, 5), d.of(0, 0, 0, 1)
    kv = [d.of(1, 2, 3) for _ in range(layers + nextn)]
    # Not one or two: their gates are products so few that sums near 0 would dominate the error.
    heads = [n * d.of(*(times for times in (2, 3, 4) if n * times >= 4)) for n in kv]
    head = d.head(heads)
    clamp, clamp_shared = (d.of(None, d.real(0.2, 2.0), [d.of(0.0, d.real(0.2, 2.0)) for _ in kv])
                           for _ in range(2))
    return d.shape(
        layers=layers, kv=kv, heads=heads, head=head, rot=d.of(head, head, head // 2), tied=False,
        window=d.window(), pattern=d.windowed(layers), base_swa=d.of(None, 500.0),
        nextn=nextn, factors=d.maybe(0.4), scaling=d.scaling(None, None, "linear", "yarn", "longrope"),
        qkv_bias=d.maybe(0.2), fused=d.maybe(0.2), gates=d.maybe(0.8), norms=d.maybe(0.8),
        dense=[d.maybe(0.3) for _ in range(layers)], shared_ff=d.multiple(24, 96),
        clamp=clamp, clamp_shared=clamp_shared, **draw_routing(d, (None, 1, 2, 3)))


def tensors(m, c):
    m.common()
    m.key("attention.sliding_window", c.window)
    m.key("attention.sliding_window_pattern", c.pattern)
    m.key("rope.freq_base_swa", c.base_swa, default=10000.0)
    m.key("expert_feed_forward_length", c.expert_ff)
    m.key("swiglu_clamp_exp", c.clamp)
    m.key("swiglu_clamp_shexp", c.clamp_shared)
    # The tensors have as many factors as the widest rotation takes, of which the half rotation takes the first.
    count = (c.rot if any(c.pattern) else c.rot // 2) // 2
    if c.scaling and c.scaling["type"] == "longrope":
        m.top.vector("rope_factors_long.weight", count, 0.5, 4.0)
        m.top.vector("rope_factors_short.weight", count, 0.05, 1.0)
    elif c.factors:
        m.add("rope_freqs.weight", factors(2 * count, c.rope_base, 8.0))
    for i, b in enumerate(m.blocks_and_next(c.nextn)):
        b.config = c.but(heads=c.heads[i], kv=c.kv[i])
        b.norm("attn_norm")
        b.fused_qkv(bias=c.qkv_bias) if c.fused else b.qkv(bias=c.qkv_bias)
        if c.norms:
            b.norm("attn_q_norm", c.head)
            b.norm("attn_k_norm", c.head)
        if c.gates:
            b.matrix("attn_gate", c.heads[i], c.embd)
        b.attention_output()
        b.norm("ffn_norm")
        if i >= c.layers or c.dense[i]:
            b.ffn()
        else:
            b.experts()
            if c.choice_bias:
                b.vector("exp_probs_b.bias", c.experts, 0.2)
            b.ffn("_shexp", c.shared_ff)


STEP = shape(
    seed=331, layers=4, heads=[2, 4, 4, 2], kv=[2, 2, 1, 1], window=16, pattern=[False, True, True, False],
    base_swa=20000.0, rope_base=5e6, nextn=0, factors=True, qkv_bias=False, fused=False, gates=True, norms=True,
    dense=[True, False, False, False], choice_bias=True, shared_ff=16, clamp=[0.0, 0.0, 0.5, 0.5],
    clamp_shared=[0.0, 0.0, 0.0, 0.7], experts=6, used=2, expert_ff=16, gating=2, weights_norm=True,
    weights_scale=3.0)
FAMILIES = [Family("step35", draw, tensors, {"": (STEP, "F32")})]
