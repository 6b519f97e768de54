// Operations of one element each (src/kernels/ops/elementwise.rs), and RoPE: in place, values from `x_at`
// on.

#define OPS_LANES 256

// `n` values. `a` and `b` are the operation's numbers, if it has some.
#define OF_ONE(name, value) \
    KERNEL(OPS_LANES) op_##name(__global float *xs, ulong x_at, uint n, float a, float b) { \
        const uint i = (uint)get_group_id(0) * OPS_LANES + (uint)get_local_id(0); \
        if (i < n) { \
            const float x = xs[x_at + i]; \
            xs[x_at + i] = value; \
        } \
    }

// The same with second operands, of which there are `y_n`, in turn.
#define OF_TWO(name, value) \
    KERNEL(OPS_LANES) \
    op_##name( \
        __global float *xs, ulong x_at, uint n, __global const float *ys, ulong y_at, uint y_n, float a, \
        float b) { \
        const uint i = (uint)get_group_id(0) * OPS_LANES + (uint)get_local_id(0); \
        if (i < n) { \
            const float x = xs[x_at + i], y = ys[y_at + (i < y_n ? i : i % y_n)]; \
            xs[x_at + i] = value; \
        } \
    }

OF_ONE(silu, silu_of(x))
OF_ONE(sigmoid, sigmoid_of(x))
OF_ONE(exp, exp_of(x))
OF_ONE(softplus, softplus_of(x))
OF_ONE(sqrt_softplus, sqrt(softplus_of(x)))
OF_ONE(relu_squared, relu_squared_of(x))
OF_ONE(soft_cap, soft_cap_of(x, a, b))
OF_ONE(scale, x * a)
OF_ONE(clamp, clamp_of(x, a))

OF_TWO(add, x + y)
OF_TWO(copy, y)
OF_TWO(mul, x * y)
OF_TWO(add_scaled, x + a * y)
OF_TWO(swiglu, silu_of(x) * y)
OF_TWO(swiglu_oai, swiglu_oai_of(x, y, a, b))
OF_TWO(swiglu_clamped, min_of(a, silu_of(x)) * clamp_of(y, a))
OF_TWO(swiglu_limited, silu_of(min_of(a, x)) * clamp_of(y, a))

KERNEL(OPS_LANES) op_gelu(__global float *xs, ulong x_at, uint n, __global const ushort *table) {
    const uint i = (uint)get_group_id(0) * OPS_LANES + (uint)get_local_id(0);
    if (i < n)
        xs[x_at + i] = gelu_of(xs[x_at + i], table);
}

KERNEL(OPS_LANES)
op_geglu(
    __global float *xs, ulong x_at, uint n, __global const float *ys, ulong y_at,
    __global const ushort *table) {
    const uint i = (uint)get_group_id(0) * OPS_LANES + (uint)get_local_id(0);
    if (i < n)
        xs[x_at + i] = gelu_of(xs[x_at + i], table) * ys[y_at + i];
}

// Rows of `row` values, each times a factor of its own.
KERNEL(OPS_LANES)
op_scale_rows(
    __global float *xs, ulong x_at, uint n, __global const float *ys, ulong y_at, uint row) {
    const uint i = (uint)get_group_id(0) * OPS_LANES + (uint)get_local_id(0);
    if (i < n)
        xs[x_at + i] = xs[x_at + i] * ys[y_at + i / row];
}

// The first `len` of each `stride` values.
KERNEL(OPS_LANES)
op_copy_parts(
    __global float *xs, ulong x_at, uint n, __global const float *ys, ulong y_at, uint len, uint stride) {
    const uint i = (uint)get_group_id(0) * OPS_LANES + (uint)get_local_id(0);
    if (i < n)
        xs[x_at + i] = ys[y_at + (ulong)(i / len) * stride + i % len];
}

// `n` pairs of `heads` heads a token, of `half_dims` pairs each; tokens are `token_stride` values apart,
// heads `head_dim`. A pair's first value is `step` times its number behind a head's `offset`, its second
// `apart` behind that.
KERNEL(OPS_LANES)
op_rope(
    __global float *xs, ulong x_at, __global const float *table, ulong cos_at, ulong sin_at, uint n,
    uint heads, uint half_dims, uint token_stride, uint head_dim, uint offset, uint step, uint apart) {
    const uint i = (uint)get_group_id(0) * OPS_LANES + (uint)get_local_id(0);
    if (i >= n)
        return;
    const uint pair = i % half_dims, head = i / half_dims % heads, token = i / half_dims / heads;
    __global float *x = xs + x_at + (ulong)token * token_stride + head * head_dim + offset + pair * step;
    const ulong angle = (ulong)token * half_dims + pair;
    const float cos = table[cos_at + angle], sin = table[sin_at + angle], x0 = x[0], x1 = x[apart];
    x[0] = x0 * cos - x1 * sin;
    x[apart] = x0 * sin + x1 * cos;
}
