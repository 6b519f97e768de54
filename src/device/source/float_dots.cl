// Kernels of a float format (src/quant/floats.rs): the sixteen lanes of the definition are as many lanes
// here, and tree16 adds them.

#define CHAINS 16

// Four rows, one token.
KERNEL(DOT_LANES) OF_FORMAT(dot)(PRODUCT) {
    __local float accs[DOT_LANES];
    const uint lane = get_local_id(0), l = lane % CHAINS, token = get_group_id(1);
    const uint row = get_group_id(0) * DOT_ROWS + lane / CHAINS;
    BYTES w = matrix + matrix_at + (ulong)least(row, rows - 1) * cols * BLOCK_BYTES;
    __global const float *x = (__global const float *)inputs + qs_at + (ulong)token * cols;
    float acc = 0.0f;
    uint i = l;
    for (; i + 3 * CHAINS < cols; i += 4 * CHAINS) {
        float ws[4], xs[4];
        for (uint n = 0; n < 4; n++) {
            ws[n] = OF_FORMAT(value)(w + (ulong)(i + n * CHAINS) * BLOCK_BYTES);
            xs[n] = x[i + n * CHAINS];
        }
        for (uint n = 0; n < 4; n++)
            acc = fma(ws[n], xs[n], acc);
    }
    for (; i < cols; i += CHAINS)
        acc = fma(OF_FORMAT(value)(w + (ulong)i * BLOCK_BYTES), x[i], acc);
    // The tail is filled up with zeros, which make a negative zero positive.
    if (cols % CHAINS != 0 && l >= cols % CHAINS)
        acc = fma(0.0f, 0.0f, acc);
    accs[lane] = acc;
    barrier(CLK_LOCAL_MEM_FENCE);
    if (l == 0 && row < rows)
        outputs[out_at + (ulong)token * out_stride + row] = tree16(accs + lane);
}

// A tile of 16 rows x 16 tokens: each lane has one of the sixteen of 4 x 4 outputs.
#define TILE 16

KERNEL(TILE_LANES) OF_FORMAT(tile)(PRODUCT) {
    __local float accs[TILE_LANES * 4];
    const uint lane = get_local_id(0), row0 = get_group_id(0) * TILE, token0 = get_group_id(1) * TILE;
    // Rows and tokens 4 apart; beyond the ends the last row and token, whose results are not kept.
    const uint l = lane % CHAINS, own = lane / CHAINS, r0 = row0 + own % 4, t0 = token0 + own / 4;
    BYTES ws[4];
    __global const float *xs[4];
    float acc[16];
    for (uint i = 0; i < 4; i++) {
        ws[i] = matrix + matrix_at + (ulong)least(r0 + 4 * i, rows - 1) * cols * BLOCK_BYTES;
        xs[i] = (__global const float *)inputs + qs_at + (ulong)least(t0 + 4 * i, tokens - 1) * cols;
    }
    for (int o = 0; o < 16; o++)
        acc[o] = 0.0f;
    for (uint first = 0; first < cols; first += CHAINS) {
        const uint at = first + l;
        float w[4], x[4];
        for (int i = 0; i < 4; i++) {
            w[i] = at < cols ? OF_FORMAT(value)(ws[i] + (ulong)at * BLOCK_BYTES) : 0.0f;
            x[i] = at < cols ? xs[i][at] : 0.0f;
        }
        for (int o = 0; o < 16; o++)
            acc[o] = fma(w[o % 4], x[o / 4], acc[o]);
    }
    // The rows that are 4 apart, one after another.
    for (int i = 0; i < 4; i++) {
        barrier(CLK_LOCAL_MEM_FENCE);
        for (int j = 0; j < 4; j++)
            accs[(own * 4 + j) * CHAINS + l] = acc[j * 4 + i];
        barrier(CLK_LOCAL_MEM_FENCE);
        const uint of = lane / 4, row = row0 + of % 4 + i * 4, token = token0 + of / 4 + lane % 4 * 4;
        if (lane < TILE_LANES / 4 && row < rows && token < tokens)
            outputs[out_at + (ulong)token * out_stride + row] = tree16(accs + lane * CHAINS);
    }
}

KERNEL(DECODE_LANES) OF_FORMAT(decode)(DECODING) {
    const uint i = get_group_id(0) * DECODE_LANES + get_local_id(0);
    if (i < parts)
        outputs[i] = OF_FORMAT(value)(matrix + matrix_at + (ulong)i * BLOCK_BYTES);
}

#undef CHAINS
#undef TILE
