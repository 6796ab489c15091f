// How the forward and the backward pass lay a row over threads.
//
// A group of warps holds a row of D elements in registers: up to 32 elements a thread, so one warp
// up to D = 1,024 and a block of 2 to 16 warps above. A block of single-warp groups needs no block
// barrier; a larger group is a block of its own.
#pragma once
#include "../cancer_cross_attention.h"
#include "common.cuh"

namespace histokit {
namespace {

constexpr int kLaneValues = 32;
constexpr int kRowLimit = 16 * kWarp * kLaneValues;     // 16 warps: 512 threads of 128 registers
constexpr int kWideRowLimit = 8 * kWarp * kLaneValues;  // up to here 16-byte accesses are compiled
constexpr const char* kTooWide =
    "cancer_cross_attention on CUDA takes rows of up to 16384 elements";

template <class A>
struct Group {
  int warps;       // that share a row
  int index;       // of this group in its block
  int thread;      // within the group
  int64_t column;  // first of those that this warp holds
  int columns;     // how many it holds
  A* scratch;      // shared: a value for each warp and sum

  __device__ Group(int row_warps, int64_t dim, A* shared) : warps(row_warps), scratch(shared) {
    index = warps == 1 ? threadIdx.x / kWarp : 0;
    thread = warps == 1 ? threadIdx.x % kWarp : threadIdx.x;
    const int64_t most = ceil_div(ceil_div(dim, warps), kWarp * 8) * kWarp * 8;
    column = most * (thread / kWarp);
    columns = max(int64_t(0), min(most, dim - column));
  }

  __device__ __forceinline__ void sync() const {
    if (warps == 1)
      __syncwarp();
    else
      __syncthreads();
  }

  // Every thread of the group gets the sums, added in a fixed order.
  template <int kCount>
  __device__ __forceinline__ void sum(A (&values)[kCount]) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) values[i] = warp_sum(values[i]);
    if (warps == 1) return;
    __syncthreads();  // the previous sums have been read
    if (thread % kWarp == 0)
      for (int i = 0; i < kCount; ++i) scratch[thread / kWarp * kCount + i] = values[i];
    __syncthreads();
    for (int i = 0; i < kCount; ++i) {
      values[i] = 0;
      for (int warp = 0; warp < warps; ++warp) values[i] += scratch[warp * kCount + i];
    }
  }

  // Calls body(tile, column) for each pack of kPack columns that this thread holds.
  template <int kPack, class Body>
  __device__ __forceinline__ void for_tiles(Body body) const {
    const int first = thread % kWarp * kPack;
#pragma unroll
    for (int tile = 0; tile < kLaneValues / kPack; ++tile) {
      constexpr int kStep = kWarp * kPack;
      if (first + tile * kStep < columns) body(tile, column + first + tile * kStep);
    }
  }
};

// Warps that share a row, threads and groups of a block.
struct RowShape {
  int row_warps, threads, groups;
};

inline RowShape row_shape(int64_t dim) {
  const int warps = ceil_div(dim, kWarp * kLaneValues);
  const int groups = warps == 1 ? kBlockWarps : 1;
  return {warps, warps * groups * kWarp, groups};
}

}  // namespace
}  // namespace histokit
