"""Kimi K3: as Kimi Linear, with bounded decays, gates, SiTU for SwiGLU, experts on a narrower input, and
blocks that attend to residual streams of earlier layers."""
from .bailing3 import convolutions, keys
from .core import Family, shape
from .dots import draw_routing
from .kimi_linear import latent
from .qwen35 import decays


def draw(d):
    heads, layers = d.of(1, 2, 3, 4, 6), d.between(2, 6)
    width, rot = d.multiple(16, 64), d.of(4, 8, 16)
    # llama.cpp wants both kinds of layers.
    kinds = [0, 1] + [d.between(0, 1) for _ in range(layers - 2)]
    d.rng.shuffle(kinds)
    routing = draw_routing(d)
    routing.pop("choice_bias")
    c = d.shape(
        layers=layers, heads=heads, kv=[int(kind) for kind in kinds], head=width + rot, value=width, rot=rot,
        tied=False, scaling=None, latent=width, nope=d.multiple(8, 32), value_mla=d.multiple(8, 32),
        kda=d.multiple(8, 32), taps=d.of(2, 3, 4, 4, 5), rank=d.of(None, d.multiple(16, 48)),
        bound=d.of(None, -d.real(0.5, 8.0)), gated=d.maybe(0.8), residuals=d.of(0, 1, 2, 3, 12),
        beta=d.real(1.0, 8.0), linear_beta=d.of(0.0, d.real(1.0, 30.0)), shared=d.between(0, 2),
        beside=d.maybe(0.8),
        dense_layers=d.of(None, 0, d.between(1, layers)), **routing)
    return c.but(latent_length=d.of(None, d.multiple(16, c.embd)), latent_norm=d.maybe())


def kda(b, c):
    inner = c.heads * c.kda
    convolutions(b, inner, c.taps)
    b.matrix("ssm_f_a", c.kda, c.embd)
    b.matrix("ssm_f_b", inner, c.kda)
    b.matrix("ssm_g", inner, c.embd)
    b.matrix("ssm_beta", c.heads, c.embd)
    b.vector("ssm_dt.bias", inner)
    decays(b, (c.heads,))
    b.norm("ssm_norm", c.kda)
    b.matrix("attn_output", c.embd, inner)


def experts(b, c):
    width = c.latent_length or c.embd
    b.matrix("ffn_gate_inp", c.experts, c.embd, 2 * c.embd ** -0.5, router=True)
    b.vector("exp_probs_b.bias", c.experts, 0.2)
    b.matrix("ffn_gate_exps", c.expert_ff, width, experts=c.experts)
    b.matrix("ffn_up_exps", c.expert_ff, width, experts=c.experts)
    b.matrix("ffn_down_exps", width, c.expert_ff, experts=c.experts)
    if c.latent_length:
        b.matrix("ffn_routed_down", width, c.embd)
        b.matrix("ffn_routed_up", c.embd, width)
        if c.latent_norm:
            b.norm("ffn_routed_norm", width)
    if c.beside:
        b.ffn("_shexp", c.expert_ff * max(c.shared, 1))


def tensors(m, c):
    m.common()
    keys(m, c)
    m.key("attn_res.block_size", c.residuals)
    m.key("activation.situ_beta", c.beta)
    m.key("activation.situ_linear_beta", c.linear_beta)
    m.key("expert_latent_length", c.latent_length)
    if c.residuals:
        # As norms: scores spread over a few units.
        m.top.vector("output_res_score.weight", c.embd, 2 * c.embd ** -0.5)
    for i, (b, heads) in enumerate(zip(m.blocks(), c.kv)):
        b.norm("attn_norm")
        if c.residuals:
            b.vector("attn_res_score.weight", c.embd, 2 * c.embd ** -0.5)
            b.vector("ffn_res_score.weight", c.embd, 2 * c.embd ** -0.5)
        if heads:
            latent(b, c)
            if c.gated:
                b.matrix("attn_gate", c.heads * c.value_mla, c.embd)
        else:
            kda(b, c)
        b.norm("ffn_norm")
        if i < (c.dense_layers or 0):
            b.ffn()
        else:
            experts(b, c)


K3 = shape(seed=422, layers=2, embd=24, heads=2, kv=[0, 1], head=12, value=8, rot=4, latent=8, nope=8,
           value_mla=8, kda=8, taps=4, rank=8, bound=-5.0, gated=True, residuals=1, beta=4.0,
           linear_beta=20.0, shared=1, beside=True, dense_layers=1, ff=16, experts=4, used=2, expert_ff=8,
           gating=2, weights_norm=True, weights_scale=2.5, latent_length=16, latent_norm=True)
FAMILIES = [Family("kimi-k3", draw, tensors, {"": (K3, "F32")})]
