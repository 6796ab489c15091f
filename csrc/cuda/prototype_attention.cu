#include "prototype_attention.cuh"

namespace histokit {
namespace {

using Params = PrototypeAttentionParams;

// Patches a thread works on at once, so that a tile is read once for all of them.
template <class A>
constexpr int kRows = sizeof(A) == 8 ? 1 : 2;

// Block (x, y): rows of tile x, head y. Softmax over the prototypes with a running maximum.
template <class T, int kDim>
__global__ void __launch_bounds__(kThreads, 3)
    forward_kernel(const Params p, const int lanes, const bool wide) {
  using A = Acc<T>;
  HK_SHARED(keys, Tile<A, kDim>);
  HK_SHARED(values, Tile<A, kDim>);
  const Share<A, kDim> share(lanes, p.head_dim);
  const int64_t width = p.num_heads * p.head_dim, offset = blockIdx.y * p.head_dim;
  const A scale = A(1) / sqrt(A(p.head_dim));
  const int capacity = Tile<A, kDim>::capacity(lanes);

  int64_t row[kRows<A>];
  A query[kRows<A>][kDim];
  OnlineSoftmax<A, kDim> softmax[kRows<A>];
#pragma unroll
  for (int r = 0; r < kRows<A>; ++r) {
    row[r] = (int64_t(blockIdx.x) * kRows<A> + r) * share.slots + share.slot;
    const int64_t from = min(row[r], p.num_rows - 1);
    share.read(static_cast<const T*>(p.query) + from * p.query_stride + offset, wide, query[r]);
#pragma unroll
    for (int c = 0; c < kDim; ++c) query[r][c] *= scale;
  }

  for (int64_t start = 0; start < p.num_prototypes; start += capacity) {
    const int count = min(int64_t(capacity), p.num_prototypes - start);
    __syncthreads();
    const int64_t from = start * width + offset;
    keys.fill(static_cast<const A*>(p.key) + from, width, count, p.head_dim, lanes);
    values.fill(static_cast<const A*>(p.value) + from, width, count, p.head_dim, lanes);
    __syncthreads();
    for (int m = 0; m < count; m += kInFlight) {
      A score[kRows<A>][kInFlight];
#pragma unroll
      for (int j = 0; j < kInFlight; ++j)
#pragma unroll
        for (int r = 0; r < kRows<A>; ++r) {
          const int at = min(m + j, count - 1);
          const A product = share.sum(dot(query[r], keys.row(at, lanes, share.lane)));
          score[r][j] = m + j < count ? product : A(-INFINITY);
        }
#pragma unroll
      for (int r = 0; r < kRows<A>; ++r) {
        softmax[r].weigh(score[r]);
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
    softmax[r].write(share, static_cast<T*>(p.out) + row[r] * width + offset, wide);
    if (share.lane == 0) softmax[r].normalizer(p.normalizer, row[r] * p.num_heads + blockIdx.y);
  }
}

}  // namespace

Error prototype_attention_cuda(Params p, Stream stream) {
  p.grad_out_stride = 0;  // not read here, and so not in the way of wide accesses
  return dispatch_dim(p, [&](auto zero, auto dim) {
    using T = decltype(zero);
    constexpr int kDim = decltype(dim)::value;
    const int lanes = lanes_for(p.head_dim, kDim);
    const dim3 grid(ceil_div(p.num_rows, kThreads / lanes * kRows<Acc<T>>), p.num_heads);
    HK_LAUNCH((forward_kernel<T, kDim>), grid, kThreads, stream, p, lanes, wide_rows<T>(p));
  });
}

}  // namespace histokit
