// The 64 rows of a tile that lie across vector lanes: their places, and dropout of their weights.

#include "../distance_attention.h"
#include "../dropout.h"
#include "../simd.h"

namespace histokit::HK_SET {
namespace {

using Params = DistanceAttentionParams;

constexpr int64_t kOwn = 64;  // rows across lanes

// What loops over lanes read and write begins where a vector does: without, they are compiled with
// scalar ends that take as long as the vectors.
#define HK_ALIGNED alignas(64)

// Where the rows across lanes lie on the slide.
template <typename T>
struct Places {
  HK_ALIGNED T x[kOwn], y[kOwn];

  HK_INLINE Places(const T* coords, int64_t first, int64_t count) {
    for (int64_t l = 0; l < kOwn; ++l) {
      const int64_t n = first + (l < count ? l : 0);
      x[l] = coords[2 * n], y[l] = coords[2 * n + 1];
    }
  }

  // A direct difference: through |a|^2 + |b|^2 - 2 a . b near patches would lose their distance.
  HK_INLINE T distance(int64_t l, const T* other) const {
    const T dx = x[l] - other[0], dy = y[l] - other[1];
    return std::sqrt(dx * dx + dy * dy);
  }
};

// What each weight of one row of a tile is multiplied with; ones without dropout.
template <typename T>
struct Keep {
  uint32_t threshold, head = 0;
  T factor;
  HK_ALIGNED uint32_t own[kOwn];
  HK_ALIGNED T at[kOwn];

  HK_INLINE explicit Keep(const Params& p)
      : threshold(dropout_threshold(p.dropout)), factor(static_cast<T>(1 / (1 - p.dropout))) {
    std::fill_n(at, kOwn, T(1));
  }

  HK_INLINE void queries(const Params& p, int64_t i, int64_t first) {  // are the rows across lanes
    head = threshold ? head_bits(*p.seed, i) : 0;
    for (int64_t l = 0; l < kOwn; ++l) own[l] = row_bits(head, first + l);
  }
  HK_INLINE void keys(const Params& p, int64_t i, int64_t first) {
    head = threshold ? head_bits(*p.seed, i) : 0;
    for (int64_t l = 0; l < kOwn; ++l) own[l] = column_bits(first + l);
  }

  // With column_bits of a key or row_bits of a query: the row of the tile that passes by.
  HK_INLINE void draw(uint32_t other) {
    if (threshold == 0) return;
#pragma omp simd
    for (int64_t l = 0; l < kOwn; ++l) at[l] = mix_bits(own[l] + other) < threshold ? T(0) : factor;
  }
};

}  // namespace
}  // namespace histokit::HK_SET
