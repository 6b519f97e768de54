// Rounding of activations (src/quant/rounding.rs) to what products read: words of `to` at which integers
// or floats, scales and sums begin. A value that is not finite leaves its index in `flag`, where the
// least stays.

// Lanes, and values of a group.
#define ROUND_LANES 256

#define ROUNDING \
    __global const float *xs, ulong x_at, __global uint *to, uint qs_at, uint d_at, uint sums_at, \
        uint n, __global uint *flag, uint flag_at

// Bits of the greatest magnitude of each `block` lanes: `bits` of the others have it too afterwards.
FUNCTION uint greatest_of_block(uint size, LOCAL_POINTER uint *bits, uint lane, uint block) {
    bits[lane] = size;
    for (uint others = block / 2; others > 0; others /= 2) {
        barrier(CLK_LOCAL_MEM_FENCE);
        if (lane % block < others && bits[lane + others] > bits[lane])
            bits[lane] = bits[lane + others];
    }
    barrier(CLK_LOCAL_MEM_FENCE);
    return bits[lane / block * block];
}

FUNCTION uint flagged_size(float x, uint i, __global uint *flag) {
    const uint size = as_uint(x) & 0x7fffffffu;
    if (size < 0x7f800000u)
        return size;
    atomic_min(flag, i);
    return 0;
}

// C's roundf.
FUNCTION int round_half_away(float v) {
    const int whole = (int)v;
    const float rest = v - (float)whole;
    return whole + (rest >= 0.5f) - (rest <= -0.5f);
}

// Sums of the integers of sixteen lanes.
FUNCTION int sum_of_16(LOCAL_POINTER const int *qs) {
    int sum = 0;
    for (int i = 0; i < 16; i++)
        sum += qs[i];
    return sum;
}

FUNCTION uint word_of(LOCAL_POINTER const int *qs) {
    return (qs[0] & 0xff) | (qs[1] & 0xff) << 8 | (qs[2] & 0xff) << 16 | (uint)(qs[3] & 0xff) << 24;
}

// `n` values, whole blocks of 32; with the sums of Q8_1, or without.
FUNCTION void round_blocks_of_32(
    __global const float *x, __global uint *qs_to, __global float *d_to, __global float *sums_to, uint n,
    __global uint *flag, LOCAL_POINTER uint *bits, LOCAL_POINTER int *qs) {
    const uint lane = get_local_id(0), i = (uint)get_group_id(0) * ROUND_LANES + lane;
    const float value = i < n ? x[i] : 0.0f;
    const uint size = flagged_size(value, i, flag);
    const float d = as_float(greatest_of_block(size, bits, lane, 32)) / 127.0f;
    float id = d != 0.0f ? 1.0f / d : 0.0f;
    if (as_uint(id) >= 0x7f800000u)
        id = 0.0f;
    // What is not finite counts as nothing.
    qs[lane] = size == 0 ? 0 : round_half_away(value * id);
    barrier(CLK_LOCAL_MEM_FENCE);
    if (i >= n)
        return;
    if (lane % 4 == 0)
        qs_to[i / 4] = word_of(qs + lane);
    if (lane % 32 == 0) {
        d_to[i / 32] = round_to_f16(d);
        if (sums_to)
            sums_to[i / 32] = round_to_f16((float)(sum_of_16(qs + lane) + sum_of_16(qs + lane + 16)) * d);
    }
}

KERNEL(ROUND_LANES) op_round_q8_0(ROUNDING) {
    __local uint bits[ROUND_LANES];
    __local int qs[ROUND_LANES];
    round_blocks_of_32(
        xs + x_at, to + qs_at, (__global float *)to + d_at, 0, n, flag + flag_at, bits, qs);
}

KERNEL(ROUND_LANES) op_round_q8_1(ROUNDING) {
    __local uint bits[ROUND_LANES];
    __local int qs[ROUND_LANES];
    __global float *floats = (__global float *)to;
    round_blocks_of_32(
        xs + x_at, to + qs_at, floats + d_at, floats + sums_at, n, flag + flag_at, bits, qs);
}

// A super-block a group.
KERNEL(ROUND_LANES) op_round_q8_k(ROUNDING) {
    __local uint bits[ROUND_LANES];
    __local int qs[ROUND_LANES];
    const uint lane = get_local_id(0), block = get_group_id(0), i = block * ROUND_LANES + lane;
    const float value = xs[x_at + i];
    const uint size = flagged_size(value, i, flag + flag_at);
    const uint most = greatest_of_block(size, bits, lane, ROUND_LANES);
    barrier(CLK_LOCAL_MEM_FENCE);
    // The first of the greatest magnitude: as far from the end as can be.
    const uint first =
        ROUND_LANES - greatest_of_block(size == most ? ROUND_LANES - lane : 0, bits, lane, ROUND_LANES);
    const float iscale = -127.0f / xs[x_at + block * ROUND_LANES + first];
    int q = 0;
    // An infinite scale makes zeros of all, as nearest_int does of what is not finite.
    if (size != 0 && (as_uint(iscale) & 0x7fffffffu) < 0x7f800000u)
        q = (int)(as_uint(iscale * value + MAGIC) & 0x007fffffu) - 0x00400000;
    qs[lane] = q < 127 ? q : 127;
    barrier(CLK_LOCAL_MEM_FENCE);
    if (lane % 4 == 0)
        to[qs_at + i / 4] = word_of(qs + lane);
    if (lane % 32 == 0)
        to[sums_at + i / 32] =
            (sum_of_16(qs + lane) & 0xffff) | (uint)(sum_of_16(qs + lane + 16) & 0xffff) << 16;
    if (lane == 0)
        ((__global float *)to)[d_at + block] = most == 0 ? 0.0f : 1.0f / iscale;
}

KERNEL(ROUND_LANES) op_round_f32(ROUNDING) {
    const uint i = (uint)get_group_id(0) * ROUND_LANES + (uint)get_local_id(0);
    if (i < n)
        ((__global float *)to)[qs_at + i] = xs[x_at + i];
}

KERNEL(ROUND_LANES) op_round_f16(ROUNDING) {
    const uint i = (uint)get_group_id(0) * ROUND_LANES + (uint)get_local_id(0);
    if (i < n)
        ((__global float *)to)[qs_at + i] = round_to_f16(xs[x_at + i]);
}

KERNEL(ROUND_LANES) op_round_bf16(ROUNDING) {
    const uint i = (uint)get_group_id(0) * ROUND_LANES + (uint)get_local_id(0);
    if (i < n)
        ((__global float *)to)[qs_at + i] = round_to_bf16(xs[x_at + i]);
}
