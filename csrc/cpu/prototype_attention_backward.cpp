// Backward pass by blocks of rows: recomputes the probabilities eight patches at a time, and keeps
// each block's sums apart, so that they do not depend on the number of threads.
#ifndef HK_SET
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "../math.h"
#include "../prototype_attention.h"

#define HK_FILE "cpu/prototype_attention_backward.cpp"
#include "../each_set.h"

namespace histokit {

int64_t prototype_attention_partials_cpu(int64_t num_rows) {
  return std::clamp<int64_t>(num_rows / 512, 1, 16);
}

void prototype_attention_backward_cpu(const PrototypeAttentionParams& p, int64_t begin,
                                      int64_t end) {
  HK_BEST(backward(p, begin, end));
}

}  // namespace histokit

#else
#include "prototype_attention_tiles.h"

namespace histokit::HK_SET {
namespace {

// out[depth, cols] += a[8, depth]^T b[8, cols].
template <typename T>
HK_INLINE void multiply_transposed(const T* a, int64_t stride, const T* b, T* out, int64_t depth,
                                   int64_t cols) {
  constexpr int W = Simd<T>::kLanes;
  for (int64_t j = 0; j < cols; j += W) {
    Vec<T> rows[kRows];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) rows[r] = load(b + r * cols + j);
    for (int64_t k = 0; k < depth; ++k) {
      Vec<T> acc = load(out + k * cols + j);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) acc += a[r * stride + k] * rows[r];
      store(out + k * cols + j, acc);
    }
  }
}

// Score gradients of 8 rows, ds = p (dp - dot), into dp; the probabilities into score.
template <typename T>
HK_INLINE void score_gradient(T* score, T* dp, const T* largest, const T* log_total, const T* dot,
                              int64_t cols) {
  for (int r = 0; r < kRows; ++r) {
    T *s = score + r * cols, *d = dp + r * cols;
    const T high = largest[r], shift = log_total[r], mean = dot[r];
#pragma omp simd
    for (int64_t m = 0; m < cols; ++m) {
      s[m] = exp(s[m] - high - shift);
      d[m] = s[m] * (d[m] - mean);
    }
  }
}

template <typename T>
void backward(const PrototypeAttentionParams& p, int64_t begin, int64_t end) {
  const int64_t dim = p.head_dim, width = p.num_heads * dim, num = p.num_prototypes;
  const int64_t padded = Head<T>::padded(dim), cols = Head<T>::padded(num);
  const int64_t chunk = (p.num_rows + p.num_partials - 1) / p.num_partials;
  const T scale = 1 / std::sqrt(static_cast<T>(dim));
  std::vector<T> query(kRows * padded), grad(kRows * padded), grad_query(kRows * padded);
  std::vector<T> score(kRows * cols), dp(kRows * cols), grad_key(num * padded), grad_value;
  for (int64_t part = begin; part < end; ++part) {
    const int64_t last = std::min(p.num_rows, (part + 1) * chunk);
    for (int64_t i = 0; i < p.num_heads; ++i) {
      const Head<T> key(p, 2 * i), value(p, 2 * i + 1);
      grad_key.assign(num * padded, 0);
      grad_value.assign(num * padded, 0);
      for (int64_t n = part * chunk; n < last; n += kRows) {
        const int64_t count = std::min<int64_t>(kRows, last - n), at = i * dim;
        const T* grad_out = static_cast<const T*>(p.grad_out) + n * p.grad_out_stride + at;
        gather(static_cast<const T*>(p.query) + n * p.query_stride + at, p.query_stride, count, dim,
               scale, query.data(), padded);
        gather(grad_out, p.grad_out_stride, count, dim, T(1), grad.data(), padded);
        T largest[kRows], log_total[kRows] = {}, dot[kRows] = {};
        for (int64_t r = 0; r < kRows; ++r) {  // infinity: a row past the end has no weights
          largest[r] = std::numeric_limits<T>::infinity();
          if (r >= count) continue;
          const int64_t pair = 2 * ((n + r) * p.num_heads + i);
          largest[r] = static_cast<const T*>(p.normalizer)[pair];
          log_total[r] = static_cast<const T*>(p.normalizer)[pair + 1];
          const T* out = static_cast<const T*>(p.out) + (n + r) * width + at;
          for (int64_t c = 0; c < dim; ++c) dot[r] += grad_out[r * p.grad_out_stride + c] * out[c];
        }
        multiply(query.data(), padded, key.columns, score.data(), dim, cols);
        multiply(grad.data(), padded, value.columns, dp.data(), dim, cols);
        score_gradient(score.data(), dp.data(), largest, log_total, dot, cols);
        multiply(dp.data(), cols, key.rows, grad_query.data(), num, padded);
        multiply_transposed(dp.data(), cols, query.data(), grad_key.data(), num, padded);
        multiply_transposed(score.data(), cols, grad.data(), grad_value.data(), num, padded);
        for (int64_t r = 0; r < count; ++r)
          for (int64_t c = 0; c < dim; ++c)
            static_cast<T*>(p.grad_query)[(n + r) * width + at + c] =
                grad_query[r * padded + c] * scale;
      }
      for (int64_t m = 0; m < num; ++m) {
        const int64_t target = (part * num + m) * width + i * dim;
        std::copy_n(&grad_key[m * padded], dim, static_cast<T*>(p.partial_key) + target);
        std::copy_n(&grad_value[m * padded], dim, static_cast<T*>(p.partial_value) + target);
      }
    }
  }
}

void backward(const PrototypeAttentionParams& p, int64_t begin, int64_t end) {
  p.dtype == Dtype::f64 ? backward<double>(p, begin, end) : backward<float>(p, begin, end);
}

}  // namespace
}  // namespace histokit::HK_SET
#endif
