// What the passes of distance_attention share (see heads.cuh for the layout over threads).
#pragma once
#include "../distance_attention.h"
#include "../dropout.h"
#include "heads.cuh"

namespace histokit {
namespace {

using Params = DistanceAttentionParams;

constexpr const char* kTooDeep =
    "distance_attention on CUDA takes heads of up to 1024 elements (512 in float64)";

// Where the rows of a tile lie, beside their vectors.
template <class A, int kDim>
struct Places {
  static constexpr int kMost = Tile<A, kDim>::kValues / Tile<A, kDim>::kStep;
  A at[2 * kMost];

  __device__ void fill(const void* coords, int64_t first, int count) {
    for (int i = threadIdx.x; i < 2 * count; i += blockDim.x)
      at[i] = static_cast<const A*>(coords)[2 * first + i];
  }
};

// A row's own place; distances are direct differences, which near patches need.
template <class A>
struct Place {
  A x, y;

  Place() = default;
  __device__ Place(const void* coords, int64_t n)
      : x(static_cast<const A*>(coords)[2 * n]), y(static_cast<const A*>(coords)[2 * n + 1]) {}
  __device__ __forceinline__ A distance(const A* other) const {
    const A dx = x - other[0], dy = y - other[1];
    return sqrt(dx * dx + dy * dy);
  }
};

// What a weight of this block's head is multiplied with.
template <class A>
struct Keep {
  uint32_t threshold, head;
  A factor;

  __device__ explicit Keep(const Params& p)
      : threshold(dropout_threshold(p.dropout)),
        head(threshold ? head_bits(*p.seed, blockIdx.y) : 0),
        factor(A(1 / (1 - p.dropout))) {}
  __device__ __forceinline__ bool drops(uint32_t row, int64_t m) const {
    return threshold && mix_bits(row + column_bits(m)) < threshold;
  }
  __device__ __forceinline__ A at(uint32_t row, int64_t m) const {
    return drops(row, m) ? A(0) : factor;
  }
};

// The first element of one head of row n.
template <class T>
__device__ __forceinline__ const T* head_of(const void* data, int64_t n, int64_t row,
                                            int64_t head) {
  return static_cast<const T*>(data) + n * row + blockIdx.y * head;
}

template <class T>
bool wide_rows(const Params& p) {
  constexpr int kPack = 16 / sizeof(T);
  const int64_t strides = p.query_row | p.query_head | p.key_row | p.key_head | p.value_row |
                          p.value_head | p.grad_out_row | p.grad_out_head;
  return (p.head_dim | strides) % kPack == 0 && aligned16(p.query) && aligned16(p.key) &&
         aligned16(p.value) && aligned16(p.out) && aligned16(p.grad_out) &&
         aligned16(p.grad_query) && aligned16(p.grad_key) && aligned16(p.grad_value);
}

}  // namespace
}  // namespace histokit
