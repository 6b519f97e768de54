"""What differs little from Llama: Ministral 3 and Devstral 2 (queries that grow with the position),
InternLM 2, Arcee (the square of ReLU, without a gate)."""
from .core import Family, factors, scaling, shape
from .llama import tensors as llama
from .qwen import draw_qwen2


def draw_mistral3(d):
    c = d.shape(scaling=d.scaling(None, "yarn", "yarn", "yarn", "linear", "longrope"), factors=d.maybe(0.2),
                qkv_bias=d.maybe(0.2), output_bias=d.maybe(0.2), ffn_bias=d.maybe(0.2),
                temperature=d.of(None, 0.1, 0.5), log_mul=None, betas=None)
    if c.scaling and c.scaling["type"] == "yarn":
        c = c.but(log_mul=d.of(None, 1.0, 0.5), betas=d.of(None, [16.0, 2.0]))
    return c.but(**d.experts(expert_ff=c.ff)) if d.maybe(0.2) else c


def mistral3(m, c):
    m.key("attention.temperature_scale", c.temperature)
    m.key("rope.scaling.yarn_log_multiplier", c.log_mul)
    if c.betas:
        m.key("rope.scaling.yarn_beta_fast", c.betas[0])
        m.key("rope.scaling.yarn_beta_slow", c.betas[1])
    llama(m, c)


def draw_internlm2(d):
    c = draw_qwen2(d).but(tied=False, factors=False, output_bias=False, ffn_bias=False, logits_bias=False)
    return c.but(scaling=d.scaling(None, "linear", "yarn"), rot=c.head)


def draw_arcee(d):
    return d.shape(scaling=d.scaling(None, "linear", "yarn"), factors=d.maybe(0.3), qkv_bias=d.maybe(0.2))


def arcee(m, c):
    m.common()
    if c.factors:
        m.add("rope_freqs.weight", factors(c.rot, c.rope_base, 8.0))
    for b in m.blocks():
        b.norm("attn_norm")
        b.qkv(bias=c.qkv_bias)
        b.attention_output()
        b.norm("ffn_norm")
        b.ffn(gate=False)


PLAIN = shape(qkv_bias=False, output_bias=False, ffn_bias=False, factors=False)
GROWING = PLAIN.but(seed=141, temperature=0.1, log_mul=1.0, betas=[32.0, 1.0], rope_base=1e6,
                    scaling=scaling("yarn", 16.0))
FAMILIES = [
    Family("mistral3", draw_mistral3, mistral3, {"": (GROWING, "F32")}),
    Family("internlm2", draw_internlm2, llama, {"": (PLAIN.but(seed=142, heads=2, kv=1), "F32")}),
    Family("arcee", draw_arcee, arcee, {"": (PLAIN.but(seed=143, factors=True), "F32")}),
]
