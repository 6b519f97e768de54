// Blocks of 32 with one scale (src/quant/legacy.rs). Of each format: `weights_`, the 32 weights of part `p`
// as int8 in eight words; `scale_`, the scale of half part `2 p` or `2 p + 1`; `min_` where it has a min,
// which `MINS_` says. `HALVES_` says that the halves' scales differ.

// 16 bytes of nibbles, and the four high bits that go with word `k`.
#define FOUR_BITS(load, qs, k) (load((qs) + 4 * ((k) % 4)) >> ((k) / 4 * 4) & 0x0f0f0f0fu)
#define FIVE_BITS(load, qs, qh, k) (FOUR_BITS(load, qs, k) | spread_bits((qh) >> (4 * (k))) << 4)

FUNCTION void weights_Q4_0(BYTES block, int p, uint *w) {
    for (int k = 0; k < 8; k++)
        w[k] = less(FOUR_BITS(word_at_2, block + 2, k), 8);
}
FUNCTION float scale_Q4_0(BYTES block, int half_part) { return f16_at(block); }

FUNCTION void weights_Q4_1(BYTES block, int p, uint *w) {
    for (int k = 0; k < 8; k++)
        w[k] = FOUR_BITS(word_at_4, block + 4, k);
}
FUNCTION float scale_Q4_1(BYTES block, int half_part) { return f16_at(block); }
FUNCTION float min_Q4_1(BYTES block) { return f16_at(block + 2); }
#define MINS_Q4_1 1

FUNCTION void weights_Q5_0(BYTES block, int p, uint *w) {
    uint qh = word_at_2(block + 2);
    for (int k = 0; k < 8; k++)
        w[k] = less(FIVE_BITS(word_at_2, block + 6, qh, k), 16);
}
FUNCTION float scale_Q5_0(BYTES block, int half_part) { return f16_at(block); }

FUNCTION void weights_Q5_1(BYTES block, int p, uint *w) {
    uint qh = word_at_4(block + 4);
    for (int k = 0; k < 8; k++)
        w[k] = FIVE_BITS(word_at_4, block + 8, qh, k);
}
FUNCTION float scale_Q5_1(BYTES block, int half_part) { return f16_at(block); }
FUNCTION float min_Q5_1(BYTES block) { return f16_at(block + 2); }
#define MINS_Q5_1 1

FUNCTION void weights_Q8_0(BYTES block, int p, uint *w) {
    for (int k = 0; k < 8; k++)
        w[k] = word_at_2(block + 2 + 4 * k);
}
FUNCTION float scale_Q8_0(BYTES block, int half_part) { return f16_at(block); }
