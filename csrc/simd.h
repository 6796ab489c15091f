// Portable vectors of 64 bytes: one AVX-512 register, two AVX2 or four SSE2 ones.
//
// HK_CLONES compiles a function once per instruction set and picks one when the library is loaded.
// Everything it calls must be HK_INLINE, so that it is compiled for the same set. The sets sum in
// the same order here (lanes are fixed), but contract products into FMA differently, so the last
// bits differ between CPUs of different kinds.
#pragma once
#include <cstdint>
#include <cstring>

// An instrumented build has no clones: their resolvers would run before the sanitizer is ready.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__)
#define HK_CLONES __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define HK_CLONES
#endif
#define HK_INLINE inline __attribute__((always_inline))

namespace histokit {

template <typename T>
struct Simd;

template <>
struct Simd<float> {
  static constexpr int kLanes = 16;
  typedef float Vec __attribute__((vector_size(64)));
  typedef float Unaligned __attribute__((vector_size(64), aligned(4), may_alias));
  typedef int32_t Bits __attribute__((vector_size(64)));
  static constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  static constexpr int kMantissa = 23, kBias = 127, kTerms = 7;
  static constexpr float kLow = -87.0f, kHigh = 88.0f;
  static constexpr float kLn2High = 0.693145751953125f, kLn2Low = 1.42860682030941723e-6f;
};

template <>
struct Simd<double> {
  static constexpr int kLanes = 8;
  typedef double Vec __attribute__((vector_size(64)));
  typedef double Unaligned __attribute__((vector_size(64), aligned(8), may_alias));
  typedef int64_t Bits __attribute__((vector_size(64)));
  static constexpr double kMagic = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr int kMantissa = 52, kBias = 1023, kTerms = 13;
  static constexpr double kLow = -708.0, kHigh = 709.0;
  static constexpr double kLn2High = 0.693147180369123816490, kLn2Low = 1.90821492927058770002e-10;
};

template <typename T>
using Vec = typename Simd<T>::Vec;

template <typename T>
HK_INLINE Vec<T> load(const T* p) {
  return *reinterpret_cast<const typename Simd<T>::Unaligned*>(p);
}

template <typename T>
HK_INLINE void store(T* p, Vec<T> v) {
  *reinterpret_cast<typename Simd<T>::Unaligned*>(p) = v;
}

// The first `count` lanes; the others are zero.
template <typename T>
HK_INLINE Vec<T> load(const T* p, int64_t count) {
  if (count >= Simd<T>::kLanes) return load(p);
  T lanes[Simd<T>::kLanes] = {};
  for (int64_t i = 0; i < count; ++i) lanes[i] = p[i];
  return load(lanes);
}

template <typename T>
HK_INLINE void store(T* p, Vec<T> v, int64_t count) {
  if (count >= Simd<T>::kLanes) return store(p, v);
  T lanes[Simd<T>::kLanes];
  store(lanes, v);
  for (int64_t i = 0; i < count; ++i) p[i] = lanes[i];
}

template <typename T>
HK_INLINE T sum(Vec<T> v) {
  T total = 0;
  for (int i = 0; i < Simd<T>::kLanes; ++i) total += v[i];
  return total;
}

// exp to about one unit in the last place: 2^n times a Taylor series on |r| <= ln(2) / 2. Arguments
// below the smallest normal result give 0; NaN stays NaN.
template <typename T>
HK_INLINE Vec<T> exp(Vec<T> x) {
  using S = Simd<T>;
  using Bits = typename S::Bits;
  const Vec<T> zero = {};
  const Vec<T> clamped = x < S::kLow ? zero + S::kLow : (x > S::kHigh ? zero + S::kHigh : x);
  const Vec<T> shifted = clamped * static_cast<T>(1.44269504088896340736) + S::kMagic;
  const Vec<T> n = shifted - S::kMagic;
  const Vec<T> r = clamped - n * S::kLn2High - n * S::kLn2Low;
  Vec<T> series = zero + 1;
#pragma GCC unroll 16
  for (int k = S::kTerms; k >= 1; --k) series = series * r * (static_cast<T>(1) / k) + 1;
  const Bits exponent = reinterpret_cast<Bits>(shifted) - reinterpret_cast<Bits>(zero + S::kMagic);
  const Vec<T> scale = reinterpret_cast<Vec<T>>((exponent + S::kBias) << S::kMantissa);
  return x < S::kLow ? zero : series * scale;
}

}  // namespace histokit
