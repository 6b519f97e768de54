// Kernels of a format whose activations go in blocks of 32 (src/quant/blocks32.rs): parts of 32 weights are
// multiplied by different lanes; then the eight lanes of the definition are as many lanes here, and tree8
// adds them.

#define HAS_MINS OF_FORMAT(MINS)
#define HAS_HALVES OF_FORMAT(HALVES)
// Parts in a block.
#define PARTS (BLOCK_LEN / 32)
#define CHAINS 8
// What a part adds to its lane: a scale and a sum, and the same again of its other half or the min.
#if HAS_MINS || HAS_HALVES
#define TERMS 4
#else
#define TERMS 2
#endif

KERNEL(DOT_LANES) OF_FORMAT(dot)(PRODUCT) {
    __local float terms[ROOM * TERMS], accs[DOT_ROWS * DOT_TOKENS * CHAINS];
    const uint lane = get_local_id(0);
    const uint row0 = get_group_id(0) * DOT_ROWS, token0 = get_group_id(1) * DOT_TOKENS;
    const uint n_rows = least(DOT_ROWS, rows - row0), n_tokens = least(DOT_TOKENS, tokens - token0);
    const uint outs = n_rows * n_tokens, parts = cols / 32, blocks = cols / BLOCK_LEN;
    const uint chunk = ROOM / (DOT_ROWS * n_tokens) / CHAINS * CHAINS;
    BYTES first_row = matrix + matrix_at + (ulong)row0 * blocks * BLOCK_BYTES;
    __global const float *floats = (__global const float *)inputs;
    for (uint i = lane; i < outs * CHAINS; i += DOT_LANES)
        accs[i] = 0.0f;

    for (uint first = 0; first < parts; first += chunk) {
        const uint n = least(chunk, parts - first);
        for (uint r = 0, u = lane;; u += DOT_LANES) {
            while (u >= n)
                u -= n, r++;
            if (r >= n_rows)
                break;
            BYTES block = first_row + ((ulong)r * blocks + (first + u) / PARTS) * BLOCK_BYTES;
            const uint p = (first + u) % PARTS;
            uint w[8], x[8];
            OF_FORMAT(weights)(block, p, w);
            for (uint t = 0; t < n_tokens; t++) {
                const uint part = (token0 + t) * parts + first + u, at = ((r * n_tokens + t) * n + u) * TERMS;
                const float d = floats[d_at + part];
                int low = 0, high = 0;
                load_32(inputs + qs_at + part * 8, x);
                for (int k = 0; k < 4; k++) {
                    low = DOT4(w[k], x[k], low);
                    high = DOT4(w[k + 4], x[k + 4], high);
                }
                terms[at] = OF_FORMAT(scale)(block, 2 * p) * d;
#if HAS_HALVES
                terms[at + 1] = (float)low;
                terms[at + 2] = OF_FORMAT(scale)(block, 2 * p + 1) * d;
                terms[at + 3] = (float)high;
#else
                terms[at + 1] = (float)(low + high);
#endif
#if HAS_MINS
                terms[at + 2] = OF_FORMAT(min)(block);
                terms[at + 3] = floats[sums_at + part];
#endif
            }
        }
        barrier(CLK_LOCAL_MEM_FENCE);
        for (uint i = lane; i < outs * CHAINS; i += DOT_LANES) {
            float acc = accs[i];
            for (uint u = i % CHAINS; u < n; u += CHAINS)
                for (uint term = 0; term < TERMS; term += 2) {
                    const uint at = (i / CHAINS * n + u) * TERMS + term;
                    acc = fma(terms[at], terms[at + 1], acc);
                }
            accs[i] = acc;
        }
        barrier(CLK_LOCAL_MEM_FENCE);
    }
    if (lane < outs)
        outputs[out_at + (ulong)(token0 + lane % n_tokens) * out_stride + row0 + lane / n_tokens] =
            tree8(accs + lane * CHAINS);
}

// A tile of 32 rows x 16 tokens, eight parts at a time: each of the eight lanes of the definition is a lane
// here, of 4 x 4 outputs. Word `k` of part `l` of a row or token is at `(k * rows + row) * 8 + l`.
#define TILE_ROWS 32
#define TILE_TOKENS 16

KERNEL(TILE_LANES) OF_FORMAT(tile)(PRODUCT) {
    __local uint w[TILE_ROWS * CHAINS * 8], x[TILE_TOKENS * CHAINS * 8];
    __local float w_d[TILE_ROWS * CHAINS], x_d[TILE_TOKENS * CHAINS];
#if HAS_HALVES
    __local float w_d2[TILE_ROWS * CHAINS];
#endif
#if HAS_MINS
    __local float w_min[TILE_ROWS * CHAINS], x_sum[TILE_TOKENS * CHAINS];
#endif
    __local float accs[TILE_LANES * 4];
    const uint lane = get_local_id(0);
    const uint row0 = get_group_id(0) * TILE_ROWS, token0 = get_group_id(1) * TILE_TOKENS;
    const uint parts = cols / 32, blocks = cols / BLOCK_LEN;
    __global const float *floats = (__global const float *)inputs;
    // What this lane fetches, part `l` of a row and of a token; beyond the ends the last row and token, whose
    // results are not kept.
    const uint l = lane % CHAINS, own = lane / CHAINS;
    const uint own_row = least(row0 + own, rows - 1), own_token = least(token0 + own, tokens - 1);
    BYTES own_blocks = matrix + matrix_at + (ulong)own_row * blocks * BLOCK_BYTES;
    // What it computes: rows 8 apart and tokens 4 apart.
    const uint r0 = own % 8, t0 = own / 8;
    float acc[16];
    for (int o = 0; o < 16; o++)
        acc[o] = 0.0f;

    for (uint first = 0; first < parts; first += CHAINS) {
        const uint u = first + l;
        barrier(CLK_LOCAL_MEM_FENCE);
        if (u < parts) {
            BYTES block = own_blocks + (ulong)(u / PARTS) * BLOCK_BYTES;
            const uint p = u % PARTS;
            uint words[8];
            OF_FORMAT(weights)(block, p, words);
            for (int k = 0; k < 8; k++)
                w[(k * TILE_ROWS + own) * CHAINS + l] = words[k];
            w_d[lane] = OF_FORMAT(scale)(block, 2 * p);
#if HAS_HALVES
            w_d2[lane] = OF_FORMAT(scale)(block, 2 * p + 1);
#endif
#if HAS_MINS
            w_min[lane] = OF_FORMAT(min)(block);
#endif
            if (own < TILE_TOKENS) {
                const uint part = own_token * parts + u;
                load_32(inputs + qs_at + part * 8, words);
                for (int k = 0; k < 8; k++)
                    x[(k * TILE_TOKENS + own) * CHAINS + l] = words[k];
                x_d[lane] = floats[d_at + part];
#if HAS_MINS
                x_sum[lane] = floats[sums_at + part];
#endif
            }
        }
        barrier(CLK_LOCAL_MEM_FENCE);
        if (u < parts) {
            int sums[16];
            for (int o = 0; o < 16; o++)
                sums[o] = 0;
            for (int k = 0; k < 8; k++) {
                uint ws[4], xs[4];
                for (int i = 0; i < 4; i++) {
                    ws[i] = w[(k * TILE_ROWS + r0 + 8 * i) * CHAINS + l];
                    xs[i] = x[(k * TILE_TOKENS + t0 + 4 * i) * CHAINS + l];
                }
                for (int o = 0; o < 16; o++)
                    sums[o] = DOT4(ws[o % 4], xs[o / 4], sums[o]);
#if HAS_HALVES
                if (k == 3)
                    for (int o = 0; o < 16; o++) {
                        const uint r = (r0 + o % 4 * 8) * CHAINS + l, t = (t0 + o / 4 * 4) * CHAINS + l;
                        acc[o] = fma(w_d[r] * x_d[t], (float)sums[o], acc[o]);
                        sums[o] = 0;
                    }
#endif
            }
            for (int o = 0; o < 16; o++) {
                const uint r = (r0 + o % 4 * 8) * CHAINS + l, t = (t0 + o / 4 * 4) * CHAINS + l;
#if HAS_HALVES
                acc[o] = fma(w_d2[r] * x_d[t], (float)sums[o], acc[o]);
#else
                acc[o] = fma(w_d[r] * x_d[t], (float)sums[o], acc[o]);
#endif
#if HAS_MINS
                acc[o] = fma(w_min[r], x_sum[t], acc[o]);
#endif
            }
        }
    }
    // The rows that are 8 apart, one after another.
    for (int i = 0; i < 4; i++) {
        barrier(CLK_LOCAL_MEM_FENCE);
        for (int j = 0; j < 4; j++)
            accs[(own * 4 + j) * CHAINS + l] = acc[j * 4 + i];
        barrier(CLK_LOCAL_MEM_FENCE);
        const uint of = lane / 4, row = row0 + of % 8 + i * 8, token = token0 + of / 8 + lane % 4 * 4;
        if (lane < TILE_LANES / 2 && row < rows && token < tokens)
            outputs[out_at + (ulong)token * out_stride + row] = tree8(accs + lane * CHAINS);
    }
}

KERNEL(DECODE_LANES) OF_FORMAT(decode)(DECODING) {
    const uint part = get_group_id(0) * DECODE_LANES + get_local_id(0);
    if (part >= parts)
        return;
    BYTES block = matrix + matrix_at + (ulong)(part / PARTS) * BLOCK_BYTES;
    const uint p = part % PARTS;
    uint w[8];
    OF_FORMAT(weights)(block, p, w);
    for (int i = 0; i < 32; i++) {
        float value = (float)byte_of(w[i / 4], i % 4) * OF_FORMAT(scale)(block, 2 * p + i / 16);
#if HAS_MINS
        value += OF_FORMAT(min)(block);
#endif
        outputs[(ulong)part * 32 + i] = value;
    }
}

#undef HAS_MINS
#undef HAS_HALVES
#undef PARTS
#undef CHAINS
#undef TERMS
#undef TILE_ROWS
#undef TILE_TOKENS
