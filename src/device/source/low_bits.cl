// Blocks of one or two bits a weight (src/quant/low_bits.rs); the functions of a format as in legacy.cl.

FUNCTION void weights_Q1_0(BYTES block, int p, uint *w) {
    uint bits = word_at_2(block + 2 + 4 * p);
    for (int k = 0; k < 8; k++)
        w[k] = less(spread_bits(bits >> (4 * k)) << 1, 1);
}
FUNCTION float scale_Q1_0(BYTES block, int half_part) { return f16_at(block); }

FUNCTION void weights_Q2_0(BYTES block, int p, uint *w) {
    for (int k = 0; k < 8; k++) {
        uint q = block[2 + 8 * p + k];
        w[k] = less((q & 3u) | (q >> 2 & 3u) << 8 | (q >> 4 & 3u) << 16 | q >> 6 << 24, 1);
    }
}
FUNCTION float scale_Q2_0(BYTES block, int half_part) { return f16_at(block); }
