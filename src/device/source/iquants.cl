// The IQ formats of 1 to 3 bits (src/quant/iquants.rs); the functions of a format as in kquants.cl. The grids
// are tables of words, two for a point of eight weights; signs are applied to bytes that are not 0.

// Words 2 l and 2 l + 1: a point of eight weights, or two of four, with eight signs.
FUNCTION uint signed_bytes(uint bytes, uint signs) {
    return (bytes ^ spread_bits(signs) * 0xffu) + spread_bits(signs);
}
FUNCTION void signed_point(uint *w, int l, uint low, uint high, uint signs) {
    w[2 * l] = signed_bytes(low, signs);
    w[2 * l + 1] = signed_bytes(high, signs >> 4);
}

// Seven signs and an eighth that makes their number even.
FUNCTION uint even_signs(uint seven) {
    uint odd = seven ^ seven >> 4;
    odd ^= odd >> 2;
    return seven | ((odd ^ odd >> 1) & 1u) << 7;
}
// Scale `g` of nibbles, the even ones low, as an odd integer.
FUNCTION int odd_nibble(BYTES scales, int g) { return 2 * (scales[g / 2] >> (4 * (g % 2)) & 15) + 1; }

FUNCTION void weights_IQ2_XXS(BYTES block, int j, uint *w) {
    BYTES qs = block + 2 + 8 * j;
    uint signs = word_at_2(qs + 4);
    for (int l = 0; l < 4; l++) {
        uint s = even_signs(signs >> (7 * l) & 127u);
        uint point = qs[l];
        signed_point(w, l, iq2_xxs_grid[2 * point], iq2_xxs_grid[2 * point + 1], s);
    }
}
FUNCTION void scales_IQ2_XXS(BYTES block, int j, int *scales) {
    scales[0] = scales[1] = 2 * (block[9 + 8 * j] >> 4) + 1;
}
FUNCTION float d_IQ2_XXS(BYTES block) { return f16_at(block) * 0.125f; }

FUNCTION void weights_IQ2_XS(BYTES block, int j, uint *w) {
    for (int l = 0; l < 4; l++) {
        uint word = half_word(block + 2 + 8 * j + 2 * l), point = word & 511u;
        signed_point(w, l, iq2_xs_grid[2 * point], iq2_xs_grid[2 * point + 1], even_signs(word >> 9));
    }
}
FUNCTION void scales_IQ2_XS(BYTES block, int j, int *scales) {
    scales[0] = odd_nibble(block + 66, 2 * j);
    scales[1] = odd_nibble(block + 66, 2 * j + 1);
}
FUNCTION float d_IQ2_XS(BYTES block) { return f16_at(block) * 0.125f; }

FUNCTION void weights_IQ2_S(BYTES block, int j, uint *w) {
    uint high = (uint)block[66 + j] << 8;
    for (int l = 0; l < 4; l++) {
        uint point = block[2 + 4 * j + l] | (high >> (2 * l) & 0x300u), s = block[34 + 4 * j + l];
        signed_point(w, l, iq2_s_grid[2 * point], iq2_s_grid[2 * point + 1], s);
    }
}
FUNCTION void scales_IQ2_S(BYTES block, int j, int *scales) {
    scales[0] = odd_nibble(block + 74, 2 * j);
    scales[1] = odd_nibble(block + 74, 2 * j + 1);
}
FUNCTION float d_IQ2_S(BYTES block) { return f16_at(block) * 0.125f; }

FUNCTION void weights_IQ3_XXS(BYTES block, int j, uint *w) {
    BYTES qs = block + 2 + 8 * j;
    uint signs = word_at_2(block + 66 + 4 * j);
    for (int l = 0; l < 4; l++) {
        uint s = even_signs(signs >> (7 * l) & 127u);
        signed_point(w, l, iq3_xxs_grid[qs[2 * l]], iq3_xxs_grid[qs[2 * l + 1]], s);
    }
}
FUNCTION void scales_IQ3_XXS(BYTES block, int j, int *scales) {
    scales[0] = scales[1] = 2 * (block[69 + 4 * j] >> 4) + 1;
}
FUNCTION float d_IQ3_XXS(BYTES block) { return f16_at(block) * 0.25f; }

FUNCTION void weights_IQ3_S(BYTES block, int j, uint *w) {
    BYTES qs = block + 2 + 8 * j;
    uint high = (uint)block[66 + j] << 8;
    for (int l = 0; l < 4; l++) {
        uint first = qs[2 * l] | (high >> (2 * l) & 0x100u);
        uint second = qs[2 * l + 1] | (high >> (2 * l + 1) & 0x100u), s = block[74 + 4 * j + l];
        signed_point(w, l, iq3_s_grid[first], iq3_s_grid[second], s);
    }
}
FUNCTION void scales_IQ3_S(BYTES block, int j, int *scales) {
    scales[0] = scales[1] = odd_nibble(block + 106, j);
}
FUNCTION float d_IQ3_S(BYTES block) { return f16_at(block); }

// Words 2 l and 2 l + 1: digits 8, 0 or -8 and then one more or one less.
FUNCTION void shifted_point(uint *w, int l, uint point, uint minus) {
    uint shift = minus ? 0xf7f7f7f7u : 0xf9f9f9f9u;
    w[2 * l] = add_bytes(iq1_grid[2 * point], shift);
    w[2 * l + 1] = add_bytes(iq1_grid[2 * point + 1], shift);
}

FUNCTION void weights_IQ1_S(BYTES block, int j, uint *w) {
    uint word = half_word(block + 34 + 2 * j);
    for (int l = 0; l < 4; l++) {
        uint point = block[2 + 4 * j + l] | (word << 8 >> (3 * l) & 0x700u);
        shifted_point(w, l, point, word >> 15);
    }
}
FUNCTION void scales_IQ1_S(BYTES block, int j, int *scales) {
    scales[0] = scales[1] = 2 * (block[35 + 2 * j] >> 4 & 7) + 1;
}
FUNCTION float d_IQ1_S(BYTES block) { return f16_at(block) * 0.125f; }

FUNCTION void weights_IQ1_M(BYTES block, int j, uint *w) {
    uint nibbles = half_word(block + 32 + 2 * j);
    for (int l = 0; l < 4; l++) {
        uint point = block[4 * j + l] | (nibbles << 8 >> (4 * l) & 0x700u);
        shifted_point(w, l, point, nibbles >> (4 * l + 3) & 1u);
    }
}
FUNCTION int scale_IQ1_M(BYTES scales, int g) {
    return 2 * (int)(half_word(scales + g / 4 * 2) >> (3 * (g % 4)) & 7u) + 1;
}
FUNCTION void scales_IQ1_M(BYTES block, int j, int *scales) {
    scales[0] = scale_IQ1_M(block + 48, 2 * j);
    scales[1] = scale_IQ1_M(block + 48, 2 * j + 1);
}
FUNCTION float d_IQ1_M(BYTES block) {
    uint bits = 0;
    for (int i = 0; i < 4; i++)
        bits |= half_word(block + 48 + 2 * i) >> 12 << (4 * i);
    return f16_value(bits) * 0.125f;
}
