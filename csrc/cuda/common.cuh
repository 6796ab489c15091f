// What the kernels share: element types, wide loads and stores, warp sums, launching.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cassert>
#include <cstdint>

#include "../dtype.h"

#ifndef HK_LAUNCH  // tests/ops/cuda_host defines these to run the blocks on the host
// A variable of shared memory, at an address that 16-byte loads may read.
#define HK_SHARED(name, ...) __shared__ __align__(16) __VA_ARGS__ name
#define HK_LAUNCH(kernel, grid, block, stream, ...) \
  kernel<<<grid, block, 0, static_cast<cudaStream_t>(stream)>>>(__VA_ARGS__)
// What is wrong with the values of an index, which the host does not wait to read: `text` goes to
// stderr, and the next call that waits gives a device-side assertion.
#define HK_ASSERT(condition, text) \
  if (!(condition)) __assert_fail(text, __FILE__, __LINE__, __func__)
#endif
#ifndef HK_BLOCK_WARPS  // fewer in some tests, for more blocks and ragged ends
#define HK_BLOCK_WARPS 4
#endif

namespace histokit {
namespace {

constexpr int kWarp = 32;
constexpr int kBlockWarps = HK_BLOCK_WARPS;
constexpr int kThreads = kBlockWarps * kWarp;  // of a block
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int64_t kMaxBlocks = 1 << 20;  // of a grid-stride loop

template <class T, int kCount>
using Shared = T[kCount];

template <class T>
struct AccOf {
  using type = float;
};
template <>
struct AccOf<double> {
  using type = double;
};
template <class T>
using Acc = typename AccOf<T>::type;

__device__ __forceinline__ float to_acc(float v) { return v; }
__device__ __forceinline__ double to_acc(double v) { return v; }
__device__ __forceinline__ float to_acc(__half v) { return __half2float(v); }
__device__ __forceinline__ float to_acc(__nv_bfloat16 v) { return __bfloat162float(v); }

__device__ __forceinline__ void assign(float& out, float v) { out = v; }
__device__ __forceinline__ void assign(double& out, double v) { out = v; }
__device__ __forceinline__ void assign(__half& out, float v) { out = __float2half_rn(v); }
__device__ __forceinline__ void assign(__nv_bfloat16& out, float v) {
  out = __float2bfloat16_rn(v);
}

// kCount neighbouring elements, moved 16 bytes at a time where the count allows.
template <class T, int kCount>
struct alignas(kCount * sizeof(T) < 16 ? kCount * sizeof(T) : 16) Pack {
  T at[kCount];
};

template <int kCount, class T>
__device__ __forceinline__ void load(const T* from, Acc<T> (&out)[kCount]) {
  const Pack<T, kCount> pack = *reinterpret_cast<const Pack<T, kCount>*>(from);
#pragma unroll
  for (int i = 0; i < kCount; ++i) out[i] = to_acc(pack.at[i]);
}

template <int kCount, class T>
__device__ __forceinline__ void store(T* to, const Acc<T> (&values)[kCount]) {
  Pack<T, kCount> pack;
#pragma unroll
  for (int i = 0; i < kCount; ++i) assign(pack.at[i], values[i]);
  *reinterpret_cast<Pack<T, kCount>*>(to) = pack;
}

// Every lane gets the sum; the order of additions is fixed.
template <class A>
__device__ __forceinline__ A warp_sum(A value) {
#pragma unroll
  for (int bits = kWarp / 2; bits > 0; bits /= 2) value += __shfl_xor_sync(kAllLanes, value, bits);
  return value;
}

__device__ __forceinline__ float inverse_sqrt(float v) { return rsqrtf(v); }
__device__ __forceinline__ double inverse_sqrt(double v) { return rsqrt(v); }
__device__ __forceinline__ float exponential(float v) { return expf(v); }
__device__ __forceinline__ double exponential(double v) { return exp(v); }
__device__ __forceinline__ float logarithm(float v) { return logf(v); }
__device__ __forceinline__ double logarithm(double v) { return log(v); }

// max(0, v) that keeps NaN, which CUDA's drops.
__device__ __forceinline__ double not_below_zero(double v) { return v < 0 ? 0 : v; }

__host__ __device__ constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline bool aligned16(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

inline Error launch_error() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

// Calls launch(T{}) with the element type, then reports what the launch said.
template <class Launch>
Error dispatch(Dtype dtype, Launch launch) {
  switch (dtype) {
    case Dtype::f32:
      launch(float{});
      break;
    case Dtype::f64:
      launch(double{});
      break;
    case Dtype::f16:
      launch(__half{});
      break;
    case Dtype::bf16:
      launch(__nv_bfloat16{});
      break;
  }
  return launch_error();
}

}  // namespace
}  // namespace histokit
