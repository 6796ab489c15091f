// What the two sparse products share: a typed view of the matrix and the sum of scaled rows.
#pragma once
#include "../csr.h"
#include "../simd.h"

namespace histokit {
namespace {

constexpr int kChunkVecs = 8;                // a chunk of a result row, kept in registers
constexpr int64_t kCacheBytes = 512 * 1024;  // share of the second-level cache for gathered rows
template <typename T>
constexpr int64_t kChunk = kChunkVecs * Simd<T>::kLanes;

template <typename T, typename I>
struct Csr {
  const I *offsets, *index;
  const T* values;

  explicit Csr(const CsrParams& p)
      : offsets(static_cast<const I*>(p.row_offsets)),
        index(static_cast<const I*>(p.col_index)),
        values(static_cast<const T*>(p.values)) {}
};

// out[0:width] += sum_i value[i] dense[index[i] - base], at most one chunk wide.
template <typename T, typename I>
HK_INLINE void add_rows(const T* value, const I* index, int64_t count, int64_t base, const T* dense,
                        int64_t stride, T* out, int64_t width) {
  constexpr int W = Simd<T>::kLanes;
  if (count == 0) return;
  if (width >= kChunk<T>) {
    Vec<T> acc[kChunkVecs];
#pragma GCC unroll 8
    for (int j = 0; j < kChunkVecs; ++j) acc[j] = load(out + j * W);
    for (int64_t i = 0; i < count; ++i) {
      const T* row = dense + (index[i] - base) * stride;
#pragma GCC unroll 8
      for (int j = 0; j < kChunkVecs; ++j) acc[j] += value[i] * load(row + j * W);
    }
#pragma GCC unroll 8
    for (int j = 0; j < kChunkVecs; ++j) store(out + j * W, acc[j]);
    return;
  }
  for (int64_t j = 0; j < width; j += W) {
    Vec<T> acc = load(out + j, width - j);
    for (int64_t i = 0; i < count; ++i)
      acc += value[i] * load(dense + (index[i] - base) * stride + j, width - j);
    store(out + j, acc, width - j);
  }
}

template <typename F>
void dispatch(const CsrParams& p, F run) {
  const bool wide = p.dtype == Dtype::f64;
  if (p.wide_index)
    wide ? run(double(), int64_t()) : run(float(), int64_t());
  else
    wide ? run(double(), int32_t()) : run(float(), int32_t());
}

}  // namespace
}  // namespace histokit
