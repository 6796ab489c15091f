// Row tiles that the forward and backward pass of cancer_cross_attention share.

#include "../cancer_cross_attention.h"
#include "../simd.h"

namespace histokit::HK_SET {
namespace {

using Params = CancerCrossAttentionParams;
constexpr int kRows = 4;                           // rows of a tile
constexpr int kKeys = HK_REGISTERS == 32 ? 4 : 2;  // keys of a tile

template <typename T>
HK_INLINE const T* as(const void* p) {
  return static_cast<const T*>(p);
}

// out[r, k] = a[r] . b[k] for rows r < count and all keys; b is (keys, dim) contiguous.
template <typename T>
HK_INLINE void dot_rows(const T* const* a, int count, const T* b, int64_t keys, int64_t dim,
                        T* out) {
  const T* rows[kRows];
  for (int r = 0; r < kRows; ++r) rows[r] = a[r < count ? r : 0];
  for (int64_t k = 0; k < keys; k += kKeys) {
    const T* key[kKeys];
    for (int i = 0; i < kKeys; ++i) key[i] = b + std::min(k + i, keys - 1) * dim;
    Vec<T> acc[kRows][kKeys] = {};
    by_vector<T>(dim, [&](int64_t j, auto part) HK_INLINE_LAMBDA {
      Vec<T> x[kRows];
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) x[r] = load(rows[r] + j, part);
#pragma GCC unroll 4
      for (int i = 0; i < kKeys; ++i) {
        const Vec<T> v = load(key[i] + j, part);
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) acc[r][i] += x[r] * v;
      }
    });
    for (int r = 0; r < count; ++r)
      for (int i = 0; i < kKeys && k + i < keys; ++i) out[r * keys + k + i] = sum<T>(acc[r][i]);
  }
}

// z[r] = x[r] + bias + sum_k weight[r, k] value[k]; z has room for R rows. Their sums too.
// Fetches the next rows, which the hardware, starting anew in each page, would bring late.
template <int R, typename T>
HK_INLINE void attend(const T* const* x, int64_t stride, int count, const T* value, const T* bias,
                      const T* weight, int64_t keys, int64_t dim, T* z, T* total) {
  const T *rows[R], *next[R];
  for (int r = 0; r < R; ++r) {
    rows[r] = x[r < count ? r : 0];
    next[r] = rows[r] + R * stride;
  }
  Vec<T> sums[R] = {};
  by_vector<T>(dim, [&](int64_t j, auto part) HK_INLINE_LAMBDA {
    Vec<T> acc[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      acc[r] = load(rows[r] + j, part);
      __builtin_prefetch(next[r] + j);
    }
    if (bias) {
      const Vec<T> offset = load(bias + j, part);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) acc[r] += offset;
    }
    for (int64_t k = 0; k < keys; ++k) {
      const Vec<T> v = load(value + k * dim + j, part);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) acc[r] += weight[r * keys + k] * v;
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      store(z + r * dim + j, acc[r], part);
      sums[r] += acc[r];
    }
  });
  for (int r = 0; r < R; ++r) total[r] = sum<T>(sums[r]);
}

// The attention weights of up to four rows: prob (when given) times the dropout mask, or ones.
template <typename T>
HK_INLINE void weights(const Params& p, int64_t n, int count, const T* prob, T* weight) {
  for (int64_t i = 0; i < count * p.num_keys; ++i) {
    const T mask = p.mask ? as<T>(p.mask)[n * p.num_keys + i] : T(1);
    weight[i] = prob ? prob[i] * mask : mask;
  }
}

// Rows from n that share a slide, four at most.
HK_INLINE int group(const Params& p, int64_t n, int64_t end) {
  int count = 1;
  while (count < kRows && n + count < end &&
         (!p.slide_index || p.slide_index[n + count] == p.slide_index[n]))
    ++count;
  return count;
}

}  // namespace
}  // namespace histokit::HK_SET
