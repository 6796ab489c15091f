// What the passes of distance_attention on tensor cores share.
//
// Each warp owns queries or keys, and the other side passes by (see mma_tiles.cuh).
#pragma once
#include "distance_attention.cuh"
#include "mma_tiles.cuh"

namespace histokit {
namespace {

constexpr int kMostMmaDim = 128;
constexpr int kMmaSharedBytes = 104 << 10;  // no plan takes more

// Rows of this warp times all that pass by, over the head.
template <class P>
__device__ __forceinline__ void multiply(typename P::Scores& out, const typename P::T* own,
                                         const typename P::T* passing) {
  using F = typename P::F;
  own += threadIdx.x / kWarp * P::kTiles * kTileRows * P::kStride;
#pragma unroll P::kUnroll
  for (int k = 0; k < P::kDim; k += F::kDepth) {
    typename F::A a[P::kTiles];
#pragma unroll
    for (int m = 0; m < P::kTiles; ++m)
      F::load(a[m], own + m * kTileRows * P::kStride + k, P::kStride);
#pragma unroll
    for (int n = 0; n < P::kAcross; n += 2) {
      typename F::B b[2];
      F::load_across(b, passing + n * kTileColumns * P::kStride + k, P::kStride);
#pragma unroll
      for (int m = 0; m < P::kTiles; ++m) {
        out[m][n].add(a[m], b[0]);
        out[m][n + 1].add(a[m], b[1]);
      }
    }
    if ((k + F::kDepth) % (4 * F::kDepth) > 0) continue;
#pragma unroll
    for (int m = 0; m < P::kTiles; ++m)
#pragma unroll
      for (int n = 0; n < P::kAcross; ++n) out[m][n].settle();
  }
}

template <class P>
__device__ __forceinline__ void turn(typename P::Operand& out, const typename P::Weights& weights) {
#pragma unroll
  for (int m = 0; m < P::kTiles; ++m)
#pragma unroll
    for (int s = 0; s < P::kSteps; ++s)
      P::F::turn(out[m][s], &weights[m][s * P::F::kDepth / kTileColumns]);
}

// The rows of this lane's sums: two in each tile.
template <class P>
struct Rows {
  int64_t first;
  Place<float> place[P::kTiles][2];

  // The r-th of tile m; may lie behind the last row that there is.
  __device__ __forceinline__ int64_t row(int m, int r) const {
    return first + m * kTileRows + r * 8;
  }
  __device__ __forceinline__ explicit Rows(const Params& p) : first(first_row<P>()) {
#pragma unroll
    for (int m = 0; m < P::kTiles; ++m)
#pragma unroll
      for (int r = 0; r < 2; ++r)
        place[m][r] = Place<float>(p.coords, min(row(m, r), p.num_rows - 1));
  }
};

__device__ __forceinline__ void fill_places(float* to, const Params& p, int64_t start, int count) {
  const float* coords = static_cast<const float*>(p.coords);
  for (int i = threadIdx.x; i < 2 * count; i += kThreads)
    to[i] = coords[2 * min(start + i / 2, p.num_rows - 1) + i % 2];
}

// Vectors of all rows and heads, and the distances between them.
struct Side {
  const void* data;
  int64_t row, head;
};

// Asks for the rows of two sides from `start` on, and their places.
template <class P>
__device__ __forceinline__ void fill_stage(typename P::T* slabs, float* places, const Params& p,
                                           const Side (&sides)[2], int64_t start, int stage,
                                           bool wide) {
#pragma unroll
  for (int i = 0; i < 2; ++i)
    fetch<P, P::kColumns>(slabs + (2 * stage + i) * P::kColumnSlab,
                          head_of<typename P::T>(sides[i].data, start, sides[i].row, sides[i].head),
                          sides[i].row, p.num_rows - start, p.head_dim, wide);
  fill_places(places + 2 * stage * P::kColumns, p, start, P::kColumns);
}

// The same of keys and values.
template <class P>
__device__ __forceinline__ void fill_keys(typename P::T* slabs, float* places, const Params& p,
                                          int64_t start, int stage, bool wide) {
  const Side sides[2] = {{p.key, p.key_row, p.key_head}, {p.value, p.value_row, p.value_head}};
  fill_stage<P>(slabs, places, p, sides, start, stage, wide);
}

__device__ __forceinline__ float fast_distance(const Place<float>& place, const float* other) {
  const float dx = place.x - other[0], dy = place.y - other[1];
  return fast_sqrt(dx * dx + dy * dy);
}

constexpr float kLog2E = 1.44269504088896341f;
__device__ __forceinline__ float fast_exp(float value) { return fast_exp2(value * kLog2E); }

// Sum and maximum over the four lanes that share a row.
__device__ __forceinline__ float row_sum(float value) {
  value += __shfl_xor_sync(kAllLanes, value, 1);
  return value + __shfl_xor_sync(kAllLanes, value, 2);
}
__device__ __forceinline__ float row_max(float value) {
  value = max(value, __shfl_xor_sync(kAllLanes, value, 1));
  return max(value, __shfl_xor_sync(kAllLanes, value, 2));
}

// The same in a head of (N, h, d).
template <class P>
__device__ __forceinline__ void write_rows(void* to, const Params& p,
                                           const typename P::Vectors& sums,
                                           const float (&factor)[P::kTiles][2], bool wide) {
  typename P::T* out = static_cast<typename P::T*>(to) + int64_t(blockIdx.y) * p.head_dim;
  write_rows<P>(out, p.num_heads * p.head_dim, p.num_rows, p.head_dim, sums, factor, wide);
}

// Calls launch(T{}, products, dim), the last two as integral constants.
template <class Launch>
Error dispatch_mma(const Params& p, Launch launch) {
  const auto with_dim = [&](auto zero, auto products) {
    if (p.head_dim <= kMostMmaDim / 2)
      return launch(zero, products, std::integral_constant<int, kMostMmaDim / 2>{});
    return launch(zero, products, std::integral_constant<int, kMostMmaDim>{});
  };
  constexpr std::integral_constant<int, 1> kOne;
  constexpr std::integral_constant<int, 3> kThree;
  if (p.dtype == Dtype::f16) return with_dim(__half{}, kOne);
  if (p.dtype == Dtype::bf16) return with_dim(__nv_bfloat16{}, kOne);
  return p.products == 1 ? with_dim(float{}, kOne) : with_dim(float{}, kThree);
}

}  // namespace
}  // namespace histokit
