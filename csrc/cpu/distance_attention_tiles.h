// Tiles that the passes of distance_attention share.
//
// One side of the scores, 64 rows of queries or of keys, lies across vector lanes in a packed
// panel; rows of the other side pass by 48 at a time, straight from the caller's tensors. Scores
// are therefore (other, own) with contiguous own, so that maxima, sums and distances run along
// lanes, and both kinds of product read one broadcast number for several vectors.

#include "distance_attention_lanes.h"

namespace histokit::HK_SET {
namespace {

constexpr int64_t kStep = 48;      // rows of the other side at a time: whole tiles of 6 and 8
constexpr int64_t kSettled = 240;  // of them, after which a sum begins anew

// Accumulators of the two products: 24 and 16 of 32 registers, 12 and 8 of 16.
constexpr bool kManyRegisters = HK_REGISTERS == 32;
constexpr int kScoreRows = 6, kScoreVectors = kManyRegisters ? 4 : 2;
constexpr int kOutRows = kManyRegisters ? 8 : 4, kOutVectors = 2;

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

// out[R, width] = a[R, depth] b[depth, width], added to what is there if kAdd.
template <int R, int V, bool kAdd, typename T>
HK_INLINE void product_rows(const T* a, int64_t stride, int64_t depth, const T* b, int64_t width,
                            T* out) {
  constexpr int W = Simd<T>::kLanes;
  for (int64_t j = 0; j < width; j += V * W) {
    Vec<T> acc[R][V] = {};
    if (kAdd)
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) acc[r][v] = load(out + r * width + j + v * W);
    for (int64_t c = 0; c < depth; ++c) {
      Vec<T> row[V];
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) row[v] = load(b + c * width + j + v * W);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) acc[r][v] += a[r * stride + c] * row[v];
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) store(out + r * width + j + v * W, acc[r][v]);
  }
}

// score[count, kOwn] = rows first .. first + count times panel[dim, kOwn].
template <typename T>
HK_INLINE void multiply(const Rows<T>& rows, int64_t first, int64_t count, int64_t dim,
                        const T* panel, T* score) {
  constexpr int R = kScoreRows, V = kScoreVectors;
  int64_t m = 0;
  for (; m + R <= count; m += R)
    product_rows<R, V, false>(rows.at(first + m), rows.stride, dim, panel, kOwn, score + m * kOwn);
  for (; m < count; ++m)
    product_rows<1, V, false>(rows.at(first + m), rows.stride, dim, panel, kOwn, score + m * kOwn);
}

// The other side's rows as the second product wants them: side by side and whole tiles of vectors
// wide. Copied where they are not, for rows far apart fall on few lines of the cache.
template <typename T>
struct Tile {
  static constexpr int64_t kTile = kOutVectors * Simd<T>::kLanes;
  int64_t dim, width;
  std::vector<T> copy;

  explicit Tile(int64_t dim)
      : dim(dim), width((dim + kTile - 1) / kTile * kTile), copy(std::max(kStep, kOwn) * width) {}

  HK_INLINE const T* rows(const Rows<T>& from, int64_t first, int64_t count) {
    if (from.stride == width) return from.at(first);
    for (int64_t m = 0; m < count; ++m)
      std::memcpy(&copy[m * width], from.at(first + m), dim * sizeof(T));
    return copy.data();
  }
};

// out[kOwn, width] += weight[count, kOwn]^T rows[count, width].
template <typename T>
HK_INLINE void accumulate(const T* weight, const T* rows, int64_t count, int64_t width, T* out) {
  constexpr int W = Simd<T>::kLanes, R = kOutRows, V = kOutVectors;
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

// out[count, width] += weight[count, own] rows[own, width], of weights kOwn apart.
template <typename T>
HK_INLINE void spread(const T* weight, const T* rows, int64_t count, int64_t own, int64_t width,
                      T* out) {
  constexpr int R = kOutRows, V = kOutVectors;
  int64_t m = 0;
  for (; m + R <= count; m += R)
    product_rows<R, V, true>(weight + m * kOwn, kOwn, own, rows, width, out + m * width);
  for (; m < count; ++m)
    product_rows<1, V, true>(weight + m * kOwn, kOwn, own, rows, width, out + m * width);
}

// Moves sums so far into those of all rows: two levels round less than one chain.
template <typename T>
HK_INLINE void settle(std::vector<T>& recent, std::vector<T>& settled) {
  for (size_t i = 0; i < recent.size(); ++i) settled[i] += recent[i], recent[i] = 0;
}

}  // namespace
}  // namespace histokit::HK_SET
