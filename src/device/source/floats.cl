// Values of the float formats (src/quant/floats.rs).

FUNCTION float value_F32(BYTES p) { return as_float(word_at_4(p)); }
FUNCTION float value_F16(BYTES p) { return f16_at(p); }
FUNCTION float value_BF16(BYTES p) { return as_float(half_word(p) << 16); }
