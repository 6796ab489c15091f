#include "prototype_attention.cuh"

namespace histokit {
namespace {

using Params = PrototypeAttentionParams;

constexpr int kPrototypeThreads = 2 * kWarp;  // of a block that owns prototypes
constexpr int64_t kMinRows = 64;              // fewer rows do not pay for a partial
constexpr int64_t kPartialRows = 8192;        // prototypes times partials, at most

// Block (x, y): rows of tile x, head y; the prototypes pass by.
template <class T, int kDim>
__global__ void __launch_bounds__(kThreads, 3)
    query_kernel(const Params p, const int lanes, const bool wide) {
  using A = Acc<T>;
  HK_SHARED(keys, Tile<A, kDim>);
  HK_SHARED(values, Tile<A, kDim>);
  const Share<A, kDim> share(lanes, p.head_dim);
  const int64_t width = p.num_heads * p.head_dim, offset = blockIdx.y * p.head_dim;
  const A scale = A(1) / sqrt(A(p.head_dim));
  const int capacity = Tile<A, kDim>::capacity(lanes);

  const int64_t row = int64_t(blockIdx.x) * share.slots + share.slot;
  const int64_t from = min(row, p.num_rows - 1);
  A query[kDim], grad_out[kDim], grad_query[kDim] = {}, dot_out = 0;
  share.read(static_cast<const T*>(p.out) + from * width + offset, wide, query);
  share.read(static_cast<const T*>(p.grad_out) + from * p.grad_out_stride + offset, wide, grad_out);
#pragma unroll
  for (int c = 0; c < kDim; ++c) dot_out += grad_out[c] * query[c];
  dot_out = share.sum(dot_out);
  share.read(static_cast<const T*>(p.query) + from * p.query_stride + offset, wide, query);
  const auto normalizer = Normalizer<A>::at(p.normalizer, from * p.num_heads + blockIdx.y);

  for (int64_t start = 0; start < p.num_prototypes; start += capacity) {
    const int count = min(int64_t(capacity), p.num_prototypes - start);
    __syncthreads();
    const int64_t at = start * width + offset;
    keys.fill(static_cast<const A*>(p.key) + at, width, count, p.head_dim, lanes);
    values.fill(static_cast<const A*>(p.value) + at, width, count, p.head_dim, lanes);
    __syncthreads();
    for (int m = 0; m < count; m += kInFlight) {
      A grad_score[kInFlight];
#pragma unroll
      for (int j = 0; j < kInFlight; ++j) {
        const int index = min(m + j, count - 1);
        const A score = share.sum(dot(query, keys.row(index, lanes, share.lane))) * scale;
        const A grad = share.sum(dot(grad_out, values.row(index, lanes, share.lane)));
        grad_score[j] = normalizer.weight(score) * (grad - dot_out) * scale;
      }
#pragma unroll
      for (int j = 0; j < kInFlight; ++j)
        if (m + j < count) add(grad_query, grad_score[j], keys.row(m + j, lanes, share.lane));
    }
  }
  if (row < p.num_rows)
    share.write(static_cast<T*>(p.grad_query) + row * width + offset, wide, grad_query);
}

// Block (x, y, z): prototypes of tile x, head y, row block z; the patches pass by.
template <class T, int kDim>
__global__ void __launch_bounds__(kPrototypeThreads)
    prototype_kernel(const Params p, const int lanes) {
  using A = Acc<T>;
  HK_SHARED(queries, Tile<A, kDim>);
  HK_SHARED(grads, Tile<A, kDim>);
  HK_SHARED(normalizers, Shared<Normalizer<A>, Tile<A, kDim>::kValues / kDim>);
  HK_SHARED(dots, Shared<A, Tile<A, kDim>::kValues / kDim>);
  const Share<A, kDim> share(lanes, p.head_dim);
  const int64_t width = p.num_heads * p.head_dim, offset = blockIdx.y * p.head_dim;
  const A scale = A(1) / sqrt(A(p.head_dim));
  const int capacity = Tile<A, kDim>::capacity(lanes);

  const int64_t prototype = int64_t(blockIdx.x) * share.slots + share.slot;
  const int64_t from = min(prototype, p.num_prototypes - 1) * width + offset;
  A key[kDim], value[kDim], grad_key[kDim] = {}, grad_value[kDim] = {};
  share.read(static_cast<const A*>(p.key) + from, false, key);
  share.read(static_cast<const A*>(p.value) + from, false, value);

  const int64_t chunk = ceil_div(p.num_rows, p.num_partials);
  const int64_t end = min((blockIdx.z + 1) * chunk, p.num_rows);
  for (int64_t start = blockIdx.z * chunk; start < end; start += capacity) {
    const int count = min(int64_t(capacity), end - start);
    const T* query = static_cast<const T*>(p.query) + start * p.query_stride + offset;
    const T* grad_out = static_cast<const T*>(p.grad_out) + start * p.grad_out_stride + offset;
    const T* out = static_cast<const T*>(p.out) + start * width + offset;
    __syncthreads();
    queries.fill(query, p.query_stride, count, p.head_dim, lanes);
    grads.fill(grad_out, p.grad_out_stride, count, p.head_dim, lanes);
    for (int i = threadIdx.x; i < count; i += kPrototypeThreads) {
      A total = 0;
      for (int64_t c = 0; c < p.head_dim; ++c)
        total += to_acc(grad_out[i * p.grad_out_stride + c]) * to_acc(out[i * width + c]);
      dots[i] = total;
      normalizers[i] = Normalizer<A>::at(p.normalizer, (start + i) * p.num_heads + blockIdx.y);
    }
    __syncthreads();
    for (int n = 0; n < count; n += kInFlight) {
      A prob[kInFlight], grad_score[kInFlight];
#pragma unroll
      for (int j = 0; j < kInFlight; ++j) {
        const int index = min(n + j, count - 1);
        const A score = share.sum(dot(key, queries.row(index, lanes, share.lane))) * scale;
        const A grad = share.sum(dot(value, grads.row(index, lanes, share.lane)));
        prob[j] = normalizers[index].weight(score);
        grad_score[j] = prob[j] * (grad - dots[index]) * scale;
      }
#pragma unroll
      for (int j = 0; j < kInFlight; ++j) {
        if (n + j >= count) continue;
        add(grad_key, grad_score[j], queries.row(n + j, lanes, share.lane));
        add(grad_value, prob[j], grads.row(n + j, lanes, share.lane));
      }
    }
  }
  if (prototype >= p.num_prototypes) return;
  const int64_t to = blockIdx.z * p.num_prototypes * width + from;
  share.write(static_cast<A*>(p.partial_key) + to, false, grad_key);
  share.write(static_cast<A*>(p.partial_value) + to, false, grad_value);
}

}  // namespace

int64_t prototype_attention_partials_cuda(int64_t num_rows, int64_t num_prototypes) {
  const int64_t most = max(int64_t(1), kPartialRows / max(num_prototypes, int64_t(64)));
  return min(ceil_div(num_rows, kMinRows), most);
}

Error prototype_attention_backward_cuda(Params p, Stream stream) {
  return dispatch_dim(p, [&](auto zero, auto dim) {
    using T = decltype(zero);
    constexpr int kDim = decltype(dim)::value;
    const int lanes = lanes_for(p.head_dim, kDim);
    const dim3 rows(ceil_div(p.num_rows, kThreads / lanes), p.num_heads);
    HK_LAUNCH((query_kernel<T, kDim>), rows, kThreads, stream, p, lanes, wide_rows<T>(p));
    const dim3 columns(ceil_div(p.num_prototypes, kPrototypeThreads / lanes), p.num_heads,
                       p.num_partials);
    HK_LAUNCH((prototype_kernel<T, kDim>), columns, kPrototypeThreads, stream, p, lanes);
  });
}

}  // namespace histokit
