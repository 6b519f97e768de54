"""MiMo V2: values of another length than keys, sinks, a factor on attention's output, KV heads by layer."""
from .core import Family, shape


def draw(d):
    layers, nextn, heads = d.between(2, 5), d.of(0, 0, 0, 1), d.of(2, 4, 8)
    head, value = d.head(heads), d.head(heads)
    # Without a key values are the embedding's part of a head, whatever keys are.
    unnamed = {"embd": heads * value, "bare": True} if d.maybe(0.3) else {}
    return d.shape(
        **unnamed, layers=layers, heads=heads, kv=[d.of(1, 2) for _ in range(layers + nextn)], head=head, value=value,
        rot=d.of(head, head // 2), tied=False, window=d.window(), base_swa=d.of(None, 500.0), nextn=nextn,
        pattern=d.windowed(layers, nextn), fused=d.maybe(),
        scaling=d.scaling(None, None, "linear", "yarn"), sinks=[d.maybe() for _ in range(layers)],
        value_scale=d.of(None, 1.0, 0.707),
        dense=[d.maybe(0.3) for _ in range(layers)], choice_bias=d.maybe(0.7),
        **(d.groups() if d.maybe(0.3) else d.experts()))


def tensors(m, c):
    m.common()
    m.key("attention.sliding_window", c.window)
    m.key("attention.sliding_window_pattern", c.pattern)
    m.key("attention.value_scale", c.value_scale, default=1.0)
    m.key("rope.freq_base_swa", c.base_swa, default=10000.0)
    m.key("expert_feed_forward_length", c.expert_ff)
    for i, b in enumerate(m.blocks_and_next(c.nextn)):
        b.config = c.but(kv=c.kv[i])
        b.norm("attn_norm")
        b.fused_qkv() if c.fused else b.qkv()
        if i < c.layers and c.sinks[i]:
            b.vector("attn_sinks.weight", c.heads)
        b.attention_output()
        b.norm("ffn_norm")
        if i >= c.layers or c.dense[i]:
            b.ffn()
        else:
            b.experts()
            if c.choice_bias:
                b.vector("exp_probs_b.bias", c.experts, 0.2)


MIMO = shape(seed=341, layers=4, kv=[2, 1, 1, 2], head=24, value=16, rot=8, window=16,
             pattern=[False, True, True, False], base_swa=None, rope_base=5e6, nextn=0, fused=True,
             sinks=[False, True, True, False], value_scale=0.707, dense=[True, False, False, False],
             choice_bias=True, experts=6, used=2, expert_ff=16)
FAMILIES = [Family("mimo2", draw, tensors, {"": (MIMO, "F32")})]
