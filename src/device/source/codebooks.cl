// Formats whose nibbles are places in a table of sixteen values (src/quant/codebooks.rs); IQ4_XS's functions
// as in kquants.cl, the others' as in legacy.cl. The tables are four words each.

// 16 bytes of nibbles, the low ones first.
#define CODES_OF_16(name, values)                                                                         \
    FUNCTION void name(BYTES qs, uint *w) {                                                               \
        load_words(qs, 4, w);                                                                             \
        for (int k = 0; k < 4; k++) {                                                                     \
            w[k + 4] = values_of_16(w[k] >> 4 & 0x0f0f0f0fu, values);                                     \
            w[k] = values_of_16(w[k] & 0x0f0f0f0fu, values);                                              \
        }                                                                                                 \
    }
CODES_OF_16(iq4_values, IQ4_VALUES)
CODES_OF_16(fp4_values, FP4_VALUES)

FUNCTION void weights_IQ4_NL(BYTES block, int p, uint *w) { iq4_values(block + 2, w); }
FUNCTION float scale_IQ4_NL(BYTES block, int half_part) { return f16_at(block); }

FUNCTION void weights_IQ4_XS(BYTES block, int j, uint *w) { iq4_values(block + 8 + 16 * j, w); }
FUNCTION void scales_IQ4_XS(BYTES block, int j, int *scales) {
    int low = block[4 + j / 2] >> (j % 2 * 4) & 15, high = half_word(block + 2) >> (2 * j) & 3u;
    scales[0] = scales[1] = (low | high << 4) - 32;
}
FUNCTION float d_IQ4_XS(BYTES block) { return f16_at(block); }

FUNCTION void weights_MXFP4(BYTES block, int p, uint *w) { fp4_values(block + 1, w); }
FUNCTION float scale_MXFP4(BYTES block, int half_part) {
    uint e = block[0];
    return as_float(e < 2 ? 0x00200000u << e : (e - 1) << 23);
}

FUNCTION void weights_NVFP4(BYTES block, int p, uint *w) {
    uint qs[4];
    load_words(block + 4 + 16 * p, 4, qs);
    for (int k = 0; k < 8; k++)
        w[k] = values_of_16(qs[k / 4 * 2 + k % 2] >> (k % 4 / 2 * 4) & 0x0f0f0f0fu, FP4_VALUES);
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
