// Backward pass by blocks of rows: recomputes the input of the LayerNorm from the saved weights,
// and keeps each block's sums apart, so that they do not depend on the number of threads.
#ifndef HK_SET
#include <algorithm>
#include <cmath>
#include <vector>

#include "../cancer_cross_attention.h"
#include "../sets.h"

#define HK_FILE "cpu/cancer_cross_attention_backward.cpp"
#include "../each_set.h"

namespace histokit {

int64_t cancer_cross_attention_partials_cpu(int64_t num_rows) {
  return std::clamp<int64_t>(num_rows / 256, 1, 64);
}

void cancer_cross_attention_backward_cpu(const CancerCrossAttentionParams& p, int64_t begin,
                                         int64_t end) {
  HK_BEST(backward(p, begin, end));
}

}  // namespace histokit

#else
#include "cancer_cross_attention_rows.h"

namespace histokit::HK_SET {
namespace {

// Gradient to z of one row, and the row's share of the gradients to the LayerNorm's parameters.
template <typename T>
HK_INLINE void normalise_backward(const Params& p, const T* z, int64_t n, T* partial) {
  const int64_t dim = p.dim;
  const T* grad = as<T>(p.grad_y) + n * p.grad_y_stride;
  const T* gamma = as<T>(p.norm_weight);
  const T mean = as<T>(p.mean)[n], rstd = as<T>(p.rstd)[n];
  T* out = static_cast<T*>(p.grad_z) + n * dim;
  T first = 0, second = 0;
#pragma omp simd reduction(+ : first, second)
  for (int64_t j = 0; j < dim; ++j) {
    const T hat = (z[j] - mean) * rstd;
    first += grad[j] * gamma[j];
    second += grad[j] * gamma[j] * hat;
    partial[j] += grad[j] * hat;
    partial[dim + j] += grad[j];
  }
  first /= dim;
  second /= dim;
#pragma omp simd
  for (int64_t j = 0; j < dim; ++j)
    out[j] = rstd * (grad[j] * gamma[j] - first - (z[j] - mean) * rstd * second);
}

// Gradient to the scores of one row from the gradient to its weights, in place.
template <typename T>
HK_INLINE void softmax_backward(const Params& p, int64_t n, T* grad) {
  const T* prob = as<T>(p.prob) + n * p.num_keys;
  for (int64_t first = 0; first < p.num_keys; first += p.tokens) {
    T total = 0;
    for (int64_t k = first; k < first + p.tokens; ++k) {
      if (p.mask) grad[k] *= as<T>(p.mask)[n * p.num_keys + k];
      total += prob[k] * grad[k];
    }
    for (int64_t k = first; k < first + p.tokens; ++k) grad[k] = prob[k] * (grad[k] - total);
  }
}

template <typename T>
void backward(const Params& p, int64_t begin, int64_t end) {
  const int64_t dim = p.dim, keys = p.num_keys;
  const int64_t chunk = (p.num_rows + p.num_partials - 1) / p.num_partials;
  std::vector<T> z(kRows * dim), weight(kRows * keys);
  for (int64_t part = begin; part < end; ++part) {
    const int64_t last = std::min(p.num_rows, (part + 1) * chunk);
    T* partial = static_cast<T*>(p.partial_norm) + part * 2 * dim;
    std::fill_n(partial, 2 * dim, T(0));
    for (int64_t n = part * chunk, count; n < last; n += count) {
      count = group(p, n, last);
      const int64_t slide = p.slide_index ? p.slide_index[n] : 0;
      const T* value = as<T>(p.value) + slide * keys * dim;
      const T *x[kRows], *grad_z[kRows];
      T total[kRows];
      for (int r = 0; r < count; ++r) {
        x[r] = as<T>(p.x) + (n + r) * p.x_stride;
        grad_z[r] = as<T>(p.grad_z) + (n + r) * dim;
      }
      weights(p, n, count, p.tokens > 1 ? as<T>(p.prob) + n * keys : nullptr, weight.data());
      attend<kRows>(x, p.x_stride, count, value, as<T>(p.bias), weight.data(), keys, dim, z.data(),
                    total);
      for (int r = 0; r < count; ++r) normalise_backward(p, z.data() + r * dim, n + r, partial);
      if (p.tokens == 1) continue;
      T* grad_score = static_cast<T*>(p.grad_score) + n * keys;
      dot_rows(grad_z, count, value, keys, dim, grad_score);
      for (int r = 0; r < count; ++r) softmax_backward(p, n + r, grad_score + r * keys);
    }
  }
}

void backward(const Params& p, int64_t begin, int64_t end) {
  p.dtype == Dtype::f64 ? backward<double>(p, begin, end) : backward<float>(p, begin, end);
}

}  // namespace
}  // namespace histokit::HK_SET
#endif
