#include "../csr.h"
#include "common.cuh"

namespace histokit {
namespace {

constexpr int kLaneValues = 8;  // columns of out a lane keeps: a warp covers 256 at a time
constexpr int kInFlight = 4;    // rows of dense whose loads overlap

// A warp per compressed row and 256 columns: the row's entries are read 32 at a time and handed
// round, each row of dense is read by neighbouring lanes, and sums run in the order of the entries.
template <class A, class Index, int kPack>
__global__ void __launch_bounds__(kThreads) matmul_kernel(const CsrParams p) {
  constexpr int kTiles = kLaneValues / kPack;
  const Index* col_index = static_cast<const Index*>(p.col_index);
  const Index* offsets = static_cast<const Index*>(p.row_offsets);
  const A* values = static_cast<const A*>(p.values);
  const A* dense = static_cast<const A*>(p.dense);
  const int lane = threadIdx.x % kWarp;
  const int64_t slices = ceil_div(p.dim, kWarp * kLaneValues);
  const int64_t warps = int64_t(gridDim.x) * kBlockWarps;
  int64_t task = int64_t(blockIdx.x) * kBlockWarps + threadIdx.x / kWarp;
  for (; task < p.num_rows * slices; task += warps) {
    const int64_t row = task / slices;
    const int64_t first = task % slices * (kWarp * kLaneValues) + lane * kPack;
    A sums[kTiles][kPack] = {};
    const int64_t end = offsets[row + 1];
    for (int64_t at = offsets[row]; at < end; at += kWarp) {
      const int count = min(int64_t(kWarp), end - at);
      const int64_t col = lane < count ? int64_t(col_index[at + lane]) : 0;
      const A value = lane < count ? values[at + lane] : A(0);
      for (int i = 0; i < count; i += kInFlight) {
        A factor[kInFlight], from[kInFlight][kTiles][kPack] = {};
#pragma unroll
        for (int j = 0; j < kInFlight; ++j) {  // i + j < 32: kInFlight divides 32
          factor[j] = __shfl_sync(kAllLanes, value, i + j);
          const A* source = dense + __shfl_sync(kAllLanes, col, i + j) * p.dense_stride;
#pragma unroll
          for (int tile = 0; tile < kTiles; ++tile) {
            const int64_t column = first + tile * kWarp * kPack;
            if (column < p.dim && i + j < count) load<kPack>(source + column, from[j][tile]);
          }
        }
#pragma unroll
        for (int j = 0; j < kInFlight; ++j)
#pragma unroll
          for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
            for (int e = 0; e < kPack; ++e) sums[tile][e] += factor[j] * from[j][tile][e];
      }
    }
    A* out = static_cast<A*>(p.out) + row * p.dim;
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const int64_t column = first + tile * kWarp * kPack;
      if (column < p.dim) store<kPack>(out + column, sums[tile]);
    }
  }
}

// A warp per gene: sums about its first stored value, then the implicit zeros join as one group.
template <class A, class Index>
__global__ void __launch_bounds__(kThreads) moments_kernel(const CsrParams p) {
  const Index* offsets = static_cast<const Index*>(p.row_offsets);
  const A* values = static_cast<const A*>(p.values);
  const int lane = threadIdx.x % kWarp;
  const int64_t warps = int64_t(gridDim.x) * kBlockWarps;
  int64_t row = int64_t(blockIdx.x) * kBlockWarps + threadIdx.x / kWarp;
  for (; row < p.num_rows; row += warps) {
    const int64_t begin = offsets[row], end = offsets[row + 1];
    const double pivot = begin < end ? values[begin] : 0;
    double sum = 0, squares = 0;
    for (int64_t at = begin + lane; at < end; at += kWarp) {
      const double shifted = values[at] - pivot;
      sum += shifted;
      squares += shifted * shifted;
    }
    sum = warp_sum(sum);
    squares = warp_sum(squares);
    if (lane > 0) continue;
    const double count = end - begin, all = p.num_cols;
    const double shift = begin < end ? sum / count : 0, mean = pivot + shift;
    p.moments[row] = count * mean / all;
    p.moments[p.num_rows + row] =
        not_below_zero(squares - sum * shift) + count * (all - count) / all * mean * mean;
  }
}

__device__ __forceinline__ RowFault worse(RowFault a, RowFault b) { return a < b ? b : a; }

// A warp per compressed row: the worst that one of its entries shows.
template <class Index>
__global__ void __launch_bounds__(kThreads) check_kernel(const CsrParams p) {
  const Index* offsets = static_cast<const Index*>(p.row_offsets);
  const Index* index = static_cast<const Index*>(p.col_index);
  const int lane = threadIdx.x % kWarp;
  const int64_t warps = int64_t(gridDim.x) * kBlockWarps;
  int64_t row = int64_t(blockIdx.x) * kBlockWarps + threadIdx.x / kWarp;
  for (; row < p.num_rows; row += warps) {
    const int64_t begin = offsets[row], end = offsets[row + 1];
    RowFault worst = RowFault::none;
    if (begin < 0 || begin > end || end > p.num_entries || (row == 0 && begin != 0) ||
        (row == p.num_rows - 1 && end != p.num_entries)) {
      worst = RowFault::offsets;
    } else {
      for (int64_t at = begin + lane; at < end; at += kWarp) {
        const int64_t column = index[at], before = at > begin ? int64_t(index[at - 1]) : -1;
        RowFault found = RowFault::none;
        if (column == before) found = RowFault::duplicate;
        if (column < before) found = RowFault::order;
        if (column < 0 || column >= p.num_cols) found = RowFault::range;
        worst = worse(worst, found);
      }
    }
#pragma unroll
    for (int bits = kWarp / 2; bits > 0; bits /= 2)
      worst = worse(worst, RowFault(__shfl_xor_sync(kAllLanes, int(worst), bits)));
    if (p.faults && lane == 0) p.faults[row] = worst;
    HK_ASSERT(p.faults || worst == RowFault::none,
              "sparse target: row_offsets ascend from 0 to the number of values, and columns "
              "strictly in a row, in [0, G); HISTOKIT_CHECK=1 says more");
  }
}

int64_t blocks_for(int64_t tasks) { return min(ceil_div(tasks, kBlockWarps), kMaxBlocks); }

template <class A, class Index>
void launch_matmul(const CsrParams& p, Stream stream) {
  constexpr int kPack = 16 / sizeof(A);
  const bool wide = aligned16(p.dense) && aligned16(p.out) && (p.dim | p.dense_stride) % kPack == 0;
  const auto kernel = wide ? matmul_kernel<A, Index, kPack> : matmul_kernel<A, Index, 1>;
  const int64_t slices = ceil_div(p.dim, kWarp * kLaneValues);
  HK_LAUNCH(kernel, blocks_for(p.num_rows * slices), kThreads, stream, p);
}

template <class A, class Index>
void launch_moments(const CsrParams& p, Stream stream) {
  HK_LAUNCH((moments_kernel<A, Index>), blocks_for(p.num_rows), kThreads, stream, p);
}

}  // namespace

Error csr_check_cuda(CsrParams p, Stream stream) {
  const auto kernel = p.wide_index ? check_kernel<int64_t> : check_kernel<int32_t>;
  HK_LAUNCH(kernel, blocks_for(p.num_rows), kThreads, stream, p);
  return launch_error();
}

Error csr_matmul_cuda(CsrParams p, Stream stream) {
  if (csr_matmul_by_mma(p)) return csr_matmul_mma_cuda(p, stream);
  const bool f64 = p.dtype == Dtype::f64;
  if (p.wide_index)
    f64 ? launch_matmul<double, int64_t>(p, stream) : launch_matmul<float, int64_t>(p, stream);
  else
    f64 ? launch_matmul<double, int32_t>(p, stream) : launch_matmul<float, int32_t>(p, stream);
  return launch_error();
}

Error csr_moments_cuda(CsrParams p, Stream stream) {
  const bool f64 = p.dtype == Dtype::f64;
  if (p.wide_index)
    f64 ? launch_moments<double, int64_t>(p, stream) : launch_moments<float, int64_t>(p, stream);
  else
    f64 ? launch_moments<double, int32_t>(p, stream) : launch_moments<float, int32_t>(p, stream);
  return launch_error();
}

}  // namespace histokit
