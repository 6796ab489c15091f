// Dropout of attention weights that nobody stores: whether weight (n, m) of a head is kept is a
// hash of seed, head, n and m, so that every pass and every backend draws the same mask.
#pragma once
#include <cstdint>

#if defined(__CUDACC__)
#define HK_ANYWHERE __host__ __device__ __forceinline__
#else
#define HK_ANYWHERE inline __attribute__((always_inline))
#endif

namespace histokit {

// A bijection of 32 bits in which every bit of the result depends on every bit of x.
HK_ANYWHERE uint32_t mix_bits(uint32_t x) {
  x = (x ^ x >> 16) * 0x7feb352du;
  x = (x ^ x >> 15) * 0x846ca68bu;
  return x ^ x >> 16;
}

// The hash is mix_bits(row_bits(n) + column_bits(m)).
HK_ANYWHERE uint32_t head_bits(int64_t seed, int64_t head) {
  const uint64_t bits = static_cast<uint64_t>(seed);
  return mix_bits(static_cast<uint32_t>(bits) +
                  mix_bits(static_cast<uint32_t>(bits >> 32) + static_cast<uint32_t>(head)));
}
HK_ANYWHERE uint32_t row_bits(uint32_t head, int64_t n) {
  return mix_bits(head + static_cast<uint32_t>(n));
}
HK_ANYWHERE uint32_t column_bits(int64_t m) { return static_cast<uint32_t>(m) * 0x9e3779b9u; }

// A weight is dropped when its hash is below this; rate in [0, 1).
HK_ANYWHERE uint32_t dropout_threshold(double rate) {
  return static_cast<uint32_t>(rate * 4294967296.0);
}

}  // namespace histokit
