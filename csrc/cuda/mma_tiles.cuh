// What kernels on tensor cores share: tiles of products, and the memory that they pass through.
//
// Each warp owns kTiles x 16 rows of one side; the rows of the other side pass by, kColumns at a
// time, copied into one of two stages of shared memory while the other is worked on. Rows lie there
// as kDim elements, zeros behind those that there are, and a row that does not exist is zeros too.
#pragma once
#include "tensor_cores.cuh"

namespace histokit {
namespace {

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

// All threads copy rows from .. from + count, `width` elements of each; arrives with their next
// commit.
template <class P, int kCount>
__device__ __forceinline__ void fetch(typename P::T* to, const typename P::T* from, int64_t stride,
                                      int64_t count, int width, bool wide) {
  constexpr int kChunks = P::kDim / P::kPack;
  for (int i = threadIdx.x; i < kCount * kChunks; i += kThreads) {
    const int row = i / kChunks, c = i % kChunks * P::kPack;
    const int valid = row < count ? max(0, min(P::kPack, width - c)) : 0;
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

// This lane's columns of tile n of what passes by are column(n) and the next one.
__device__ __forceinline__ int column_of(int n) { return n * kTileColumns + lane_id() % 4 * 2; }

// The first row of this lane's sums; the others follow by 8.
template <class P>
__device__ __forceinline__ int64_t first_row() {
  return int64_t(blockIdx.x) * P::kRows + threadIdx.x / kWarp * P::kTiles * kTileRows +
         lane_id() / 4;
}

// Writes this lane's share of rows that are `stride` apart, times factor[m][r].
template <class P>
__device__ __forceinline__ void write_rows(typename P::T* to, int64_t stride, int64_t num_rows,
                                           int width, const typename P::Vectors& sums,
                                           const float (&factor)[P::kTiles][2], bool wide) {
#pragma unroll
  for (int m = 0; m < P::kTiles; ++m)
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int64_t row = first_row<P>() + m * kTileRows + r * 8;
      if (row >= num_rows) continue;
      typename P::T* out = to + row * stride;
#pragma unroll
      for (int n = 0; n < P::kDim / kTileColumns; ++n) {
        const int c = column_of(n);
        float pair[2];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          pair[e] = sums[m][n][2 * r + e] * factor[m][r];
          if (!wide && c + e < width) assign(out[c + e], pair[e]);
        }
        if (wide && c < width) store<2>(out + c, pair);
      }
    }
}

// Whether the current device has the instructions, and this much shared memory for a block.
inline bool device_takes_mma(int bytes) {
  int device = 0, major = 0, most = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  return major >= 8 && most >= bytes;
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
