#include "../csr.h"
#include "mma_tiles.cuh"

// Y dense by dense tiles: the rows of Y that a warp owns lie in shared memory with their zeros,
// 32 columns at a time, and rows of dense pass by. All stored entries are read for each 64 columns
// of dense, and each is multiplied as if nothing were zero, at the rate of tensor cores.
namespace histokit {
namespace {

constexpr int kWidth = 64;  // columns of dense in a block
constexpr int kAhead = 4;   // entries of a row whose loads overlap
// Below this share of stored entries, gathering their rows costs less: predicted, not measured.
constexpr double kLeastFilled = 0.03;

template <int kProducts, int kTiles>
using DensePlan = Plan<float, kProducts, kWidth, kTiles, 32>;

// A dense tile: rows of kColumns elements, an odd multiple of 16 bytes apart.
template <class P>
constexpr int kTileStride = P::kColumns + P::kPack;
template <class P>
constexpr int kBytes = P::bytes(0, 1, 0) + P::kRows * kTileStride<P> * int(sizeof(float));

// One row of Y, read from left to right by one thread.
template <class Index>
struct Entries {
  int64_t at = 0, end = 0, last = -1;
  bool ascend = true;

  __device__ __forceinline__ Entries(const CsrParams& p, int64_t row, bool exists) {
    if (!exists) return;
    const Index* offsets = static_cast<const Index*>(p.row_offsets);
    at = offsets[row], end = offsets[row + 1];
  }

  // Columns [start, start + kColumns) as a row of a dense tile. In each 8 columns those of even
  // number come first, which is where the product looks for them (Fragments<float>::load of B).
  template <class P>
  __device__ __forceinline__ void spread(float* cells, const CsrParams& p, int64_t start) {
    const Index* index = static_cast<const Index*>(p.col_index);
    const float* values = static_cast<const float*>(p.values);
    constexpr float kZeros[P::kPack] = {};
#pragma unroll
    for (int c = 0; c < P::kColumns; c += P::kPack) store<P::kPack>(cells + c, kZeros);
    const int64_t limit = min(start + P::kColumns, p.num_cols);
    for (bool more = true; more;) {
      int64_t column[kAhead];
      float value[kAhead];
#pragma unroll
      for (int j = 0; j < kAhead; ++j) {
        const bool exists = at + j < end;
        column[j] = exists ? int64_t(index[at + j]) : limit;
        value[j] = exists ? values[at + j] : 0.0f;
      }
#pragma unroll
      for (int j = 0; j < kAhead; ++j) {
        more = more && column[j] < limit;
        if (!more) continue;
        ascend = ascend && column[j] > last;
        last = column[j];
        ++at;
        const int k = int(last - start);
        if (ascend) cells[k / 8 * 8 + k % 2 * 4 + k % 8 / 2] = value[j];
      }
    }
  }
};

// Block (x, y): rows of tile x of out, columns of slice y; columns of Y pass by with rows of dense.
template <class P, class Index>
__global__ void __launch_bounds__(kThreads, 2) densified_mma(const CsrParams p, const bool wide) {
  constexpr int kWarpRows = P::kTiles * kTileRows, kStride = kTileStride<P>;
  HK_DYNAMIC_SHARED(memory);
  float* const slabs = reinterpret_cast<float*>(memory);
  float* const tile =  // of this warp alone
      slabs + 2 * P::kColumnSlab + threadIdx.x / kWarp * kWarpRows * kStride;
  const int64_t column = int64_t(blockIdx.y) * kWidth;
  const int width = min(int64_t(kWidth), p.dim - column);
  const float* const dense = static_cast<const float*>(p.dense) + column;
  const auto fill_stage = [&](int64_t start, int stage) {
    fetch<P, P::kColumns>(slabs + stage * P::kColumnSlab, dense + start * p.dense_stride,
                          p.dense_stride, p.num_cols - start, width, wide);
    commit_copies();
  };
  fill_stage(0, 0);

  const int64_t row = int64_t(blockIdx.x) * P::kRows + threadIdx.x / kWarp * kWarpRows + lane_id();
  const bool reads = lane_id() < kWarpRows;
  Entries<Index> entries(p, row, reads && row < p.num_rows);
  if (reads) entries.template spread<P>(tile + lane_id() * kStride, p, 0);
  typename P::Vectors sums = {};
  int stage = 0;
  for (int64_t start = 0; start < p.num_cols; start += P::kColumns, stage ^= 1) {
    const int64_t next = start + P::kColumns;
    wait_copies<0>();
    __syncthreads();
    if (next < p.num_cols) fill_stage(next, stage ^ 1);
    typename P::Operand operand;
#pragma unroll
    for (int m = 0; m < P::kTiles; ++m)
#pragma unroll
      for (int s = 0; s < P::kSteps; ++s)
        P::F::load(operand[m][s], tile + m * kTileRows * kStride + s * P::F::kDepth, kStride);
    gather<P>(sums, operand, slabs + stage * P::kColumnSlab,
              [](float& sum, int, int, float more) { sum += more; });
    __syncwarp();
    if (reads && next < p.num_cols) entries.template spread<P>(tile + lane_id() * kStride, p, next);
  }
  HK_ASSERT(entries.ascend && entries.at == entries.end,
            "csr_matmul: columns of a sparse matrix ascend strictly in a row, in [0, columns)");

  float factor[P::kTiles][2];
#pragma unroll
  for (int m = 0; m < P::kTiles; ++m) factor[m][0] = factor[m][1] = 1;
  write_rows<P>(static_cast<float*>(p.out) + column, p.dim, p.num_rows, width, sums, factor, wide);
}

template <class P, class Index>
Error launch_densified(const CsrParams& p, Stream stream) {
  const bool wide = aligned16(p.dense) && aligned16(p.out) && (p.dim | p.dense_stride) % 4 == 0;
  const dim3 grid(ceil_div(p.num_rows, P::kRows), ceil_div(p.dim, kWidth));
  return launch_mma(densified_mma<P, Index>, grid, kBytes<P>, stream, p, wide);
}

// Tall blocks read less; short ones where tall ones would leave the device idle.
template <int kProducts, class Index>
Error launch_tall_or_short(const CsrParams& p, Stream stream) {
  using Tall = DensePlan<kProducts, 2>;
  int device = 0, processors = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  const int64_t blocks = ceil_div(p.num_rows, Tall::kRows) * ceil_div(p.dim, kWidth);
  if (blocks >= 2 * processors) return launch_densified<Tall, Index>(p, stream);
  return launch_densified<DensePlan<kProducts, 1>, Index>(p, stream);
}

}  // namespace

bool csr_matmul_by_mma(const CsrParams& p) {
  const double all = double(p.num_rows) * double(p.num_cols);
  return p.products > 0 && p.dtype == Dtype::f32 && p.num_entries > 0 &&
         double(p.num_entries) >= kLeastFilled * all && device_takes_mma(kBytes<DensePlan<3, 2>>);
}

Error csr_matmul_mma_cuda(CsrParams p, Stream stream) {
  if (p.products == 1)
    return p.wide_index ? launch_tall_or_short<1, int64_t>(p, stream)
                        : launch_tall_or_short<1, int32_t>(p, stream);
  return p.wide_index ? launch_tall_or_short<3, int64_t>(p, stream)
                      : launch_tall_or_short<3, int32_t>(p, stream);
}

}  // namespace histokit
