// Eight values of any floating type as float64.
#pragma once
#include <cstring>

#include "../simd.h"

namespace histokit {
namespace {

struct Half {
  uint16_t bits;
};
struct Brain {
  uint16_t bits;
};
typedef float Float8 __attribute__((vector_size(32)));
typedef uint16_t Short8 __attribute__((vector_size(16)));
typedef uint32_t Word8 __attribute__((vector_size(32)));
typedef uint8_t Byte8 __attribute__((vector_size(8)));
using Double8 = Vec<double>;

HK_INLINE Double8 widen(Word8 bits) {
  return __builtin_convertvector(reinterpret_cast<Float8>(bits), Double8);
}

HK_INLINE Double8 load8(const double* p) { return load(p); }

HK_INLINE Double8 load8(const float* p) {
  Float8 v;
  std::memcpy(&v, p, sizeof v);
  return __builtin_convertvector(v, Double8);
}

HK_INLINE Double8 load8(const Brain* p) {
  Short8 v;
  std::memcpy(&v, p, sizeof v);
  return widen(__builtin_convertvector(v, Word8) << 16);
}

// Half to float: shifted into a float's fields the exponent is 112 too small, which a product with
// 2^112 mends, subnormal numbers included; infinity and NaN get the largest exponent instead.
HK_INLINE Double8 load8(const Half* p) {
  Short8 v;
  std::memcpy(&v, p, sizeof v);
  const Word8 bits = __builtin_convertvector(v, Word8), magnitude = (bits & 0x7fff) << 13;
  const Float8 scaled = reinterpret_cast<Float8>(magnitude) * 0x1p112f;
  const Word8 finite = reinterpret_cast<Word8>(scaled), special = magnitude | 0x7f800000u;
  return widen((magnitude >= 0x0f800000u ? special : finite) | (bits & 0x8000) << 16);
}

}  // namespace
}  // namespace histokit
