// The delta rule (src/kernels/ops/recurrence/delta.rs), and copies that put heads side by side.

// Sixteen lanes have a row of a head's state: each has every sixteenth value of it, through all tokens.
#define DELTA_LANES 128
#define DELTA_ROWS (DELTA_LANES / 16)
// Values that a lane has at most, of short rows and of the longest.
#define DELTA_FEW 8
#define DELTA_MANY (MOST_DELTA_LEN / 16)

// A state `[heads][len][len]`; `tokens` rows of `xs`, `stride` values apart, in whose first queries, keys and
// values begin at these places; decays `[tokens][heads]` or `[tokens][heads][len]`, strengths
// `[tokens][heads]`, outputs `[tokens][heads][len]`.
#define DELTA_RULE                                                                                         \
    __global float *states, ulong state_at, __global const float *xs, ulong q_at, ulong k_at, ulong v_at,  \
        uint stride, __global const float *decays, ulong decay_at, uint by_channel,                        \
        __global const float *betas, ulong beta_at, __global float *outs, ulong out_at, uint tokens,       \
        uint heads, uint key_heads, uint is_grouped, uint len, float scale

// The sum of what sixteen lanes have, in the order of tree16; all of them get it. All lanes of a group come
// here, and not again with the same room before they have come with another.
FUNCTION float sum_of_lanes(float x, LOCAL_POINTER float *room) {
#ifdef __CUDACC_RTC__
    for (uint apart = 8; apart > 0; apart /= 2)
        x = x + __shfl_xor_sync(0xffffffffu, x, apart);
    return x;
#else
    const uint lane = get_local_id(0);
    room[lane] = x;
    barrier(CLK_LOCAL_MEM_FENCE);
    return tree16(room + lane / 16 * 16);
#endif
}

// A group takes some rows of the state of one head. `s` has room for `most` values.
FUNCTION void delta_rule(
    DELTA_RULE, float *s, uint most, LOCAL_POINTER float *room, LOCAL_POINTER float *other_room) {
    const uint lane = get_local_id(0), l = lane % 16, head = get_group_id(1), blocks = (len + 15) / 16;
    // Beyond the last row that row once more, which is not kept.
    const uint row = get_group_id(0) * DELTA_ROWS + lane / 16, own = least(row, len - 1);
    const uint key_head = is_grouped ? head / (heads / key_heads) : head % key_heads;
    __global float *state = states + state_at + ((ulong)head * len + own) * len;
    for (uint b = 0; b < most; b++)
        s[b] = b * 16 + l < len ? state[b * 16 + l] : 0.0f;
    for (uint t = 0; t < tokens; t++) {
        const ulong at = (ulong)t * stride + key_head * len, of_head = (ulong)t * heads + head;
        __global const float *q = xs + q_at + at;
        __global const float *k = xs + k_at + at;
        __global const float *decay = decays + decay_at + of_head * (by_channel ? len : 1);
        // Behind the end there are zeros, which an infinite decay or strength makes NaN in the sums alone.
        float dot = 0.0f;
        for (uint b = 0; b < most; b++)
            if (b < blocks) {
                const uint i = b * 16 + l, is_there = i < len;
                const float by = by_channel ? (is_there ? decay[i] : 0.0f) : decay[0];
                const float kept = s[b] * by;
                dot = fma(kept, is_there ? k[i] : 0.0f, dot);
                s[b] = is_there ? kept : 0.0f;
            }
        const float held = sum_of_lanes(dot, room);
        const float value = xs[v_at + (ulong)t * stride + head * len + own];
        const float learned = (value - held) * betas[beta_at + of_head];
        dot = 0.0f;
        for (uint b = 0; b < most; b++)
            if (b < blocks) {
                const uint i = b * 16 + l, is_there = i < len;
                const float new_value = fma(learned, is_there ? k[i] : 0.0f, s[b]);
                dot = fma(new_value, is_there ? q[i] : 0.0f, dot);
                s[b] = is_there ? new_value : 0.0f;
            }
        const float given = sum_of_lanes(dot, other_room);
        if (l == 0 && row < len)
            outs[out_at + of_head * len + row] = given * scale;
    }
    if (row < len)
        for (uint b = 0; b < most; b++)
            if (b * 16 + l < len)
                state[b * 16 + l] = s[b];
}

#define DELTA_KERNEL(name, most)                                                                            \
    KERNEL(DELTA_LANES) op_##name(DELTA_RULE) {                                                            \
        __local float room[DELTA_LANES], other_room[DELTA_LANES];                                          \
        float s[most];                                                                                     \
        delta_rule(                                                                                        \
            states, state_at, xs, q_at, k_at, v_at, stride, decays, decay_at, by_channel, betas, beta_at,  \
            outs, out_at, tokens, heads, key_heads, is_grouped, len, scale, s, most, room, other_room);    \
    }

DELTA_KERNEL(delta_rule, DELTA_FEW)
DELTA_KERNEL(delta_rule_long, DELTA_MANY)

// Of each row of `xs`, of `row` values, the first are `heads` heads of `len` values, which lie `stride`
// values apart in `ys`; `n` values in all.
KERNEL(OPS_LANES)
op_copy_heads(
    __global float *xs, ulong x_at, uint n, uint row, __global const float *ys, ulong y_at, uint heads,
    uint len, uint stride) {
    const uint i = (uint)get_group_id(0) * OPS_LANES + (uint)get_local_id(0);
    if (i < n) {
        const uint head = i / len;
        xs[x_at + (ulong)(head / heads) * row + head % heads * len + i % len] =
            ys[y_at + (ulong)head * stride + i % len];
    }
}
