// Pages of keys and values, as on the CPU (src/kernels/ops/kv.rs): `[kv_heads][PAGE][len]`, of quants the
// scales of the page and then the quants. Pages lie in an arena. A table has, from page `first_page` of a
// sequence on, the place of each page's keys and of its values, in units of UNIT words.

#define UNIT 64
// Types of keys and of values.
#define KV_F32 0
#define KV_F16 1
#define KV_Q8_0 2
#define KV_Q4_0 3
#define IS_QUANTISED(kind) ((kind) >= KV_Q8_0)

// Positions of a panel of quantised keys.
#define PANEL 16
#define HEAD_LANES 64

// `n` values of rows of `kv_heads * len` values, `stride` apart, the first at `first_pos`; `which` is 0
// for keys.
KERNEL(OPS_LANES)
op_store_kv(
    __global const float *xs, ulong x_at, uint stride, __global uint *arena, __global const uint *table,
    uint table_at, uint first_page, uint first_pos, uint n, uint kv_heads, uint len, uint kind,
    uint which) {
    const uint i = (uint)get_group_id(0) * OPS_LANES + (uint)get_local_id(0);
    if (i >= n)
        return;
    const uint d = i % len, head = i / len % kv_heads, token = i / len / kv_heads,
               pos = first_pos + token;
    const float x = xs[x_at + (ulong)token * stride + head * len + d];
    __global uint *page = arena + (ulong)table[table_at + (pos / PAGE - first_page) * 2 + which] * UNIT;
    const uint at = (head * PAGE + pos % PAGE) * len + d;
    if (kind == KV_F16)
        ((__global ushort *)page)[at] = (ushort)f16_bits(x);
    else
        ((__global float *)page)[at] = x;
}

// The quants of a page of rows of `len` elements lie behind the scales.
FUNCTION ulong quants_at(uint kv_heads, uint len) { return (ulong)kv_heads * PAGE * (len / 32) * 2; }

// Multiplies a row by Hadamard matrices of order `rotation`, `by` being one over the root of that; 1:
// none.
FUNCTION void rotate(LOCAL_POINTER float *row, uint len, uint rotation, float by) {
    for (uint step = 1; step < rotation; step *= 2) {
        for (uint i = get_local_id(0); i < len / 2; i += HEAD_LANES) {
            const uint first = i / step * 2 * step + i % step;
            const float a = row[first], b = row[first + step];
            row[first] = a + b;
            row[first + step] = a - b;
        }
        barrier(CLK_LOCAL_MEM_FENCE);
    }
    if (rotation > 1)
        for (uint i = get_local_id(0); i < len; i += HEAD_LANES)
            row[i] = row[i] * by;
    barrier(CLK_LOCAL_MEM_FENCE);
}

FUNCTION void load_row(__global const float *from, LOCAL_POINTER float *row, uint len) {
    for (uint i = get_local_id(0); i < len; i += HEAD_LANES)
        row[i] = from[i];
    barrier(CLK_LOCAL_MEM_FENCE);
}

// One over a scale; 0 where there is none or it overflows.
FUNCTION float inverse(float d) {
    const float id = d != 0.0f ? 1.0f / d : 0.0f;
    return (as_uint(id) & 0x7fffffffu) < 0x7f800000u ? id : 0.0f;
}

// A number's integer part; 0 of NaN.
FUNCTION int whole_of(float v) { return v == v ? (int)v : 0; }

// Rounds 32 values to Q8_0, four quants a word; returns the scale, not yet rounded.
FUNCTION float quantise_q8_0(LOCAL_POINTER const float *x, uint *quants) {
    uint most = 0;
    for (int i = 0; i < 32; i++) {
        const uint size = as_uint(x[i]) & 0x7fffffffu;
        most = size > most ? size : most;
    }
    const float d = as_float(most) / 127.0f, id = inverse(d);
    for (int i = 0; i < 8; i++)
        quants[i] = 0;
    for (int i = 0; i < 32; i++) {
        const float v = x[i] * id, rest = v - (float)whole_of(v);
        const int q = whole_of(v) + (rest >= 0.5f) - (rest <= -0.5f);
        quants[i / 4] |= (uint)(q & 0xff) << (8 * (i % 4));
    }
    return d;
}

// To Q4_0, quants of 0 to 15, a byte each.
FUNCTION float quantise_q4_0(LOCAL_POINTER const float *x, uint *quants) {
    float most = 0.0f;
    for (int i = 0; i < 32; i++)
        most = fabs(x[i]) > fabs(most) ? x[i] : most;
    const float d = most / -8.0f, id = inverse(d);
    for (int i = 0; i < 8; i++)
        quants[i] = 0;
    for (int i = 0; i < 32; i++) {
        const int q = whole_of(x[i] * id + 8.5f);
        quants[i / 4] |= (uint)(q < 0 ? 0 : q > 15 ? 15 : q) << (8 * (i % 4));
    }
    return d;
}

// Rows as in op_store_kv, multiplied by Hadamard matrices and quantised: a group a row of a head.
KERNEL(HEAD_LANES)
op_store_quantised(
    __global const float *xs, ulong x_at, uint stride, __global uint *arena, __global const uint *table,
    uint table_at, uint first_page, uint first_pos, uint kv_heads, uint len, uint kind, uint which,
    uint rotation, float by) {
    __local float row[MOST_KEY_LEN];
    const uint head = get_group_id(0) % kv_heads, token = get_group_id(0) / kv_heads,
               pos = first_pos + token;
    const uint at = pos % PAGE, blocks = len / 32;
    __global uchar *page =
        (__global uchar *)(arena + (ulong)table[table_at + (pos / PAGE - first_page) * 2 + which] * UNIT);
    __global ushort *scales = (__global ushort *)page + head * PAGE * blocks;
    page += quants_at(kv_heads, len) + (ulong)head * PAGE * len / (kind == KV_Q4_0 ? 2 : 1);
    load_row(xs + x_at + (ulong)token * stride + head * len, row, len);
    rotate(row, len, rotation, by);
    for (uint b = get_local_id(0); b < blocks; b += HEAD_LANES) {
        uint quants[8];
        float d;
        if (kind == KV_Q8_0)
            d = quantise_q8_0(row + b * 32, quants);
        else
            d = quantise_q4_0(row + b * 32, quants);
        const uint panel = at / PANEL * blocks + b, in_panel = at % PANEL;
        scales[which == 0 ? panel * PANEL + in_panel : at * blocks + b] = (ushort)f16_bits(d);
        if (kind == KV_Q8_0) {
            __global uint *words = (__global uint *)page;
            for (uint i = 0; i < 8; i++)
                words[which == 0 ? (panel * 8 + i) * PANEL + in_panel : (at * blocks + b) * 8 + i] =
                    quants[i];
        } else if (which == 0) {
            __global uint *words = (__global uint *)page;
            for (uint i = 0; i < 4; i++)
                words[(panel * 4 + i) * PANEL + in_panel] = quants[i] | quants[i + 4] << 4;
        } else if (b / 2 * 2 + 1 == blocks) { // the last alone
            for (uint i = 0; i < 4; i++)
                ((__global uint *)page)[(at * blocks + b) * 4 + i] = quants[i] | quants[i + 4] << 4;
        } else if (b % 2 == 0) {
            // With the next one's quants, which are high.
            uint next[8];
            quantise_q4_0(row + b * 32 + 32, next);
            for (uint i = 0; i < 8; i++)
                ((__global uint *)page)[(at * blocks + b) * 4 + i] = quants[i] | next[i] << 4;
        }
    }
}

// Heads of queries, `len` values each, multiplied by Hadamard matrices and rounded to Q8_0: a group a
// head; nine words a block, of which the last is the scale.
#define QUERY_WORDS 9

KERNEL(HEAD_LANES)
op_round_queries(
    __global const float *xs, ulong x_at, __global uint *to, ulong to_at, uint len, uint rotation,
    float by) {
    __local float row[MOST_KEY_LEN];
    const uint blocks = len / 32;
    load_row(xs + x_at + (ulong)get_group_id(0) * len, row, len);
    rotate(row, len, rotation, by);
    for (uint b = get_local_id(0); b < blocks; b += HEAD_LANES) {
        __global uint *block = to + to_at + ((ulong)get_group_id(0) * blocks + b) * QUERY_WORDS;
        uint quants[8];
        block[8] = as_uint(round_to_f16(quantise_q8_0(row + b * 32, quants)));
        for (int i = 0; i < 8; i++)
            block[i] = quants[i];
    }
}

// Rows of `n` values, each multiplied by a Hadamard matrix.
KERNEL(HEAD_LANES) op_hadamard(__global float *xs, ulong x_at, uint n, float by) {
    __local float row[MOST_KEY_LEN];
    __global float *x = xs + x_at + (ulong)get_group_id(0) * n;
    load_row(x, row, n);
    rotate(row, n, n, by);
    for (uint i = get_local_id(0); i < n; i += HEAD_LANES)
        x[i] = row[i];
}
