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
