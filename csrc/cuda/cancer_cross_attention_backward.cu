#include "cancer_cross_attention.cuh"

namespace histokit {
namespace {

using Params = CancerCrossAttentionParams;

constexpr int64_t kRowBlocks = 132 * 3;  // blocks of 4 warps that fill an H100 or H200 once

// Block p takes row block p; its groups take turns at the rows and add their sums at the end.
template <class T, int kPack, int kMaxThreads>
__global__ void __launch_bounds__(kMaxThreads, 1)
    backward_kernel(const Params p, const int row_warps) {
  using A = Acc<T>;
  constexpr int kTiles = kLaneValues / kPack;
  HK_SHARED(scratch, Shared<A, 16 * 2>);
  HK_SHARED(shared_sums, Shared<A[kWarp * kPack], kBlockWarps>);
  const Group<A> group(row_warps, p.dim, scratch);
  const int groups = blockDim.x / (row_warps * kWarp);
  const A* value = static_cast<const A*>(p.value);
  const A* mask = static_cast<const A*>(p.mask);
  const A* prob = static_cast<const A*>(p.prob);
  A* grad_score = static_cast<A*>(p.grad_score);

  const int64_t chunk = ceil_div(p.num_rows, p.num_partials);
  const int64_t end = min((blockIdx.x + 1) * chunk, p.num_rows);
  A grad_weight[kTiles][kPack] = {}, grad_bias[kTiles][kPack] = {};
  for (int64_t row = blockIdx.x * chunk + group.index; row < end; row += groups) {
    const int64_t slide = p.slide_index ? p.slide_index[row] : 0;
    const A* values = value + slide * p.num_keys * p.dim;
    A z[kTiles][kPack], grad[kTiles][kPack];
    group.template for_tiles<kPack>([&](int tile, int64_t column) {
      load<kPack>(static_cast<const T*>(p.x) + row * p.x_stride + column, z[tile]);
      load<kPack>(static_cast<const T*>(p.grad_y) + row * p.grad_y_stride + column, grad[tile]);
    });
    for (int64_t k = 0; k < p.num_keys; ++k) {
      A weight = prob ? prob[row * p.num_keys + k] : A(1);
      if (mask) weight *= mask[row * p.num_keys + k];
      group.template for_tiles<kPack>([&](int tile, int64_t column) {
        A part[kPack];
        load<kPack>(values + k * p.dim + column, part);
#pragma unroll
        for (int e = 0; e < kPack; ++e) z[tile][e] += weight * part[e];
      });
    }

    // z becomes xhat, grad the gradient to xhat.
    const A mean = static_cast<const A*>(p.mean)[row], rstd = static_cast<const A*>(p.rstd)[row];
    A sums[2] = {};
    group.template for_tiles<kPack>([&](int tile, int64_t column) {
      A scale[kPack], bias[kPack] = {};
      load<kPack>(static_cast<const A*>(p.norm_weight) + column, scale);
      if (p.bias) load<kPack>(static_cast<const A*>(p.bias) + column, bias);
#pragma unroll
      for (int e = 0; e < kPack; ++e) {
        z[tile][e] = (z[tile][e] + bias[e] - mean) * rstd;
        grad_weight[tile][e] += grad[tile][e] * z[tile][e];
        grad_bias[tile][e] += grad[tile][e];
        grad[tile][e] *= scale[e];
        sums[0] += grad[tile][e];
        sums[1] += grad[tile][e] * z[tile][e];
      }
    });
    group.sum(sums);
    sums[0] /= A(p.dim);
    sums[1] /= A(p.dim);
    group.template for_tiles<kPack>([&](int tile, int64_t column) {
#pragma unroll
      for (int e = 0; e < kPack; ++e)
        grad[tile][e] = rstd * (grad[tile][e] - sums[0] - z[tile][e] * sums[1]);
      store<kPack>(static_cast<T*>(p.grad_z) + row * p.dim + column, grad[tile]);
    });

    if (p.tokens == 1) continue;
    for (int64_t k = 0; k < p.num_keys; ++k) {
      A dot[1] = {};
      group.template for_tiles<kPack>([&](int tile, int64_t column) {
        A part[kPack];
        load<kPack>(values + k * p.dim + column, part);
#pragma unroll
        for (int e = 0; e < kPack; ++e) dot[0] += grad[tile][e] * part[e];
      });
      group.sum(dot);
      if (mask) dot[0] *= mask[row * p.num_keys + k];
      if (group.thread == 0) grad_score[row * p.num_keys + k] = dot[0];
    }
    group.sync();
    const int64_t heads = p.num_keys / p.tokens;
    for (int64_t head = group.thread; head < heads; head += row_warps * kWarp) {
      const A* weight = prob + row * p.num_keys + head * p.tokens;
      A* score = grad_score + row * p.num_keys + head * p.tokens;
      A inner = 0;
      for (int64_t t = 0; t < p.tokens; ++t) inner += weight[t] * score[t];
      for (int64_t t = 0; t < p.tokens; ++t) score[t] = weight[t] * (score[t] - inner);
    }
  }

  // Groups of one warp add their sums in the order of the groups; a larger group is alone.
  A* out = static_cast<A*>(p.partial_norm) + blockIdx.x * 2 * p.dim;
  const auto write = [&](A(&sums)[kTiles][kPack], A* to) {
#pragma unroll
    for (int tile = 0; tile < kTiles && groups > 1; ++tile) {
      __syncthreads();
      store<kPack>(&shared_sums[group.index][group.thread * kPack], sums[tile]);
      __syncthreads();
      for (int other = 1; other < groups && group.index == 0; ++other)
        for (int e = 0; e < kPack; ++e)
          sums[tile][e] += shared_sums[other][group.thread * kPack + e];
    }
    if (group.index == 0)
      group.template for_tiles<kPack>(
          [&](int tile, int64_t column) { store<kPack>(to + column, sums[tile]); });
  };
  write(grad_weight, out);
  write(grad_bias, out + p.dim);
}

template <class T, int kPack, int kMaxThreads>
void launch(const Params& p, Stream stream) {
  const RowShape shape = row_shape(p.dim);
  HK_LAUNCH((backward_kernel<T, kPack, kMaxThreads>), p.num_partials, shape.threads, stream, p,
            shape.row_warps);
}

}  // namespace

int64_t cancer_cross_attention_partials_cuda(int64_t num_rows) {
  return min(ceil_div(num_rows, 2 * kBlockWarps), kRowBlocks);
}

Error cancer_cross_attention_backward_cuda(Params p, Stream stream) {
  if (p.dim > kRowLimit) return kTooWide;
  return dispatch(p.dtype, [&](auto zero) {
    using T = decltype(zero);
    constexpr int kPack = sizeof(T) == 8 ? 1 : 16 / sizeof(T);
    const bool wide = kPack > 1 && p.dim <= kWideRowLimit &&
                      (p.dim | p.x_stride | p.grad_y_stride) % kPack == 0 && aligned16(p.x) &&
                      aligned16(p.grad_y) && aligned16(p.grad_z) && aligned16(p.value) &&
                      aligned16(p.bias) && aligned16(p.norm_weight) && aligned16(p.partial_norm);
    wide ? launch<T, kPack, kPack == 1 ? 512 : 384>(p, stream) : launch<T, 1, 512>(p, stream);
  });
}

}  // namespace histokit
