// The ternary formats (src/quant/ternary.rs); the functions of a format as in kquants.cl.

// Digit `n` of each byte, less 1.
FUNCTION uint digits(uint bytes, int n) {
    uint power = n == 0 ? 1u : n == 1 ? 3u : n == 2 ? 9u : n == 3 ? 27u : 81u;
    uint even = (((bytes & 0x00ff00ffu) * power & 0x00ff00ffu) * 3u) >> 8 & 0x00ff00ffu;
    uint odd = (((bytes >> 8 & 0x00ff00ffu) * power & 0x00ff00ffu) * 3u) >> 8 & 0x00ff00ffu;
    return less(even | odd << 8, 1);
}
// Weights 0-159 are in 32 bytes, 160-239 in 16, the last 16 in four.
FUNCTION void weights_TQ1_0(BYTES block, int j, uint *w) {
    for (int k = 0; k < 8; k++) {
        int at = j < 5 ? 4 * k : j < 7 || k < 4 ? 32 + k % 4 * 4 : 48;
        int n = j < 5 ? j : j < 7 ? 2 * (j - 5) + k / 4 : k < 4 ? 4 : k - 4;
        w[k] = digits(word_at_2(block + at), n);
    }
}
FUNCTION void scales_TQ1_0(BYTES block, int j, int *scales) { scales[0] = scales[1] = 1; }
FUNCTION float d_TQ1_0(BYTES block) { return f16_at(block + 52); }

FUNCTION void weights_TQ2_0(BYTES block, int j, uint *w) {
    two_bits(block, j, w);
    for (int k = 0; k < 8; k++)
        w[k] = less(w[k], 1);
}
FUNCTION void scales_TQ2_0(BYTES block, int j, int *scales) { scales[0] = scales[1] = 1; }
FUNCTION float d_TQ2_0(BYTES block) { return f16_at(block + 64); }
