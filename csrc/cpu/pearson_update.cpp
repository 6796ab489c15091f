// Eight rows of eight genes at a time: values are read once, widened to float64, shifted by the
// gene's pivot and summed in registers; the sums of a tile of genes stay in the cache.
#include "../pearson_update.h"

#include <algorithm>
#include <vector>

#include "widen.h"

namespace histokit {
namespace {

constexpr int kRows = 8;         // rows per visit of a gene's sums
constexpr int64_t kTile = 2048;  // genes whose sums are kept at a time
constexpr int kSums = 6;         // n, sum p, sum t, sum pp, sum tt, sum pt, all about the pivots
constexpr int W = Simd<double>::kLanes;

typedef uint8_t Byte8 __attribute__((vector_size(8)));
using Mask8 = Simd<double>::Bits;

template <typename T>
struct Rows {
  const T* pred[kRows];
  const T* target[kRows];
  const uint8_t* mask[kRows];
  int count;
};

template <typename T>
double value(const T* p) {
  T padded[W] = {*p};
  return load8(padded)[0];
}

template <typename T>
bool counted(const Rows<T>& rows, int r, int64_t g) {
  const double p = value(rows.pred[r] + g), t = value(rows.target[r] + g);
  return p == p && t == t && (!rows.mask[r] || rows.mask[r][g]);
}

// Sums of one tile of genes over one slide's rows of the chunk, and where they are shifted to.
struct Tile {
  int64_t first, count;  // genes
  std::vector<double> sums, pivots;
  std::vector<int64_t> unset;  // genes without a pivot yet

  double* sum(int64_t g) { return &sums[g / W * W * kSums]; }
  double* pivot(int64_t g) { return &pivots[g / W * W * 2]; }
};

template <typename T>
void find_pivots(Tile& tile, const Rows<T>& rows) {
  auto found = [&](int64_t g) {
    for (int r = 0; r < rows.count; ++r) {
      if (!counted(rows, r, tile.first + g)) continue;
      tile.pivot(g)[g % W] = value(rows.pred[r] + tile.first + g);
      tile.pivot(g)[W + g % W] = value(rows.target[r] + tile.first + g);
      return true;
    }
    return false;
  };
  tile.unset.erase(std::remove_if(tile.unset.begin(), tile.unset.end(), found), tile.unset.end());
}

// Adds the rows to the sums of eight genes; MASKED is a compile-time copy of rows.mask[0] != null.
template <typename T, bool MASKED>
HK_INLINE void add_eight(const Rows<T>& rows, int64_t g, const double* pivot, double* sums) {
  const Double8 pivot_p = load(pivot), pivot_t = load(pivot + W), zero = {}, one = zero + 1;
  Double8 s[kSums];
#pragma GCC unroll 6
  for (int i = 0; i < kSums; ++i) s[i] = load(sums + i * W);
  for (int r = 0; r < rows.count; ++r) {
    const Double8 p = load8(rows.pred[r] + g), t = load8(rows.target[r] + g);
    Mask8 valid = (p == p) & (t == t);
    if constexpr (MASKED) {
      Byte8 allowed;
      std::memcpy(&allowed, rows.mask[r] + g, sizeof allowed);
      valid &= __builtin_convertvector(allowed, Mask8) != 0;
    }
    const Double8 dp = valid ? p - pivot_p : zero, dt = valid ? t - pivot_t : zero;
    s[0] += valid ? one : zero;
    s[1] += dp;
    s[2] += dt;
    s[3] += dp * dp;
    s[4] += dt * dt;
    s[5] += dp * dt;
  }
#pragma GCC unroll 6
  for (int i = 0; i < kSums; ++i) store(sums + i * W, s[i]);
}

// The genes of a tile that do not fill eight lanes, through padded copies of the rows.
template <typename T, bool MASKED>
HK_INLINE void add_rest(const Rows<T>& rows, int64_t g, int64_t count, const double* pivot,
                        double* sums) {
  T pred[kRows][W] = {}, target[kRows][W] = {};
  uint8_t mask[kRows][W] = {};
  Rows<T> padded = {{}, {}, {}, rows.count};
  for (int r = 0; r < rows.count; ++r) {
    std::copy_n(rows.pred[r] + g, count, pred[r]);
    std::copy_n(rows.target[r] + g, count, target[r]);
    if (MASKED) std::copy_n(rows.mask[r] + g, count, mask[r]);
    padded.pred[r] = pred[r], padded.target[r] = target[r], padded.mask[r] = mask[r];
  }
  add_eight<T, MASKED>(padded, 0, pivot, sums);
}

template <typename T, bool MASKED>
HK_CLONES void add_rows(Tile& tile, const Rows<T>& rows) {
  const int64_t whole = tile.count / W * W;
  double *sums = tile.sums.data(), *pivots = tile.pivots.data();
  for (int64_t g = 0; g < whole; g += W)
    add_eight<T, MASKED>(rows, tile.first + g, pivots + g * 2, sums + g * kSums);
  if (whole < tile.count)
    add_rest<T, MASKED>(rows, tile.first + whole, tile.count - whole, pivots + whole * 2,
                        sums + whole * kSums);
}

// Chan's update of the state with the sums of one gene, n > 0.
HK_INLINE void merge(double* state, int64_t row, const double* s, double pivot_p, double pivot_t) {
  const double n = s[0], d_p = s[W] / n, d_t = s[2 * W] / n;
  const double total = state[0] + n, share = n / total, cross = state[0] * share;
  const double from_p = pivot_p + d_p - state[row], from_t = pivot_t + d_t - state[2 * row];
  state[0] = total;
  state[row] += from_p * share;
  state[2 * row] += from_t * share;
  state[3 * row] += s[3 * W] - s[W] * d_p + from_p * from_p * cross;
  state[4 * row] += s[4 * W] - s[2 * W] * d_t + from_t * from_t * cross;
  state[5 * row] += s[5 * W] - s[W] * d_t + from_p * from_t * cross;
}

template <typename T>
void update_slide(const PearsonUpdateParams& p, Tile& tile, int64_t slide) {
  const int64_t first = p.offsets ? p.offsets[slide] : 0;
  const int64_t last = p.offsets ? p.offsets[slide + 1] : p.num_rows;
  if (first == last) return;
  const int64_t row = p.num_slides * p.num_genes;
  double* state = p.state + slide * p.num_genes + tile.first;
  tile.sums.assign((tile.count + W - 1) / W * W * kSums, 0);
  tile.pivots.assign((tile.count + W - 1) / W * W * 2, 0);
  tile.unset.clear();
  for (int64_t g = 0; g < tile.count; ++g) {
    tile.pivot(g)[g % W] = state[row + g];
    tile.pivot(g)[W + g % W] = state[2 * row + g];
    if (state[g] == 0) tile.unset.push_back(g);
  }
  for (int64_t n = first; n < last; n += kRows) {
    Rows<T> rows = {{}, {}, {}, static_cast<int>(std::min<int64_t>(kRows, last - n))};
    for (int r = 0; r < rows.count; ++r) {
      const int64_t at = p.order ? p.order[n + r] : n + r;
      rows.pred[r] = static_cast<const T*>(p.pred) + at * p.pred_stride;
      rows.target[r] = static_cast<const T*>(p.target) + at * p.target_stride;
      rows.mask[r] = p.mask ? p.mask + at * p.mask_stride : nullptr;
    }
    if (!tile.unset.empty()) find_pivots(tile, rows);
    p.mask ? add_rows<T, true>(tile, rows) : add_rows<T, false>(tile, rows);
  }
  for (int64_t g = 0; g < tile.count; ++g) {
    const double *s = tile.sum(g) + g % W, *pivot = tile.pivot(g) + g % W;
    if (s[0] > 0) merge(state + g, row, s, pivot[0], pivot[W]);
  }
}

template <typename T>
void update(const PearsonUpdateParams& p, int64_t begin, int64_t end) {
  Tile tile;
  for (tile.first = begin; tile.first < end; tile.first += kTile) {
    tile.count = std::min(kTile, end - tile.first);
    for (int64_t slide = 0; slide < p.num_slides; ++slide) update_slide<T>(p, tile, slide);
  }
}

}  // namespace

void pearson_update_cpu(const PearsonUpdateParams& p, int64_t begin, int64_t end) {
  switch (p.dtype) {
    case Dtype::f32:
      return update<float>(p, begin, end);
    case Dtype::f64:
      return update<double>(p, begin, end);
    case Dtype::f16:
      return update<Half>(p, begin, end);
    case Dtype::bf16:
      return update<Brain>(p, begin, end);
  }
}

}  // namespace histokit
