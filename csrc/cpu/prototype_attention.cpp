// Eight patches at a time against all prototypes of one head: scores, softmax and weighted sum are
// register-blocked products over packed keys and values, with the scores in the L1 cache.
#ifndef HK_SET
#include "../prototype_attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "../math.h"

#define HK_FILE "cpu/prototype_attention.cpp"
#include "../each_set.h"

namespace histokit {

int64_t prototype_attention_packed_cpu(const PrototypeAttentionParams& p) {
  return HK_BEST(packed(p));
}

void prototype_attention_pack_cpu(const PrototypeAttentionParams& p, int64_t begin, int64_t end) {
  HK_BEST(pack(p, begin, end));
}

void prototype_attention_cpu(const PrototypeAttentionParams& p, int64_t begin, int64_t end) {
  HK_BEST(forward(p, begin, end));
}

}  // namespace histokit

#else
#include "prototype_attention_tiles.h"

namespace histokit::HK_SET {
namespace {

constexpr int64_t kBlock = 64;  // rows that pass through one head before the next

// Softmax weights of 8 rows without their normalisation; largest score and sum by row.
template <typename T>
HK_INLINE void softmax(T* score, const Head<T>& key, T* largest, T* total) {
  for (int r = 0; r < kRows; ++r) {
    T* row = score + r * key.num_padded;
    T high = row[0];
#pragma omp simd reduction(max : high)
    for (int64_t m = 0; m < key.num; ++m) high = row[m] > high ? row[m] : high;
    for (int64_t m = key.num; m < key.num_padded; ++m) row[m] = -std::numeric_limits<T>::infinity();
#pragma omp simd
    for (int64_t m = 0; m < key.num_padded; ++m) row[m] = exp(row[m] - high);
    Vec<T> sums = {};
    for (int64_t m = 0; m < key.num_padded; m += Simd<T>::kLanes) sums += load(row + m);
    largest[r] = high;
    total[r] = sum<T>(sums);
  }
}

template <typename T>
void forward(const PrototypeAttentionParams& p, int64_t begin, int64_t end) {
  const int64_t dim = p.head_dim, width = p.num_heads * dim, padded = Head<T>::padded(dim);
  const T scale = 1 / std::sqrt(static_cast<T>(dim));
  std::vector<T> query(kRows * padded), out(kRows * padded);
  std::vector<T> score(kRows * Head<T>::padded(p.num_prototypes));
  T largest[kRows], total[kRows];
  for (int64_t block = begin; block < end; block += kBlock) {
    const int64_t last = std::min(end, block + kBlock);
    for (int64_t i = 0; i < p.num_heads; ++i) {
      const Head<T> key(p, 2 * i), value(p, 2 * i + 1);
      for (int64_t n = block; n < last; n += kRows) {
        const int64_t count = std::min<int64_t>(kRows, last - n);
        const T* source = static_cast<const T*>(p.query) + n * p.query_stride + i * dim;
        gather(source, p.query_stride, count, dim, scale, query.data(), padded);
        if (n + kBlock + kRows <=
            end)  // one head of a row is too short for the hardware to foresee
          for (int r = 0; r < kRows; ++r)
            for (int64_t c = 0; c < dim; c += 64 / sizeof(T))
              __builtin_prefetch(source + (kBlock + r) * p.query_stride + c);
        multiply(query.data(), padded, key.columns, score.data(), dim, key.num_padded);
        softmax(score.data(), key, largest, total);
        multiply(score.data(), key.num_padded, value.rows, out.data(), key.num, padded);
        for (int64_t r = 0; r < count; ++r) {
          T* row = static_cast<T*>(p.out) + (n + r) * width + i * dim;
          const T inverse = 1 / total[r];
          for (int64_t c = 0; c < dim; ++c) row[c] = out[r * padded + c] * inverse;
          T* normalizer = static_cast<T*>(p.normalizer) + 2 * ((n + r) * p.num_heads + i);
          normalizer[0] = largest[r], normalizer[1] = std::log(total[r]);
        }
      }
    }
  }
}

constexpr int64_t kSquare = 16;  // rows and columns turned at a time

template <typename T>
void pack(const PrototypeAttentionParams& p, int64_t part) {
  const Head<T> head(p, part);
  const int64_t dim = p.head_dim, stride = p.num_heads * dim;
  const T* data = static_cast<const T*>(part % 2 ? p.value : p.key) + part / 2 * dim;
  for (int64_t m = 0; m < head.num; ++m)
    std::copy_n(data + m * stride, dim, head.rows + m * head.dim_padded);
  for (int64_t m = 0; m < head.num; m += kSquare)
    for (int64_t c = 0; c < dim; c += kSquare)
      for (int64_t to = c; to < std::min(dim, c + kSquare); ++to)
        for (int64_t from = m; from < std::min(head.num, m + kSquare); ++from)
          head.columns[to * head.num_padded + from] = data[from * stride + to];
}

void forward(const PrototypeAttentionParams& p, int64_t begin, int64_t end) {
  p.dtype == Dtype::f64 ? forward<double>(p, begin, end) : forward<float>(p, begin, end);
}

int64_t packed(const PrototypeAttentionParams& p) {
  const int64_t part = p.dtype == Dtype::f64 ? Head<double>::size(p) : Head<float>::size(p);
  return 2 * p.num_heads * part;
}

void pack(const PrototypeAttentionParams& p, int64_t begin, int64_t end) {
  for (int64_t part = begin; part < end; ++part)
    p.dtype == Dtype::f64 ? pack<double>(p, part) : pack<float>(p, part);
}

}  // namespace
}  // namespace histokit::HK_SET
#endif
