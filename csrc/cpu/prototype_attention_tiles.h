// Packed heads and 8-row tiles that the forward and backward pass of prototype_attention share.

#include "../prototype_attention.h"
#include "../simd.h"

namespace histokit::HK_SET {
namespace {

constexpr int kRows = 8;                               // rows of a tile
constexpr int kTogether = HK_REGISTERS == 32 ? 8 : 4;  // of them, in registers at a time

// One head's keys or values as prototype_attention_pack_cpu left them, padded with zeros to whole
// tiles of two vectors.
template <typename T>
struct Head {
  static constexpr int64_t kTile = 2 * Simd<T>::kLanes;
  int64_t num, num_padded, dim_padded;
  T *rows, *columns;  // (M, dim_padded), (head_dim, num_padded)

  // part 2 i: keys of head i; 2 i + 1: its values.
  Head(const PrototypeAttentionParams& p, int64_t part)
      : num(p.num_prototypes),
        num_padded(padded(num)),
        dim_padded(padded(p.head_dim)),
        rows(static_cast<T*>(p.packed) + part * size(p)),
        columns(rows + num * dim_padded) {}

  static int64_t padded(int64_t count) { return (count + kTile - 1) / kTile * kTile; }
  static int64_t size(const PrototypeAttentionParams& p) {
    return p.num_prototypes * padded(p.head_dim) + p.head_dim * padded(p.num_prototypes);
  }
};

// out[8, cols] = a[8, depth] b[depth, cols]; cols is a multiple of a tile.
template <typename T>
HK_INLINE void multiply(const T* a, int64_t stride, const T* b, T* out, int64_t depth,
                        int64_t cols) {
  constexpr int W = Simd<T>::kLanes;
  for (int64_t j = 0; j < cols; j += 2 * W)
    for (int first = 0; first < kRows; first += kTogether) {
      const T* rows = a + first * stride;
      Vec<T> acc[kTogether][2] = {};
      for (int64_t k = 0; k < depth; ++k) {
        const Vec<T> b0 = load(b + k * cols + j), b1 = load(b + k * cols + j + W);
#pragma GCC unroll 8
        for (int r = 0; r < kTogether; ++r) {
          acc[r][0] += rows[r * stride + k] * b0;
          acc[r][1] += rows[r * stride + k] * b1;
        }
      }
#pragma GCC unroll 8
      for (int r = 0; r < kTogether; ++r) {
        store(out + (first + r) * cols + j, acc[r][0]);
        store(out + (first + r) * cols + j + W, acc[r][1]);
      }
    }
}

// One head of `count` rows, times factor, into block (8, width); rows past the end are zero, and
// columns past dim stay what they are.
template <typename T>
HK_INLINE void gather(const void* data, int64_t stride, int64_t count, int64_t dim, T factor,
                      T* block, int64_t width) {
  const T* source = static_cast<const T*>(data);
  for (int64_t r = 0; r < count; ++r)
    for (int64_t c = 0; c < dim; ++c) block[r * width + c] = source[r * stride + c] * factor;
  for (int64_t r = count; r < kRows; ++r)
    for (int64_t c = 0; c < dim; ++c) block[r * width + c] = 0;
}

}  // namespace
}  // namespace histokit::HK_SET
