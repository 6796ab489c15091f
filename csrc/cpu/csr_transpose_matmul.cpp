// out = Y^T dense by blocks of genes, each transposed in the cache a few hundred rows at a time, so
// that a gene's result is summed in registers while it gathers rows of dense.
#ifndef HK_SET
#include <algorithm>
#include <vector>

#include "../csr.h"
#include "../sets.h"

#define HK_FILE "cpu/csr_transpose_matmul.cpp"
#include "../each_set.h"

namespace histokit {

void csr_transpose_matmul_cpu(const CsrParams& p, int64_t begin, int64_t end) {
  HK_BEST(product(p, begin, end));
}

}  // namespace histokit

#else
#include "csr_rows.h"

namespace histokit::HK_SET {
namespace {

constexpr int64_t kGenes = 1024;  // genes of a block

// Running moments of a gene's stored values about its first one.
struct Moments {
  double count = 0, pivot = 0, first = 0, second = 0;

  template <typename T>
  HK_INLINE void add(const T* values, int64_t size) {
    if (count == 0) pivot = values[0];
    const double shift = pivot;
    double s1 = 0, s2 = 0;
#pragma omp simd reduction(+ : s1, s2)
    for (int64_t i = 0; i < size; ++i) {
      const double d = values[i] - shift;
      s1 += d;
      s2 += d * d;
    }
    count += size;
    first += s1;
    second += s2;
  }

  // Mean and squared deviations over `rows` entries, of which rows - count are implicit zeros.
  void finish(double rows, double* mean, double* m2) const {
    *mean = *m2 = 0;
    if (count == 0) return;
    const double stored = pivot + first / count;
    *mean = stored * (count / rows);
    *m2 = second - first * first / count + stored * stored * count * ((rows - count) / rows);
  }
};

// The stored entries of some rows and a block of genes, gene by gene.
template <typename T>
struct Block {
  std::vector<int64_t> ends = std::vector<int64_t>(kGenes + 1);
  std::vector<int32_t> rows;
  std::vector<T> values;
};

// Moves the cursors of rows [low, high) past genes [first, limit).
template <typename T, typename I>
void transpose(const Csr<T, I>& y, int64_t low, int64_t high, int64_t first, int64_t limit,
               std::vector<int64_t>& cursors, Block<T>& block) {
  std::fill(block.ends.begin(), block.ends.end(), 0);
  int64_t total = 0;
  std::vector<int64_t> begins(cursors.begin() + low, cursors.begin() + high);
  for (int64_t n = low, width = 0; n < high; ++n) {
    if (n + kAhead < high) {
      prefetch(y.index + cursors[n + kAhead], width);
      prefetch(y.values + cursors[n + kAhead], width);
    }
    int64_t i = cursors[n];
    const int64_t end = y.offsets[n + 1];
    for (; i < end && y.index[i] >= first && y.index[i] < limit; ++i)
      ++block.ends[y.index[i] - first + 1];
    width = i - cursors[n];
    total += width;
    cursors[n] = i;
  }
  for (int64_t g = 0; g < kGenes; ++g) block.ends[g + 1] += block.ends[g];
  if (static_cast<int64_t>(block.rows.size()) < total) {
    block.rows.resize(total);
    block.values.resize(total);
  }
  for (int64_t n = low; n < high; ++n) {
    for (int64_t i = begins[n - low]; i < cursors[n]; ++i) {
      const int64_t at = block.ends[y.index[i] - first]++;
      block.rows[at] = static_cast<int32_t>(n - low);
      block.values[at] = y.values[i];
    }
  }
}

template <typename T>
void accumulate(const CsrParams& p, const Block<T>& block, int64_t low, int64_t first,
                int64_t genes, Moments* moments) {
  T* out = static_cast<T*>(p.out) + first * p.dim;
  const T* dense = static_cast<const T*>(p.dense) + low * p.dense_stride;
  for (int64_t g = 0; g < genes; ++g) {
    const int64_t begin = g ? block.ends[g - 1] : 0, count = block.ends[g] - begin;
    if (count == 0) continue;
    add_rows(block.values.data() + begin, block.rows.data() + begin, count, 0, dense,
             p.dense_stride, out + g * p.dim, p.dim);
    moments[g].add(block.values.data() + begin, count);
  }
}

template <typename T, typename I>
void multiply(const CsrParams& p, int64_t begin, int64_t end) {
  const Csr<T, I> y(p);
  std::vector<int64_t> cursors(p.num_rows);
  for (int64_t n = 0; n < p.num_rows; ++n)
    cursors[n] =
        std::lower_bound(y.index + y.offsets[n], y.index + y.offsets[n + 1], begin) - y.index;
  std::fill_n(static_cast<T*>(p.out) + begin * p.dim, (end - begin) * p.dim, T(0));
  const int64_t rows = std::max<int64_t>(64, kCacheBytes / (p.dim * int64_t(sizeof(T)) + 1));
  Block<T> block;
  std::vector<Moments> moments(kGenes);
  for (int64_t first = begin; first < end; first += kGenes) {
    const int64_t genes = std::min(kGenes, end - first);
    std::fill(moments.begin(), moments.end(), Moments());
    for (int64_t low = 0; low < p.num_rows; low += rows) {
      const int64_t high = std::min(p.num_rows, low + rows);
      transpose(y, low, high, first, first + genes, cursors, block);
      accumulate(p, block, low, first, genes, moments.data());
    }
    for (int64_t g = 0; g < genes; ++g)
      moments[g].finish(p.num_rows, p.moments + first + g, p.moments + p.num_cols + first + g);
  }
}

void product(const CsrParams& p, int64_t begin, int64_t end) {
  dispatch(p, [&](auto value, auto index) {
    multiply<decltype(value), decltype(index)>(p, begin, end);
  });
}

}  // namespace
}  // namespace histokit::HK_SET
#endif
