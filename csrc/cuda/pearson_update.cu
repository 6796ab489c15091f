#include "../pearson_update.h"
#include "common.cuh"

namespace histokit {
namespace {

constexpr int kResident = 6;                   // blocks a multiprocessor holds
constexpr int64_t kOneWave = 132 * kResident;  // fills an H100 or H200 once
constexpr int64_t kMinRows = 32;               // fewer rows do not pay for a partial

struct Moments {
  double at[kPearsonRows];  // n, mean_p, mean_t, m2_p, m2_t, c
};

__device__ Moments load_moments(const double* from, int64_t stride) {
  Moments m;
  for (int i = 0; i < kPearsonRows; ++i) m.at[i] = from[i * stride];
  return m;
}

__device__ void store_moments(double* to, int64_t stride, const Moments& m) {
  for (int i = 0; i < kPearsonRows; ++i) to[i * stride] = m.at[i];
}

__device__ void merge(Moments& a, const Moments& b) {
  if (b.at[0] == 0) return;
  const double count = a.at[0] + b.at[0], share = b.at[0] / count, cross = a.at[0] * share;
  const double dp = b.at[1] - a.at[1], dt = b.at[2] - a.at[2];
  a = {count,
       a.at[1] + dp * share,
       a.at[2] + dt * share,
       a.at[3] + b.at[3] + dp * dp * cross,
       a.at[4] + b.at[4] + dt * dt * cross,
       a.at[5] + b.at[5] + dp * dt * cross};
}

// Sums about a pivot that is itself a counted value: n times the squared distance of pivot and mean
// never exceeds n times the second moment, so float64 sums lose log10(n) digits of 16 at worst.
template <class A>
struct Shifted {
  uint32_t count = 0;
  A pivot_p = 0, pivot_t = 0;
  double p = 0, t = 0, pp = 0, tt = 0, pt = 0;

  __device__ __forceinline__ void add(A pred, A target, bool counts) {
    counts = counts && pred == pred && target == target;
    const bool first = counts && count == 0;
    pivot_p = first ? pred : pivot_p;
    pivot_t = first ? target : pivot_t;
    const double dp = double(counts ? pred : pivot_p) - double(pivot_p);
    const double dt = double(counts ? target : pivot_t) - double(pivot_t);
    count += counts;
    p += dp;
    t += dt;
    pp += dp * dp;
    tt += dt * dt;
    pt += dp * dt;
  }

  __device__ Moments moments() const {
    if (count == 0) return {};
    const double n = count, mp = p / n, mt = t / n;
    return {n,
            pivot_p + mp,
            pivot_t + mt,
            not_below_zero(pp - p * mp),
            not_below_zero(tt - t * mt),
            pt - p * mt};
  }
};

// Block (x, y, z): genes of tile x, row split y, slide z. One thread keeps kGenes genes.
template <class T, int kGenes>
__global__ void __launch_bounds__(kThreads, kResident)
    update_kernel(const PearsonUpdateParams params) {
  constexpr int kUnroll = sizeof(T) == 2 ? 8 : 4;  // rows whose loads are in flight together
  const int64_t gene = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * kGenes;
  if (gene >= params.num_genes) return;
  const T* pred = static_cast<const T*>(params.pred) + gene;
  const T* target = static_cast<const T*>(params.target) + gene;
  for (int64_t slide = blockIdx.z; slide < params.num_slides; slide += gridDim.z) {
    const int64_t first = params.offsets ? params.offsets[slide] : 0;
    const int64_t last = params.offsets ? params.offsets[slide + 1] : params.num_rows;
    const int64_t split = ceil_div(last - first, params.num_partials);
    const int64_t begin = first + blockIdx.y * split, end = min(begin + split, last);
    Shifted<Acc<T>> sums[kGenes];
    for (int64_t position = begin; position < end; position += kUnroll) {
      Pack<T, kGenes> p[kUnroll], t[kUnroll];
      uint32_t counts = 0;  // a bit for each entry
#pragma unroll
      for (int i = 0; i < kUnroll; ++i) {
        const bool inside = position + i < end;
        const int64_t at = inside ? position + i : begin;
        const int64_t row = params.order ? params.order[at] : at;
        p[i] = *reinterpret_cast<const Pack<T, kGenes>*>(pred + row * params.pred_stride);
        t[i] = *reinterpret_cast<const Pack<T, kGenes>*>(target + row * params.target_stride);
#pragma unroll
        for (int j = 0; j < kGenes; ++j)
          if (inside && (!params.mask || params.mask[row * params.mask_stride + gene + j]))
            counts |= 1u << (i * kGenes + j);
      }
#pragma unroll
      for (int i = 0; i < kUnroll; ++i)
#pragma unroll
        for (int j = 0; j < kGenes; ++j)
          sums[j].add(to_acc(p[i].at[j]), to_acc(t[i].at[j]), counts >> (i * kGenes + j) & 1);
    }
    const int64_t rows_apart = params.num_slides * params.num_genes;
#pragma unroll
    for (int j = 0; j < kGenes; ++j) {
      const int64_t at = slide * params.num_genes + gene + j;
      if (params.partial) {
        store_moments(params.partial + blockIdx.y * kPearsonRows * rows_apart + at, rows_apart,
                      sums[j].moments());
      } else {
        Moments total = load_moments(params.state + at, rows_apart);
        merge(total, sums[j].moments());
        store_moments(params.state + at, rows_apart, total);
      }
    }
  }
}

// Rows of no slide are those before the first and after the last. A kernel of its own: the update
// has no register to spare for it.
__global__ void check_kernel(const PearsonUpdateParams params) {
  HK_ASSERT(params.offsets[0] == 0 && params.offsets[params.num_slides] == params.num_rows,
            "pearson_update: slide_index is in [0, S); HISTOKIT_CHECK=1 says more");
}

__global__ void __launch_bounds__(kThreads) merge_kernel(const PearsonUpdateParams params) {
  const int64_t entries = params.num_slides * params.num_genes;
  const int64_t stride = int64_t(gridDim.x) * kThreads;
  for (int64_t at = int64_t(blockIdx.x) * kThreads + threadIdx.x; at < entries; at += stride) {
    Moments total = load_moments(params.state + at, entries);
    for (int64_t i = 0; i < params.num_partials; ++i)
      merge(total, load_moments(params.partial + i * kPearsonRows * entries + at, entries));
    store_moments(params.state + at, entries, total);
  }
}

template <class T, int kGenes>
void launch(const PearsonUpdateParams& params, Stream stream) {
  const dim3 grid(ceil_div(params.num_genes, kThreads * kGenes), params.num_partials,
                  min(params.num_slides, int64_t(65535)));
  if (params.offsets) HK_LAUNCH(check_kernel, 1, 1, stream, params);
  HK_LAUNCH((update_kernel<T, kGenes>), grid, kThreads, stream, params);
  if (!params.partial) return;
  const int64_t blocks = ceil_div(params.num_slides * params.num_genes, kThreads);
  HK_LAUNCH(merge_kernel, min(blocks, kMaxBlocks), kThreads, stream, params);
}

}  // namespace

int64_t pearson_update_partials_cuda(int64_t num_rows, int64_t num_slides, int64_t num_genes) {
  const int64_t blocks = num_slides * ceil_div(num_genes, 2 * kThreads);
  const int64_t most = num_rows / (num_slides * kMinRows);
  return max(int64_t(1), min(kOneWave / blocks, most));
}

// Two genes a thread, not sixteen bytes: the rows of a whole transcriptome (38,982 genes) start on
// multiples of eight bytes only, sums in float64 fill the registers, and several rows are in
// flight.
Error pearson_update_cuda(PearsonUpdateParams params, Stream stream) {
  return dispatch(params.dtype, [&](auto zero) {
    using T = decltype(zero);
    constexpr int kGenes = sizeof(T) == 8 ? 1 : 2;
    const auto data =
        reinterpret_cast<uintptr_t>(params.pred) | reinterpret_cast<uintptr_t>(params.target);
    const int64_t counts = params.num_genes | params.pred_stride | params.target_stride;
    const bool pairs = data % (kGenes * sizeof(T)) == 0 && counts % kGenes == 0;
    pairs ? launch<T, kGenes>(params, stream) : launch<T, 1>(params, stream);
  });
}

}  // namespace histokit
