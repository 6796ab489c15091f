// Blocks of 64 queries of one head against all keys, 48 at a time, with a running softmax.
#ifndef HK_SET
#include "../distance_attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "../dropout.h"
#include "../math.h"

#define HK_FILE "cpu/distance_attention.cpp"
#include "../each_set.h"

namespace histokit {

int64_t distance_attention_blocks_cpu(int64_t num_rows) { return HK_BEST(blocks(num_rows)); }

void distance_attention_cpu(const DistanceAttentionParams& p, int64_t begin, int64_t end) {
  HK_BEST(forward(p, begin, end));
}

}  // namespace histokit

#else
#include "distance_attention_tiles.h"

namespace histokit::HK_SET {
namespace {

template <typename T>
struct Softmax {
  HK_ALIGNED T high[kOwn], total[kOwn], shrink[kOwn];

  HK_INLINE Softmax() {
    for (int64_t l = 0; l < kOwn; ++l) high[l] = -std::numeric_limits<T>::infinity(), total[l] = 0;
  }

  // Products become weights relative to the largest score so far, of keys from `first` on; false
  // where it did not change.
  HK_INLINE bool weigh(const Places<T>& places, const T* coords, T slope, bool with_distance,
                       Keep<T>& keep, int64_t first, int64_t count, T* score) {
    HK_ALIGNED T now[kOwn];
    std::copy_n(high, kOwn, now);
    for (int64_t m = 0; m < count; ++m) {
      T* s = score + m * kOwn;
      const T* other = coords + 2 * (first + m);
      if (with_distance) {
#pragma omp simd
        for (int64_t l = 0; l < kOwn; ++l) s[l] += slope * places.distance(l, other);
      }
#pragma omp simd
      for (int64_t l = 0; l < kOwn; ++l) now[l] = s[l] > now[l] ? s[l] : now[l];
    }
    T least = 1;
#pragma omp simd reduction(min : least)
    for (int64_t l = 0; l < kOwn; ++l) {
      shrink[l] = exp(high[l] - now[l]);
      least = shrink[l] < least ? shrink[l] : least;
      total[l] *= shrink[l];
      high[l] = now[l];
    }
    HK_ALIGNED T sums[kOwn] = {};  // of these keys: a single chain over all keys would round more
    for (int64_t m = 0; m < count; ++m) {
      T* s = score + m * kOwn;
      keep.draw(column_bits(first + m));
#pragma omp simd
      for (int64_t l = 0; l < kOwn; ++l) {
        const T weight = exp(s[l] - high[l]);
        sums[l] += weight;
        s[l] = weight * keep.at[l];
      }
    }
    for (int64_t l = 0; l < kOwn; ++l) total[l] += sums[l];
    return least < 1;
  }
};

template <typename T>
HK_INLINE void forward(const Params& p, int64_t begin, int64_t end) {
  const int64_t blocks = distance_attention_blocks_cpu(p.num_rows), dim = p.head_dim;
  const T scale = 1 / std::sqrt(static_cast<T>(dim));
  const T* coords = static_cast<const T*>(p.coords);
  Tile<T> values(dim);
  Keep<T> keep(p);
  const int64_t width = values.width;
  std::vector<T> panel(dim * kOwn), out(kOwn * width), settled(kOwn * width);
  HK_ALIGNED T score[kStep * kOwn];
  for (int64_t task = begin; task < end; ++task) {
    const int64_t head = task / blocks, first = task % blocks * kOwn;
    const int64_t own = std::min(kOwn, p.num_rows - first);
    const T slope = static_cast<const T*>(p.slope)[head];
    const Rows<T> query(p.query, p.query_row, p.query_head, head);
    const Rows<T> key(p.key, p.key_row, p.key_head, head);
    const Rows<T> value(p.value, p.value_row, p.value_head, head);
    const Places<T> places(coords, first, own);
    keep.queries(p, head, first);
    pack(query, first, own, dim, scale, panel.data());
    std::fill(out.begin(), out.end(), T(0));
    std::fill(settled.begin(), settled.end(), T(0));
    Softmax<T> softmax;
    for (int64_t m = 0; m < p.num_rows; m += kStep) {
      const int64_t count = std::min(kStep, p.num_rows - m);
      multiply(key, m, count, dim, panel.data(), score);
      if (m % kSettled == 0) settle(out, settled);
      if (softmax.weigh(places, coords, slope, slope != 0 || !p.finite_coords, keep, m, count,
                        score))
        for (int64_t l = 0; l < kOwn; ++l)
          for (int64_t c = 0; c < width; ++c)
            out[l * width + c] *= softmax.shrink[l], settled[l * width + c] *= softmax.shrink[l];
      accumulate(score, values.rows(value, m, count), count, width, out.data());
    }
    settle(out, settled);
    for (int64_t l = 0; l < own; ++l) {
      T* to = static_cast<T*>(p.out) + ((first + l) * p.num_heads + head) * dim;
      const T inverse = 1 / softmax.total[l];
      for (int64_t c = 0; c < dim; ++c) to[c] = settled[l * width + c] * inverse;
      T* normalizer = static_cast<T*>(p.normalizer) + 2 * (head * p.num_rows + first + l);
      normalizer[0] = softmax.high[l], normalizer[1] = std::log(softmax.total[l]);
    }
  }
}

void forward(const Params& p, int64_t begin, int64_t end) {
  p.dtype == Dtype::f64 ? forward<double>(p, begin, end) : forward<float>(p, begin, end);
}

int64_t blocks(int64_t num_rows) { return (num_rows + kOwn - 1) / kOwn; }

}  // namespace
}  // namespace histokit::HK_SET
#endif
