// How the attention ops lay heads over threads.
//
// One side sits in registers, a vector of head_dim split over 1 to 32 neighbouring lanes of kDim
// elements each; the other side passes by in tiles of shared memory, read by all lanes at once.
#pragma once
#include <type_traits>

#include "common.cuh"

namespace histokit {
namespace {

constexpr int kMaxHeadDim = 1024;  // 512 in float64
constexpr int kInFlight = 4;       // vectors of a tile whose products overlap

template <class A, int kDim>
struct Tile {
  static constexpr int kPack = 16 / sizeof(A);
  static constexpr int kStep = kDim + kPack;  // a lane's share, padded: lanes meet different banks
  static constexpr int kValues = 18432 / sizeof(A);
  A at[kValues];

  __device__ static int capacity(int lanes) {
    return kValues / (lanes * kStep) / kInFlight * kInFlight;
  }
  __device__ const A* row(int index, int lanes, int lane) const {
    return at + (index * lanes + lane) * kStep;
  }

  // All threads of the block copy rows first .. first + count of one head, zeros behind head_dim.
  template <class T>
  __device__ void fill(const T* from, int64_t stride, int count, int head_dim, int lanes) {
    const int width = lanes * kDim;
    for (int i = threadIdx.x; i < count * width; i += blockDim.x) {
      const int index = i / width, c = i % width;
      at[(index * lanes + c / kDim) * kStep + c % kDim] =
          c < head_dim ? to_acc(from[index * stride + c]) : A(0);
    }
  }
};

// The lanes that share one vector, and this thread's part of it.
template <class A, int kDim>
struct Share {
  int lanes, lane, slot, slots;  // slot: which of the block's vectors this thread works on
  int first, valid;              // elements of the head that this lane holds

  __device__ Share(int lanes_, int head_dim) : lanes(lanes_) {
    lane = threadIdx.x % lanes;
    slot = threadIdx.x / lanes;
    slots = blockDim.x / lanes;
    first = lane * kDim;
    valid = max(0, min(kDim, head_dim - first));
  }

  __device__ __forceinline__ A sum(A value) const {
    for (int bits = lanes / 2; bits > 0; bits /= 2)
      value += __shfl_xor_sync(kAllLanes, value, bits);
    return value;
  }

  // out = from[first ..], 16 bytes at a time when `wide`; zeros where the head has ended.
  template <class T>
  __device__ __forceinline__ void read(const T* from, bool wide, A (&out)[kDim]) const {
    constexpr int kPack = 16 / sizeof(T);
#pragma unroll
    for (int c = 0; c < kDim; c += kPack) {
      A part[kPack] = {};
      if (wide && c < valid) load<kPack>(from + first + c, part);
#pragma unroll
      for (int e = 0; e < kPack; ++e) {
        if (!wide && c + e < valid) part[e] = to_acc(from[first + c + e]);
        out[c + e] = part[e];
      }
    }
  }

  template <class T>
  __device__ __forceinline__ void write(T* to, bool wide, const A (&values)[kDim]) const {
    constexpr int kPack = 16 / sizeof(T);
#pragma unroll
    for (int c = 0; c < kDim; c += kPack) {
      A part[kPack];
#pragma unroll
      for (int e = 0; e < kPack; ++e) {
        part[e] = values[c + e];
        if (!wide && c + e < valid) assign(to[first + c + e], part[e]);
      }
      if (wide && c < valid) store<kPack>(to + first + c, part);
    }
  }
};

// dot[j] += a . tile row j, and a += factor[j] tile row j, over this lane's share.
template <class A, int kDim>
__device__ __forceinline__ A dot(const A (&a)[kDim], const A* b) {
  constexpr int kPack = Tile<A, kDim>::kPack;
  A total = 0;
#pragma unroll
  for (int c = 0; c < kDim; c += kPack) {
    A part[kPack];
    load<kPack>(b + c, part);
#pragma unroll
    for (int e = 0; e < kPack; ++e) total += a[c + e] * part[e];
  }
  return total;
}

template <class A, int kDim>
__device__ __forceinline__ void add(A (&a)[kDim], A factor, const A* b) {
  constexpr int kPack = Tile<A, kDim>::kPack;
#pragma unroll
  for (int c = 0; c < kDim; c += kPack) {
    A part[kPack];
    load<kPack>(b + c, part);
#pragma unroll
    for (int e = 0; e < kPack; ++e) a[c + e] += factor * part[e];
  }
}

// Softmax over keys that pass by, with a running maximum: one row's weighted sum of values so far.
template <class A, int kDim>
struct OnlineSoftmax {
  A sums[kDim] = {}, most = -INFINITY, total = 0;

  // Turns the scores of further keys into their weights, on the scale that sums is brought to.
  __device__ __forceinline__ void weigh(A (&score)[kInFlight]) {
    A now = most;
#pragma unroll
    for (int j = 0; j < kInFlight; ++j) now = max(now, score[j]);
    const A shrink = exponential(most - now);
    most = now;
    total *= shrink;
#pragma unroll
    for (int c = 0; c < kDim; ++c) sums[c] *= shrink;
#pragma unroll
    for (int j = 0; j < kInFlight; ++j) total += score[j] = exponential(score[j] - now);
  }

  // Entry `index` of (..., 2): the largest score, and the logarithm of the sum about it.
  __device__ __forceinline__ void normalizer(void* to, int64_t index) const {
    static_cast<A*>(to)[2 * index] = most;
    static_cast<A*>(to)[2 * index + 1] = logarithm(total);
  }

  template <class T>
  __device__ __forceinline__ void write(const Share<A, kDim>& share, T* out, bool wide) {
#pragma unroll
    for (int c = 0; c < kDim; ++c) sums[c] /= total;
    share.write(out, wide, sums);
  }
};

// What a score's weight is found by in the backward pass.
template <class A>
struct Normalizer {
  A most, log_total;

  __device__ static Normalizer at(const void* from, int64_t index) {
    const A* pair = static_cast<const A*>(from) + 2 * index;
    return {pair[0], pair[1]};
  }
  __device__ __forceinline__ A weight(A score) const {
    return exponential(score - most - log_total);
  }
};

inline int lanes_for(int64_t head_dim, int dim) {
  int lanes = 1;
  while (lanes * dim < head_dim) lanes *= 2;
  return lanes;
}

// Calls launch(T{}, integral constant kDim): heads of up to 16 elements do not pay for 32.
template <class Launch>
Error dispatch_head(Dtype dtype, int64_t head_dim, const char* too_deep, Launch launch) {
  if (head_dim > kMaxHeadDim / 2 && (dtype == Dtype::f64 || head_dim > kMaxHeadDim))
    return too_deep;
  return dispatch(dtype, [&](auto zero) {
    using T = decltype(zero);
    if (sizeof(T) == 8 || head_dim <= 16)
      launch(zero, std::integral_constant<int, 16>{});
    else
      launch(zero, std::integral_constant<int, sizeof(T) == 8 ? 16 : 32>{});
  });
}

}  // namespace
}  // namespace histokit
