// OpenCL C's names, as far as the kernels use them, for CUDA's compiler (NVRTC). It knows fma, uint4 and
// the like by itself; nothing of its headers is there.

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long long ulong;

#define __kernel extern "C" __global__
// Pointers know no address spaces. `__local` declares arrays; pointers into them have LOCAL_POINTER.
#define __global
#define __private
#define __local __shared__
#define LOCAL_POINTER
#define restrict __restrict__

#define get_local_id(d) ((d) == 0 ? threadIdx.x : threadIdx.y)
#define get_group_id(d) ((d) == 0 ? blockIdx.x : blockIdx.y)
#define get_local_size(d) ((d) == 0 ? blockDim.x : blockDim.y)
#define get_num_groups(d) ((d) == 0 ? gridDim.x : gridDim.y)
#define get_global_id(d) ((ulong)get_group_id(d) * get_local_size(d) + get_local_id(d))

#define CLK_LOCAL_MEM_FENCE 0
#define CLK_GLOBAL_MEM_FENCE 0
#define barrier(fences) __syncthreads()

#define atomic_min(at, value) atomicMin((at), (value))

#define as_float(bits) __uint_as_float(bits)
#define as_uint(value) __float_as_uint(value)
#define as_int(value) __float_as_int(value)
