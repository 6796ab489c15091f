// Vectors of one register of the instruction set that is compiled for; no guard, see each_set.h.
#include "sets.h"

namespace histokit::HK_SET {
namespace {

template <typename T>
struct Simd;

template <>
struct Simd<float> {
  static constexpr int kLanes = HK_BYTES / 4;
  typedef float Vec __attribute__((vector_size(HK_BYTES)));
  typedef float Unaligned __attribute__((vector_size(HK_BYTES), aligned(4), may_alias));
};

template <>
struct Simd<double> {
  static constexpr int kLanes = HK_BYTES / 8;
  typedef double Vec __attribute__((vector_size(HK_BYTES)));
  typedef double Unaligned __attribute__((vector_size(HK_BYTES), aligned(8), may_alias));
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

}  // namespace
}  // namespace histokit::HK_SET
