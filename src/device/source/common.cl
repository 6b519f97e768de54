// What all kernels share. The language is OpenCL C 1.2, without vectors, images or extensions, so that CUDA's
// compiler takes the same text.
//
// Results are the scalar code's to the last bit: integers in any order, floats in the one order that src/quant
// defines, a product of scales rounded before it is used, and nothing contracted but what fma() says.

#ifndef __CUDACC_RTC__
#pragma OPENCL FP_CONTRACT OFF
#endif

// Program-scope tables; CUDA's constant memory is slow where lanes want different places.
#ifdef __CUDACC_RTC__
#define TABLE static __device__ const
#define FUNCTION static __device__ __forceinline__
#else
#define TABLE __constant
#define FUNCTION static inline
#endif

#define BYTES __global const uchar *

#define JOIN_TEXT(a, b) a##_##b
#define JOIN(a, b) JOIN_TEXT(a, b)

// Bytes of int8 of two words, multiplied and added to a sum.
#if defined(__CUDACC_RTC__)
#define DOT4(a, b, sum) __dp4a((int)(a), (int)(b), (sum))
#elif defined(__opencl_c_integer_dot_product_input_4x8bit_packed)
#define DOT4(a, b, sum) (dot_4x8packed_ss_int((a), (b)) + (sum))
#else
FUNCTION int byte_of(uint word, int i) { return (int)(word << (24 - 8 * i)) >> 24; }
FUNCTION int dot4(uint a, uint b, int sum) {
    return sum + byte_of(a, 0) * byte_of(b, 0) + byte_of(a, 1) * byte_of(b, 1)
        + byte_of(a, 2) * byte_of(b, 2) + byte_of(a, 3) * byte_of(b, 3);
}
#define DOT4(a, b, sum) dot4((a), (b), (sum))
#endif

// Little-endian words from bytes that are aligned to 4, to 2 or not at all.
FUNCTION uint half_word(BYTES p) { return *(__global const ushort *)p; }
FUNCTION uint word_at_4(BYTES p) { return *(__global const uint *)p; }
FUNCTION uint word_at_2(BYTES p) { return half_word(p) | half_word(p + 2) << 16; }
FUNCTION uint word_at_1(BYTES p) { return p[0] | (uint)p[1] << 8 | (uint)p[2] << 16 | (uint)p[3] << 24; }

// An f16's value, subnormals and infinities included.
FUNCTION float f16_value(uint bits) {
    uint sign = (bits & 0x8000u) << 16, exponent = bits >> 10 & 31u, mantissa = bits & 0x3ffu;
    if (exponent == 0)
        return as_float(sign | as_uint((float)mantissa * as_float(0x33800000u))); // units of 2^-24
    return as_float(sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | mantissa << 13);
}
FUNCTION float f16_at(BYTES p) { return f16_value(half_word(p)); }

// Bytes of 0 to 127 less `c`, 1 to 128.
FUNCTION uint less(uint bytes, uint c) { return (bytes + (0x80u - c) * 0x01010101u) ^ 0x80808080u; }

// Sums of bytes, each on its own.
FUNCTION uint add_bytes(uint a, uint b) {
    return ((a & 0x7f7f7f7fu) + (b & 0x7f7f7f7fu)) ^ ((a ^ b) & 0x80808080u);
}

// The lowest four bits, a byte each.
FUNCTION uint spread_bits(uint bits) { return ((bits & 15u) * 0x00204081u) & 0x01010101u; }

// Four values of a table of sixteen, which is given as four words, by places in the bytes of `nibbles`.
FUNCTION uint value_of_16(uint i, uint a, uint b, uint c, uint d) {
    uint word = i & 8u ? (i & 4u ? d : c) : (i & 4u ? b : a);
    return word >> (8 * (i & 3u)) & 0xffu;
}
FUNCTION uint values_of_16(uint nibbles, uint a, uint b, uint c, uint d) {
    return value_of_16(nibbles & 15u, a, b, c, d) | value_of_16(nibbles >> 8 & 15u, a, b, c, d) << 8
        | value_of_16(nibbles >> 16 & 15u, a, b, c, d) << 16 | value_of_16(nibbles >> 24 & 15u, a, b, c, d) << 24;
}

// The orders in which eight and sixteen lanes are added (tree8 and tree16 of src/quant).
FUNCTION float tree8(__local const float *l) {
    return ((l[0] + l[4]) + (l[2] + l[6])) + ((l[1] + l[5]) + (l[3] + l[7]));
}
FUNCTION float tree16(__local const float *l) {
    return (((l[0] + l[8]) + (l[4] + l[12])) + ((l[2] + l[10]) + (l[6] + l[14])))
        + (((l[1] + l[9]) + (l[5] + l[13])) + ((l[3] + l[11]) + (l[7] + l[15])));
}
