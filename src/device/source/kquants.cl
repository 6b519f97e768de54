// The K-quants (src/quant/kquants.rs). Of each format: `weights_`, the 32 weights of sub-block `j` as int8 in
// eight words; `scales_`, the scales of its halves of 16; `d_`; `mins_` and `dmin_` where it has mins, which
// `MINS_` says.

// 2-bit fields of sub-block `j`, of each 32 bytes the lowest first.
FUNCTION void two_bits(BYTES qs, int j, uint *w) {
    load_words(qs + 32 * (j / 4), 8, w);
    for (int k = 0; k < 8; k++)
        w[k] = w[k] >> (2 * (j % 4)) & 0x03030303u;
}

FUNCTION void weights_Q2_K(BYTES block, int j, uint *w) { two_bits(block + 16, j, w); }
FUNCTION void scales_Q2_K(BYTES block, int j, int *scales) {
    scales[0] = block[2 * j] & 15;
    scales[1] = block[2 * j + 1] & 15;
}
FUNCTION void mins_Q2_K(BYTES block, int j, int *mins) {
    mins[0] = block[2 * j] >> 4;
    mins[1] = block[2 * j + 1] >> 4;
}
FUNCTION float d_Q2_K(BYTES block) { return f16_at(block + 80); }
FUNCTION float dmin_Q2_K(BYTES block) { return f16_at(block + 82); }
#define MINS_Q2_K 1

FUNCTION void weights_Q3_K(BYTES block, int j, uint *w) {
    uint high[8];
    load_words(block, 8, high);
    two_bits(block + 32, j, w);
    for (int k = 0; k < 8; k++)
        w[k] = less(w[k] | (high[k] >> j & 0x01010101u) << 2, 4);
}
FUNCTION int scale_Q3_K(BYTES scales, int g) {
    int low = scales[g % 8] >> (g / 8 * 4) & 15;
    int high = scales[8 + g % 4] >> (g / 4 * 2) & 3;
    return (low | high << 4) - 32;
}
FUNCTION void scales_Q3_K(BYTES block, int j, int *scales) {
    scales[0] = scale_Q3_K(block + 96, 2 * j);
    scales[1] = scale_Q3_K(block + 96, 2 * j + 1);
}
FUNCTION float d_Q3_K(BYTES block) { return f16_at(block + 108); }

// The 6-bit scale and min of sub-block `j`.
FUNCTION int scale_of_12(BYTES s, int j) {
    return j < 4 ? s[j] & 63 : (s[j + 4] & 15) | (s[j - 4] >> 6) << 4;
}
FUNCTION int min_of_12(BYTES s, int j) { return j < 4 ? s[j + 4] & 63 : s[j + 4] >> 4 | (s[j] >> 6) << 4; }

FUNCTION void weights_Q4_K(BYTES block, int j, uint *w) {
    load_32(block + 16 + 32 * (j / 2), w);
    for (int k = 0; k < 8; k++)
        w[k] = w[k] >> (4 * (j % 2)) & 0x0f0f0f0fu;
}
FUNCTION void scales_Q4_K(BYTES block, int j, int *scales) {
    scales[0] = scales[1] = scale_of_12(block + 4, j);
}
FUNCTION void mins_Q4_K(BYTES block, int j, int *mins) { mins[0] = mins[1] = min_of_12(block + 4, j); }
FUNCTION float d_Q4_K(BYTES block) { return f16_at(block); }
FUNCTION float dmin_Q4_K(BYTES block) { return f16_at(block + 2); }
#define MINS_Q4_K 1

FUNCTION void weights_Q5_K(BYTES block, int j, uint *w) {
    uint high[8];
    load_32(block + 16, high);
    load_32(block + 48 + 32 * (j / 2), w);
    for (int k = 0; k < 8; k++)
        w[k] = (w[k] >> (4 * (j % 2)) & 0x0f0f0f0fu) | (high[k] >> j & 0x01010101u) << 4;
}
FUNCTION void scales_Q5_K(BYTES block, int j, int *scales) {
    scales[0] = scales[1] = scale_of_12(block + 4, j);
}
FUNCTION void mins_Q5_K(BYTES block, int j, int *mins) { mins[0] = mins[1] = min_of_12(block + 4, j); }
FUNCTION float d_Q5_K(BYTES block) { return f16_at(block); }
FUNCTION float dmin_Q5_K(BYTES block) { return f16_at(block + 2); }
#define MINS_Q5_K 1

FUNCTION void weights_Q6_K(BYTES block, int j, uint *w) {
    uint high[8];
    two_bits(block + 128, j, high);
    load_words(block + 64 * (j / 4) + 32 * (j % 2), 8, w);
    for (int k = 0; k < 8; k++)
        w[k] = less((w[k] >> (j % 4 / 2 * 4) & 0x0f0f0f0fu) | high[k] << 4, 32);
}
FUNCTION void scales_Q6_K(BYTES block, int j, int *scales) {
    scales[0] = byte_of(block[192 + 2 * j], 0);
    scales[1] = byte_of(block[193 + 2 * j], 0);
}
FUNCTION float d_Q6_K(BYTES block) { return f16_at(block + 208); }
