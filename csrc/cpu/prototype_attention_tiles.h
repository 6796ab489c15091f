// Packed heads and 8-row tiles that the forward and backward pass of prototype_attention share.
#pragma once
#include <algorithm>
#include <vector>

#include "../prototype_attention.h"
#include "../simd.h"

namespace histokit {
namespace {

constexpr int kRows = 8;  // rows of a tile

// One head's keys or values, padded with zeros to whole tiles of two vectors.
template <typename T>
struct Head {
  static constexpr int64_t kTile = 2 * Simd<T>::kLanes;
  int64_t num, dim, num_padded, dim_padded;
  std::vector<T> rows, columns;  // (M, dim_padded), (dim, num_padded)

  Head(const T* data, int64_t num, int64_t dim, int64_t stride)
      : num(num),
        dim(dim),
        num_padded((num + kTile - 1) / kTile * kTile),
        dim_padded((dim + kTile - 1) / kTile * kTile),
        rows(num * dim_padded),
        columns(dim * num_padded) {
    for (int64_t m = 0; m < num; ++m)
      for (int64_t c = 0; c < dim; ++c)
        rows[m * dim_padded + c] = columns[c * num_padded + m] = data[m * stride + c];
  }
};

template <typename T>
std::vector<Head<T>> pack(const void* data, const PrototypeAttentionParams& p) {
  std::vector<Head<T>> heads;
  for (int64_t i = 0; i < p.num_heads; ++i)
    heads.emplace_back(static_cast<const T*>(data) + i * p.head_dim, p.num_prototypes, p.head_dim,
                       p.num_heads * p.head_dim);
  return heads;
}

// out[8, cols] = a[8, depth] b[depth, cols]; cols is a multiple of a tile.
template <typename T>
HK_INLINE void multiply(const T* a, int64_t stride, const T* b, T* out, int64_t depth,
                        int64_t cols) {
  constexpr int W = Simd<T>::kLanes;
  for (int64_t j = 0; j < cols; j += 2 * W) {
    Vec<T> acc[kRows][2] = {};
    for (int64_t k = 0; k < depth; ++k) {
      const Vec<T> b0 = load(b + k * cols + j), b1 = load(b + k * cols + j + W);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        acc[r][0] += a[r * stride + k] * b0;
        acc[r][1] += a[r * stride + k] * b1;
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      store(out + r * cols + j, acc[r][0]);
      store(out + r * cols + j + W, acc[r][1]);
    }
  }
}

// One head of `count` rows, times factor, into block (8, width); rows past the end are zero, and
// columns past dim stay what they are.
template <typename T>
HK_INLINE void gather(const void* data, int64_t stride, int64_t count, int64_t dim, T factor,
                      T* block, int64_t width) {
  const T* source = static_cast<const T*>(data);
  for (int64_t r = 0; r < count; ++r)
    for (int64_t c = 0; c < dim; ++c) block[r * width + c] = source[r * stride + c] * factor;
  for (int64_t r = count; r < kRows; ++r)
    for (int64_t c = 0; c < dim; ++c) block[r * width + c] = 0;
}

}  // namespace
}  // namespace histokit
