"""Granite and MiniCPM: factors on the embedding, on what is added to the residual stream, on scores, on
logits. The hybrid has Mamba 2 in layers without heads of keys and values."""
from . import mamba
from .core import Family, factors, shape

SSM = "conv_kernel", "state_size", "group_count", "inner_size", "time_step_rank"


def draw_common(d, **changes):
    return d.shape(scaling=d.scaling(None, None, "linear", "yarn", "longrope"), factors=d.maybe(0.3),
                   qkv_bias=d.maybe(0.3), output_bias=d.maybe(0.3), ffn_bias=d.maybe(0.3), rotated=None,
                   deepstack=False, hybrid=False, shared_ff=None, attention_scale=None, **changes)


def draw_experts(d, c):
    return c.but(**d.experts(expert_ff=c.ff))


def draw_minicpm(d):
    # Older files have none of the factors.
    c = draw_common(d, embedding_scale=d.of(None, None, 0.0, d.real(0.5, 20.0)),
                    residual_scale=d.of(None, None, 0.0, d.real(0.1, 1.0)),
                    logit_scale=d.of(None, None, d.real(0.5, 12.0)))
    return draw_experts(d, c) if d.maybe(0.2) else c


def draw_granite(d):
    c = draw_common(d, embedding_scale=d.of(None, 0.0, d.real(0.5, 20.0), d.real(0.5, 20.0)),
                    residual_scale=d.of(None, 0.0, d.real(0.1, 1.0), d.real(0.1, 1.0)),
                    logit_scale=d.real(0.5, 16.0))
    c = c.but(attention_scale=d.of(None, 0.0, d.real(0.01, 0.5)), rotated=d.of(None, True, False),
              deepstack=d.maybe(0.2), hybrid=d.maybe(0.3))
    return c.but(**d.experts(expert_ff=c.ff), shared_ff=d.multiple(24, 96)) if d.maybe(0.2) else c


def draw_granitemoe(d):
    c = draw_granite(d).but(rotated=d.of(None, True), deepstack=False)
    return draw_experts(d, c).but(shared_ff=d.of(None, 0, d.multiple(24, 96))) if d.maybe(0.9) else c


def draw_hybrid(d):
    c = draw_granite(d)
    attends = d.windowed(c.layers)
    if all(attends):
        attends[d.between(0, c.layers - 1)] = False
    return c.but(
        **mamba.draw_block(d, inner=2 * c.embd), scaling=d.scaling(None, None, "linear", "yarn"),
        kv=[c.kv if attends else 0 for attends in attends], hybrid=False, deepstack=False,
        logit_scale=d.of(None, 0.0, c.logit_scale, c.logit_scale))


def tensors(m, c):
    # What the factor leaves of the embedding is as large as that of other models.
    unnamed = 12.0 if m.arch == "minicpm" else 1.0
    scale = unnamed if c.embedding_scale is None else c.embedding_scale or 1.0
    m.common(embd_std=(c.embd ** -0.5 * 2 if c.tied else 0.4) / scale)
    for name in ("embedding_scale", "residual_scale", "logit_scale"):
        m.key(name, c[name])
    m.key("attention.scale", c.attention_scale)
    m.key("rope.scaling.finetuned", c.rotated)
    if c.hybrid:  # Granite 4 without recurrent layers: its keys are there all the same
        for i, name in enumerate(SSM):
            m.key(f"ssm.{name}", 4 + i)
        m.key("attention.head_count_kv", [c.kv] * c.layers)
    if c.deepstack:
        m.key("deepstack_mapping", [-1, *range(1, c.layers)])
    if c.scaling and c.scaling["type"] == "longrope":
        m.top.vector("rope_factors_long.weight", c.rot // 2, 0.5, 4.0)
        m.top.vector("rope_factors_short.weight", c.rot // 2, 0.05, 1.0)
    elif c.factors:
        m.add("rope_freqs.weight", factors(c.rot, c.rope_base, 8.0))
    if m.arch == "granitehybrid":
        mamba.keys(m, c)
    for i, b in enumerate(m.blocks()):
        b.norm("attn_norm")
        if isinstance(c.kv, list) and c.kv[i] == 0:
            mamba.block(b)
        else:
            b.config = c.but(kv=max(c.kv) if isinstance(c.kv, list) else c.kv)
            b.qkv(bias=c.qkv_bias)
            b.attention_output(bias=c.output_bias)
        b.norm("ffn_norm")
        if c.experts:
            b.experts(ff=c.ff)
            if c.shared_ff:
                b.ffn("_shexp", c.shared_ff)
        else:
            b.ffn(bias=c.ffn_bias)


PLAIN = shape(factors=False, qkv_bias=False, output_bias=False, ffn_bias=False, rotated=None, deepstack=False,
              hybrid=False, shared_ff=None)
SCALED = PLAIN.but(embedding_scale=12.0, residual_scale=0.22, attention_scale=0.0625, logit_scale=8.0,
                    tied=True)
FAMILIES = [
    Family("granite", draw_granite, tensors, {
        "": (SCALED.but(seed=351, rope_base=1e7, rotated=True, hybrid=True), "F32")}),
    Family("granitemoe", draw_granitemoe, tensors, {
        "": (SCALED.but(seed=352, ff=16, experts=8, used=3, expert_ff=16, shared_ff=24), "F32")}),
    Family("granitehybrid", draw_hybrid, tensors, {
        "": (SCALED.but(**{
            **mamba.SMALL, "seed": 354, "layers": 2, "kv": [0, 2], "ff": 16, "value": 8, "rot": 8,
            "experts": 4, "used": 2, "expert_ff": 16, "shared_ff": 24, "rotated": True}), "F32")}),
    Family("minicpm", draw_minicpm, tensors, {
        "": (PLAIN.but(seed=353, embedding_scale=None, residual_scale=None, attention_scale=None,
                       logit_scale=None), "F32")}),
]
