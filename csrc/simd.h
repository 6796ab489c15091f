// Portable vectors of 64 bytes: one AVX-512 register, two AVX2 or four SSE2 ones.
//
// HK_CLONES compiles a function once per instruction set and picks one when the library is loaded.
// Everything it calls must be HK_INLINE, so that it is compiled for the same set. Only loads,
// stores and arithmetic survive as whole vectors: comparisons and conversions are taken apart
// before the clones are made, so loops that need them are written for the compiler to vectorise.
// The last bits of a sum differ between instruction sets.
#pragma once
#include <cstdint>
#include <cstring>

// An instrumented build has no clones: their resolvers would run before the sanitizer is ready.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__)
#define HK_HAS_CLONES
#define HK_CLONES __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#define HK_NARROW_CLONES __attribute__((target_clones("default", "arch=x86-64-v3")))
#define HK_WIDE __attribute__((target("arch=x86-64-v4")))
#else
#define HK_CLONES
#define HK_NARROW_CLONES
#define HK_WIDE
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
};

template <>
struct Simd<double> {
  static constexpr int kLanes = 8;
  typedef double Vec __attribute__((vector_size(64)));
  typedef double Unaligned __attribute__((vector_size(64), aligned(8), may_alias));
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

struct Whole {};  // all lanes of a vector are inside the row
struct Tail {
  int64_t count;  // only the first ones are
};

template <typename T>
HK_INLINE Vec<T> load(const T* p, Whole) {
  return load(p);
}
template <typename T>
HK_INLINE Vec<T> load(const T* p, Tail tail) {
  return load(p, tail.count);
}
template <typename T>
HK_INLINE void store(T* p, Vec<T> v, Whole) {
  store(p, v);
}
template <typename T>
HK_INLINE void store(T* p, Vec<T> v, Tail tail) {
  store(p, v, tail.count);
}

// body(j, Whole()) for every whole vector of a row, then body(j, Tail{rest}) for what is left. The
// body, a generic lambda, must be HK_INLINE_LAMBDA.
#define HK_INLINE_LAMBDA __attribute__((always_inline))
template <typename T, typename Body>
HK_INLINE void by_vector(int64_t size, const Body& body) {
  constexpr int W = Simd<T>::kLanes;
  int64_t j = 0;
  for (; j + W <= size; j += W) body(j, Whole());
  if (j < size) body(j, Tail{size - j});
}

// Sum of the lanes, pairwise: a chain of additions would wait for every one of them.
template <typename T>
HK_INLINE T sum(Vec<T> v) {
  T lanes[Simd<T>::kLanes];
  store(lanes, v);
#pragma GCC unroll 4
  for (int width = Simd<T>::kLanes / 2; width > 0; width /= 2)
#pragma GCC unroll 8
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  return lanes[0];
}

}  // namespace histokit
