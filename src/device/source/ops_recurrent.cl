// Operations that carry a state from token to token (src/kernels/ops/recurrence).

// The input of a channel `at` tokens behind the beginning of its window, which has the `kept` last ones
// before the batch.
FUNCTION float conv_input(
    __global const float *x, __global const float *window, uint at, uint kept, uint n, uint channel) {
    return at < kept ? window[(ulong)at * n + channel] : x[(ulong)(at - kept) * n + channel];
}

// The window of a channel behind the batch; rows are read before they are written.
FUNCTION void conv_remember(
    __global const float *x, __global float *window, uint tokens, uint kept, uint n, uint channel) {
    for (uint i = 0; i < kept; i++)
        window[(ulong)i * n + channel] = conv_input(x, window, i + tokens, kept, n, channel);
}

// The short convolution of rows of `n` channels, an output a lane; of one token the window is remembered too.
KERNEL(OPS_LANES)
op_causal_conv(
    __global const float *xs, ulong x_at, __global float *windows, ulong window_at,
    __global const float *weights, ulong weight_at, __global const float *biases, ulong bias_at,
    __global float *outs, ulong out_at, uint n, uint taps, uint tokens, uint has_bias, uint silu) {
    const uint i = (uint)get_group_id(0) * OPS_LANES + (uint)get_local_id(0);
    if (i >= n * tokens)
        return;
    const uint channel = i % n, token = i / n, kept = taps - 1;
    __global const float *x = xs + x_at, *weight = weights + weight_at;
    __global float *window = windows + window_at;
    float acc = 0.0f;
    for (uint tap = 0; tap < taps; tap++)
        acc = fma(
            conv_input(x, window, token + tap, kept, n, channel), weight[(ulong)tap * n + channel], acc);
    if (has_bias)
        acc = acc + biases[bias_at + channel];
    outs[out_at + i] = silu ? silu_of(acc) : acc;
    if (tokens == 1)
        conv_remember(x, window, tokens, kept, n, channel);
}

// The window behind several tokens, a channel a lane.
KERNEL(OPS_LANES)
op_conv_window(
    __global const float *xs, ulong x_at, __global float *windows, ulong window_at, uint n, uint taps,
    uint tokens) {
    const uint channel = (uint)get_group_id(0) * OPS_LANES + (uint)get_local_id(0);
    if (channel < n)
        conv_remember(xs + x_at, windows + window_at, tokens, taps - 1, n, channel);
}

// Rows of states that a group has, sixteen lanes each, and columns that a lane has at most: it holds them
// from token to token.
#define SCAN_LANES 64
#define SCAN_ROWS (SCAN_LANES / 16)
#define SCAN_COLUMNS (MOST_STATE_LEN / 16)

// Selective scans of `tokens` tokens. A head has `head_len` rows, each with a state of `n` values, and takes
// its step from `dt`; `of_group` heads have the same B and C. It decays at a rate of its own, or each value
// of a row's state does. x is `x_stride` values a token, B and C `bc_stride`.
KERNEL(SCAN_LANES)
op_selective_scan(
    __global const float *xs, ulong x_at, uint x_stride, __global const float *dts, ulong dt_at,
    __global const float *bs, ulong b_at, __global const float *cs, ulong c_at, uint bc_stride,
    __global const float *as, ulong a_at, uint a_each, __global const float *ds, ulong d_at,
    __global float *states, ulong state_at, __global float *outs, ulong out_at, uint heads, uint head_len,
    uint of_group, uint n, uint tokens) {
    __local float dots[SCAN_LANES];
    const uint lane = (uint)get_local_id(0) % 16, own = (uint)get_local_id(0) / 16;
    const uint rows = heads * head_len, wanted = (uint)get_group_id(0) * SCAN_ROWS + own;
    // Lanes without a row do what the last one's do, and keep nothing of it.
    const uint row = least(wanted, rows - 1), head = row / head_len, group = head / of_group;
    __global float *state = states + state_at + (ulong)row * n;
    __global const float *rates = as + a_at + (a_each ? (ulong)row * n : head);
    const float skip = ds[d_at + head];
    float held[SCAN_COLUMNS];
    for (uint k = 0; k < SCAN_COLUMNS; k++)
        held[k] = 16 * k + lane < n ? state[16 * k + lane] : 0.0f;
    for (uint t = 0; t < tokens; t++) {
        const float dt = dts[dt_at + (ulong)t * heads + head], x = xs[x_at + (ulong)t * x_stride + row];
        __global const float *b = bs + b_at + (ulong)t * bc_stride + group * n;
        __global const float *c = cs + c_at + (ulong)t * bc_stride + group * n;
        const float xdt = x * dt;
        float decay = a_each ? 0.0f : exp_of(dt * rates[0]), dot = 0.0f;
        for (uint k = 0; k < SCAN_COLUMNS; k++) {
            const uint j = 16 * k + lane;
            if (j < n) {
                if (a_each)
                    decay = exp_of(dt * rates[j]);
                held[k] = fma(held[k], decay, b[j] * xdt);
                dot = fma(held[k], c[j], dot);
            } else if (16 * k < n) {
                dot = dot + 0.0f; // lanes behind the end take zeros
            }
        }
        dots[16 * own + lane] = dot;
        barrier(CLK_LOCAL_MEM_FENCE);
        if (lane == 0 && wanted < rows)
            outs[out_at + (ulong)t * rows + row] = tree16(dots + 16 * own) + x * skip;
        barrier(CLK_LOCAL_MEM_FENCE);
    }
    if (wanted < rows)
        for (uint k = 0; k < SCAN_COLUMNS; k++)
            if (16 * k + lane < n)
                state[16 * k + lane] = held[k];
}
