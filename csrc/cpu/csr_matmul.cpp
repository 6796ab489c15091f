// out = Y dense by blocks of Y's columns, so that the rows of dense that are gathered stay in the
// second-level cache; a row of the result is summed in registers.
#include <algorithm>
#include <vector>

#include "csr_rows.h"

namespace histokit {
namespace {

template <typename T, typename I>
HK_CLONES void multiply(const CsrParams& p, int64_t begin, int64_t end) {
  const Csr<T, I> y(p);
  const int64_t dim = p.dim, block = std::max<int64_t>(64, kCacheBytes / (kChunk<T> * sizeof(T)));
  T* out = static_cast<T*>(p.out);
  std::fill(out + begin * dim, out + end * dim, T(0));
  std::vector<int64_t> cursors(y.offsets + begin, y.offsets + end), next(end - begin);
  int64_t done = 0;
  for (int64_t high = block; end > begin; high += block) {
    const uint64_t limit = std::min(high, p.num_cols);
    for (int64_t n = begin; n < end; ++n) {
      int64_t i = cursors[n - begin];
      while (i < y.offsets[n + 1] && static_cast<uint64_t>(y.index[i]) < limit) ++i;
      next[n - begin] = i;
    }
    for (int64_t first = 0; first < dim; first += kChunk<T>) {
      for (int64_t n = begin; n < end; ++n) {
        const int64_t i = cursors[n - begin];
        add_rows<T>(y.values + i, y.index + i, next[n - begin] - i, 0,
                    static_cast<const T*>(p.dense) + first, p.dense_stride, out + n * dim + first,
                    dim - first);
      }
    }
    for (int64_t n = begin; n < end; ++n) done += next[n - begin] - cursors[n - begin];
    cursors.swap(next);
    if (high >= p.num_cols) break;
  }
  p.visited->fetch_add(done);
}

}  // namespace

void csr_matmul_cpu(const CsrParams& p, int64_t begin, int64_t end) {
  dispatch(p, [&](auto value, auto index) {
    multiply<decltype(value), decltype(index)>(p, begin, end);
  });
}

}  // namespace histokit
