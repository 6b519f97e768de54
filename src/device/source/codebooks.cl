// Formats whose nibbles are places in a table of sixteen values (src/quant/codebooks.rs); IQ4_XS's functions
// as in kquants.cl, the others' as in legacy.cl. The tables are four words each.

#define IQ4_OF(nibbles) values_of_16((nibbles) & 0x0f0f0f0fu, IQ4_VALUES)
#define FP4_OF(nibbles) values_of_16((nibbles) & 0x0f0f0f0fu, FP4_VALUES)

FUNCTION void weights_IQ4_NL(BYTES block, int p, uint *w) {
    for (int k = 0; k < 4; k++) {
        uint qs = word_at_2(block + 2 + 4 * k);
        w[k] = IQ4_OF(qs);
        w[k + 4] = IQ4_OF(qs >> 4);
    }
}
FUNCTION float scale_IQ4_NL(BYTES block, int half_part) { return f16_at(block); }

FUNCTION void weights_IQ4_XS(BYTES block, int j, uint *w) {
    for (int k = 0; k < 4; k++) {
        uint qs = word_at_4(block + 8 + 16 * j + 4 * k);
        w[k] = IQ4_OF(qs);
        w[k + 4] = IQ4_OF(qs >> 4);
    }
}
FUNCTION void scales_IQ4_XS(BYTES block, int j, int *scales) {
    int low = block[4 + j / 2] >> (j % 2 * 4) & 15, high = half_word(block + 2) >> (2 * j) & 3u;
    scales[0] = scales[1] = (low | high << 4) - 32;
}
FUNCTION float d_IQ4_XS(BYTES block) { return f16_at(block); }

FUNCTION void weights_MXFP4(BYTES block, int p, uint *w) {
    for (int k = 0; k < 4; k++) {
        uint qs = word_at_1(block + 1 + 4 * k);
        w[k] = FP4_OF(qs);
        w[k + 4] = FP4_OF(qs >> 4);
    }
}
FUNCTION float scale_MXFP4(BYTES block, int half_part) {
    uint e = block[0];
    return as_float(e < 2 ? 0x00200000u << e : (e - 1) << 23);
}

FUNCTION void weights_NVFP4(BYTES block, int p, uint *w) {
    for (int k = 0; k < 8; k++)
        w[k] = FP4_OF(word_at_4(block + 4 + 16 * p + k / 4 * 8 + k % 2 * 4) >> (k % 4 / 2 * 4));
}
// A float of 4 + 3 bits without a sign, halved.
FUNCTION float scale_NVFP4(BYTES block, int half_part) {
    uint bits = block[half_part], exponent = bits >> 3 & 15u, mantissa = bits & 7u;
    if (bits == 0x7fu)
        return 0.0f;
    return exponent == 0 ? (float)mantissa * as_float(0x3a800000u) // units of 2^-10
                         : as_float((exponent + 119) << 23 | mantissa << 20);
}
#define HALVES_NVFP4 1
