// Values of any floating type as float64, in a form that the compiler can vectorise.
#pragma once
#include <cstdint>
#include <cstring>

#include "../sets.h"

namespace histokit {
namespace {

struct Half {
  uint16_t bits;
};
struct Brain {
  uint16_t bits;
};

HK_INLINE float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

HK_INLINE double widen(double v) { return v; }
HK_INLINE double widen(float v) { return v; }
HK_INLINE double widen(Brain v) { return from_bits(uint32_t(v.bits) << 16); }

// Shifted into a float's fields the exponent is 112 too small, which a product with 2^112 mends,
// subnormal numbers included; infinity and NaN, scaled from 2^16 on, get the largest exponent.
HK_INLINE double widen(Half v) {
  const float scaled = from_bits(uint32_t(v.bits & 0x7fff) << 13) * 0x1p112f;
  uint32_t bits;
  std::memcpy(&bits, &scaled, sizeof bits);
  bits |= (v.bits & 0x7c00) == 0x7c00 ? 0x7f800000u : 0u;
  return from_bits(bits | uint32_t(v.bits & 0x8000) << 16);
}

HK_INLINE int is_nan(double v) { return v != v; }
HK_INLINE int is_nan(float v) { return v != v; }
HK_INLINE int is_nan(Half v) { return (v.bits & 0x7fff) > 0x7c00; }
HK_INLINE int is_nan(Brain v) { return (v.bits & 0x7fff) > 0x7f80; }

}  // namespace
// Whether no value is NaN.
template <typename T>
HK_INLINE bool all_numbers(const T* values, int64_t count) {
  int bad = 0;
#pragma omp simd reduction(| : bad)
  for (int64_t g = 0; g < count; ++g) bad |= is_nan(values[g]);
  return bad == 0;
}

}  // namespace histokit
