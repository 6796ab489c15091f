// Two passes over tiles of recomputed probabilities: queries across lanes for their own gradient
// and the slope's, then keys across lanes for the gradients of keys and values.
#include <limits>

#include "distance_attention_tiles.h"

namespace histokit {
namespace {

// What a tile works on: (kStep, kOwn) products become probabilities and score gradients.
template <typename Shape, typename T>
struct Scratch {
  Tile<Shape, T> first, second;  // rows of the other side
  std::vector<T> panel, panel_grad, score, grad;

  explicit Scratch(int64_t dim)
      : first(dim),
        second(dim),
        panel(dim * kOwn),
        panel_grad(dim * kOwn),
        score(kStep * kOwn),
        grad(kStep * kOwn) {}
};

template <typename Shape, typename T>
HK_INLINE void backward_query(const Params& p, int64_t begin, int64_t end) {
  const int64_t blocks = distance_attention_blocks_cpu(p.num_rows), dim = p.head_dim;
  const T scale = 1 / std::sqrt(static_cast<T>(dim));
  const T* coords = static_cast<const T*>(p.coords);
  Scratch<Shape, T> at(dim);
  Keep<T> keep(p);
  const int64_t width = at.first.width;
  std::vector<T> sums(kOwn * width);
  T logsumexp[kOwn], delta[kOwn], moved[kOwn];
  for (int64_t task = begin; task < end; ++task) {
    const int64_t head = task / blocks, first = task % blocks * kOwn;
    const int64_t own = std::min(kOwn, p.num_rows - first);
    const T slope = static_cast<const T*>(p.slope)[head];
    const Rows<T> query(p.query, p.query_row, p.query_head, head);
    const Rows<T> key(p.key, p.key_row, p.key_head, head);
    const Rows<T> value(p.value, p.value_row, p.value_head, head);
    const Rows<T> grad_out(p.grad_out, p.grad_out_row, p.grad_out_head, head);
    const Places<T> places(coords, first, own);
    keep.queries(p, head, first);
    pack(query, first, own, dim, scale, at.panel.data());
    pack(grad_out, first, own, dim, T(1), at.panel_grad.data());
    for (int64_t l = 0; l < kOwn; ++l) {  // infinity: a row past the end has no weights
      logsumexp[l] = std::numeric_limits<T>::infinity();
      delta[l] = 0;
      if (l >= own) continue;
      const T* out = static_cast<const T*>(p.out) + ((first + l) * p.num_heads + head) * dim;
      for (int64_t c = 0; c < dim; ++c) delta[l] += grad_out.at(first + l)[c] * out[c];
      logsumexp[l] = static_cast<const T*>(p.logsumexp)[head * p.num_rows + first + l];
      static_cast<T*>(p.delta)[head * p.num_rows + first + l] = delta[l];
    }
    std::fill(sums.begin(), sums.end(), T(0));
    double slope_sum = 0;
    for (int64_t m = 0; m < p.num_rows; m += kStep) {
      const int64_t count = std::min(kStep, p.num_rows - m);
      multiply<Shape>(key, m, count, dim, at.panel.data(), at.score.data());
      multiply<Shape>(value, m, count, dim, at.panel_grad.data(), at.grad.data());
      std::fill_n(moved, kOwn, T(0));
      for (int64_t r = 0; r < count; ++r) {
        const T *s = &at.score[r * kOwn], *other = coords + 2 * (m + r);
        T* g = &at.grad[r * kOwn];
        keep.draw(column_bits(m + r));
#pragma omp simd
        for (int64_t l = 0; l < kOwn; ++l) {
          const T distance = places.distance(l, other);
          g[l] = exp(s[l] + slope * distance - logsumexp[l]) * (keep.at[l] * g[l] - delta[l]);
          moved[l] += g[l] * distance;
        }
      }
      for (int64_t l = 0; l < kOwn; ++l) slope_sum += moved[l];
      accumulate<Shape>(at.grad.data(), at.first.rows(key, m, count), count, width, sums.data());
    }
    p.partial_slope[task] = slope_sum;
    for (int64_t l = 0; l < own; ++l)
      for (int64_t c = 0; c < dim; ++c)
        static_cast<T*>(p.grad_query)[((first + l) * p.num_heads + head) * dim + c] =
            sums[l * width + c] * scale;
  }
}

template <typename Shape, typename T>
HK_INLINE void backward_key(const Params& p, int64_t begin, int64_t end) {
  const int64_t blocks = distance_attention_blocks_cpu(p.num_rows), dim = p.head_dim;
  const T scale = 1 / std::sqrt(static_cast<T>(dim));
  const T* coords = static_cast<const T*>(p.coords);
  Scratch<Shape, T> at(dim);
  Keep<T> keep(p);
  const int64_t width = at.first.width;
  std::vector<T> key_sums(kOwn * width), value_sums(kOwn * width);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t head = task / blocks, first = task % blocks * kOwn;
    const int64_t own = std::min(kOwn, p.num_rows - first);
    const T slope = static_cast<const T*>(p.slope)[head];
    const Rows<T> query(p.query, p.query_row, p.query_head, head);
    const Rows<T> key(p.key, p.key_row, p.key_head, head);
    const Rows<T> value(p.value, p.value_row, p.value_head, head);
    const Rows<T> grad_out(p.grad_out, p.grad_out_row, p.grad_out_head, head);
    const Places<T> places(coords, first, own);
    keep.keys(p, head, first);
    pack(key, first, own, dim, scale, at.panel.data());
    pack(value, first, own, dim, T(1), at.panel_grad.data());
    std::fill(key_sums.begin(), key_sums.end(), T(0));
    std::fill(value_sums.begin(), value_sums.end(), T(0));
    for (int64_t n = 0; n < p.num_rows; n += kStep) {
      const int64_t count = std::min(kStep, p.num_rows - n);
      multiply<Shape>(query, n, count, dim, at.panel.data(), at.score.data());
      multiply<Shape>(grad_out, n, count, dim, at.panel_grad.data(), at.grad.data());
      for (int64_t r = 0; r < count; ++r) {
        const T* other = coords + 2 * (n + r);
        const int64_t row = head * p.num_rows + n + r;
        const T logsumexp = static_cast<const T*>(p.logsumexp)[row];
        const T delta = static_cast<const T*>(p.delta)[row];
        T *s = &at.score[r * kOwn], *g = &at.grad[r * kOwn];
        keep.draw(row_bits(keep.head, n + r));
#pragma omp simd
        for (int64_t l = 0; l < kOwn; ++l) {
          const T weight = exp(s[l] + slope * places.distance(l, other) - logsumexp);
          g[l] = weight * (keep.at[l] * g[l] - delta);
          s[l] = weight * keep.at[l];
        }
      }
      accumulate<Shape>(at.grad.data(), at.first.rows(query, n, count), count, width,
                        key_sums.data());
      accumulate<Shape>(at.score.data(), at.second.rows(grad_out, n, count), count, width,
                        value_sums.data());
    }
    for (int64_t l = 0; l < own; ++l)
      for (int64_t c = 0; c < dim; ++c) {
        const int64_t to = ((first + l) * p.num_heads + head) * dim + c;
        static_cast<T*>(p.grad_key)[to] = key_sums[l * width + c] * scale;
        static_cast<T*>(p.grad_value)[to] = value_sums[l * width + c];
      }
  }
}

// Wide tiles are for AVX-512 alone, so they are compiled for nothing else.
HK_WIDE void query_wide(const Params& p, int64_t begin, int64_t end) {
  p.dtype == Dtype::f64 ? backward_query<Wide, double>(p, begin, end)
                        : backward_query<Wide, float>(p, begin, end);
}

HK_NARROW_CLONES void query_narrow(const Params& p, int64_t begin, int64_t end) {
  p.dtype == Dtype::f64 ? backward_query<Narrow, double>(p, begin, end)
                        : backward_query<Narrow, float>(p, begin, end);
}

HK_WIDE void key_wide(const Params& p, int64_t begin, int64_t end) {
  p.dtype == Dtype::f64 ? backward_key<Wide, double>(p, begin, end)
                        : backward_key<Wide, float>(p, begin, end);
}

HK_NARROW_CLONES void key_narrow(const Params& p, int64_t begin, int64_t end) {
  p.dtype == Dtype::f64 ? backward_key<Narrow, double>(p, begin, end)
                        : backward_key<Narrow, float>(p, begin, end);
}

}  // namespace

void distance_attention_backward_query_cpu(const Params& p, int64_t begin, int64_t end) {
  wide_registers() ? query_wide(p, begin, end) : query_narrow(p, begin, end);
}

void distance_attention_backward_key_cpu(const Params& p, int64_t begin, int64_t end) {
  wide_registers() ? key_wide(p, begin, end) : key_narrow(p, begin, end);
}

}  // namespace histokit
