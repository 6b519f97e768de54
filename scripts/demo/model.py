"""The demo model: a Mixtral-shaped transformer whose graph is llama.cpp's for "llama" with experts.

Only the two chosen experts of each token are computed: the tokens are sorted by expert into blocks
of one expert each (the last block of an expert is padded), so no token is dropped and every matrix
product is dense.
"""

import jax
import jax.numpy as jnp

VOCAB, LAYERS, EMBED, HEADS, KV_HEADS, HEAD, EXPERTS, USED, FFN = 512, 4, 256, 4, 2, 64, 8, 2, 256
EPS, ROPE_BASE = 1e-5, 10000.0
BLOCK = 256  # rows of one expert in one product


def init(seed):
    """Weights by name; matrices are stored [out, in] as GGUF has them, in F32."""
    shapes = {"attn_q": (HEADS * HEAD, EMBED), "attn_k": (KV_HEADS * HEAD, EMBED),
              "attn_v": (KV_HEADS * HEAD, EMBED), "attn_output": (EMBED, HEADS * HEAD),
              "ffn_gate_inp": (EXPERTS, EMBED), "ffn_gate_exps": (EXPERTS, FFN, EMBED),
              "ffn_up_exps": (EXPERTS, FFN, EMBED), "ffn_down_exps": (EXPERTS, EMBED, FFN)}
    keys = iter(jax.random.split(jax.random.key(seed), 2 + LAYERS * len(shapes)))
    params = {"token_embd": 0.02 * jax.random.normal(next(keys), (VOCAB, EMBED)),
              "output": 0.02 * jax.random.normal(next(keys), (VOCAB, EMBED)),
              "output_norm": jnp.ones(EMBED)}
    for layer in range(LAYERS):
        for name, shape in shapes.items():
            scale = shape[-1] ** -0.5
            if name in ("attn_output", "ffn_down_exps"):
                scale /= (2 * LAYERS) ** 0.5
            params[f"blk.{layer}.{name}"] = scale * jax.random.normal(next(keys), shape)
        params[f"blk.{layer}.attn_norm"] = jnp.ones(EMBED)
        params[f"blk.{layer}.ffn_norm"] = jnp.ones(EMBED)
    return params


def rms_norm(x, weight):
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + EPS) * weight


def rope(x):
    """Turns neighbouring pairs (x[2i], x[2i+1]); x is [rows, heads, positions, HEAD]."""
    angle = jnp.arange(x.shape[2])[:, None] * ROPE_BASE ** (-jnp.arange(0, HEAD, 2) / HEAD)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    even, odd = x[..., 0::2], x[..., 1::2]
    return jnp.stack([even * cos - odd * sin, even * sin + odd * cos], -1).reshape(x.shape)


def attention(x, mask, weights):
    rows, length, _ = x.shape

    def heads(name, count):
        out = (x.reshape(-1, EMBED) @ weights(name).T).reshape(rows, length, count, HEAD)
        return out.transpose(0, 2, 1, 3)

    query = rope(heads("attn_q", HEADS)).reshape(rows, KV_HEADS, -1, HEAD)
    key, value = rope(heads("attn_k", KV_HEADS)), heads("attn_v", KV_HEADS)
    scores = jnp.einsum("rkqd,rksd->rkqs", query, key) * HEAD ** -0.5
    scores = scores.reshape(rows, HEADS, length, length)
    probs = jax.nn.softmax(jnp.where(mask[:, None], scores, -1e30), -1)
    mixed = jnp.einsum("rkqs,rksd->rkqd", probs.reshape(rows, KV_HEADS, -1, length), value)
    mixed = mixed.reshape(rows, HEADS, length, HEAD).transpose(0, 2, 1, 3)
    return (mixed.reshape(-1, HEADS * HEAD) @ weights("attn_output").T).reshape(x.shape)


def dispatch_plan(chosen):
    """For expert choices [tokens, USED]: each choice's slot, each slot's choice, blocks' experts.

    An empty slot has choice -1.
    """
    flat = chosen.reshape(-1)
    blocks = flat.size // BLOCK + EXPERTS
    order = jnp.argsort(flat, stable=True)
    rank = jnp.argsort(order)
    counts = jnp.sum(flat[:, None] == jnp.arange(EXPERTS), 0)
    first = jnp.cumsum(counts) - counts
    used_blocks = (counts + BLOCK - 1) // BLOCK
    last_block = jnp.cumsum(used_blocks)
    start = (last_block - used_blocks) * BLOCK
    slot_of = (start[flat] + rank - first[flat]).reshape(chosen.shape)
    expert = jnp.minimum(jnp.sum(jnp.arange(blocks)[:, None] >= last_block, 1), EXPERTS - 1)
    slot = jnp.arange(blocks * BLOCK)
    within = slot - jnp.repeat(start[expert], BLOCK)
    mine = jnp.repeat(expert, BLOCK)
    filled = within < counts[mine]
    choice = jnp.where(filled, order[jnp.minimum(first[mine] + within, flat.size - 1)], -1)
    return slot_of, choice, expert


# Spreading and collecting are each other's transpose; said so, neither needs a scatter.
@jax.custom_vjp
def spread(x, slot_of, choice):
    """Token rows to slots; empty slots get zeros."""
    return jnp.where(choice[:, None] >= 0, x[jnp.maximum(choice, 0) // USED], 0.0)


@jax.custom_vjp
def collect(y, slot_of, choice):
    """Slot rows to [tokens, USED, width]."""
    return y[slot_of]


spread.defvjp(lambda x, slot_of, choice: (spread(x, slot_of, choice), slot_of),
              lambda slot_of, grad: (grad[slot_of].sum(1), None, None))
collect.defvjp(lambda y, slot_of, choice: (y[slot_of], choice),
               lambda choice, grad: (jnp.where(
                   choice[:, None] >= 0,
                   grad.reshape(-1, grad.shape[-1])[jnp.maximum(choice, 0)], 0.0), None, None))


@jax.custom_vjp
def block_matmul(x, weight, expert):
    """x [blocks, BLOCK, in] times each block's expert of weight [EXPERTS, out, in]."""
    return jnp.einsum("bti,boi->bto", x, weight[expert])


def block_matmul_back(saved, grad):
    x, weight, expert = saved
    by_block = jnp.einsum("bto,bti->boi", grad, x)
    one_hot = (expert == jnp.arange(EXPERTS)[:, None]).astype(x.dtype)
    by_expert = (one_hot @ by_block.reshape(len(expert), -1)).reshape(weight.shape)
    return jnp.einsum("bto,boi->bti", grad, weight[expert]), by_expert, None


block_matmul.defvjp(lambda x, weight, expert: (block_matmul(x, weight, expert),
                                               (x, weight, expert)), block_matmul_back)


def experts(x, weights):
    """The chosen experts' mixed output for x [tokens, EMBED], and the load-balancing loss."""
    logits = x @ weights("ffn_gate_inp").T
    top, chosen = jax.lax.top_k(logits, USED)
    share = jax.nn.softmax(top, -1)
    slot_of, choice, expert = dispatch_plan(chosen)
    product = lambda rows, name: block_matmul(rows, weights(name), expert)
    rows = spread(x, slot_of, choice).reshape(-1, BLOCK, EMBED)
    hidden = jax.nn.silu(product(rows, "ffn_gate_exps")) * product(rows, "ffn_up_exps")
    out = product(hidden, "ffn_down_exps").reshape(-1, EMBED)
    mixed = jnp.sum(collect(out, slot_of, choice) * share[..., None], 1)
    load = jnp.mean(jnp.sum(jax.nn.one_hot(chosen, EXPERTS), 1), 0) / USED
    balance = EXPERTS * jnp.sum(load * jnp.mean(jax.nn.softmax(logits, -1), 0))
    return mixed, balance


def forward(params, tokens, segments):
    """Logits [rows, positions, VOCAB]; a position sees earlier ones of its own segment."""
    length = tokens.shape[1]
    mask = (segments[:, :, None] == segments[:, None]) & jnp.tril(jnp.ones((length, length), bool))
    x = jnp.eye(VOCAB)[tokens.reshape(-1)] @ params["token_embd"]
    x = x.reshape(*tokens.shape, EMBED)
    balance = 0.0
    for layer in range(LAYERS):
        weights = lambda name, layer=layer: params[f"blk.{layer}.{name}"]
        x = x + attention(rms_norm(x, weights("attn_norm")), mask, weights)
        normed = rms_norm(x, weights("ffn_norm")).reshape(-1, EMBED)
        mixed, loss = experts(normed, weights)
        x, balance = x + mixed.reshape(x.shape), balance + loss / LAYERS
    return rms_norm(x, params["output_norm"]) @ params["output"].T, balance
