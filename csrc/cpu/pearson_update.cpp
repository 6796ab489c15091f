// A few rows of a tile of genes at a time: values are read once, widened to float64, shifted by the
// gene's pivot and summed in registers; the sums of the tile stay in the cache.
#ifndef HK_SET
#include "../pearson_update.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "widen.h"

#define HK_FILE "cpu/pearson_update.cpp"
#include "../each_set.h"

namespace histokit {

void pearson_update_cpu(const PearsonUpdateParams& p, int64_t begin, int64_t end) {
  HK_BEST(update(p, begin, end));
}

}  // namespace histokit

#else

namespace histokit::HK_SET {
namespace {

constexpr int kRows = 8;        // rows per visit of a gene's sums
constexpr int64_t kTile = 512;  // genes whose sums are kept at a time
constexpr int64_t kStrip = 32;  // genes between two requests for what comes next
enum { kCount, kPred, kTarget, kPredPred, kTargetTarget, kPredTarget, kPivotPred, kPivotTarget };
constexpr int kSums = 8;  // the first six about the pivots, the last two

template <typename T>
struct Rows {
  const T* pred[kRows];
  const T* target[kRows];
  const uint8_t* mask[kRows];
  int count;
};

// Asks for a strip of the rows after these while these are summed: a tile's piece of a row is too
// short for the hardware to foresee the next, and asking for all of it at once would stall.
template <typename T>
HK_INLINE void fetch(const Rows<T>& next, int64_t begin, int64_t end) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int r = 0; r < next.count; ++r) {
    for (int64_t g = begin; g < end; g += kLine) {
      __builtin_prefetch(next.pred[r] + g, 0, 2);
      __builtin_prefetch(next.target[r] + g, 0, 2);
    }
  }
}

// Sums of one tile of genes over one slide's rows of the chunk, and where they are shifted to.
struct Tile {
  int64_t first, count;  // genes
  double sums[kSums][kTile];
  std::vector<int64_t> unset;  // genes without a pivot yet
};

// The first counted entry of a gene becomes its pivot, when no earlier chunk gave one.
template <typename T>
void find_pivots(Tile& tile, const Rows<T>& rows) {
  auto found = [&](int64_t g) {
    for (int r = 0; r < rows.count; ++r) {
      const int64_t at = tile.first + g;
      const double p = widen(rows.pred[r][at]), t = widen(rows.target[r][at]);
      if (p != p || t != t || (rows.mask[r] && !rows.mask[r][at])) continue;
      tile.sums[kPivotPred][g] = p;
      tile.sums[kPivotTarget][g] = t;
      return true;
    }
    return false;
  };
  tile.unset.erase(std::remove_if(tile.unset.begin(), tile.unset.end(), found), tile.unset.end());
}

// COUNT rows; MASKED tells whether they have masks. A block without mask and NaN, the usual case,
// is recognised in a first look, which also brings it into the cache.
template <typename T, int COUNT, bool MASKED>
void add_rows(Tile& tile, const Rows<T>& rows, const Rows<T>& next) {
  const T *pred[COUNT], *target[COUNT];
  const uint8_t* mask[COUNT];
  bool clean = !MASKED;
  for (int r = 0; r < COUNT; ++r) {
    pred[r] = rows.pred[r] + tile.first;
    target[r] = rows.target[r] + tile.first;
    mask[r] = MASKED ? rows.mask[r] + tile.first : nullptr;
    if constexpr (!MASKED)
      clean &= all_numbers(pred[r], tile.count) & all_numbers(target[r], tile.count);
  }
  double (&s)[kSums][kTile] = tile.sums;
  const int64_t count = tile.count;
  if (clean) {
    for (int64_t begin = 0; begin < count; begin += kStrip) {
      const int64_t end = std::min(begin + kStrip, count);
      fetch(next, tile.first + begin, tile.first + end);
#pragma omp simd
      for (int64_t g = begin; g < end; ++g) {
        const double pivot_p = s[kPivotPred][g], pivot_t = s[kPivotTarget][g];
        double sp = 0, st = 0, spp = 0, stt = 0, spt = 0;
#pragma GCC unroll 8
        for (int r = 0; r < COUNT; ++r) {
          const double dp = widen(pred[r][g]) - pivot_p, dt = widen(target[r][g]) - pivot_t;
          sp += dp;
          st += dt;
          spp += dp * dp;
          stt += dt * dt;
          spt += dp * dt;
        }
        s[kCount][g] += COUNT, s[kPred][g] += sp, s[kTarget][g] += st;
        s[kPredPred][g] += spp, s[kTargetTarget][g] += stt, s[kPredTarget][g] += spt;
      }
    }
    return;
  }
  fetch(next, tile.first, tile.first + count);
  for (int r = 0; r < COUNT; ++r) {
#pragma omp simd
    for (int64_t g = 0; g < count; ++g) {
      const double p = widen(pred[r][g]), t = widen(target[r][g]);
      bool valid = (p == p) & (t == t);
      if constexpr (MASKED) valid &= mask[r][g] != 0;
      const double dp = valid ? p - s[kPivotPred][g] : 0, dt = valid ? t - s[kPivotTarget][g] : 0;
      s[kCount][g] += valid ? 1 : 0, s[kPred][g] += dp, s[kTarget][g] += dt;
      s[kPredPred][g] += dp * dp, s[kTargetTarget][g] += dt * dt, s[kPredTarget][g] += dp * dt;
    }
  }
}

// Chan's update of the state with the sums of one gene, n > 0.
void merge(double* state, int64_t row, const double (&s)[kSums][kTile], int64_t g) {
  const double n = s[kCount][g], d_p = s[kPred][g] / n, d_t = s[kTarget][g] / n;
  const double total = state[0] + n, share = n / total, cross = state[0] * share;
  const double from_p = s[kPivotPred][g] + d_p - state[row];
  const double from_t = s[kPivotTarget][g] + d_t - state[2 * row];
  state[0] = total;
  state[row] += from_p * share;
  state[2 * row] += from_t * share;
  state[3 * row] += s[kPredPred][g] - s[kPred][g] * d_p + from_p * from_p * cross;
  state[4 * row] += s[kTargetTarget][g] - s[kTarget][g] * d_t + from_t * from_t * cross;
  state[5 * row] += s[kPredTarget][g] - s[kPred][g] * d_t + from_p * from_t * cross;
}

template <typename T>
Rows<T> rows_at(const PearsonUpdateParams& p, int64_t n, int64_t count) {
  Rows<T> rows = {{}, {}, {}, static_cast<int>(count)};
  for (int r = 0; r < count; ++r) {
    const int64_t at = p.order ? p.order[n + r] : n + r;
    rows.pred[r] = static_cast<const T*>(p.pred) + at * p.pred_stride;
    rows.target[r] = static_cast<const T*>(p.target) + at * p.target_stride;
    rows.mask[r] = p.mask ? p.mask + at * p.mask_stride : nullptr;
  }
  return rows;
}

template <typename T>
void update_slide(const PearsonUpdateParams& p, Tile& tile, int64_t slide) {
  const int64_t first = p.offsets ? p.offsets[slide] : 0;
  const int64_t last = p.offsets ? p.offsets[slide + 1] : p.num_rows;
  if (first == last) return;
  const int64_t row = p.num_slides * p.num_genes;
  double* state = p.state + slide * p.num_genes + tile.first;
  std::fill_n(tile.sums[0], kPivotPred * kTile, 0.0);
  tile.unset.clear();
  for (int64_t g = 0; g < tile.count; ++g) {
    tile.sums[kPivotPred][g] = state[row + g];
    tile.sums[kPivotTarget][g] = state[2 * row + g];
    if (state[g] == 0) tile.unset.push_back(g);
  }
  for (int64_t n = first, count; n < last; n += count) {
    count = last - n < kRows ? 1 : kRows;
    const Rows<T> rows = rows_at<T>(p, n, count);
    const int64_t after = std::min<int64_t>(kRows, last - n - count);
    const Rows<T> next = rows_at<T>(p, n + count, after);
    if (!tile.unset.empty()) find_pivots(tile, rows);
    if (count == 1)
      p.mask ? add_rows<T, 1, true>(tile, rows, next) : add_rows<T, 1, false>(tile, rows, next);
    else
      p.mask ? add_rows<T, kRows, true>(tile, rows, next)
             : add_rows<T, kRows, false>(tile, rows, next);
  }
  for (int64_t g = 0; g < tile.count; ++g)
    if (tile.sums[kCount][g] > 0) merge(state + g, row, tile.sums, g);
}

template <typename T>
void update(const PearsonUpdateParams& p, int64_t begin, int64_t end) {
  const auto owner = std::make_unique<Tile>();
  Tile& tile = *owner;
  for (tile.first = begin; tile.first < end; tile.first += kTile) {
    tile.count = std::min(kTile, end - tile.first);
    for (int64_t slide = 0; slide < p.num_slides; ++slide) update_slide<T>(p, tile, slide);
  }
}

void update(const PearsonUpdateParams& p, int64_t begin, int64_t end) {
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

}  // namespace
}  // namespace histokit::HK_SET
#endif
