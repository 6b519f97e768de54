// What all kernels share. The language is OpenCL C 1.2 with few of its functions, so that CUDA's compiler
// takes the same text.
//
// Results are the scalar code's to the last bit: integers in any order, floats in the one order that
// src/quant defines, a product of scales rounded before it is used, and nothing contracted but by fma().

#ifndef __CUDACC_RTC__
#pragma OPENCL FP_CONTRACT OFF
#endif

// Program-scope tables; CUDA's constant memory is slow where lanes want different places.
#ifdef __CUDACC_RTC__
#define TABLE static __device__ const
#define FUNCTION static __device__ __forceinline__
#define KERNEL(lanes) extern "C" __global__ void __launch_bounds__(lanes)
#else
#define LOCAL_POINTER __local
#define TABLE __constant
#define FUNCTION static inline
#define KERNEL(lanes) __kernel __attribute__((reqd_work_group_size(lanes, 1, 1))) void
#endif

#define BYTES __global const uchar *

// `name` for the format that a template of kernels is made for.
#define JOIN_TEXT(a, b) a##b
#define JOIN(a, b) JOIN_TEXT(a, b)
#define OF_FORMAT(name) JOIN(name##_, FORMAT)

// Parameters of all products: `rows` rows of weights of `cols` elements from byte `matrix_at` on; activations
// of `tokens` tokens, whose integers (or floats), scales and sums begin at these words of `inputs`; outputs
// from value `out_at` on, `out_stride` values a token.
#define PRODUCT                                                                                           \
    BYTES restrict matrix, ulong matrix_at, __global const uint *restrict inputs, uint qs_at, uint d_at,  \
        uint sums_at, __global float *restrict outputs, uint out_at, uint out_stride, uint rows,          \
        uint tokens, uint cols
// Parameters of all decodings: `parts` blocks of 32 elements, or elements of types without blocks.
#define DECODING BYTES restrict matrix, ulong matrix_at, __global float *restrict outputs, uint parts

// A few tokens: a group of lanes has DOT_ROWS rows of weights and up to DOT_TOKENS tokens. In local memory
// there is room for as many (row, token, part of 32) as ROOM says.
#define DOT_LANES 64
#define DOT_ROWS 4
#define DOT_TOKENS 8
#define ROOM 1024
// Many tokens: each lane has 4 x 4 outputs.
#define TILE_LANES 256
#define DECODE_LANES 64

FUNCTION uint least(uint a, uint b) { return a < b ? a : b; }

FUNCTION int byte_of(uint word, int i) { return (int)(word << (24 - 8 * i)) >> 24; }

// Bytes of int8 of two words, multiplied and added to a sum.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 610
#define DOT4(a, b, sum) __dp4a((int)(a), (int)(b), (sum))
#elif defined(__opencl_c_integer_dot_product_input_4x8bit_packed)
#define DOT4(a, b, sum) (dot_4x8packed_ss_int((a), (b)) + (sum))
#else
FUNCTION int dot4(uint a, uint b, int sum) {
    return sum + byte_of(a, 0) * byte_of(b, 0) + byte_of(a, 1) * byte_of(b, 1)
        + byte_of(a, 2) * byte_of(b, 2) + byte_of(a, 3) * byte_of(b, 3);
}
#define DOT4(a, b, sum) dot4((a), (b), (sum))
#endif

// Little-endian words from bytes that are aligned to 4 or to 2.
FUNCTION uint half_word(BYTES p) { return *(__global const ushort *)p; }
FUNCTION uint word_at_4(BYTES p) { return *(__global const uint *)p; }
FUNCTION uint word_at_2(BYTES p) { return half_word(p) | half_word(p + 2) << 16; }

// `n` words from anywhere, by loads of aligned words that have at least one byte of them.
FUNCTION void load_words(BYTES p, int n, uint *w) {
    const uint skew = (uint)(ulong)p & 3u, shift = 8 * skew;
    __global const uint *words = (__global const uint *)(p - skew);
    uint low = words[0];
    for (int k = 0; k < n; k++) {
        const uint high = words[k + 1 < n || skew != 0 ? k + 1 : k];
        w[k] = low >> shift | high << 1 << (31 - shift);
        low = high;
    }
}

// 32 bytes that are aligned to 16.
FUNCTION void load_32(__global const void *from, uint *to) {
    uint4 a = ((__global const uint4 *)from)[0], b = ((__global const uint4 *)from)[1];
    to[0] = a.x, to[1] = a.y, to[2] = a.z, to[3] = a.w;
    to[4] = b.x, to[5] = b.y, to[6] = b.z, to[7] = b.w;
}

// An f16's value, subnormals and infinities included.
FUNCTION float f16_value(uint bits) {
#ifdef __CUDACC_RTC__
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"((ushort)bits));
    return value;
#else
    uint sign = (bits & 0x8000u) << 16, exponent = bits >> 10 & 31u, mantissa = bits & 0x3ffu;
    if (exponent == 0)
        return as_float(sign | as_uint((float)mantissa * as_float(0x33800000u))); // units of 2^-24
    return as_float(sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | mantissa << 13);
#endif
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
#ifdef __CUDACC_RTC__
FUNCTION uint values_of_16(uint nibbles, uint a, uint b, uint c, uint d) {
    // Places in eight bytes, a nibble each, as __byte_perm wants them; the fourth bit says which eight.
    const uint pairs = (nibbles | nibbles >> 4) & 0x00ff00ffu, places = (pairs | pairs >> 8) & 0x7777u;
    const uint upper = (nibbles >> 3 & 0x01010101u) * 0xffu;
    return (__byte_perm(a, b, places) & ~upper) | (__byte_perm(c, d, places) & upper);
}
#else
FUNCTION uint value_of_16(uint i, uint a, uint b, uint c, uint d) {
    uint word = i & 8u ? (i & 4u ? d : c) : (i & 4u ? b : a);
    return word >> (8 * (i & 3u)) & 0xffu;
}
FUNCTION uint values_of_16(uint nibbles, uint a, uint b, uint c, uint d) {
    return value_of_16(nibbles & 15u, a, b, c, d) | value_of_16(nibbles >> 8 & 15u, a, b, c, d) << 8
        | value_of_16(nibbles >> 16 & 15u, a, b, c, d) << 16
        | value_of_16(nibbles >> 24 & 15u, a, b, c, d) << 24;
}
#endif

// The orders in which eight and sixteen lanes are added (tree8 and tree16 of src/quant).
FUNCTION float tree8(LOCAL_POINTER const float *l) {
    return ((l[0] + l[4]) + (l[2] + l[6])) + ((l[1] + l[5]) + (l[3] + l[7]));
}
FUNCTION float tree16(LOCAL_POINTER const float *l) {
    return (((l[0] + l[8]) + (l[4] + l[12])) + ((l[2] + l[10]) + (l[6] + l[14])))
        + (((l[1] + l[9]) + (l[5] + l[13])) + ((l[3] + l[11]) + (l[7] + l[15])));
}
