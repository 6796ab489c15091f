#include "distance_attention.cuh"

namespace histokit {
namespace {

// Block (x, y): queries of tile x, head y; keys and values pass by. Also this block's share of the
// slope's gradient, and each row's delta for the pass over keys.
template <class T, int kDim>
__global__ void __launch_bounds__(kThreads, 3)
    query_kernel(const Params p, const int lanes, const bool wide) {
  using A = Acc<T>;
  HK_SHARED(keys, Tile<A, kDim>);
  HK_SHARED(values, Tile<A, kDim>);
  HK_SHARED(places, Places<A, kDim>);
  HK_SHARED(warp_sums, Shared<double, kBlockWarps>);
  const Share<A, kDim> share(lanes, p.head_dim);
  const A scale = A(1) / sqrt(A(p.head_dim));
  const A slope = static_cast<const A*>(p.slope)[blockIdx.y];
  const int capacity = Tile<A, kDim>::capacity(lanes);
  const Keep<A> keep(p);

  const int64_t row = int64_t(blockIdx.x) * share.slots + share.slot;
  const int64_t from = min(row, p.num_rows - 1), index = blockIdx.y * p.num_rows + from;
  const int64_t own = (from * p.num_heads + blockIdx.y) * p.head_dim;
  const Place<A> place(p.coords, from);
  A query[kDim], grad_out[kDim], grad_query[kDim] = {}, delta = 0;
  share.read(static_cast<const T*>(p.out) + own, wide, query);
  share.read(head_of<T>(p.grad_out, from, p.grad_out_row, p.grad_out_head), wide, grad_out);
#pragma unroll
  for (int c = 0; c < kDim; ++c) delta += grad_out[c] * query[c];
  delta = share.sum(delta);
  share.read(head_of<T>(p.query, from, p.query_row, p.query_head), wide, query);
  const auto normalizer = Normalizer<A>::at(p.normalizer, index);
  const uint32_t bits = row_bits(keep.head, from);

  double slope_sum = 0;
  for (int64_t start = 0; start < p.num_rows; start += capacity) {
    const int count = min(int64_t(capacity), p.num_rows - start);
    __syncthreads();
    keys.fill(head_of<T>(p.key, start, p.key_row, p.key_head), p.key_row, count, p.head_dim, lanes);
    values.fill(head_of<T>(p.value, start, p.value_row, p.value_head), p.value_row, count,
                p.head_dim, lanes);
    places.fill(p.coords, start, count);
    __syncthreads();
    A tile_sum = 0;
    for (int m = 0; m < count; m += kInFlight) {
      A grad_score[kInFlight];
#pragma unroll
      for (int j = 0; j < kInFlight; ++j) {
        const int at = min(m + j, count - 1);
        const A distance = place.distance(places.at + 2 * at);
        const A product = share.sum(dot(query, keys.row(at, lanes, share.lane)));
        const A grad = share.sum(dot(grad_out, values.row(at, lanes, share.lane)));
        const A score = product * scale + slope * distance;
        const A shift = keep.at(bits, start + at) * grad - delta;
        grad_score[j] = m + j < count ? normalizer.weight(score) * shift : A(0);
        if (p.partial_slope) tile_sum += grad_score[j] * distance;
      }
#pragma unroll
      for (int j = 0; j < kInFlight; ++j)
        if (m + j < count)
          add(grad_query, grad_score[j] * scale, keys.row(m + j, lanes, share.lane));
    }
    slope_sum += tile_sum;
  }

  const bool valid = row < p.num_rows;
  if (valid) share.write(static_cast<T*>(p.grad_query) + own, wide, grad_query);
  if (valid && share.lane == 0) static_cast<A*>(p.delta)[index] = delta;
  if (p.partial_slope == nullptr) return;
  slope_sum = warp_sum(valid && share.lane == 0 ? slope_sum : 0.0);
  if (threadIdx.x % kWarp == 0) warp_sums[threadIdx.x / kWarp] = slope_sum;
  __syncthreads();
  if (threadIdx.x > 0) return;
  for (int warp = 1; warp < kBlockWarps; ++warp) slope_sum += warp_sums[warp];
  p.partial_slope[int64_t(blockIdx.y) * gridDim.x + blockIdx.x] = slope_sum;
}

// Block (x, y): keys and values of tile x, head y; queries and grad_out pass by.
template <class T, int kDim>
__global__ void __launch_bounds__(kThreads)
    key_kernel(const Params p, const int lanes, const bool wide) {
  using A = Acc<T>;
  HK_SHARED(queries, Tile<A, kDim>);
  HK_SHARED(grads, Tile<A, kDim>);
  HK_SHARED(places, Places<A, kDim>);
  HK_SHARED(normalizers, Shared<Normalizer<A>, Places<A, kDim>::kMost>);
  HK_SHARED(deltas, Shared<A, Places<A, kDim>::kMost>);
  const Share<A, kDim> share(lanes, p.head_dim);
  const A scale = A(1) / sqrt(A(p.head_dim));
  const A slope = static_cast<const A*>(p.slope)[blockIdx.y];
  const int capacity = Tile<A, kDim>::capacity(lanes);
  const Keep<A> keep(p);

  const int64_t row = int64_t(blockIdx.x) * share.slots + share.slot;
  const int64_t from = min(row, p.num_rows - 1);
  const Place<A> place(p.coords, from);
  A key[kDim], value[kDim], grad_key[kDim] = {}, grad_value[kDim] = {};
  share.read(head_of<T>(p.key, from, p.key_row, p.key_head), wide, key);
  share.read(head_of<T>(p.value, from, p.value_row, p.value_head), wide, value);

  for (int64_t start = 0; start < p.num_rows; start += capacity) {
    const int count = min(int64_t(capacity), p.num_rows - start);
    __syncthreads();
    queries.fill(head_of<T>(p.query, start, p.query_row, p.query_head), p.query_row, count,
                 p.head_dim, lanes);
    grads.fill(head_of<T>(p.grad_out, start, p.grad_out_row, p.grad_out_head), p.grad_out_row,
               count, p.head_dim, lanes);
    places.fill(p.coords, start, count);
    for (int i = threadIdx.x; i < count; i += kThreads) {
      const int64_t index = blockIdx.y * p.num_rows + start + i;
      normalizers[i] = Normalizer<A>::at(p.normalizer, index);
      deltas[i] = static_cast<const A*>(p.delta)[index];
    }
    __syncthreads();
    for (int n = 0; n < count; n += kInFlight) {
      A prob[kInFlight], grad_score[kInFlight];
#pragma unroll
      for (int j = 0; j < kInFlight; ++j) {
        const int at = min(n + j, count - 1);
        const A product = share.sum(dot(key, queries.row(at, lanes, share.lane)));
        const A grad = share.sum(dot(value, grads.row(at, lanes, share.lane)));
        const A score = product * scale + slope * place.distance(places.at + 2 * at);
        const A weight = normalizers[at].weight(score);
        const A kept = keep.at(row_bits(keep.head, start + at), from);
        prob[j] = weight * kept;
        grad_score[j] = weight * (kept * grad - deltas[at]) * scale;
      }
#pragma unroll
      for (int j = 0; j < kInFlight; ++j) {
        if (n + j >= count) continue;
        add(grad_key, grad_score[j], queries.row(n + j, lanes, share.lane));
        add(grad_value, prob[j], grads.row(n + j, lanes, share.lane));
      }
    }
  }
  if (row >= p.num_rows) return;
  const int64_t to = (row * p.num_heads + blockIdx.y) * p.head_dim;
  share.write(static_cast<T*>(p.grad_key) + to, wide, grad_key);
  share.write(static_cast<T*>(p.grad_value) + to, wide, grad_value);
}

}  // namespace

int64_t distance_attention_blocks_cuda(const Params& p) {
  if (distance_attention_by_mma(p)) return distance_attention_blocks_mma(p);
  const int dim = p.dtype == Dtype::f64 || p.head_dim <= 16 ? 16 : 32;
  return ceil_div(p.num_rows, max(1, kThreads / lanes_for(p.head_dim, dim)));
}

Error distance_attention_backward_cuda(Params p, Stream stream) {
  if (distance_attention_by_mma(p)) return distance_attention_backward_mma_cuda(p, stream);
  return dispatch_head(p.dtype, p.head_dim, kTooDeep, [&](auto zero, auto dim) {
    using T = decltype(zero);
    constexpr int kDim = decltype(dim)::value;
    const int lanes = lanes_for(p.head_dim, kDim);
    const dim3 grid(ceil_div(p.num_rows, kThreads / lanes), p.num_heads);
    HK_LAUNCH((query_kernel<T, kDim>), grid, kThreads, stream, p, lanes, wide_rows<T>(p));
    HK_LAUNCH((key_kernel<T, kDim>), grid, kThreads, stream, p, lanes, wide_rows<T>(p));
  });
}

}  // namespace histokit
