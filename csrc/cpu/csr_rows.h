// What the two sparse products share: a typed view of the matrix and the sum of scaled rows.
#include "../csr.h"
#include "../simd.h"

namespace histokit::HK_SET {
namespace {

constexpr int kChunk = 8;  // vectors of a result row that registers hold at a time
constexpr int64_t kCacheBytes = 256 * 1024;  // share of the second-level cache for gathered rows
constexpr int64_t kAhead = 4;                // rows whose entries are fetched ahead of their use

template <typename T, typename I>
struct Csr {
  const I *offsets, *index;
  const T* values;

  explicit Csr(const CsrParams& p)
      : offsets(static_cast<const I*>(p.row_offsets)),
        index(static_cast<const I*>(p.col_index)),
        values(static_cast<const T*>(p.values)) {}
};

// A row's entries lie far from the last row's, where the hardware does not look ahead.
template <typename T>
HK_INLINE void prefetch(const T* p, int64_t count) {
  for (int64_t i = 0; i < count; i += 64 / sizeof(T)) __builtin_prefetch(p + i);
}

// out[0:dim] += sum_i value[i] dense[index[i] - base]. These are summed before they are added: many
// short sums round less than one chain.
template <typename T, typename I>
HK_INLINE void add_rows(const T* value, const I* index, int64_t count, int64_t base, const T* dense,
                        int64_t stride, T* out, int64_t dim) {
  constexpr int W = Simd<T>::kLanes;
  if (count == 0) return;
  int64_t c = 0;
  for (; c + kChunk * W <= dim; c += kChunk * W) {
    Vec<T> acc[kChunk] = {};
    for (int64_t i = 0; i < count; ++i) {
      const T* row = dense + (index[i] - base) * stride + c;
#pragma GCC unroll 8
      for (int j = 0; j < kChunk; ++j) acc[j] += value[i] * load(row + j * W);
    }
#pragma GCC unroll 8
    for (int j = 0; j < kChunk; ++j) store(out + c + j * W, load(out + c + j * W) + acc[j]);
  }
  for (; c < dim; c += W) {
    Vec<T> acc = {};
    for (int64_t i = 0; i < count; ++i)
      acc += value[i] * load(dense + (index[i] - base) * stride + c, dim - c);
    store(out + c, load(out + c, dim - c) + acc, dim - c);
  }
}

template <typename F>
void dispatch(const CsrParams& p, F run) {
  const bool wide = p.dtype == Dtype::f64;
  if (p.wide_index)
    wide ? run(double(), int64_t()) : run(float(), int64_t());
  else
    wide ? run(double(), int32_t()) : run(float(), int32_t());
}

}  // namespace
}  // namespace histokit::HK_SET
