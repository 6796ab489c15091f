#include "distance_attention.cuh"

namespace histokit {
namespace {

// Queries a thread works on at once, so that a tile is read once for all of them.
template <class A>
constexpr int kRows = sizeof(A) == 8 ? 1 : 2;

// Block (x, y): rows of tile x, head y. Softmax over all keys with a running maximum.
template <class T, int kDim>
__global__ void __launch_bounds__(kThreads, 3)
    forward_kernel(const Params p, const int lanes, const bool wide) {
  using A = Acc<T>;
  HK_SHARED(keys, Tile<A, kDim>);
  HK_SHARED(values, Tile<A, kDim>);
  HK_SHARED(places, Places<A, kDim>);
  const Share<A, kDim> share(lanes, p.head_dim);
  const A scale = A(1) / sqrt(A(p.head_dim));
  const A slope = static_cast<const A*>(p.slope)[blockIdx.y];
  const int capacity = Tile<A, kDim>::capacity(lanes);
  const Keep<A> keep(p);

  int64_t row[kRows<A>];
  A query[kRows<A>][kDim];
  OnlineSoftmax<A, kDim> softmax[kRows<A>];
  A x[kRows<A>], y[kRows<A>];
  uint32_t bits[kRows<A>];
#pragma unroll
  for (int r = 0; r < kRows<A>; ++r) {
    row[r] = (int64_t(blockIdx.x) * kRows<A> + r) * share.slots + share.slot;
    const int64_t from = min(row[r], p.num_rows - 1);
    share.read(head_of<T>(p.query, from, p.query_row, p.query_head), wide, query[r]);
#pragma unroll
    for (int c = 0; c < kDim; ++c) query[r][c] *= scale;
    const Place<A> place(p.coords, from);
    x[r] = place.x, y[r] = place.y;
    bits[r] = row_bits(keep.head, from);
  }

  for (int64_t start = 0; start < p.num_rows; start += capacity) {
    const int count = min(int64_t(capacity), p.num_rows - start);
    __syncthreads();
    keys.fill(head_of<T>(p.key, start, p.key_row, p.key_head), p.key_row, count, p.head_dim, lanes);
    values.fill(head_of<T>(p.value, start, p.value_row, p.value_head), p.value_row, count,
                p.head_dim, lanes);
    places.fill(p.coords, start, count);
    __syncthreads();
    for (int m = 0; m < count; m += kInFlight) {
      A score[kRows<A>][kInFlight];
#pragma unroll
      for (int j = 0; j < kInFlight; ++j)
#pragma unroll
        for (int r = 0; r < kRows<A>; ++r) {
          const int at = min(m + j, count - 1);
          const A dx = x[r] - places.at[2 * at], dy = y[r] - places.at[2 * at + 1];
          const A product = share.sum(dot(query[r], keys.row(at, lanes, share.lane)));
          score[r][j] = m + j < count ? product + slope * sqrt(dx * dx + dy * dy) : A(-INFINITY);
        }
#pragma unroll
      for (int r = 0; r < kRows<A>; ++r) {
        softmax[r].weigh(score[r]);
#pragma unroll
        for (int j = 0; j < kInFlight; ++j) score[r][j] *= keep.at(bits[r], start + m + j);
      }
#pragma unroll
      for (int j = 0; j < kInFlight; ++j)
        if (m + j < count)
#pragma unroll
          for (int r = 0; r < kRows<A>; ++r)
            add(softmax[r].sums, score[r][j], values.row(m + j, lanes, share.lane));
    }
  }

#pragma unroll
  for (int r = 0; r < kRows<A>; ++r) {
    if (row[r] >= p.num_rows) continue;
    T* out = static_cast<T*>(p.out) + (row[r] * p.num_heads + blockIdx.y) * p.head_dim;
    softmax[r].write(share, out, wide);
    if (share.lane == 0) softmax[r].normalizer(p.normalizer, blockIdx.y * p.num_rows + row[r]);
  }
}

}  // namespace

Error distance_attention_cuda(Params p, Stream stream) {
  if (distance_attention_by_mma(p)) return distance_attention_mma_cuda(p, stream);
  return dispatch_head(p.dtype, p.head_dim, kTooDeep, [&](auto zero, auto dim) {
    using T = decltype(zero);
    constexpr int kDim = decltype(dim)::value;
    const int lanes = lanes_for(p.head_dim, kDim);
    const dim3 grid(ceil_div(p.num_rows, kThreads / lanes * kRows<Acc<T>>), p.num_heads);
    HK_LAUNCH((forward_kernel<T, kDim>), grid, kThreads, stream, p, lanes, wide_rows<T>(p));
  });
}

}  // namespace histokit
