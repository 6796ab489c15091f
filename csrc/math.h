// Elementary functions that the compiler can vectorise inside a loop.
#pragma once
#include <cstdint>
#include <cstring>

#include "sets.h"

namespace histokit {

template <typename T>
struct ExpConstants;

template <>
struct ExpConstants<float> {
  using Bits = int32_t;
  static constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  static constexpr int kMantissa = 23, kBias = 127, kTerms = 7;
  static constexpr float kLow = -87.0f, kHigh = 88.0f;
  static constexpr float kLn2High = 0.693145751953125f, kLn2Low = 1.42860682030941723e-6f;
};

template <>
struct ExpConstants<double> {
  using Bits = int64_t;
  static constexpr double kMagic = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr int kMantissa = 52, kBias = 1023, kTerms = 13;
  static constexpr double kLow = -708.0, kHigh = 709.0;
  static constexpr double kLn2High = 0.693147180369123816490, kLn2Low = 1.90821492927058770002e-10;
};

// exp to about one unit in the last place: 2^n times a Taylor series on |r| <= ln(2) / 2. Arguments
// whose result is below the smallest normal number give 0; NaN stays NaN.
template <typename T>
HK_INLINE T exp(T x) {
  using C = ExpConstants<T>;
  using Bits = typename C::Bits;
  T clamped = x < C::kLow ? C::kLow : x;
  clamped = clamped > C::kHigh ? C::kHigh : clamped;
  const T shifted = clamped * static_cast<T>(1.44269504088896340736) + C::kMagic;
  const T n = shifted - C::kMagic;
  const T r = clamped - n * C::kLn2High - n * C::kLn2Low;
  T series = 1;
#pragma GCC unroll 16
  for (int k = C::kTerms; k >= 1; --k) series = series * r * (T(1) / k) + 1;
  Bits bits, magic;
  const T base = C::kMagic;
  std::memcpy(&bits, &shifted, sizeof bits);
  std::memcpy(&magic, &base, sizeof magic);
  bits = (bits - magic + C::kBias) << C::kMantissa;
  T scale;
  std::memcpy(&scale, &bits, sizeof scale);
  return x < C::kLow ? T(0) : series * scale;
}

}  // namespace histokit
