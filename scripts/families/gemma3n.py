"""Gemma 3n: four residual streams, a low-rank path beside attention, inputs of each layer of its own,
networks that are sparse in the first layers, layers from the 21st on that see another's keys and values.

Much is constant in llama.cpp: four streams, a rank of 64, 256 elements of a layer's own input, ten sparse
layers, twenty with keys of their own."""
from .core import Family, shape
from .gemma4 import head_norm, per_layer_block, per_layer_inputs

STREAMS, RANK, PER_LAYER, OWN, SPARSE, DEVIATIONS = 4, 64, 256, 20, 10, 1.6448533535003662


def draw(d):
    # Those beyond the 20th see the keys of the 19th and 20th, which have to be of both kinds.
    layers = d.of(d.between(2, 6), d.between(9, 12), d.between(21, 23))
    pattern = d.of(None, 5, d.windowed(layers))
    if isinstance(pattern, list) and layers > OWN:
        pattern[OWN - 2], pattern[OWN - 1] = True, False
    return d.shape(
        layers=layers, vocab=d.of(90, 100), embd=d.multiple(48, 96), ff=d.multiple(384, 640), pattern=pattern,
        window=d.window(), base_swa=d.of(None, 5000.0), scaling=d.scaling(None, None, "linear"), named=d.maybe(),
        fused=d.maybe(0.2))


def tensors(m, c):
    m.common(embd_std=2 * c.embd ** -0.5 if c.tied else 0.4 * c.embd ** -0.5)
    m.key("attention.sliding_window", c.window)
    m.key("attention.sliding_window_pattern", c.pattern)
    m.key("rope.freq_base_swa", c.base_swa)
    if c.named:
        m.key("attention.shared_kv_layers", max(c.layers - OWN, 0))
        m.key("embedding_length_per_layer_input", PER_LAYER)
        m.key("altup.num_inputs", STREAMS)
        m.key("altup.active_idx", 0)
        m.key("activation_sparsity_scale", [DEVIATIONS if i < SPARSE else 0.0 for i in range(c.layers)])
        m.key("final_logit_softcapping", 30.0)
    per_layer_inputs(m.top, c, PER_LAYER)
    for name in ("altup_proj", "altup_unembd_proj"):
        m.top.matrix(name, c.embd, c.embd, experts=STREAMS - 1)
    for b in m.blocks():
        b.norm("attn_norm")
        b.fused_qkv() if c.fused else b.qkv()
        head_norm(b, "attn_q_norm", c.head)
        head_norm(b, "attn_k_norm", c.head)
        b.attention_output()
        post_norm(b, "post_attention_norm", 0.3)
        b.norm("ffn_norm")
        b.ffn()
        post_norm(b, "post_ffw_norm", 0.1)
        per_layer_block(b, PER_LAYER, 0.2)
        # As quantisers leave them.
        b.matrix("altup_correct_coef", STREAMS, STREAMS, 0.3, router=True)
        b.vector("altup_correct_scale.weight", c.embd, 0.2, 1.0)
        b.matrix("altup_predict_coef", STREAMS * STREAMS, STREAMS, 0.1, router=True)
        # Its input is over the embedding's length.
        b.matrix("altup_router", STREAMS, c.embd, c.embd ** 0.5, router=True)
        b.norm("altup_router_norm")
        b.matrix("laurel_l", RANK, c.embd, router=True)
        b.matrix("laurel_r", c.embd, RANK, router=True)
        b.norm("laurel_post_norm")


def post_norm(b, name, mean):
    """What a layer adds is less than the stream that it is added to: else 20 layers let errors grow, above all
    those of a network of which a few elements alone count."""
    b.vector(name + ".weight", b.config.embd, 0.2 * mean, mean)


G3N = shape(
    seed=493, embd=32, layers=2, vocab=100, heads=2, kv=1, head=16, ff=64, tied=True, window=16, base_swa=None,
    halves=True, pattern=2, named=True, fused=False)
FAMILIES = [Family("gemma3n", draw, tensors, {"": (G3N, "F32")})]
