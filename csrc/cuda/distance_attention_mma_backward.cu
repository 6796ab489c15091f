#include "distance_attention_mma.cuh"

namespace histokit {
namespace {

template <class T, int kProducts, int kDim>
using QueryPlan = Plan<T, kProducts, kDim, 1, sizeof(T) == 4 ? 16 : 64>;
template <class T, int kProducts, int kDim>
using KeyPlan = Plan<T, kProducts, kDim, 1, sizeof(T) == 4 || kDim == kMostMmaDim ? 16 : 32>;

// What the pass over keys reads of a query.
struct Query {
  float most, log_total, delta;
  uint32_t bits;

  __device__ __forceinline__ float weight(float score) const {
    return fast_exp(score - most - log_total);
  }
};

template <class P>
constexpr int kQueryBytes = P::bytes(2, 2, 2 * sizeof(float)) + P::kRows * int(sizeof(float));
template <class P>
constexpr int kKeyBytes = P::bytes(2, 2, 2 * sizeof(float) + sizeof(Query));

// delta of the block's rows, for this pass in shared memory and for the pass over keys in p.delta.
template <class P>
__device__ __forceinline__ void find_deltas(float* deltas, const Params& p, int64_t first) {
  using T = typename P::T;
  for (int i = threadIdx.x / kWarp; i < P::kRows; i += kBlockWarps) {
    const int64_t row = first + i, from = min(row, p.num_rows - 1);
    const T* grad = head_of<T>(p.grad_out, from, p.grad_out_row, p.grad_out_head);
    const T* out = static_cast<const T*>(p.out) + (from * p.num_heads + blockIdx.y) * p.head_dim;
    float delta = 0;
    for (int c = lane_id(); c < p.head_dim; c += kWarp) delta += to_acc(grad[c]) * to_acc(out[c]);
    delta = warp_sum(delta);
    if (lane_id() > 0) continue;
    deltas[i] = delta;
    if (row < p.num_rows) static_cast<float*>(p.delta)[blockIdx.y * p.num_rows + row] = delta;
  }
}

// Block (x, y): queries of tile x, head y; keys and values pass by. Also this block's share of the
// slope's gradient, and each row's delta for the pass over keys.
template <class P>
__global__ void __launch_bounds__(kThreads) query_mma(const Params p, const bool wide) {
  using T = typename P::T;
  HK_DYNAMIC_SHARED(memory);
  HK_SHARED(warp_sums, Shared<double, kBlockWarps>);
  T* const queries = reinterpret_cast<T*>(memory);
  T* const grads = queries + P::kRowSlab;
  T* const slabs = grads + P::kRowSlab;
  float* const places = reinterpret_cast<float*>(slabs + 4 * P::kColumnSlab);
  float* const deltas = places + 4 * P::kColumns;
  const int64_t first = int64_t(blockIdx.x) * P::kRows, left = p.num_rows - first;
  fetch<P, P::kRows>(queries, head_of<T>(p.query, first, p.query_row, p.query_head), p.query_row,
                     left, p.head_dim, wide);
  fetch<P, P::kRows>(grads, head_of<T>(p.grad_out, first, p.grad_out_row, p.grad_out_head),
                     p.grad_out_row, left, p.head_dim, wide);
  fill_keys<P>(slabs, places, p, 0, 0, wide);
  commit_copies();
  find_deltas<P>(deltas, p, first);
  __syncthreads();

  const float scale = 1.0f / sqrt(float(p.head_dim));
  const float slope = static_cast<const float*>(p.slope)[blockIdx.y];
  const Keep<float> keep(p);
  const Rows<P> rows(p);
  Query own[P::kTiles][2];
#pragma unroll
  for (int m = 0; m < P::kTiles; ++m)
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int64_t row = min(rows.row(m, r), p.num_rows - 1);
      const auto at = Normalizer<float>::at(p.normalizer, blockIdx.y * p.num_rows + row);
      own[m][r] = {at.most, at.log_total, deltas[rows.row(m, r) - first], row_bits(keep.head, row)};
    }
  typename P::Vectors sums = {};
  double slope_sum = 0;
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
    typename P::Scores products, grad_products;
    multiply<P>(products, queries, keys);
    multiply<P>(grad_products, grads, keys + P::kColumnSlab);

    typename P::Weights grad_scores;
    float stage_sum = 0;
#pragma unroll
    for (int m = 0; m < P::kTiles; ++m)
#pragma unroll
      for (int n = 0; n < P::kAcross; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int at = column_of(n) + e % 2;
          const Query& query = own[m][e / 2];
          const float distance = fast_distance(rows.place[m][e / 2], others + 2 * at);
          const float score = products[m][n].total(e) * scale + slope * distance;
          const float kept = keep.at(query.bits, start + at);
          const float grad =
              query.weight(score) * (kept * grad_products[m][n].total(e) - query.delta);
          grad_scores[m][n][e] = at < count ? grad : 0.0f;
          const bool counts = rows.row(m, e / 2) < p.num_rows;
          stage_sum += counts ? grad_scores[m][n][e] * distance : 0.0f;
        }
    slope_sum += stage_sum;
    typename P::Operand operand;
    turn<P>(operand, grad_scores);
    gather<P>(sums, operand, keys, [](float& sum, int, int, float more) { sum += more; });
    __syncthreads();
  }

  float factor[P::kTiles][2];
#pragma unroll
  for (int m = 0; m < P::kTiles; ++m) factor[m][0] = factor[m][1] = scale;
  write_rows<P>(p.grad_query, p, sums, factor, wide);
  if (p.partial_slope == nullptr) return;
  slope_sum = warp_sum(slope_sum);
  if (lane_id() == 0) warp_sums[threadIdx.x / kWarp] = slope_sum;
  __syncthreads();
  if (threadIdx.x > 0) return;
  for (int warp = 1; warp < kBlockWarps; ++warp) slope_sum += warp_sums[warp];
  p.partial_slope[int64_t(blockIdx.y) * gridDim.x + blockIdx.x] = slope_sum;
}

// Block (x, y): keys and values of tile x, head y; queries and grad_out pass by.
template <class P>
__global__ void __launch_bounds__(kThreads, 2) key_mma(const Params p, const bool wide) {
  using T = typename P::T;
  HK_DYNAMIC_SHARED(memory);
  T* const keys = reinterpret_cast<T*>(memory);
  T* const values = keys + P::kRowSlab;
  T* const slabs = values + P::kRowSlab;
  float* const places = reinterpret_cast<float*>(slabs + 4 * P::kColumnSlab);
  Query* const others = reinterpret_cast<Query*>(places + 4 * P::kColumns);
  const Keep<float> keep(p);
  const auto fill_queries = [&](int64_t start, int stage) {
    const Side sides[2] = {{p.query, p.query_row, p.query_head},
                           {p.grad_out, p.grad_out_row, p.grad_out_head}};
    fill_stage<P>(slabs, places, p, sides, start, stage, wide);
    for (int i = threadIdx.x; i < P::kColumns; i += kThreads) {
      const int64_t row = min(start + i, p.num_rows - 1), index = blockIdx.y * p.num_rows + row;
      const auto at = Normalizer<float>::at(p.normalizer, index);
      others[stage * P::kColumns + i] = {at.most, at.log_total,
                                         static_cast<const float*>(p.delta)[index],
                                         row_bits(keep.head, row)};
    }
  };
  const int64_t first = int64_t(blockIdx.x) * P::kRows, left = p.num_rows - first;
  fetch<P, P::kRows>(keys, head_of<T>(p.key, first, p.key_row, p.key_head), p.key_row, left,
                     p.head_dim, wide);
  fetch<P, P::kRows>(values, head_of<T>(p.value, first, p.value_row, p.value_head), p.value_row,
                     left, p.head_dim, wide);
  fill_queries(0, 0);
  commit_copies();

  const float scale = 1.0f / sqrt(float(p.head_dim));
  const float slope = static_cast<const float*>(p.slope)[blockIdx.y];
  const Rows<P> rows(p);
  typename P::Vectors key_sums = {}, value_sums = {};
  int stage = 0;
  for (int64_t start = 0; start < p.num_rows; start += P::kColumns, stage ^= 1) {
    if (start + P::kColumns < p.num_rows) fill_queries(start + P::kColumns, stage ^ 1);
    commit_copies();
    wait_copies<1>();
    __syncthreads();
    const T* queries = slabs + 2 * stage * P::kColumnSlab;
    const int count = min(int64_t(P::kColumns), p.num_rows - start);
    typename P::Scores products, grad_products;
    multiply<P>(products, keys, queries);
    multiply<P>(grad_products, values, queries + P::kColumnSlab);

    typename P::Weights weights, grad_scores;
#pragma unroll
    for (int m = 0; m < P::kTiles; ++m)
#pragma unroll
      for (int n = 0; n < P::kAcross; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int at = column_of(n) + e % 2;
          const Query& query = others[stage * P::kColumns + at];
          const float* place = places + 2 * (stage * P::kColumns + at);
          const float distance = fast_distance(rows.place[m][e / 2], place);
          const float score = products[m][n].total(e) * scale + slope * distance;
          const float weight = at < count ? query.weight(score) : 0.0f;
          const bool drops = keep.drops(query.bits, rows.row(m, e / 2));
          const float grad = drops ? 0.0f : keep.factor * grad_products[m][n].total(e);
          weights[m][n][e] = drops ? 0.0f : weight;
          grad_scores[m][n][e] = weight * (grad - query.delta);
        }
    const auto add = [](float& sum, int, int, float more) { sum += more; };
    typename P::Operand operand;
    turn<P>(operand, weights);
    gather<P>(value_sums, operand, queries + P::kColumnSlab, add);
    turn<P>(operand, grad_scores);
    gather<P>(key_sums, operand, queries, add);
    __syncthreads();
  }

  float for_keys[P::kTiles][2], for_values[P::kTiles][2];
#pragma unroll
  for (int m = 0; m < P::kTiles; ++m)
#pragma unroll
    for (int r = 0; r < 2; ++r) for_keys[m][r] = scale, for_values[m][r] = keep.factor;
  write_rows<P>(p.grad_key, p, key_sums, for_keys, wide);
  write_rows<P>(p.grad_value, p, value_sums, for_values, wide);
}

}  // namespace

int64_t distance_attention_blocks_mma(const Params& p) {
  return ceil_div(p.num_rows, QueryPlan<float, 1, kMostMmaDim>::kRows);
}

Error distance_attention_backward_mma_cuda(Params p, Stream stream) {
  return dispatch_mma(p, [&](auto zero, auto products, auto dim) {
    using T = decltype(zero);
    constexpr int kProducts = decltype(products)::value, kDim = decltype(dim)::value;
    using Q = QueryPlan<T, kProducts, kDim>;
    using K = KeyPlan<T, kProducts, kDim>;
    static_assert(kQueryBytes<Q> <= kMmaSharedBytes && kKeyBytes<K> <= kMmaSharedBytes);
    const dim3 grid(ceil_div(p.num_rows, Q::kRows), p.num_heads);
    const Error error = launch_mma(query_mma<Q>, grid, kQueryBytes<Q>, stream, p, wide_rows<T>(p));
    if (error) return error;
    const dim3 keys(ceil_div(p.num_rows, K::kRows), p.num_heads);
    return launch_mma(key_mma<K>, keys, kKeyBytes<K>, stream, p, wide_rows<T>(p));
  });
}

}  // namespace histokit
