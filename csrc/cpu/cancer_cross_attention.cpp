// Up to four patches of one slide at a time: scores against the folded context, softmax, weighted
// sum and LayerNorm while the rows are in the L1 cache.
#ifndef HK_SET
#include "../cancer_cross_attention.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "../math.h"

#define HK_FILE "cpu/cancer_cross_attention.cpp"
#include "../each_set.h"

namespace histokit {

void cancer_cross_attention_cpu(const CancerCrossAttentionParams& p, int64_t begin, int64_t end) {
  HK_BEST(forward(p, begin, end));
}

}  // namespace histokit

#else
#include "cancer_cross_attention_rows.h"

namespace histokit::HK_SET {
namespace {

// Softmax over the tokens of each head, in place.
template <typename T>
HK_INLINE void softmax(T* score, int64_t keys, int64_t tokens) {
  for (int64_t first = 0; first < keys; first += tokens) {
    const T high = *std::max_element(score + first, score + first + tokens);
    for (int64_t k = first; k < first + tokens; ++k) score[k] -= high;
  }
#pragma omp simd
  for (int64_t k = 0; k < keys; ++k) score[k] = exp(score[k]);
  for (int64_t first = 0; first < keys; first += tokens) {
    T total = 0;
    for (int64_t k = first; k < first + tokens; ++k) total += score[k];
    for (int64_t k = first; k < first + tokens; ++k) score[k] /= total;
  }
}

// LayerNorm of one row from its sum.
template <typename T>
HK_INLINE void normalise(const Params& p, const T* z, T total, int64_t n) {
  constexpr int W = Simd<T>::kLanes;
  const int64_t dim = p.dim;
  const T mean = total / dim;
  Vec<T> squares[4] = {};
  const int64_t whole = dim / (4 * W) * (4 * W);
  for (int64_t j = 0; j < whole; j += 4 * W) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const Vec<T> d = load(z + j + i * W) - mean;
      squares[i] += d * d;
    }
  }
  T second = sum<T>(squares[0] + squares[1] + (squares[2] + squares[3]));
  for (int64_t j = whole; j < dim; ++j) second += (z[j] - mean) * (z[j] - mean);
  const T rstd = 1 / std::sqrt(second / dim + static_cast<T>(p.eps));
  T* y = static_cast<T*>(p.y) + n * dim;
  const T *gamma = as<T>(p.norm_weight), *beta = as<T>(p.norm_bias);
  by_vector<T>(dim, [&](int64_t j, auto part) HK_INLINE_LAMBDA {
    const Vec<T> hat = (load(z + j, part) - mean) * rstd;
    store(y + j, hat * load(gamma + j, part) + load(beta + j, part), part);
  });
  static_cast<T*>(p.mean)[n] = mean;
  static_cast<T*>(p.rstd)[n] = rstd;
}

template <typename T>
void forward(const Params& p, int64_t begin, int64_t end) {
  const int64_t dim = p.dim, keys = p.num_keys;
  std::vector<T> z(kRows * dim), weight(kRows * keys);
  for (int64_t n = begin, count; n < end; n += count) {
    count = keys == 1 ? 1 : group(p, n, end);
    const int64_t slide = p.slide_index ? p.slide_index[n] : 0;
    const T* x[kRows];
    T total[kRows];
    for (int r = 0; r < count; ++r) x[r] = as<T>(p.x) + (n + r) * p.x_stride;
    T* prob = p.tokens > 1 ? static_cast<T*>(p.prob) + n * keys : nullptr;
    if (prob) {
      dot_rows(x, count, as<T>(p.score_weight) + slide * keys * dim, keys, dim, prob);
      for (int r = 0; r < count; ++r) {
        for (int64_t k = 0; k < keys; ++k)
          prob[r * keys + k] += as<T>(p.score_bias)[slide * keys + k];
        softmax(prob + r * keys, keys, p.tokens);
      }
    }
    weights(p, n, count, prob, weight.data());
    const T* value = as<T>(p.value) + slide * keys * dim;
    if (keys == 1)  // little work: one row at a time stays in the L1 cache
      attend<1>(x, p.x_stride, 1, value, as<T>(p.bias), weight.data(), 1, dim, z.data(), total);
    else
      attend<kRows>(x, p.x_stride, count, value, as<T>(p.bias), weight.data(), keys, dim, z.data(),
                    total);
    for (int r = 0; r < count; ++r) normalise(p, z.data() + r * dim, total[r], n + r);
  }
}

void forward(const Params& p, int64_t begin, int64_t end) {
  p.dtype == Dtype::f64 ? forward<double>(p, begin, end) : forward<float>(p, begin, end);
}

}  // namespace
}  // namespace histokit::HK_SET
#endif
