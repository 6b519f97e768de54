// Kernels of a format whose activations go in super-blocks of 256 (src/quant/super_blocks.rs): the sub-blocks
// of 32 weights are multiplied by different lanes, their integers added up for each super-block, and one lane
// for each output does the floats in order.

#define HAS_MINS OF_FORMAT(MINS)
#define SUB_BLOCKS 8
// Places of sub-blocks in local memory: not eight apart, which would be slow.
#define PLACE(u) ((u) + (u) / SUB_BLOCKS)
// What a super-block adds to an output: a scale and a sum, then the same of the mins.
#if HAS_MINS
#define TERMS 4
#else
#define TERMS 2
#endif

KERNEL(DOT_LANES) OF_FORMAT(dot)(PRODUCT) {
    __local int sums[PLACE(ROOM)];
#if HAS_MINS
    __local int min_sums[PLACE(ROOM)];
#endif
    __local float terms[ROOM / SUB_BLOCKS * TERMS];
    const uint lane = get_local_id(0);
    const uint row0 = get_group_id(0) * DOT_ROWS, token0 = get_group_id(1) * DOT_TOKENS;
    const uint n_rows = least(DOT_ROWS, rows - row0), n_tokens = least(DOT_TOKENS, tokens - token0);
    const uint outs = n_rows * n_tokens, parts = cols / 32, blocks = cols / 256;
    const uint chunk = ROOM / (DOT_ROWS * n_tokens) / SUB_BLOCKS * SUB_BLOCKS;
    BYTES first_row = matrix + matrix_at + (ulong)row0 * blocks * BLOCK_BYTES;
    __global const float *ds = (__global const float *)inputs + d_at + token0 * blocks;
    float acc = 0.0f;

    for (uint first = 0; first < parts; first += chunk) {
        const uint n = least(chunk, parts - first);
        const uint n_blocks = n / SUB_BLOCKS, first_block = first / SUB_BLOCKS;
        for (uint r = 0, u = lane;; u += DOT_LANES) {
            while (u >= n)
                u -= n, r++;
            if (r >= n_rows)
                break;
            BYTES block = first_row + ((ulong)r * blocks + first_block + u / SUB_BLOCKS) * BLOCK_BYTES;
            const int j = u % SUB_BLOCKS;
            uint w[8], x[8];
            int scales[2];
            OF_FORMAT(weights)(block, j, w);
            OF_FORMAT(scales)(block, j, scales);
#if HAS_MINS
            int mins[2];
            OF_FORMAT(mins)(block, j, mins);
#endif
            for (uint t = 0; t < n_tokens; t++) {
                const uint part = (token0 + t) * parts + first + u, at = PLACE((r * n_tokens + t) * n + u);
                int low = 0, high = 0;
                load_32(inputs + qs_at + part * 8, x);
                for (int k = 0; k < 4; k++) {
                    low = DOT4(w[k], x[k], low);
                    high = DOT4(w[k + 4], x[k + 4], high);
                }
                sums[at] = scales[0] * low + scales[1] * high;
#if HAS_MINS
                const uint two = inputs[sums_at + part];
                min_sums[at] = mins[0] * (short)(two & 0xffffu) + mins[1] * (short)(two >> 16);
#endif
            }
        }
        barrier(CLK_LOCAL_MEM_FENCE);
        for (uint i = lane; i < outs * n_blocks; i += DOT_LANES) {
            const uint out = i / n_blocks, b = i % n_blocks, r = out / n_tokens, t = out % n_tokens;
            BYTES block = first_row + ((ulong)r * blocks + first_block + b) * BLOCK_BYTES;
            const float d = ds[t * blocks + first_block + b];
            int sum = 0;
            for (int j = 0; j < SUB_BLOCKS; j++)
                sum += sums[PLACE(i * SUB_BLOCKS) + j];
            terms[i * TERMS] = OF_FORMAT(d)(block) * d;
            terms[i * TERMS + 1] = (float)sum;
#if HAS_MINS
            int min_sum = 0;
            for (int j = 0; j < SUB_BLOCKS; j++)
                min_sum += min_sums[PLACE(i * SUB_BLOCKS) + j];
            terms[i * TERMS + 2] = -(OF_FORMAT(dmin)(block) * d);
            terms[i * TERMS + 3] = (float)min_sum;
#endif
        }
        barrier(CLK_LOCAL_MEM_FENCE);
        if (lane < outs)
            for (uint at = lane * n_blocks * TERMS; at < (lane + 1) * n_blocks * TERMS; at += 2)
                acc = fma(terms[at], terms[at + 1], acc);
    }
    if (lane < outs)
        outputs[out_at + (ulong)(token0 + lane % n_tokens) * out_stride + row0 + lane / n_tokens] = acc;
}

// A tile of 64 rows x 64 tokens, half a super-block at a time: weights are unpacked once for all tokens.
#define TILE 64
#define STEP_PARTS 4
// Words of a row of the tile, and one more, so that rows do not lie in the same banks of local memory.
#define STEP_WORDS (STEP_PARTS * 8 + 1)

KERNEL(TILE_LANES) OF_FORMAT(tile)(PRODUCT) {
    __local uint w[TILE * STEP_WORDS], x[TILE * STEP_WORDS];
    __local int scales[TILE * STEP_PARTS * 2];
    __local float w_d[TILE], x_d[TILE];
#if HAS_MINS
    __local int mins[TILE * STEP_PARTS * 2], x_sums[TILE * STEP_PARTS * 2];
    __local float w_dmin[TILE];
#endif
    const uint lane = get_local_id(0), row0 = get_group_id(0) * TILE, token0 = get_group_id(1) * TILE;
    const uint parts = cols / 32, blocks = cols / 256;
    // What this lane fetches; beyond the ends the last row and token, whose results are not kept.
    const uint own = lane / STEP_PARTS, own_part = lane % STEP_PARTS;
    const uint own_row = least(row0 + own, rows - 1), own_token = least(token0 + own, tokens - 1);
    BYTES own_blocks = matrix + matrix_at + (ulong)own_row * blocks * BLOCK_BYTES;
    // What it computes: rows and tokens 16 apart.
    const uint r0 = lane % 16, t0 = lane / 16;
    float acc[16];
    int sum[16], min_sum[16];
    for (int o = 0; o < 16; o++)
        acc[o] = 0.0f;

    for (uint step = 0; step < 2 * blocks; step++) {
        const uint j = step % 2 * STEP_PARTS + own_part;
        const uint part = own_token * parts + step * STEP_PARTS + own_part;
        BYTES block = own_blocks + (ulong)(step / 2) * BLOCK_BYTES;
        uint words[8];
        int two[2];
        barrier(CLK_LOCAL_MEM_FENCE);
        OF_FORMAT(weights)(block, j, words);
        for (int k = 0; k < 8; k++)
            w[own * STEP_WORDS + own_part * 8 + k] = words[k];
        OF_FORMAT(scales)(block, j, two);
        scales[lane * 2] = two[0];
        scales[lane * 2 + 1] = two[1];
        load_32(inputs + qs_at + part * 8, words);
        for (int k = 0; k < 8; k++)
            x[own * STEP_WORDS + own_part * 8 + k] = words[k];
        if (own_part == 0) {
            w_d[own] = OF_FORMAT(d)(block);
            x_d[own] = ((__global const float *)inputs)[d_at + own_token * blocks + step / 2];
        }
#if HAS_MINS
        OF_FORMAT(mins)(block, j, two);
        mins[lane * 2] = two[0];
        mins[lane * 2 + 1] = two[1];
        x_sums[lane * 2] = (short)(inputs[sums_at + part] & 0xffffu);
        x_sums[lane * 2 + 1] = (short)(inputs[sums_at + part] >> 16);
        if (own_part == 0)
            w_dmin[own] = OF_FORMAT(dmin)(block);
#endif
        barrier(CLK_LOCAL_MEM_FENCE);

        if (step % 2 == 0)
            for (int o = 0; o < 16; o++)
                sum[o] = min_sum[o] = 0;
        for (int half_part = 0; half_part < 2 * STEP_PARTS; half_part++) {
            int dots[16];
            for (int o = 0; o < 16; o++)
                dots[o] = 0;
            for (int k = half_part * 4; k < half_part * 4 + 4; k++) {
                uint ws[4], xs[4];
                for (int i = 0; i < 4; i++) {
                    ws[i] = w[(r0 + 16 * i) * STEP_WORDS + k];
                    xs[i] = x[(t0 + 16 * i) * STEP_WORDS + k];
                }
                for (int o = 0; o < 16; o++)
                    dots[o] = DOT4(ws[o % 4], xs[o / 4], dots[o]);
            }
            for (int o = 0; o < 16; o++) {
                const uint r = (r0 + o % 4 * 16) * STEP_PARTS * 2 + half_part;
                sum[o] += scales[r] * dots[o];
#if HAS_MINS
                min_sum[o] += mins[r] * x_sums[(t0 + o / 4 * 16) * STEP_PARTS * 2 + half_part];
#endif
            }
        }
        if (step % 2 == 1)
            for (int o = 0; o < 16; o++) {
                const uint r = r0 + o % 4 * 16, t = t0 + o / 4 * 16;
                acc[o] = fma(w_d[r] * x_d[t], (float)sum[o], acc[o]);
#if HAS_MINS
                acc[o] = fma(-(w_dmin[r] * x_d[t]), (float)min_sum[o], acc[o]);
#endif
            }
    }
    for (int o = 0; o < 16; o++) {
        const uint row = row0 + r0 + o % 4 * 16, token = token0 + t0 + o / 4 * 16;
        if (row < rows && token < tokens)
            outputs[out_at + (ulong)token * out_stride + row] = acc[o];
    }
}

KERNEL(DECODE_LANES) OF_FORMAT(decode)(DECODING) {
    const uint part = get_group_id(0) * DECODE_LANES + get_local_id(0);
    if (part >= parts)
        return;
    BYTES block = matrix + matrix_at + (ulong)(part / SUB_BLOCKS) * BLOCK_BYTES;
    const int j = part % SUB_BLOCKS;
    uint w[8];
    int scales[2];
    OF_FORMAT(weights)(block, j, w);
    OF_FORMAT(scales)(block, j, scales);
#if HAS_MINS
    int mins[2];
    OF_FORMAT(mins)(block, j, mins);
#endif
    for (int i = 0; i < 32; i++) {
        float value = OF_FORMAT(d)(block) * (float)scales[i / 16] * (float)byte_of(w[i / 4], i % 4);
#if HAS_MINS
        value -= OF_FORMAT(dmin)(block) * (float)mins[i / 16];
#endif
        outputs[(ulong)part * 32 + i] = value;
    }
}

#undef HAS_MINS
#undef SUB_BLOCKS
#undef PLACE
#undef TERMS
#undef TILE
#undef STEP_PARTS
#undef STEP_WORDS
