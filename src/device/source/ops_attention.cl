// Attention over pages of keys and values: the definition is in src/kernels/ops/attention/mod.rs.

// Lanes of an attending group: each scores one position of a chunk.
#define ATTEND_LANES PAGE
// Rows (tokens and heads of a KV head) that a group takes together; 32 lanes for each.
#define ATTEND_ROWS (ATTEND_LANES / 32)
#define COMBINE_LANES 64

// What tokens see, and which chunks are taken: `splits` is that of groups that share a row's chunks.
#define SEEING \
    uint first_pos, uint tokens, uint heads, uint is_sliding, uint window, uint first_chunk, uint splits

// What beside its values a part has: the state of a merge.
#define STATE 3

FUNCTION uint first_seen(uint pos, uint is_sliding, uint window) {
    if (window == 0)
        return 0;
    if (is_sliding)
        return pos + 1 > window ? pos + 1 - window : 0;
    return pos / window * window;
}

// Sixteen keys from `at` on, as far as there are `len`, the others zero.
FUNCTION void load_keys(__global const uint *page, uint kind, uint at, uint len, float *to) {
    if (kind == KV_F32) {
        for (uint i = 0; i < 16; i++)
            to[i] = i < len ? ((__global const float *)page)[at + i] : 0.0f;
    } else if (len >= 16 && at % 8 == 0) {
        for (uint part = 0; part < 2; part++) {
            const uint4 w = ((__global const uint4 *)page)[at / 8 + part];
            float *eight = to + 8 * part;
            eight[0] = f16_value(w.x & 0xffffu), eight[1] = f16_value(w.x >> 16);
            eight[2] = f16_value(w.y & 0xffffu), eight[3] = f16_value(w.y >> 16);
            eight[4] = f16_value(w.z & 0xffffu), eight[5] = f16_value(w.z >> 16);
            eight[6] = f16_value(w.w & 0xffffu), eight[7] = f16_value(w.w >> 16);
        }
    } else {
        for (uint i = 0; i < 16; i++)
            to[i] = i < len ? f16_value(((__global const ushort *)page)[at + i]) : 0.0f;
    }
}

// Dots of a position's keys, which begin at `at`, with the queries of some rows, `[row][padded]`. Zeros
// behind the end would change no more than a zero's sign.
FUNCTION void dots_of_floats(
    __global const uint *page, uint kind, uint at, uint len, LOCAL_POINTER const uint *q, uint padded,
    uint n_rows, float *dots) {
    float acc[ATTEND_ROWS][16];
    for (uint r = 0; r < ATTEND_ROWS; r++)
        for (uint i = 0; i < 16; i++)
            acc[r][i] = 0.0f;
    for (uint u = 0; u < len; u += 16) {
        float k[16];
        load_keys(page, kind, at + u, len - u, k);
        for (uint r = 0; r < ATTEND_ROWS; r++) {
            // Rows that there are not are as the last.
            LOCAL_POINTER const uint *query = q + least(r, n_rows - 1) * padded + u;
            for (uint i = 0; i < 16; i++)
                acc[r][i] = fma(as_float(query[i]), k[i], acc[r][i]);
        }
    }
    for (uint r = 0; r < ATTEND_ROWS; r++)
        dots[r] = sum16(acc[r]);
}

// Dots of a position's quantised keys with the queries of some rows, `[row][block][QUERY_WORDS]`.
FUNCTION void dots_of_quants(
    __global const uint *page, uint kind, uint kv_heads, uint head, uint position, uint len,
    LOCAL_POINTER const uint *q, uint n_rows, float *dots) {
    const uint blocks = len / 32, in_panel = position % PANEL;
    __global const ushort *scales = (__global const ushort *)page + head * PAGE * blocks;
    __global const uint *words = page + quants_at(kv_heads, len) / 4;
    for (uint b = 0; b < blocks; b++) {
        const uint panel = position / PANEL * blocks + b;
        const float d = f16_value(scales[panel * PANEL + in_panel]);
        uint k[8], less_each = 0;
        if (kind == KV_Q8_0) {
            for (uint i = 0; i < 8; i++)
                k[i] = words[(ulong)head * PAGE * blocks * 8 + (panel * 8 + i) * PANEL + in_panel];
        } else {
            less_each = 0x08080808u;
            for (uint i = 0; i < 4; i++) {
                const uint word =
                    words[(ulong)head * PAGE * blocks * 4 + (panel * 4 + i) * PANEL + in_panel];
                k[i] = word & 0x0f0f0f0fu;
                k[i + 4] = word >> 4 & 0x0f0f0f0fu;
            }
        }
        for (uint r = 0; r < n_rows; r++) {
            LOCAL_POINTER const uint *block = q + (r * blocks + b) * QUERY_WORDS;
            int sum = 0, less_sum = 0;
            for (uint i = 0; i < 8; i++) {
                sum = DOT4(k[i], block[i], sum);
                less_sum = DOT4(less_each, block[i], less_sum);
            }
            dots[r] = fma(d * as_float(block[8]), (float)(sum - less_sum), dots[r]);
        }
    }
}

// Element `d` of the value of a position of a head; rows have `len` elements. Values that are the
// beginnings of keys lie as these do.
FUNCTION float kv_value(
    __global const uint *page, uint kind, uint are_keys, uint kv_heads, uint head, uint position, uint d,
    uint len) {
    const uint at = (head * PAGE + position) * len + d;
    if (kind == KV_F32)
        return ((__global const float *)page)[at];
    if (kind == KV_F16)
        return f16_value(((__global const ushort *)page)[at]);
    const uint blocks = len / 32, b = d / 32, i = d % 32, in_panel = position % PANEL;
    const uint panel = (head * PAGE + position - in_panel) / PANEL * blocks + b;
    const uint scale_at = are_keys ? panel * PANEL + in_panel : (head * PAGE + position) * blocks + b;
    const float scale = f16_value(((__global const ushort *)page)[scale_at]);
    BYTES quants = (BYTES)page + quants_at(kv_heads, len);
    if (kind == KV_Q8_0) {
        const uint byte = are_keys ? ((panel * 8 + i / 4) * PANEL + in_panel) * 4 + i % 4 : at;
        return (float)(char)quants[byte] * scale;
    }
    uint byte, high;
    if (are_keys) {
        byte = ((panel * 4 + i % 16 / 4) * PANEL + in_panel) * 4 + i % 4;
        high = i / 16;
    } else {
        const uint last = b / 2 * 2 + 1 == blocks;
        byte = (at - d) / 2 + (last ? b * 16 + i % 16 : b / 2 * 32 + i);
        high = last ? i / 16 : b % 2;
    }
    return (float)((int)(quants[byte] >> (4 * high) & 15u) - 8) * scale;
}

// The state of a row: the greatest score, the sum, and what values are yet to be multiplied by. Merges
// another, and says by what the values of both are to be multiplied.
FUNCTION void merge(float *state, float top, float sum, float weight, float *a, float *b) {
    const float max = top > state[0] ? top : state[0];
    const float own = exp_of(state[0] - max), other = exp_of(top - max);
    *a = state[2] * own;
    *b = weight * other;
    state[0] = max;
    state[1] = fma(state[1], own, sum * other);
    state[2] = 1.0f;
}

// What the rows of a group see of a chunk, counted from its start: each by itself, and any of them.
typedef struct {
    uint from[ATTEND_ROWS], to[ATTEND_ROWS];
    // Whether it is the first chunk of a row's part.
    uint is_first[ATTEND_ROWS];
    uint low, high;
} Seen;

// Of `n_rows` rows from row `row0` of a KV head on, `of_kv_head` a token.
FUNCTION Seen seen_of(uint chunk, uint row0, uint n_rows, uint of_kv_head, SEEING) {
    Seen seen;
    seen.low = PAGE;
    seen.high = 0;
    for (uint r = 0; r < ATTEND_ROWS; r++) {
        seen.from[r] = seen.to[r] = seen.is_first[r] = 0;
        if (r < n_rows) {
            const uint pos = first_pos + (row0 + r) / of_kv_head, start = chunk * PAGE;
            const uint first = first_seen(pos, is_sliding, window);
            seen.from[r] = first > start ? least(first - start, PAGE) : 0;
            seen.to[r] = pos + 1 > start ? least(pos + 1 - start, PAGE) : 0;
            seen.is_first[r] = splits > 1 || chunk == first / PAGE;
        }
        if (seen.from[r] < seen.to[r]) {
            seen.low = least(seen.low, seen.from[r]);
            seen.high = seen.high > seen.to[r] ? seen.high : seen.to[r];
        }
    }
    return seen;
}

// Makes `exp(score - max)` of the scores of all rows, `[row][PAGE]`; the greatest scores are at every
// 32nd of `tops`, sixteen sums of each row at `sums`.
FUNCTION void exp_sums(LOCAL_POINTER float *p, LOCAL_POINTER float *tops, LOCAL_POINTER float *sums) {
    const uint lane = get_local_id(0);
    float top = MINUS_INFINITY;
    for (uint i = lane % 32; i < PAGE; i += 32)
        top = max_of(p[lane / 32 * PAGE + i], top);
    tops[lane] = top;
    for (uint others = 16; others > 0; others /= 2) {
        barrier(CLK_LOCAL_MEM_FENCE);
        if (lane % 32 < others)
            tops[lane] = max_of(tops[lane + others], tops[lane]);
    }
    barrier(CLK_LOCAL_MEM_FENCE);
    for (uint r = 0; r < ATTEND_ROWS; r++)
        p[r * PAGE + lane] = exp_of(p[r * PAGE + lane] - tops[r * 32]);
    barrier(CLK_LOCAL_MEM_FENCE);
    if (lane < ATTEND_ROWS * 16) {
        float sum = 0.0f;
        for (uint i = lane % 16; i < PAGE; i += 16)
            sum = sum + p[lane / 16 * PAGE + i];
        sums[lane] = sum;
    }
    barrier(CLK_LOCAL_MEM_FENCE);
}

// A group takes some rows of a KV head through one chunk, or through all where `splits` is 1, to parts
// `[row][splits][value_len + STATE]`; a row is a token and head. Where keys are quantised, `qs` are
// queries that op_round_queries rounded. Keys and values are of `key_kind` and `value_kind`; a value has
// `value_row` elements, of which `value_len` count. `cap` is 0 where there is none.
KERNEL(ATTEND_LANES)
op_attend(
    __global const float *qs, ulong q_at, __global const uint *arena, __global const uint *table,
    uint table_at, uint first_page, __global float *parts, SEEING, uint kv_heads, uint key_len,
    uint value_len, uint value_row, uint key_kind, uint value_kind, uint value_which, float scale,
    float cap_by, float cap) {
    __local uint q[ATTEND_ROWS * MOST_KEY_LEN];
    __local float p[ATTEND_ROWS * PAGE], tops[ATTEND_LANES], sums[ATTEND_ROWS * 16];
    const uint lane = get_local_id(0), of_kv_head = heads / kv_heads,
               is_quantised = IS_QUANTISED(key_kind);
    // Words of a query, there and here.
    const uint query = is_quantised ? key_len / 32 * QUERY_WORDS : key_len;
    const uint padded = is_quantised ? query : (query + 15) / 16 * 16;
    const uint kv_head = get_group_id(0) % kv_heads, row0 = get_group_id(0) / kv_heads * ATTEND_ROWS;
    const uint n_rows = least(ATTEND_ROWS, tokens * of_kv_head - row0);

    // The chunks that any row sees something of: both ends rise from row to row.
    const uint last_pos = first_pos + (row0 + n_rows - 1) / of_kv_head;
    uint chunk = first_seen(first_pos + row0 / of_kv_head, is_sliding, window) / PAGE,
         end = last_pos / PAGE + 1;
    if (splits > 1) {
        const uint own = first_chunk + (uint)get_group_id(1);
        if (own < chunk || own >= end)
            return;
        chunk = own, end = own + 1;
    }

    ulong rows[ATTEND_ROWS];
    for (uint r = 0; r < ATTEND_ROWS; r++)
        rows[r] =
            (ulong)((row0 + r) / of_kv_head) * heads + kv_head * of_kv_head + (row0 + r) % of_kv_head;
    for (uint r = 0; r < n_rows; r++)
        for (uint i = lane; i < padded; i += ATTEND_LANES) {
            const float x = i < query ? qs[q_at + rows[r] * query + i] : 0.0f;
            q[r * padded + i] = as_uint(key_kind == KV_F16 ? round_to_f16(x) : x);
        }
    float state[ATTEND_ROWS][STATE];
    for (; chunk < end; chunk++) {
        __global const uint *place = table + table_at + (chunk - first_page) * 2;
        __global const uint *keys = arena + (ulong)place[0] * UNIT;
        __global const uint *values = arena + (ulong)place[value_which] * UNIT;
        const Seen seen = seen_of(
            chunk, row0, n_rows, of_kv_head, first_pos, tokens, heads, is_sliding, window, first_chunk,
            splits);

        barrier(CLK_LOCAL_MEM_FENCE);
        float dots[ATTEND_ROWS];
        for (uint r = 0; r < ATTEND_ROWS; r++)
            dots[r] = 0.0f;
        if (lane >= seen.low && lane < seen.high) {
            if (is_quantised)
                dots_of_quants(keys, key_kind, kv_heads, kv_head, lane, key_len, q, n_rows, dots);
            else
                dots_of_floats(
                    keys, key_kind, (kv_head * PAGE + lane) * key_len, key_len, q, padded, n_rows, dots);
        }
        for (uint r = 0; r < ATTEND_ROWS; r++) {
            const float score = dots[r] * scale;
            const uint is_seen = lane >= seen.from[r] && lane < seen.to[r];
            const float capped = cap != 0.0f ? soft_cap_of(score, cap_by, cap) : score;
            p[r * PAGE + lane] = is_seen ? capped : MINUS_INFINITY;
        }
        barrier(CLK_LOCAL_MEM_FENCE);
        exp_sums(p, tops, sums);

        float a[ATTEND_ROWS], b[ATTEND_ROWS];
        for (uint r = 0; r < ATTEND_ROWS; r++) {
            const float sum = tree16(sums + r * 16);
            float weight = 1.0f;
            if (value_kind == KV_F16) {
                p[r * PAGE + lane] = round_to_f16(p[r * PAGE + lane] * (1.0f / sum));
                weight = sum;
            }
            if (seen.is_first[r])
                state[r][0] = tops[r * 32], state[r][1] = sum, state[r][2] = weight;
            else if (seen.from[r] < seen.to[r])
                merge(state[r], tops[r * 32], sum, weight, &a[r], &b[r]);
        }
        barrier(CLK_LOCAL_MEM_FENCE);

        for (uint d = lane; d < value_len; d += ATTEND_LANES) {
            float o[ATTEND_ROWS];
            for (uint r = 0; r < ATTEND_ROWS; r++)
                o[r] = 0.0f;
            for (uint j = seen.low; j < seen.high; j++) {
                const float v =
                    kv_value(values, value_kind, value_which == 0, kv_heads, kv_head, j, d, value_row);
                for (uint r = 0; r < ATTEND_ROWS; r++)
                    o[r] = j >= seen.from[r] && j < seen.to[r] ? fma(p[r * PAGE + j], v, o[r]) : o[r];
            }
            for (uint r = 0; r < ATTEND_ROWS; r++)
                if (seen.from[r] < seen.to[r]) {
                    const uint split = splits > 1 ? chunk - first_chunk : 0;
                    __global float *part = parts + (rows[r] * splits + split) * (value_len + STATE);
                    part[d] = seen.is_first[r] ? o[r] : fma(part[d], a[r], o[r] * b[r]);
                    if (d == 0)
                        for (uint i = 0; i < STATE; i++)
                            part[value_len + i] = state[r][i];
                }
        }
    }
}

// A group merges the parts of one row and the sink of its head, if there are sinks.
KERNEL(COMBINE_LANES)
op_combine(
    __global const float *parts, SEEING, uint value_len, __global const float *sinks, ulong sinks_at,
    uint has_sinks, __global float *outs, ulong out_at) {
    const uint row = get_group_id(0), pos = first_pos + row / heads;
    uint first = 0, end = 1;
    if (splits > 1) {
        first = first_seen(pos, is_sliding, window) / PAGE - first_chunk;
        end = pos / PAGE + 1 - first_chunk;
    }
    __global const float *part = parts + ((ulong)row * splits + first) * (value_len + STATE);
    for (uint d = get_local_id(0); d < value_len; d += COMBINE_LANES) {
        __global const float *next = part;
        float o = next[d], state[STATE];
        for (uint i = 0; i < STATE; i++)
            state[i] = next[value_len + i];
        for (uint chunk = first + 1; chunk < end; chunk++) {
            float a, b;
            next += value_len + STATE;
            merge(state, next[value_len], next[value_len + 1], next[value_len + 2], &a, &b);
            o = fma(o, a, next[d] * b);
        }
        if (has_sinks) {
            const float sink = sinks[sinks_at + row % heads], max = sink > state[0] ? sink : state[0];
            const float a = exp_of(state[0] - max);
            state[1] = fma(state[1], a, exp_of(sink - max));
            state[2] = state[2] * a;
        }
        outs[out_at + (ulong)row * value_len + d] = o * (state[2] / state[1]);
    }
}
