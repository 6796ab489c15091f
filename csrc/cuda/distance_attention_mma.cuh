// What the passes of distance_attention on tensor cores share.
//
// Each warp owns kTiles x 16 rows of one side, queries or keys; the rows of the other side pass by,
// kColumns at a time, copied into one of two stages while the other is worked on. Both sides lie in
// shared memory as rows of kDim elements, zeros behind head_dim, and a row that does not exist is
// zeros too.
#pragma once
#include "distance_attention.cuh"
#include "tensor_cores.cuh"

namespace histokit {
namespace {

constexpr int kMostMmaDim = 128;
constexpr int kMmaSharedBytes = 104 << 10;  // no plan takes more

template <class T_, int kProducts, int kDim_, int kTiles_, int kColumns_>
struct Plan {
  using T = T_;
  using F = Fragments<T, kProducts>;
  static constexpr int kDim = kDim_, kTiles = kTiles_, kColumns = kColumns_;
  static constexpr int kPack = 16 / sizeof(T), kStride = kDim + kPack;
  static constexpr int kRows = kBlockWarps * kTiles * kTileRows;  // of a block
  static constexpr int kAcross = kColumns / kTileColumns, kSteps = kColumns / F::kDepth;
  static constexpr int kUnroll = sizeof(T) == 4 ? 4 : kDim / F::kDepth;  // by what spills less
  static constexpr int kRowSlab = kRows * kStride, kColumnSlab = kColumns * kStride;
  using Scores = typename F::Sums[kTiles][kAcross];
  using Weights = float[kTiles][kAcross][4];
  using Operand = typename F::A[kTiles][kSteps];
  using Vectors = float[kTiles][kDim / kTileColumns][4];

  // Of shared memory: `own` and `passing` slabs of rows, and what a stage holds beside them.
  static constexpr int bytes(int own, int passing, int beside) {
    return own * kRowSlab * int(sizeof(T)) +
           2 * (passing * kColumnSlab * int(sizeof(T)) + kColumns * beside);
  }
};

// All threads copy rows from .. from + count of one head; arrives with their next commit.
template <class P, int kCount>
__device__ __forceinline__ void fetch(typename P::T* to, const typename P::T* from, int64_t stride,
                                      int64_t count, int head_dim, bool wide) {
  constexpr int kChunks = P::kDim / P::kPack;
  for (int i = threadIdx.x; i < kCount * kChunks; i += kThreads) {
    const int row = i / kChunks, c = i % kChunks * P::kPack;
    const int valid = row < count ? max(0, min(P::kPack, head_dim - c)) : 0;
    const typename P::T* source = valid ? from + row * stride + c : from;
    typename P::T* cell = to + row * P::kStride + c;
    if (wide) {
      copy_async(cell, source, valid * int(sizeof(typename P::T)));
    } else {
#pragma unroll
      for (int e = 0; e < P::kPack; ++e) assign(cell[e], e < valid ? to_acc(source[e]) : 0.0f);
    }
  }
}

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

// Sums of weights times rows that pass by: add(out, m, e, sum) for each entry e of tile m. They
// are complete for this stage, so that chains of additions on tensor cores, which round towards
// zero, stay short.
template <class P, class Add>
__device__ __forceinline__ void gather(typename P::Vectors& out, const typename P::Operand& weights,
                                       const typename P::T* passing, Add add) {
  using F = typename P::F;
#pragma unroll
  for (int c = 0; c < P::kDim; c += 2 * kTileColumns) {
    typename F::Sums sums[P::kTiles][2];
#pragma unroll
    for (int s = 0; s < P::kSteps; ++s) {
      typename F::B b[2];
      F::load(b, passing + s * F::kDepth * P::kStride + c, P::kStride);
#pragma unroll
      for (int m = 0; m < P::kTiles; ++m) {
        sums[m][0].add(weights[m][s], b[0]);
        sums[m][1].add(weights[m][s], b[1]);
      }
    }
#pragma unroll
    for (int m = 0; m < P::kTiles; ++m)
#pragma unroll
      for (int i = 0; i < 8; ++i)
        add(out[m][c / kTileColumns + i / 4][i % 4], m, i % 4, sums[m][i / 4].total(i % 4));
  }
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
  __device__ __forceinline__ explicit Rows(const Params& p)
      : first(int64_t(blockIdx.x) * P::kRows + threadIdx.x / kWarp * P::kTiles * kTileRows +
              lane_id() / 4) {
#pragma unroll
    for (int m = 0; m < P::kTiles; ++m)
#pragma unroll
      for (int r = 0; r < 2; ++r)
        place[m][r] = Place<float>(p.coords, min(row(m, r), p.num_rows - 1));
  }
};

// This lane's columns of tile n of what passes by are column(n) and the next one.
__device__ __forceinline__ int column_of(int n) { return n * kTileColumns + lane_id() % 4 * 2; }

__device__ __forceinline__ void fill_places(float* to, const Params& p, int64_t start, int count) {
  const float* coords = static_cast<const float*>(p.coords);
  for (int i = threadIdx.x; i < 2 * count; i += kThreads)
    to[i] = coords[2 * min(start + i / 2, p.num_rows - 1) + i % 2];
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

// Writes this lane's share of rows of (N, h, d), times factor[m][r].
template <class P>
__device__ __forceinline__ void write_rows(void* to, const Params& p, const Rows<P>& rows,
                                           const typename P::Vectors& sums,
                                           const float (&factor)[P::kTiles][2], bool wide) {
  using T = typename P::T;
#pragma unroll
  for (int m = 0; m < P::kTiles; ++m)
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int64_t row = rows.row(m, r);
      if (row >= p.num_rows) continue;
      T* out = static_cast<T*>(to) + (row * p.num_heads + blockIdx.y) * p.head_dim;
#pragma unroll
      for (int n = 0; n < P::kDim / kTileColumns; ++n) {
        const int c = column_of(n);
        float pair[2];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          pair[e] = sums[m][n][2 * r + e] * factor[m][r];
          if (!wide && c + e < p.head_dim) assign(out[c + e], pair[e]);
        }
        if (wide && c < p.head_dim) store<2>(out + c, pair);
      }
    }
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

// Launches with as much shared memory as the plan takes, over 48 KB too.
template <class Kernel, class... Arguments>
Error launch_mma(Kernel kernel, dim3 grid, int bytes, Stream stream, Arguments... arguments) {
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return cudaGetErrorString(error);
  HK_LAUNCH_SHARED(kernel, grid, kThreads, bytes, stream, arguments...);
  return launch_error();
}

}  // namespace
}  // namespace histokit
