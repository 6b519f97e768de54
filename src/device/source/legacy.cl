// Blocks of 32 with one scale (src/quant/legacy.rs). Of each format: `weights_`, the 32 weights of part `p`
// as int8 in eight words; `scale_`, the scale of half part `2 p` or `2 p + 1`; `min_` where it has a min,
// which `MINS_` says. `HALVES_` says that the halves' scales differ.

// 16 bytes of nibbles, the low ones first; and with the fifth bits of `qh`.
FUNCTION void four_bits(BYTES qs, uint *w) {
    load_words(qs, 4, w);
    for (int k = 0; k < 4; k++) {
        w[k + 4] = w[k] >> 4 & 0x0f0f0f0fu;
        w[k] &= 0x0f0f0f0fu;
    }
}
FUNCTION void five_bits(BYTES qs, uint qh, uint *w) {
    four_bits(qs, w);
    for (int k = 0; k < 8; k++)
        w[k] |= spread_bits(qh >> (4 * k)) << 4;
}
// All less `c`.
FUNCTION void all_less(uint c, uint *w) {
    for (int k = 0; k < 8; k++)
        w[k] = less(w[k], c);
}

FUNCTION void weights_Q4_0(BYTES block, int p, uint *w) {
    four_bits(block + 2, w);
    all_less(8, w);
}
FUNCTION float scale_Q4_0(BYTES block, int half_part) { return f16_at(block); }

FUNCTION void weights_Q4_1(BYTES block, int p, uint *w) { four_bits(block + 4, w); }
FUNCTION float scale_Q4_1(BYTES block, int half_part) { return f16_at(block); }
FUNCTION float min_Q4_1(BYTES block) { return f16_at(block + 2); }
#define MINS_Q4_1 1

FUNCTION void weights_Q5_0(BYTES block, int p, uint *w) {
    five_bits(block + 6, word_at_2(block + 2), w);
    all_less(16, w);
}
FUNCTION float scale_Q5_0(BYTES block, int half_part) { return f16_at(block); }

FUNCTION void weights_Q5_1(BYTES block, int p, uint *w) { five_bits(block + 8, word_at_4(block + 4), w); }
FUNCTION float scale_Q5_1(BYTES block, int half_part) { return f16_at(block); }
FUNCTION float min_Q5_1(BYTES block) { return f16_at(block + 2); }
#define MINS_Q5_1 1

FUNCTION void weights_Q8_0(BYTES block, int p, uint *w) { load_words(block + 2, 8, w); }
FUNCTION float scale_Q8_0(BYTES block, int half_part) { return f16_at(block); }
