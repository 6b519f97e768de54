"""GLM 5.3 Flash: hyper-connections between four streams; Kimi Delta Attention, and in layers that have a head
of keys latent attention without any rotation, to pools of positions that an indexer chooses, which layers may
share; limits on SwiGLU."""
from .bailing3 import convolutions
from .core import Family, shape
from .deepseek import attention
from .deepseek4 import GATES, STREAMS, draw_limits, hyper
from .dots import draw_routing
from .qwen35 import decays


def draw(d):
    # Not one head: a token whose query is all but orthogonal to its state gives next to nothing.
    heads, layers, nextn = d.of(2, 3, 4, 6), d.between(2, 5), d.between(0, 1)
    latent = d.multiple(16, 64)
    # llama.cpp wants both kinds of layers.
    kinds = [0, 1] + [d.between(0, 1) for _ in range(layers - 2)]
    d.rng.shuffle(kinds)
    kinds = [int(kind) for kind in kinds]
    # The first layer with attention takes no other's choice; what stands in a layer without is nobody's.
    types = [1 if i == kinds.index(1) else d.between(0, 1) for i in range(layers)]
    limits = d.of(None, draw_limits(d, layers + nextn))
    routing = draw_routing(d, (None, 1, 2, 2))
    routing.update(choice_bias=True)
    return d.shape(
        layers=layers, heads=heads, kv=kinds + [1] * nextn, head=latent, value=latent, rot=0, tied=False,
        bare=False, scaling=None, absorbed=True, latent=latent, nope=d.multiple(8, 32),
        v_mla=d.multiple(8, 32), q_rank=d.multiple(16, 48), kda=d.multiple(8, 32), taps=d.of(2, 3, 4, 4, 5),
        bound=d.of(None, -d.real(0.5, 8.0)), norm_eps=d.of(1e-6, 1e-5, 1e-3), index_heads=d.of(6, 8, 12, 16),
        index_len=d.of(48, 64, 64, 128), pool=d.of(2, 3, 4, 4, 5, 8), top_k=d.of(1, 2, 5, 9, 16),
        tail=d.of(None, True), types=d.of(None, 1, types, types), unused=d.maybe(0.3), iterations=d.of(1, 2, 3, 20),
        hyper_eps=d.of(1e-6, 1e-3), nextn=nextn, limits=limits,
        shared_limits=d.of(None, draw_limits(d, layers + nextn)), shared=d.between(1, 2),
        dense_layers=d.of(None, 0, d.between(1, layers)), **routing)


def keys(m, c):
    m.keys[f"{m.arch}.rope.dimension_count"] = 0
    m.key("attention.layer_norm_epsilon", c.norm_eps)
    m.key("attention.q_lora_rank", c.q_rank)
    m.key("attention.kv_lora_rank", c.latent)
    m.key("attention.key_length_mla", c.nope)
    m.key("attention.value_length_mla", c.v_mla)
    m.key("attention.indexer.head_count", c.index_heads)
    m.key("attention.indexer.key_length", c.index_len)
    # As many pools.
    m.key("attention.indexer.top_k", c.top_k * c.pool)
    m.key("attention.indexer.kpool", c.pool)
    m.key("attention.indexer.kpool_select_tail", c.tail)
    m.key("attention.indexer.types", c.types)
    m.key("ssm.conv_kernel", c.taps)
    m.key("kda.head_dim", c.kda)
    m.key("kda.gate_lower_bound", c.bound)
    m.key("hyper_connection.count", STREAMS)
    m.key("hyper_connection.sinkhorn_iterations", c.iterations)
    m.key("hyper_connection.epsilon", c.hyper_eps)
    m.key("expert_feed_forward_length", c.expert_ff)
    m.key("swiglu_clamp_exp", c.limits)
    m.key("swiglu_clamp_shexp", c.shared_limits)


def kda(b, c):
    inner = c.heads * c.kda
    convolutions(b, inner, c.taps)
    for part in "fg":
        b.matrix(f"ssm_{part}_a", c.kda, c.embd)
        b.matrix(f"ssm_{part}_b", inner, c.kda)
    b.matrix("ssm_beta", c.heads, c.embd)
    b.vector("ssm_dt.bias", inner)
    decays(b, (c.heads,))
    b.norm("ssm_norm", c.kda)
    b.matrix("attn_output", c.embd, inner)


def indexer(b, c):
    b.norm("indexer.k_norm", c.index_len, bias=True)
    b.matrix("indexer.proj", c.index_heads, c.embd)
    b.matrix("indexer.attn_k", c.index_len, c.embd)
    b.matrix("indexer.attn_q_b", c.index_heads * c.index_len, c.q_rank)
    b.matrix("indexer_compressor_gate", c.index_len, c.embd, 2 * c.embd ** -0.5)
    b.vector("indexer_compressor_ape.weight", (c.pool, c.index_len))


def tensors(m, c):
    m.common()
    keys(m, c)
    for i, b in enumerate(m.blocks_and_next(c.nextn)):
        if i < c.layers:
            hyper(b, "hc_attn", GATES, 3, c.embd)
        b.norm("attn_norm")
        if c.kv[i]:
            attention(m, b, c)
            if i >= c.layers or not isinstance(c.types, list) or c.types[i] or c.unused:
                indexer(b, c)
        else:
            kda(b, c)
        if i < c.layers:
            hyper(b, "hc_ffn", GATES, 3, c.embd)
        b.norm("ffn_norm")
        if i < (c.dense_layers or 0):
            b.ffn()
        else:
            b.experts()
            b.vector("exp_probs_b.bias", c.experts, 0.2)
            b.ffn("_shexp", c.shared * c.expert_ff)


FIXTURE = shape(seed=552, embd=8, layers=2, heads=2, kv=[0, 1], head=8, value=8, rot=0, absorbed=True,
                latent=8, nope=8, v_mla=8, q_rank=8, kda=8, taps=4, bound=-5.0, norm_eps=1e-5, index_heads=4,
                index_len=16, pool=4, top_k=3, tail=True, types=[0, 1], unused=False, iterations=3, hyper_eps=1e-6,
                nextn=0, limits=0.8, shared_limits=0.6, shared=1, dense_layers=1, ff=16, experts=4, used=2,
                expert_ff=8, groups=0, groups_used=0, gating=2, weights_norm=True, weights_scale=1.5,
                choice_bias=True)
FAMILIES = [Family("glm5-next", draw, tensors, {"": (FIXTURE, "F32")})]
