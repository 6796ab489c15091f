// One pass over tiles of recomputed probabilities, keys across lanes. The gradients of keys and
// values are sums of a block of keys to itself; those of queries grow in a buffer for each chunk of
// blocks, and the chunks are added in their order whatever the threads.
#ifndef HK_SET
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "../distance_attention.h"
#include "../dropout.h"
#include "../math.h"

#define HK_FILE "cpu/distance_attention_backward.cpp"
#include "../each_set.h"

namespace histokit {

constexpr int64_t kChunks = 8;  // times the heads: what threads may share

int64_t distance_attention_chunks_cpu(int64_t num_rows) {
  return std::min(kChunks, distance_attention_blocks_cpu(num_rows));
}

void distance_attention_backward_cpu(const DistanceAttentionParams& p, int64_t begin, int64_t end) {
  HK_BEST(backward(p, begin, end));
}

}  // namespace histokit

#else
#include "distance_attention_tiles.h"

namespace histokit::HK_SET {
namespace {

// What a chunk works on: (kStep, kOwn) products become probabilities and score gradients.
template <typename T>
struct Scratch {
  Tile<T> keys, queries, grads;
  std::vector<T> panel, panel_grad, key_sums, value_sums, query_sums, delta;
  std::vector<T> key_settled, value_settled;  // of all rows but the last ones
  HK_ALIGNED T score[kStep * kOwn], grad[kStep * kOwn];

  Scratch(int64_t rows, int64_t dim)
      : keys(dim),
        queries(dim),
        grads(dim),
        panel(dim * kOwn),
        panel_grad(dim * kOwn),
        key_sums(kOwn * keys.width),
        value_sums(kOwn * keys.width),
        query_sums(rows * keys.width),
        delta(rows),
        key_settled(key_sums.size()),
        value_settled(key_sums.size()) {}
};

// What the tiles of one head share.
template <typename T>
struct Head {
  Rows<T> query, key, value, grad_out, out;
  const T *coords, *normalizer;
  T slope;
  bool with_distance, with_slope;

  Head(const Params& p, int64_t i)
      : query(p.query, p.query_row, p.query_head, i),
        key(p.key, p.key_row, p.key_head, i),
        value(p.value, p.value_row, p.value_head, i),
        grad_out(p.grad_out, p.grad_out_row, p.grad_out_head, i),
        out(p.out, p.num_heads * p.head_dim, p.head_dim, i),
        coords(static_cast<const T*>(p.coords)),
        normalizer(static_cast<const T*>(p.normalizer) + 2 * i * p.num_rows),
        slope(static_cast<const T*>(p.slope)[i]),
        with_distance(slope != 0 || p.partial_slope || !p.finite_coords),
        with_slope(p.partial_slope) {}
};

// Products of queries n .. n + count with the keys become dropped weights, those of their grad_out
// with the values gradients of the scores. Adds to moved, lane by lane, the slope's gradient.
template <typename T>
HK_INLINE void weigh(const Head<T>& head, const Places<T>& places, Keep<T>& keep, int64_t n,
                     int64_t count, Scratch<T>& at, T* moved) {
  for (int64_t r = 0; r < count; ++r) {
    const T high = head.normalizer[2 * (n + r)], log_total = head.normalizer[2 * (n + r) + 1];
    const T delta = at.delta[n + r];
    T *s = &at.score[r * kOwn], *g = &at.grad[r * kOwn];
    HK_ALIGNED T distance[kOwn];
    if (head.with_distance) {
      const T* other = head.coords + 2 * (n + r);
#pragma omp simd
      for (int64_t l = 0; l < kOwn; ++l) {
        distance[l] = places.distance(l, other);
        s[l] += head.slope * distance[l];
      }
    }
    keep.draw(row_bits(keep.head, n + r));
#pragma omp simd
    for (int64_t l = 0; l < kOwn; ++l) {
      const T weight = exp(s[l] - high - log_total);
      g[l] = weight * (keep.at[l] * g[l] - delta);
      s[l] = weight * keep.at[l];
    }
    if (head.with_slope)
#pragma omp simd
      for (int64_t l = 0; l < kOwn; ++l) moved[l] += g[l] * distance[l];
  }
}

template <typename T>
HK_INLINE void backward(const Params& p, int64_t begin, int64_t end) {
  const int64_t rows = p.num_rows, dim = p.head_dim, blocks = distance_attention_blocks_cpu(rows);
  const int64_t chunks = distance_attention_chunks_cpu(rows);
  const T scale = 1 / std::sqrt(static_cast<T>(dim));
  Scratch<T> at(rows, dim);
  Keep<T> keep(p);
  const int64_t width = at.keys.width;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t i = task / chunks, chunk = task % chunks;
    const Head<T> head(p, i);
    for (int64_t n = 0; n < rows; ++n) {
      const T *grad = head.grad_out.at(n), *out = head.out.at(n);
      Vec<T> products = {};
      by_vector<T>(dim, [&](int64_t c, auto lanes) HK_INLINE_LAMBDA {
        products += load(grad + c, lanes) * load(out + c, lanes);
      });
      at.delta[n] = sum<T>(products);
    }
    std::fill(at.query_sums.begin(), at.query_sums.end(), T(0));
    double slope_sum = 0;
    for (int64_t block = blocks * chunk / chunks; block < blocks * (chunk + 1) / chunks; ++block) {
      const int64_t first = block * kOwn, own = std::min(kOwn, rows - first);
      const Places<T> places(head.coords, first, own);
      keep.keys(p, i, first);
      pack(head.key, first, own, dim, scale, at.panel.data());
      pack(head.value, first, own, dim, T(1), at.panel_grad.data());
      std::fill(at.key_sums.begin(), at.key_sums.end(), T(0));
      std::fill(at.value_sums.begin(), at.value_sums.end(), T(0));
      std::fill(at.key_settled.begin(), at.key_settled.end(), T(0));
      std::fill(at.value_settled.begin(), at.value_settled.end(), T(0));
      const T* keys = at.keys.rows(head.key, first, own);
      HK_ALIGNED T moved[kOwn] = {};
      for (int64_t n = 0; n < rows; n += kStep) {
        const int64_t count = std::min(kStep, rows - n);
        if (n % kSettled == 0) {
          settle(at.key_sums, at.key_settled), settle(at.value_sums, at.value_settled);
          for (int64_t l = 0; l < own; ++l) slope_sum += moved[l], moved[l] = 0;
        }
        multiply(head.query, n, count, dim, at.panel.data(), at.score);
        multiply(head.grad_out, n, count, dim, at.panel_grad.data(), at.grad);
        weigh(head, places, keep, n, count, at, moved);
        accumulate(at.grad, at.queries.rows(head.query, n, count), count, width,
                   at.key_sums.data());
        accumulate(at.score, at.grads.rows(head.grad_out, n, count), count, width,
                   at.value_sums.data());
        spread(at.grad, keys, count, own, width, &at.query_sums[n * width]);
      }
      for (int64_t l = 0; l < own; ++l) slope_sum += moved[l];
      settle(at.key_sums, at.key_settled), settle(at.value_sums, at.value_settled);
      for (int64_t l = 0; l < own; ++l)
        for (int64_t c = 0; c < dim; ++c) {
          const int64_t to = ((first + l) * p.num_heads + i) * dim + c;
          static_cast<T*>(p.grad_key)[to] = at.key_settled[l * width + c] * scale;
          static_cast<T*>(p.grad_value)[to] = at.value_settled[l * width + c];
        }
    }
    if (head.with_slope) p.partial_slope[task] = slope_sum;
    T* partial = static_cast<T*>(p.grad_query) + chunk * rows * p.num_heads * dim;
    for (int64_t n = 0; n < rows; ++n)
      for (int64_t c = 0; c < dim; ++c)
        partial[(n * p.num_heads + i) * dim + c] = at.query_sums[n * width + c] * scale;
  }
}

void backward(const Params& p, int64_t begin, int64_t end) {
  p.dtype == Dtype::f64 ? backward<double>(p, begin, end) : backward<float>(p, begin, end);
}

}  // namespace
}  // namespace histokit::HK_SET
#endif
