// Tiles that the passes of distance_attention share.
//
// One side of the scores, 64 rows of queries or of keys, lies across vector lanes in a packed
// panel; rows of the other side pass by 64 at a time, straight from the caller's tensors. Scores
// are therefore (other, own) with contiguous own, so that maxima, sums and distances run along
// lanes, and both kinds of product read one broadcast number for several vectors.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "../distance_attention.h"
#include "../dropout.h"
#include "../math.h"
#include "../simd.h"

namespace histokit {
namespace {

using Params = DistanceAttentionParams;

constexpr int64_t kOwn = 64;   // rows across lanes
constexpr int64_t kStep = 64;  // rows of the other side at a time

// How many accumulators fit the registers: 24 of AVX-512, 12 of AVX2.
struct Wide {
  static constexpr int kRows = 6, kVectors = 4, kOutRows = 8, kOutVectors = 2;
};
struct Narrow {
  static constexpr int kRows = 6, kVectors = 1, kOutRows = 4, kOutVectors = 1;
};

inline bool wide_registers() {
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__SANITIZE_ADDRESS__)
  return __builtin_cpu_supports("x86-64-v4");
#else
  return false;
#endif
}

// One head's rows of an (N, h, d) tensor.
template <typename T>
struct Rows {
  const T* data;
  int64_t stride;

  Rows(const void* tensor, int64_t row, int64_t head_stride, int64_t head)
      : data(static_cast<const T*>(tensor) + head * head_stride), stride(row) {}
  const T* at(int64_t n) const { return data + n * stride; }
};

// Rows first .. first + count, times factor, as columns of panel (dim, kOwn); zeros past count.
template <typename T>
HK_INLINE void pack(const Rows<T>& rows, int64_t first, int64_t count, int64_t dim, T factor,
                    T* panel) {
  for (int64_t l = 0; l < kOwn; ++l)
    for (int64_t c = 0; c < dim; ++c)
      panel[c * kOwn + l] = l < count ? rows.at(first + l)[c] * factor : T(0);
}

// out[R, kOwn] = rows[R, dim] panel[dim, kOwn].
template <int R, int V, typename T>
HK_INLINE void score_rows(const T* rows, int64_t stride, int64_t dim, const T* panel, T* out) {
  constexpr int W = Simd<T>::kLanes;
  for (int64_t j = 0; j < kOwn; j += V * W) {
    Vec<T> acc[R][V] = {};
    for (int64_t c = 0; c < dim; ++c) {
      Vec<T> b[V];
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) b[v] = load(panel + c * kOwn + j + v * W);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) acc[r][v] += rows[r * stride + c] * b[v];
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) store(out + r * kOwn + j + v * W, acc[r][v]);
  }
}

// score[count, kOwn] = rows first .. first + count times panel.
template <typename Shape, typename T>
HK_INLINE void multiply(const Rows<T>& rows, int64_t first, int64_t count, int64_t dim,
                        const T* panel, T* score) {
  constexpr int R = Shape::kRows, V = Shape::kVectors;
  int64_t m = 0;
  for (; m + R <= count; m += R)
    score_rows<R, V>(rows.at(first + m), rows.stride, dim, panel, score + m * kOwn);
  for (; m < count; ++m)
    score_rows<1, V>(rows.at(first + m), rows.stride, dim, panel, score + m * kOwn);
}

// The other side's rows as the second product wants them: side by side and whole tiles of vectors
// wide. Copied where they are not, for rows far apart fall on few lines of the cache.
template <typename Shape, typename T>
struct Tile {
  static constexpr int64_t kTile = Shape::kOutVectors * Simd<T>::kLanes;
  int64_t dim, width;
  std::vector<T> copy;

  explicit Tile(int64_t dim)
      : dim(dim), width((dim + kTile - 1) / kTile * kTile), copy(kStep * width) {}

  HK_INLINE const T* rows(const Rows<T>& from, int64_t first, int64_t count) {
    if (from.stride == width) return from.at(first);
    for (int64_t m = 0; m < count; ++m)
      std::memcpy(&copy[m * width], from.at(first + m), dim * sizeof(T));
    return copy.data();
  }
};

// out[kOwn, width] += weight[count, kOwn]^T rows[count, width].
template <typename Shape, typename T>
HK_INLINE void accumulate(const T* weight, const T* rows, int64_t count, int64_t width, T* out) {
  constexpr int W = Simd<T>::kLanes, R = Shape::kOutRows, V = Shape::kOutVectors;
  for (int64_t j = 0; j < width; j += V * W)
    for (int64_t l = 0; l < kOwn; l += R) {
      Vec<T> acc[R][V];
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) acc[r][v] = load(out + (l + r) * width + j + v * W);
      for (int64_t m = 0; m < count; ++m) {
        Vec<T> b[V];
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) b[v] = load(rows + m * width + j + v * W);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
          for (int v = 0; v < V; ++v) acc[r][v] += weight[m * kOwn + l + r] * b[v];
      }
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) store(out + (l + r) * width + j + v * W, acc[r][v]);
    }
}

// Where the rows across lanes lie on the slide.
template <typename T>
struct Places {
  T x[kOwn], y[kOwn];

  HK_INLINE Places(const T* coords, int64_t first, int64_t count) {
    for (int64_t l = 0; l < kOwn; ++l) {
      const int64_t n = first + (l < count ? l : 0);
      x[l] = coords[2 * n], y[l] = coords[2 * n + 1];
    }
  }

  // A direct difference: through |a|^2 + |b|^2 - 2 a . b near patches would lose their distance.
  HK_INLINE T distance(int64_t l, const T* other) const {
    const T dx = x[l] - other[0], dy = y[l] - other[1];
    return std::sqrt(dx * dx + dy * dy);
  }
};

// What each weight of one row of a tile is multiplied with; ones without dropout.
template <typename T>
struct Keep {
  uint32_t threshold, head = 0, own[kOwn];
  T factor, at[kOwn];

  HK_INLINE explicit Keep(const Params& p)
      : threshold(dropout_threshold(p.dropout)), factor(static_cast<T>(1 / (1 - p.dropout))) {
    std::fill_n(at, kOwn, T(1));
  }

  HK_INLINE void queries(const Params& p, int64_t i, int64_t first) {  // are the rows across lanes
    head = threshold ? head_bits(*p.seed, i) : 0;
    for (int64_t l = 0; l < kOwn; ++l) own[l] = row_bits(head, first + l);
  }
  HK_INLINE void keys(const Params& p, int64_t i, int64_t first) {
    head = threshold ? head_bits(*p.seed, i) : 0;
    for (int64_t l = 0; l < kOwn; ++l) own[l] = column_bits(first + l);
  }

  // With column_bits of a key or row_bits of a query: the row of the tile that passes by.
  HK_INLINE void draw(uint32_t other) {
    if (threshold == 0) return;
#pragma omp simd
    for (int64_t l = 0; l < kOwn; ++l) at[l] = mix_bits(own[l] + other) < threshold ? T(0) : factor;
  }
};

}  // namespace
}  // namespace histokit
