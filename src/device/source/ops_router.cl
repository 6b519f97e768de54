// Choosing experts (src/kernels/ops/select.rs), their weights, and the sum of what they gave.

#define ROUTER_LANES 64

// Whether a value stands before another: the greater, NaN last, among equals the one of the lower index.
FUNCTION int stands_before(float a, uint a_at, float b, uint b_at) {
    if (a > b || (a == a && b != b))
        return 1;
    return (a == b || (a != a && b != b)) && a_at < b_at;
}

// A group chooses the `used` best of a row of `n` values.
KERNEL(ROUTER_LANES)
op_top_k(
    __global const float *xs, ulong x_at, uint n, __global uint *chosen, ulong chosen_at, uint used) {
    __local float values[ROUTER_LANES];
    __local uint places[ROUTER_LANES];
    const uint lane = get_local_id(0), row = get_group_id(0);
    __global const float *x = xs + x_at + (ulong)row * n;
    float former = 0.0f;
    uint former_at = 0;
    for (uint rank = 0; rank < used; rank++) {
        // The best of what stands behind the former; `n` while there is none.
        float best = 0.0f;
        uint best_at = n;
        for (uint i = lane; i < n; i += ROUTER_LANES)
            if ((rank == 0 || stands_before(former, former_at, x[i], i))
                && (best_at == n || stands_before(x[i], i, best, best_at)))
                best = x[i], best_at = i;
        values[lane] = best;
        places[lane] = best_at;
        for (uint others = ROUTER_LANES / 2; others > 0; others /= 2) {
            barrier(CLK_LOCAL_MEM_FENCE);
            const uint other = lane + others;
            if (lane < others && places[other] != n
                && (places[lane] == n
                    || stands_before(values[other], places[other], values[lane], places[lane]))) {
                values[lane] = values[other];
                places[lane] = places[other];
            }
        }
        barrier(CLK_LOCAL_MEM_FENCE);
        former = values[0];
        former_at = places[0];
        barrier(CLK_LOCAL_MEM_FENCE);
        if (lane == 0)
            chosen[chosen_at + (ulong)row * used + rank] = former_at;
    }
}

// `outs[i] = xs[row of i][chosen[i]]`: `count` values, `used` a row, of rows of `n`.
KERNEL(OPS_LANES)
op_take_chosen(
    __global const float *xs, ulong x_at, uint n, __global const uint *chosen, ulong chosen_at,
    __global float *outs, ulong out_at, uint count, uint used) {
    const uint i = (uint)get_group_id(0) * OPS_LANES + (uint)get_local_id(0);
    if (i < count)
        outs[out_at + i] = xs[x_at + (ulong)(i / used) * n + chosen[chosen_at + i]];
}

// Divides each of the `rows` rows of `n` values by its sum, taken from left to right, `least_sum` at
// least; a NaN stays one.
KERNEL(OPS_LANES) op_normalise(__global float *xs, ulong x_at, uint rows, uint n, float least_sum) {
    const uint row = (uint)get_group_id(0) * OPS_LANES + (uint)get_local_id(0);
    if (row >= rows)
        return;
    __global float *x = xs + x_at + (ulong)row * n;
    float sum = 0.0f;
    for (uint i = 0; i < n; i++)
        sum = sum + x[i];
    sum = sum < least_sum ? least_sum : sum;
    for (uint i = 0; i < n; i++)
        x[i] = x[i] / sum;
}

// Each of the rows of `n` values of `outs` is the sum of `each` rows of `xs`, weighted, in the order of
// `chosen`; `count` values in all.
KERNEL(OPS_LANES)
op_sum_weighted(
    __global const float *xs, ulong x_at, __global const uint *chosen, ulong chosen_at,
    __global const float *weights, ulong weights_at, __global float *outs, ulong out_at, uint count,
    uint n, uint each) {
    const uint i = (uint)get_group_id(0) * OPS_LANES + (uint)get_local_id(0);
    if (i >= count)
        return;
    const ulong first = (ulong)(i / n) * each;
    float sum = 0.0f;
    for (uint rank = 0; rank < each; rank++) {
        const uint row = chosen[chosen_at + first + rank];
        const float x = weights[weights_at + first + rank] * xs[x_at + (ulong)row * n + i % n];
        sum = rank == 0 ? x : sum + x;
    }
    outs[out_at + i] = sum;
}
