// Host twins of the tensor core instructions (csrc/cuda/tensor_cores.cuh) by the fragment layouts
// of the PTX ISA: lanes meet as in a shuffle, and each works out its own part of the result.
// Copies arrive as late as they may, at the wait for them, and their place is poisoned until then.
#pragma once

#include <bit>
#include <deque>
#include <map>

#include "cuda_runtime.h"

namespace cuda_host {

// Every lane publishes its value; gives those of all lanes.
template <class T>
const Slot* meet(const T& value, unsigned line) {
  static_assert(sizeof(T) <= kMaxValueBytes);
  Slot* slots = current->warp->slots[current->phase++ % 2];
  std::memcpy(slots[current->lane].bytes, &value, sizeof(T));
  slots[current->lane].line = line;
  arrive_and_wait(current->warp->barrier);
  for (unsigned lane = 0; lane < warpSize; ++lane)
    if (slots[lane].line != line) fail("lanes of one warp meet in different instructions", line);
  return slots;
}

template <class T>
T part(const Slot* slots, unsigned lane, unsigned index) {
  T value;
  std::memcpy(&value, slots[lane].bytes + index * sizeof(T), sizeof(T));
  return value;
}

// What a thread has asked to be copied: groups in order, the last one open.
struct Copies {
  struct Copy {
    unsigned char* to;
    const unsigned char* from;
    int bytes;
  };
  uint64_t block = 0;
  std::deque<std::vector<Copy>> groups;

  static Copies& own() {
    static std::map<Fiber*, Copies> all;
    Copies& mine = all[current];
    if (mine.block != block_number) mine = {block_number, {{}}};
    return mine;
  }
  void arrive(size_t left) {
    for (; groups.size() > left + 1; groups.pop_front())
      for (const Copy& copy : groups.front()) {
        std::memset(copy.to, 0, 16);
        std::memcpy(copy.to, copy.from, copy.bytes);
      }
  }
};

inline bool odd_address(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16; }

// A product's sum in float32, towards zero: Fasi, Higham, Mikaitis and Pranesh, "Numerical behavior
// of NVIDIA tensor cores", PeerJ CS 7:e330 (2021).
inline float towards_zero(double value) {
  const float near = static_cast<float>(value);
  return std::fabs(near) > std::fabs(value) ? std::nextafter(near, 0.0f) : near;
}

struct Operands {
  uint32_t a[4], b[2];
};

// A register holds 1 number of TF32 or 2 of a half type: `pairs`; decode(register, which) is one.
template <class Decode>
void multiply(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], unsigned pairs,
              unsigned line, Decode decode) {
  Operands own;
  std::memcpy(own.a, a, sizeof(a));
  std::memcpy(own.b, b, sizeof(b));
  const Slot* slots = meet(own, line);
  const unsigned width = 4 * pairs;  // of k in one register of four lanes
  for (unsigned e = 0; e < 4; ++e) {
    const unsigned row = current->lane / 4 + e / 2 * 8, column = current->lane % 4 * 2 + e % 2;
    double sum = sums[e];
    for (unsigned k = 0; k < 2 * width; ++k) {
      const unsigned lane = k % width / pairs, half = k / width;
      const uint32_t left = part<uint32_t>(slots, row % 8 * 4 + lane, row / 8 + half * 2);
      const uint32_t right = part<uint32_t>(slots, column * 4 + lane, 4 + half);
      sum += static_cast<double>(decode(left, k % pairs)) * decode(right, k % pairs);
    }
    sums[e] = towards_zero(sum);
  }
}

template <class T>
float half_of(uint32_t bits, unsigned which) {
  return std::bit_cast<T>(static_cast<uint16_t>(bits >> 16 * which));
}

// Whether lane 8 j + i gives row i of matrix j: the two numbers of matrix `index` at (row, column)
// and (row + down, column + 1 - down).
inline uint32_t two_numbers(const Slot* slots, unsigned index, unsigned row, unsigned column,
                            unsigned down) {
  uint32_t bits = 0;
  for (unsigned i = 0; i < 2; ++i) {
    const auto* from = part<const uint16_t*>(slots, index * 8 + row + i * down, 0);
    bits |= static_cast<uint32_t>(from[column + i * (1 - down)]) << 16 * i;
  }
  return bits;
}

template <unsigned kCount>
void matrices(uint32_t (&out)[kCount], const void* row, bool transposed, unsigned line) {
  if (current->lane < 8 * kCount && odd_address(row))
    fail("a row of a matrix is not at a multiple of 16 bytes", line);
  const Slot* slots = meet(row, line);
  const unsigned first = current->lane / 4, second = current->lane % 4 * 2;
  for (unsigned j = 0; j < kCount; ++j)
    out[j] = transposed ? two_numbers(slots, j, second, first, 1)
                        : two_numbers(slots, j, first, second, 0);
}

}  // namespace cuda_host

#define HK_DYNAMIC_SHARED(name) unsigned char* const name = cuda_host::dynamic_shared()
#define HK_LAUNCH_SHARED(kernel, grid, block, bytes, stream, ...) \
  cuda_host::launch_shared(kernel, grid, block, bytes, __VA_ARGS__)

inline float __uint_as_float(uint32_t bits) { return std::bit_cast<float>(bits); }

namespace histokit {
namespace {

using Here = std::source_location;

inline void copy_async(void* to, const void* from, int bytes, Here here = Here::current()) {
  using namespace cuda_host;
  if (odd_address(to) || odd_address(from) || bytes < 0 || bytes > 16)
    return fail("a copy is not of 16 bytes at multiples of 16", here.line());
  std::memset(to, 0xff, 16);
  const auto* bytes_from = static_cast<const unsigned char*>(from);
  Copies::own().groups.back().push_back({static_cast<unsigned char*>(to), bytes_from, bytes});
}
inline void commit_copies() { cuda_host::Copies::own().groups.emplace_back(); }
template <int kLeft>
void wait_copies() {
  cuda_host::Copies::own().arrive(kLeft);
}

template <unsigned kCount>
void load_matrices(uint32_t (&out)[kCount], const void* row, Here here = Here::current()) {
  cuda_host::matrices(out, row, false, here.line());
}
template <unsigned kCount>
void load_matrices_transposed(uint32_t (&out)[kCount], const void* row,
                              Here here = Here::current()) {
  cuda_host::matrices(out, row, true, here.line());
}

template <class T>
void mma(T, float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
         Here here = Here::current()) {
  cuda_host::multiply(sums, a, b, 2, here.line(), cuda_host::half_of<T>);
}
inline void mma(float, float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                Here here = Here::current()) {
  cuda_host::multiply(sums, a, b, 1, here.line(), [&](uint32_t bits, unsigned) {
    if (bits & 0x1fff) cuda_host::fail("an operand is not rounded to TF32", here.line());
    return __uint_as_float(bits);
  });
}

// A number that is not finite stays as it is; NaN loses what says which.
inline uint32_t round_tf32(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if (std::isnan(value)) return 0x7fc00000;
  return std::isinf(value) ? bits : (bits + 0x1000) & ~0x1fffu;
}
template <class T>
uint32_t pack(T, float low, float high) {
  const uint32_t first = std::bit_cast<uint16_t>(T(low)), second = std::bit_cast<uint16_t>(T(high));
  return first | second << 16;
}

inline float fast_exp2(float value) { return std::exp2(value); }
inline float fast_sqrt(float value) { return std::sqrt(value); }

}  // namespace
}  // namespace histokit
