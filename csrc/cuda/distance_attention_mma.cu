#include "distance_attention_mma.cuh"

namespace histokit {
namespace {

// As many scores as registers hold beside the sums.
template <class T, int kProducts, int kDim>
using ForwardPlan = Plan<T, kProducts, kDim, sizeof(T) == 4 ? 1 : 2,
                         sizeof(T) == 4 || kDim == kMostMmaDim ? 32 : 64>;

template <class P>
constexpr int kForwardBytes = P::bytes(1, 2, 2 * sizeof(float));

// One row's softmax over keys that pass by. Only this lane's keys are in `total`.
struct Running {
  float most = -INFINITY, total = 0;

  // The maximum over `now` of all lanes too; what earlier sums shrink by. A row without any score
  // above -inf so far has weights of zero.
  __device__ __forceinline__ float raise(float now) {
    now = max(most, row_max(now));
    const float shrink = fast_exp(most - (now == -INFINITY ? 0.0f : now));
    most = now;
    total *= shrink;
    return shrink;
  }
  __device__ __forceinline__ float base() const { return most == -INFINITY ? 0.0f : most; }
};

// Block (x, y): queries of tile x, head y; keys and values pass by.
template <class P>
__global__ void __launch_bounds__(kThreads, 2) forward_mma(const Params p, const bool wide) {
  using T = typename P::T;
  HK_DYNAMIC_SHARED(memory);
  T* const queries = reinterpret_cast<T*>(memory);
  T* const slabs = queries + P::kRowSlab;
  float* const places = reinterpret_cast<float*>(slabs + 4 * P::kColumnSlab);
  const int64_t first = int64_t(blockIdx.x) * P::kRows;
  fetch<P, P::kRows>(queries, head_of<T>(p.query, first, p.query_row, p.query_head), p.query_row,
                     p.num_rows - first, p.head_dim, wide);
  fill_keys<P>(slabs, places, p, 0, 0, wide);
  commit_copies();

  const float scale = 1.0f / sqrt(float(p.head_dim));
  const float slope = static_cast<const float*>(p.slope)[blockIdx.y];
  const Keep<float> keep(p);
  const Rows<P> rows(p);
  Running softmax[P::kTiles][2];
  typename P::Vectors sums = {};
  int stage = 0;
  for (int64_t start = 0; start < p.num_rows; start += P::kColumns, stage ^= 1) {
    if (start + P::kColumns < p.num_rows)
      fill_keys<P>(slabs, places, p, start + P::kColumns, stage ^ 1, wide);
    commit_copies();
    wait_copies<1>();
    __syncthreads();
    const T* keys = slabs + 2 * stage * P::kColumnSlab;
    const float* others = places + 2 * stage * P::kColumns;
    const int count = min(int64_t(P::kColumns), p.num_rows - start);
    typename P::Scores products;
    multiply<P>(products, queries, keys);

    typename P::Weights weights;
    float shrink[P::kTiles][2];
#pragma unroll
    for (int m = 0; m < P::kTiles; ++m)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        float most = -INFINITY;
#pragma unroll
        for (int n = 0; n < P::kAcross; ++n)
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const int at = column_of(n) + e;
            const float distance = fast_distance(rows.place[m][r], others + 2 * at);
            const float score = products[m][n].total(2 * r + e) * scale + slope * distance;
            weights[m][n][2 * r + e] = at < count ? score : -INFINITY;
            most = max(most, weights[m][n][2 * r + e]);
          }
        shrink[m][r] = softmax[m][r].raise(most);
        const float base = softmax[m][r].base();
        const uint32_t bits = row_bits(keep.head, rows.row(m, r));
        float total = 0;
#pragma unroll
        for (int n = 0; n < P::kAcross; ++n)
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            float& weight = weights[m][n][2 * r + e];
            weight = fast_exp(weight - base);
            total += weight;
            if (keep.drops(bits, start + column_of(n) + e)) weight = 0;
          }
        softmax[m][r].total += total;
      }
    typename P::Operand operand;
    turn<P>(operand, weights);
    gather<P>(sums, operand, keys + P::kColumnSlab,
              [&](float& sum, int m, int e, float more) { sum = sum * shrink[m][e / 2] + more; });
    __syncthreads();
  }

  float factor[P::kTiles][2];
#pragma unroll
  for (int m = 0; m < P::kTiles; ++m)
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float total = row_sum(softmax[m][r].total);
      factor[m][r] = keep.factor / total;
      const int64_t row = rows.row(m, r);
      if (lane_id() % 4 > 0 || row >= p.num_rows) continue;
      float* to = static_cast<float*>(p.normalizer) + 2 * (blockIdx.y * p.num_rows + row);
      to[0] = softmax[m][r].most;
      to[1] = logarithm(total);
    }
  write_rows<P>(p.out, p, sums, factor, wide);
}

}  // namespace

bool distance_attention_by_mma(const Params& p) {
  if (p.products == 0 || p.dtype == Dtype::f64 || p.head_dim > kMostMmaDim) return false;
  return device_takes_mma(kMmaSharedBytes);
}

Error distance_attention_mma_cuda(Params p, Stream stream) {
  return dispatch_mma(p, [&](auto zero, auto products, auto dim) {
    using P = ForwardPlan<decltype(zero), decltype(products)::value, decltype(dim)::value>;
    static_assert(kForwardBytes<P> <= kMmaSharedBytes);
    const dim3 grid(ceil_div(p.num_rows, P::kRows), p.num_heads);
    return launch_mma(forward_mma<P>, grid, kForwardBytes<P>, stream, p,
                      wide_rows<decltype(zero)>(p));
  });
}

}  // namespace histokit
