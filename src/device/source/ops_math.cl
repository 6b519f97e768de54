// exp, tanh and what is made of them, of one value: the operations of src/kernels/ops/math.rs in their
// order.

// The second where either is NaN.
FUNCTION float min_of(float a, float b) { return a < b ? a : b; }
FUNCTION float max_of(float a, float b) { return a > b ? a : b; }

// 1.5 * 2^23: added to a small number, it leaves the nearest integer in the low bits.
#define MAGIC 12582912.0f
#define MINUS_INFINITY as_float(0xff800000u)
#define NEGATED(x) (-0.0f - (x))

FUNCTION float power_of_2(int n) { return as_float(((uint)n + 127u) << 23); }

// `x * 2^n`, n held as MAGIC + n; in two steps, so that it overflows and underflows by itself.
FUNCTION float scale_by_power(float x, float held) {
    const int n = (int)(as_uint(held) - as_uint(MAGIC)), first = n >> 1;
    return x * power_of_2(first) * power_of_2((int)((uint)n - (uint)first));
}

// p with `exp(x) = (1 + p) * 2^n`, and n, held as MAGIC + n.
FUNCTION float exp_parts(float x, float *held) {
    const float biased = fma(x, 1.44269504f, MAGIC), n = biased - MAGIC;
    const float r = fma(n, 1.9046542e-9f, fma(n, -0.693147182f, x));
    float p = fma(1.381432e-3f, r, 8.368851e-3f);
    p = fma(p, r, 4.16684e-2f);
    p = fma(p, r, 1.666652e-1f);
    p = fma(p, r, 4.9999994e-1f);
    *held = biased;
    return fma(p, r * r, r);
}

FUNCTION float exp_of(float x) {
    float held;
    const float p = exp_parts(max_of(-104.0f, min_of(89.0f, x)), &held);
    return scale_by_power(p + 1.0f, held);
}

FUNCTION float tanh_of(float x) {
    float held;
    const float bounded = max_of(-10.0f, min_of(10.0f, x));
    const float p = exp_parts(bounded + bounded, &held), power = scale_by_power(1.0f, held);
    const float e = fma(p, power, power - 1.0f);
    return e / (e + 2.0f);
}

FUNCTION float softplus_of(float x) {
    const float z = exp_of(min_of(NEGATED(x), x)), s = z / (z + 2.0f), square = s * s;
    float series = fma(1.0f / 15.0f, square, 1.0f / 13.0f);
    series = fma(series, square, 1.0f / 11.0f);
    series = fma(series, square, 1.0f / 9.0f);
    series = fma(series, square, 1.0f / 7.0f);
    series = fma(series, square, 1.0f / 5.0f);
    series = fma(series, square, 1.0f / 3.0f);
    const float one = fma(series, square * s, s);
    return max_of(0.0f, x) + (one + one);
}

FUNCTION float silu_of(float x) { return x / (1.0f + exp_of(NEGATED(x))); }
FUNCTION float sigmoid_of(float x) { return 1.0f / (1.0f + exp_of(NEGATED(x))); }
FUNCTION float clamp_of(float x, float limit) { return min_of(limit, max_of(-limit, x)); }
FUNCTION float relu_squared_of(float x) { return max_of(0.0f, x) * max_of(0.0f, x); }
FUNCTION float soft_cap_of(float x, float by, float cap) { return tanh_of(x * by) * cap; }

FUNCTION float swiglu_oai_of(float gate, float up, float alpha, float limit) {
    const float x = min_of(limit, gate);
    return x / (1.0f + exp_of(alpha * NEGATED(x))) * (clamp_of(up, limit) + 1.0f);
}

// Bits of the nearest f16, ties to even; what is subnormal there is kept.
FUNCTION uint f16_bits(float x) {
    const uint bits = as_uint(x), sign = bits >> 16 & 0x8000u, size = bits & 0x7fffffffu;
    if (size > 0x7f800000u)
        return sign | 0x7e00u;
    if (size >= 0x477ff000u) // 65520
        return sign | 0x7c00u;
    if (size < 0x38800000u) // 2^-14: beside 0.5, steps are of 2^-24
        return sign | (as_uint(as_float(size) + 0.5f) - 0x3f000000u);
    return sign | ((size - 0x38000000u + 0xfffu + (size >> 13 & 1u)) >> 13);
}
FUNCTION float round_to_f16(float x) { return f16_value(f16_bits(x)); }

// The nearest bf16, ties to even.
FUNCTION float round_to_bf16(float x) {
    const uint bits = as_uint(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u)
        return x;
    return as_float((bits + 0x7fffu + (bits >> 16 & 1u)) & 0xffff0000u);
}

// By the table of kernels/ops/gelu.rs: f16 by the bits of f16.
FUNCTION float gelu_of(float x, __global const ushort *table) {
    if (x <= -10.0f)
        return 0.0f;
    return x >= 10.0f ? x : f16_value(table[f16_bits(x)]);
}

// The order in which sixteen lanes are added that one lane has.
FUNCTION float sum16(const float *l) {
    return (((l[0] + l[8]) + (l[4] + l[12])) + ((l[2] + l[10]) + (l[6] + l[14])))
           + (((l[1] + l[9]) + (l[5] + l[13])) + ((l[3] + l[11]) + (l[7] + l[15])));
}
