// Products on tensor cores (sm_80 and later): the instructions, and fragments for each type.
//
// A warp multiplies A (16, k) by B (k, 8) into float32 sums (16, 8); k is 16 in half types and 8 in
// TF32. Lane 4 g + t holds, of the sums, rows g and g + 8 and columns 2 t and 2 t + 1. Layouts:
// PTX ISA, "Matrix fragments for mma.m16n8k16" and ".m16n8k8". On the host tests/ops/cuda_host has
// twins of the instructions.
#pragma once
#include "common.cuh"

#ifdef __CUDACC__

#define HK_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#define HK_LAUNCH_SHARED(kernel, grid, block, bytes, stream, ...) \
  kernel<<<grid, block, bytes, static_cast<cudaStream_t>(stream)>>>(__VA_ARGS__)

namespace histokit {
namespace {

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// `bytes` of 16 from global to shared memory, zeros behind them; done after wait_copies.
__device__ __forceinline__ void copy_async(void* to, const void* from, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
// Until all but the last kLeft groups that this thread committed have arrived.
template <int kLeft>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}

// Four 8 x 8 matrices of 16 bits; lane 8 j + i gives the address of row i of matrix j.
__device__ __forceinline__ void load_matrices(uint32_t (&out)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(shared_address(row))
               : "memory");
}
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&out)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(shared_address(row))
               : "memory");
}

#define HK_MMA(shape, kinds)                                                 \
  asm("mma.sync.aligned." shape ".row.col.f32." kinds                        \
      ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])           \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))

// sums += a b
__device__ __forceinline__ void mma(__half, float (&sums)[4], const uint32_t (&a)[4],
                                    const uint32_t (&b)[2]) {
  HK_MMA("m16n8k16", "f16.f16");
}
__device__ __forceinline__ void mma(__nv_bfloat16, float (&sums)[4], const uint32_t (&a)[4],
                                    const uint32_t (&b)[2]) {
  HK_MMA("m16n8k16", "bf16.bf16");
}
__device__ __forceinline__ void mma(float, float (&sums)[4], const uint32_t (&a)[4],
                                    const uint32_t (&b)[2]) {
  HK_MMA("m16n8k8", "tf32.tf32");
}
#undef HK_MMA

// To 10 bits behind the point, ties away from zero.
__device__ __forceinline__ uint32_t round_tf32(float value) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
  return bits;
}
// Two numbers in one register, the first in the low half.
__device__ __forceinline__ uint32_t pack(__half, float low, float high) {
  uint32_t bits;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  return bits;
}
__device__ __forceinline__ uint32_t pack(__nv_bfloat16, float low, float high) {
  uint32_t bits;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  return bits;
}

// To some two units in the last place; numbers below the smallest normal one are zero.
__device__ __forceinline__ float fast_exp2(float value) {
  asm("ex2.approx.ftz.f32 %0, %0;" : "+f"(value));
  return value;
}
__device__ __forceinline__ float fast_sqrt(float value) {
  asm("sqrt.approx.ftz.f32 %0, %0;" : "+f"(value));
  return value;
}

}  // namespace
}  // namespace histokit
#else
#include "tensor_cores_host.h"
#endif

namespace histokit {
namespace {

constexpr int kTileRows = 16, kTileColumns = 8;  // of one product

// In the loads below `tile` is the first of the rows and columns wanted, in shared memory, and rows
// are `stride` elements apart: an odd multiple of 16 bytes, so that 8 rows meet all banks.
__device__ __forceinline__ int lane_id() { return threadIdx.x % kWarp; }

// Half types: one product.
template <class T, int kProducts>
struct Fragments {
  static constexpr int kDepth = 16;
  struct A {
    uint32_t at[4];
  };
  struct B {
    uint32_t at[2];
  };
  struct Sums {
    float at[4] = {};
    __device__ __forceinline__ float total(int e) const { return at[e]; }
    __device__ __forceinline__ void add(const A& a, const B& b) { mma(T(), at, a.at, b.at); }
    __device__ __forceinline__ void settle() {}
  };

  // A (16, k) from rows of A.
  __device__ static __forceinline__ void load(A& a, const T* tile, int stride) {
    load_matrices(a.at, tile + lane_id() % 16 * stride + lane_id() / 16 * 8);
  }
  // B (k, 8), twice, from 16 rows of its transpose.
  __device__ static __forceinline__ void load_across(B (&b)[2], const T* tile, int stride) {
    const int row = lane_id() % 8 + lane_id() / 16 * 8, column = lane_id() / 8 % 2 * 8;
    uint32_t at[4];
    load_matrices(at, tile + row * stride + column);
#pragma unroll
    for (int i = 0; i < 4; ++i) b[i / 2].at[i % 2] = at[i];
  }
  // B (k, 8), twice, from k rows of 16 of its columns.
  __device__ static __forceinline__ void load(B (&b)[2], const T* tile, int stride) {
    uint32_t at[4];
    load_matrices_transposed(at, tile + lane_id() % 16 * stride + lane_id() / 16 * 8);
#pragma unroll
    for (int i = 0; i < 4; ++i) b[i / 2].at[i % 2] = at[i];
  }
  // A (16, k) from sums of earlier products.
  __device__ static __forceinline__ void turn(A& a, const float (*sums)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float* pair = sums[i / 2] + i % 2 * 2;
      a.at[i] = pack(T(), pair[0], pair[1]);
    }
  }
};

// float32: one product in TF32, or three of what TF32 holds of a number and of the rest of it; the
// product of two rests is below float32's own rounding.
template <int kProducts>
struct Fragments<float, kProducts> {
  static constexpr int kDepth = 8;
  static constexpr bool kSplit = kProducts == 3;
  static_assert(kSplit || kProducts == 1);

  template <int kCount>
  struct Parts {
    uint32_t at[kCount], rest[kSplit ? kCount : 1];

    __device__ __forceinline__ void set(int i, float value) {
      at[i] = round_tf32(value);
      if constexpr (kSplit) rest[i] = round_tf32(value - __uint_as_float(at[i]));
    }
  };
  using A = Parts<4>;
  using B = Parts<2>;
  struct Sums {
    float at[4] = {}, rest[kSplit ? 4 : 1] = {}, settled[kSplit ? 4 : 1] = {};

    __device__ __forceinline__ float total(int e) const {
      if constexpr (kSplit) return settled[e] + (at[e] + rest[e]);
      return at[e];
    }
    // Tensor cores round sums towards zero, which a long chain of them shows.
    __device__ __forceinline__ void settle() {
      if constexpr (kSplit)
#pragma unroll
        for (int e = 0; e < 4; ++e) settled[e] += at[e], at[e] = 0;
    }
    __device__ __forceinline__ void add(const A& a, const B& b) {
      if constexpr (kSplit) {
        mma(float(), rest, a.rest, b.at);
        mma(float(), rest, a.at, b.rest);
      }
      mma(float(), at, a.at, b.at);
    }
  };

  __device__ static __forceinline__ void load(A& a, const float* tile, int stride) {
    uint32_t at[4];
    load_matrices(at, tile + lane_id() % 16 * stride + lane_id() / 16 * 4);
#pragma unroll
    for (int i = 0; i < 4; ++i) a.set(i, __uint_as_float(at[i]));
  }
  __device__ static __forceinline__ void load_across(B (&b)[2], const float* tile, int stride) {
    const int row = lane_id() % 8 + lane_id() / 16 * 8, column = lane_id() / 8 % 2 * 4;
    uint32_t at[4];
    load_matrices(at, tile + row * stride + column);
#pragma unroll
    for (int i = 0; i < 4; ++i) b[i / 2].set(i % 2, __uint_as_float(at[i]));
  }
  // Of k rows, lane 4 g + t takes 2 t and 2 t + 1, which are its columns of sums: the order of k is
  // free as long as `turn` keeps to the same.
  __device__ static __forceinline__ void load(B (&b)[2], const float* tile, int stride) {
    const float* from = tile + lane_id() % 4 * 2 * stride + lane_id() / 4;
#pragma unroll
    for (int i = 0; i < 4; ++i) b[i / 2].set(i % 2, from[i % 2 * stride + i / 2 * kTileColumns]);
  }
  __device__ static __forceinline__ void turn(A& a, const float (*sums)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) a.set(i, sums[0][i % 2 * 2 + i / 2]);
  }
};

}  // namespace
}  // namespace histokit
