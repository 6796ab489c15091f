// out = Y dense by blocks of Y's columns, so that the rows of dense that are gathered stay in the
// second-level cache; a row of the result is summed in registers.
#ifndef HK_SET
#include <algorithm>
#include <vector>

#include "../csr.h"
#include "../sets.h"

#define HK_FILE "cpu/csr_matmul.cpp"
#include "../each_set.h"

namespace histokit {

void csr_matmul_cpu(const CsrParams& p, int64_t begin, int64_t end) {
  HK_BEST(product(p, begin, end));
}

}  // namespace histokit

#else
#include "csr_rows.h"

namespace histokit::HK_SET {
namespace {

template <typename T, typename I>
void multiply(const CsrParams& p, int64_t begin, int64_t end) {
  const Csr<T, I> y(p);
  const int64_t dim = p.dim;
  const int64_t block = std::max<int64_t>(64, kCacheBytes / (dim * int64_t(sizeof(T))));
  T* out = static_cast<T*>(p.out);
  std::fill(out + begin * dim, out + end * dim, T(0));
  std::vector<int64_t> cursors(y.offsets + begin, y.offsets + end);
  int64_t width = 0;  // entries of the last row in this block
  for (int64_t first = 0; first < p.num_cols; first += block) {
    const uint64_t limit = std::min(first + block, p.num_cols);
    for (int64_t n = begin; n < end; ++n) {
      if (n + kAhead < end) {
        const int64_t next = cursors[n + kAhead - begin];
        prefetch(y.index + next, width);
        prefetch(y.values + next, width);
      }
      const int64_t from = cursors[n - begin], stop = y.offsets[n + 1];
      int64_t to = from;
      while (to < stop && static_cast<uint64_t>(y.index[to]) < limit) ++to;
      add_rows<T>(y.values + from, y.index + from, to - from, 0, static_cast<const T*>(p.dense),
                  p.dense_stride, out + n * dim, dim);
      cursors[n - begin] = to;
      width = to - from;
    }
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
