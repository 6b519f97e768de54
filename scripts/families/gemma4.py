"""Gemma 4: two kinds of layers by a list, with heads of their own lengths; values that may be the keys';
layers that see another's keys and values; inputs of each layer of its own; experts beside the dense network."""
import numpy as np

from .core import Family, shape


def draw(d):
    layers = d.between(3, 6)
    pattern = d.windowed(layers)
    # The last two layers with keys and values of their own are those that later ones see.
    shared = d.between(1, layers - 2) if d.maybe() else 0
    own = layers - shared
    if shared:
        pattern[own - 2], pattern[own - 1] = True, False
    kv = [d.of(1, 2, 3), d.of(1, 2)]
    heads = [kv[windowed] * d.of(1, 2, 3, 4) for windowed in pattern]
    fit = [n for n in (8, 16, 32, 64, 128, 256) if all(count * n % d.block == 0 for count in heads)]
    head, head_swa = d.of(*fit[:4]), d.of(*fit[:4])
    rot = d.of(head, head, head // 2)
    ff = [d.multiple(48, 160) for _ in range(2)]
    experts = d.experts() if d.maybe(0.4) else {}
    return d.shape(
        layers=layers, pattern=pattern, heads=heads, kv=[kv[windowed] for windowed in pattern], head=head,
        value=head, head_swa=head_swa, rot=rot,
        rot_swa=d.of(head_swa, head_swa // 2, None if rot <= head_swa else head_swa),
        window=d.window(), base_swa=d.of(None, 5000.0, 1e5), shared_kv=shared,
        ff=d.of(ff[0], [d.of(*ff) for _ in range(layers)]), logit_cap=d.of(None, 0.0, 5.0),
        per_layer=d.of(0, d.multiple(8, 64), d.multiple(8, 64)),
        scaling=d.scaling(None, None, "linear", "yarn"),
        no_values=[d.maybe(0.3) for _ in range(layers)], scales=d.maybe(0.7), fused=d.maybe(0.15),
        with_experts=[d.maybe(0.7) for _ in range(layers)], fused_experts=d.maybe(), expert_scales=d.maybe(),
        keep_keys=d.maybe(0.3), **experts)


def tensors(m, c):
    m.common(embd_std=2 * c.embd ** -0.5 if c.tied else 0.4 * c.embd ** -0.5)
    m.key("rope.dimension_count", c.rot)
    m.key("attention.key_length", c.head)
    m.key("attention.value_length", c.head)
    m.key("attention.key_length_swa", c.head_swa)
    m.key("attention.value_length_swa", c.head_swa)
    m.key("rope.dimension_count_swa", c.rot_swa)
    m.key("rope.freq_base_swa", c.base_swa)
    m.key("attention.sliding_window", c.window)
    m.key("attention.sliding_window_pattern", c.pattern)
    m.key("attention.shared_kv_layers", c.shared_kv, default=0)
    m.key("embedding_length_per_layer_input", c.per_layer)
    m.key("final_logit_softcapping", c.logit_cap)
    m.key("expert_feed_forward_length", c.expert_ff or None)
    if not all(c.pattern):
        # Of a head a part is not turned: its factors are huge.
        factors = np.where(np.arange(c.head // 2) < max(c.head // 8, 1), 1.0, 1e30)
        m.add("rope_freqs.weight", factors)
    if c.per_layer:
        per_layer_inputs(m.top, c, c.per_layer)
    for i, b in enumerate(m.blocks()):
        windowed, own = c.pattern[i], i < c.layers - c.shared_kv
        head = c.head_swa if windowed else c.head
        heads, kv = (c[name][i] if isinstance(c[name], list) else c[name] for name in ("heads", "kv"))
        b.config = c.but(heads=heads, kv=kv, head=head, value=head)
        b.norm("attn_norm")
        attention(b, own or c.keep_keys, c.fused, c.no_values[i])
        head_norm(b, "attn_q_norm", head)
        if own or c.keep_keys:
            head_norm(b, "attn_k_norm", head)
        b.attention_output()
        b.norm("post_attention_norm")
        b.norm("ffn_norm")
        b.ffn(ff=c.ff[i] if isinstance(c.ff, list) else c.ff)
        b.norm("post_ffw_norm")
        if c.experts and c.with_experts[i]:
            b.experts(fused=c.fused_experts)
            b.vector("ffn_gate_inp.scale", c.embd, 0.2 * c.embd ** 0.5, c.embd ** 0.5)
            if c.expert_scales:
                b.vector("ffn_down_exps.scale", c.experts, 0.2, 1.0)
            for name in ("pre_ffw_norm_2", "post_ffw_norm_1", "post_ffw_norm_2"):
                b.norm(name)
        if c.per_layer:
            per_layer_block(b, c.per_layer)
        if c.scales:
            b.vector("layer_output_scale.weight", 1, 0.1, 0.8)


def attention(b, own, fused, no_values):
    """Queries, and keys and values of the layer's own, where it has any."""
    c = b.config
    if fused:
        b.fused_qkv()
        return
    b.matrix("attn_q", c.heads * c.head, c.embd)
    if own:
        b.matrix("attn_k", c.kv * c.head, c.embd)
    if own and not no_values:
        b.matrix("attn_v", c.kv * c.head, c.embd)


def head_norm(b, name, head):
    """Scores are not divided by the root of a head's length: the norms keep them within a few units."""
    mean = 1.2 * head ** -0.25
    b.vector(name + ".weight", head, 0.2 * mean, mean)


def per_layer_inputs(top, c, length):
    top.matrix("per_layer_token_embd", c.vocab, length * c.layers, length ** -0.5)
    top.matrix("per_layer_model_proj", length * c.layers, c.embd)
    top.norm("per_layer_proj_norm", length)
    if c.get("halves"):
        # The wide tables in F16, for fixtures are to be small.
        for name in ("per_layer_token_embd.weight", "per_layer_model_proj.weight"):
            values, _ = top.model.tensors[name]
            top.model.tensors[name] = (values, "F16")


def per_layer_block(b, length, norm=1.0):
    b.matrix("inp_gate", length, b.config.embd)
    b.matrix("proj", b.config.embd, length)
    b.vector("post_norm.weight", b.config.embd, 0.2 * norm, norm)


G4 = shape(
    seed=401, embd=32, layers=5, vocab=104, heads=2, kv=[1, 1, 1, 1, 1], head=16, value=16, head_swa=8, rot=16,
    rot_swa=8, ff=16, tied=True, halves=True, window=16, base_swa=None, rope_base=1e6,
    pattern=[True, True, False, True, False], shared_kv=2, logit_cap=5.0, per_layer=16, scales=True,
    no_values=[False] * 5, fused=False, keep_keys=False, with_experts=[False] * 5, fused_experts=False,
    expert_scales=False)
G4_MOE = G4.but(
    seed=402, layers=3, head_swa=16, rot_swa=16, kv=[2, 2, 1], pattern=[True, True, False], shared_kv=0,
    per_layer=0,
    no_values=[False, False, True], with_experts=[False, True, True], fused_experts=True, expert_scales=True,
    experts=6, used=2, expert_ff=16)
FAMILIES = [Family("gemma4", draw, tensors, {"": (G4, "F32"), "-moe": (G4_MOE, "F32")})]
