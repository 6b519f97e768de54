// Norms and softmax (src/kernels/ops/norms.rs): a group a row, in place.

#define NORM_LANES 128
// Values that are at hand at once; a multiple of the lanes, so that a lane always has the same ones.
#define NORM_VALUES 1024

#if defined(cl_khr_fp64) || defined(__CUDACC_RTC__)
#ifdef cl_khr_fp64
#pragma OPENCL EXTENSION cl_khr_fp64 : enable
#endif

// The sum of `n` values or of their squares, in f64 over eight lanes by index mod 8.
FUNCTION double sum64(
    __global const float *x, uint n, int squares, LOCAL_POINTER float *values,
    LOCAL_POINTER double *sums) {
    const uint lane = get_local_id(0);
    double acc = 0.0;
    for (uint first = 0; first < n; first += NORM_VALUES) {
        const uint len = least(NORM_VALUES, n - first);
        for (uint i = lane; i < len; i += NORM_LANES)
            values[i] = x[first + i];
        barrier(CLK_LOCAL_MEM_FENCE);
        if (lane < 8) {
            if (squares)
                for (uint i = lane; i < len; i += 8) {
                    const double value = values[i];
                    acc = fma(value, value, acc);
                }
            else
                for (uint i = lane; i < len; i += 8)
                    acc += (double)values[i];
        }
        barrier(CLK_LOCAL_MEM_FENCE);
    }
    if (lane < 8)
        sums[lane] = acc;
    barrier(CLK_LOCAL_MEM_FENCE);
    acc = ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
    barrier(CLK_LOCAL_MEM_FENCE);
    return acc;
}

FUNCTION float root_mean_square(
    __global const float *x, uint n, float eps, LOCAL_POINTER float *values, LOCAL_POINTER double *sums) {
    const float mean = (float)(sum64(x, n, 1, values, sums) / (double)n);
    return 1.0f / sqrt(mean + eps);
}

// Rows of `n` values; row i takes row i of the weights, of which there are `weight_rows`, in turn.
KERNEL(NORM_LANES)
op_rms_norm(
    __global float *xs, ulong x_at, uint n, __global const float *weights, ulong weights_at,
    uint weight_rows, float eps) {
    __local float values[NORM_VALUES];
    __local double sums[8];
    const uint row = get_group_id(0);
    __global float *x = xs + x_at + (ulong)row * n;
    const float by = root_mean_square(x, n, eps, values, sums);
    if (weight_rows == 0) {
        for (uint i = get_local_id(0); i < n; i += NORM_LANES)
            x[i] = x[i] * by;
        return;
    }
    __global const float *weight = weights + weights_at + (ulong)(row % weight_rows) * n;
    for (uint i = get_local_id(0); i < n; i += NORM_LANES)
        x[i] = x[i] * by * weight[i];
}

KERNEL(NORM_LANES)
op_layer_norm(
    __global float *xs, ulong x_at, uint n, __global const float *weights, ulong weights_at,
    uint weight_rows, __global const float *biases, ulong biases_at, uint bias_rows, float eps) {
    __local float values[NORM_VALUES];
    __local double sums[8];
    const uint row = get_group_id(0), lane = get_local_id(0);
    __global float *x = xs + x_at + (ulong)row * n;
    const float mean = (float)(sum64(x, n, 0, values, sums) / (double)n);
    for (uint i = lane; i < n; i += NORM_LANES)
        x[i] = x[i] - mean;
    const float by = root_mean_square(x, n, eps, values, sums);
    for (uint i = lane; i < n; i += NORM_LANES) {
        float value = x[i] * by;
        if (weight_rows != 0)
            value = value * weights[weights_at + (ulong)(row % weight_rows) * n + i];
        if (bias_rows != 0)
            value = value + biases[biases_at + (ulong)(row % bias_rows) * n + i];
        x[i] = value;
    }
}

// Heads of `n` values, `heads` of them at the beginning of each row of `stride`; `last` is `1 / sqrt(n)`.
KERNEL(NORM_LANES)
op_l2_norm(__global float *xs, ulong x_at, uint n, uint heads, uint stride, float eps, float last) {
    __local float values[NORM_VALUES];
    __local double sums[8];
    const uint head = get_group_id(0);
    __global float *x = xs + x_at + (ulong)(head / heads) * stride + head % heads * n;
    const float by = root_mean_square(x, n, eps, values, sums);
    for (uint i = get_local_id(0); i < n; i += NORM_LANES)
        x[i] = x[i] * by * last;
}
#endif

// The largest value that the lanes have, NaN passed over; a power of two of lanes.
FUNCTION float largest(float value, LOCAL_POINTER float *values, uint lane, uint lanes) {
    values[lane] = value;
    for (uint others = lanes / 2; others > 0; others /= 2) {
        barrier(CLK_LOCAL_MEM_FENCE);
        if (lane < others)
            values[lane] = max_of(values[lane + others], values[lane]);
    }
    barrier(CLK_LOCAL_MEM_FENCE);
    const float found = values[0];
    barrier(CLK_LOCAL_MEM_FENCE);
    return found;
}

KERNEL(NORM_LANES) op_softmax(__global float *xs, ulong x_at, uint n) {
    __local float values[NORM_VALUES], sums[16];
    const uint lane = get_local_id(0);
    __global float *x = xs + x_at + (ulong)get_group_id(0) * n;
    float top = MINUS_INFINITY, sum = 0.0f;
    for (uint i = lane; i < n; i += NORM_LANES)
        top = max_of(x[i], top);
    top = largest(top, values, lane, NORM_LANES);
    for (uint first = 0; first < n; first += NORM_VALUES) {
        const uint len = least(NORM_VALUES, n - first);
        for (uint i = lane; i < len; i += NORM_LANES)
            x[first + i] = values[i] = exp_of(x[first + i] - top);
        barrier(CLK_LOCAL_MEM_FENCE);
        if (lane < 16)
            for (uint i = lane; i < len; i += 16)
                sum = sum + values[i];
        barrier(CLK_LOCAL_MEM_FENCE);
    }
    if (lane < 16)
        sums[lane] = sum;
    barrier(CLK_LOCAL_MEM_FENCE);
    const float by = 1.0f / tree16(sums);
    for (uint i = lane; i < n; i += NORM_LANES)
        x[i] = x[i] * by;
}
