#include "cancer_cross_attention.cuh"

namespace histokit {
namespace {

using Params = CancerCrossAttentionParams;

// A group takes that many rows at a time, so that parameters are read once for all of them.
template <class A, int kPack>
constexpr int kPackRows = kPack > 1 && sizeof(A) == 4 ? 2 : 1;

template <class T, int kPack, int kMaxThreads>
__global__ void __launch_bounds__(kMaxThreads, 1)
    forward_kernel(const Params p, const int row_warps) {
  using A = Acc<T>;
  constexpr int kTiles = kLaneValues / kPack;
  constexpr int kRows = kPackRows<A, kPack>;
  HK_SHARED(scratch, Shared<A, 16 * kRows>);
  const Group<A> group(row_warps, p.dim, scratch);
  const int groups = blockDim.x / (row_warps * kWarp);
  const T* x = static_cast<const T*>(p.x);
  const A* score_weight = static_cast<const A*>(p.score_weight);
  const A* score_bias = static_cast<const A*>(p.score_bias);
  const A* value = static_cast<const A*>(p.value);
  const A* mask = static_cast<const A*>(p.mask);
  A* prob = static_cast<A*>(p.prob);

  const int64_t stride = int64_t(gridDim.x) * groups * kRows;
  int64_t first = (int64_t(blockIdx.x) * groups + group.index) * kRows;
  for (; first < p.num_rows; first += stride) {
    int64_t row[kRows], slide[kRows];  // a row past the end repeats the last one and is not stored
    A z[kRows][kTiles][kPack];
    bool same = true;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      row[r] = min(first + r, p.num_rows - 1);
      slide[r] = p.slide_index ? p.slide_index[row[r]] : 0;
      HK_ASSERT(uint64_t(slide[r]) < uint64_t(p.num_slides),
                "cancer_cross_attention: slide_index is in [0, S); HISTOKIT_CHECK=1 says more");
      same = same && slide[r] == slide[0];
      group.template for_tiles<kPack>([&](int tile, int64_t column) {
        load<kPack>(x + row[r] * p.x_stride + column, z[r][tile]);
      });
    }

    if (p.tokens > 1) {
      for (int64_t k = 0; k < p.num_keys; ++k) {
        A dot[kRows] = {};
        group.template for_tiles<kPack>([&](int tile, int64_t column) {
          A weight[kPack];
#pragma unroll
          for (int r = 0; r < kRows; ++r) {
            if (r == 0 || !same)
              load<kPack>(score_weight + (slide[r] * p.num_keys + k) * p.dim + column, weight);
#pragma unroll
            for (int e = 0; e < kPack; ++e) dot[r] += z[r][tile][e] * weight[e];
          }
        });
        group.sum(dot);
#pragma unroll
        for (int r = 0; r < kRows; ++r)
          if (group.thread == r && first + r < p.num_rows)
            prob[row[r] * p.num_keys + k] = dot[r] + score_bias[slide[r] * p.num_keys + k];
      }
      group.sync();
      const int64_t heads = p.num_keys / p.tokens;
      const int64_t pairs = min(int64_t(kRows), p.num_rows - first) * heads;
      for (int64_t pair = group.thread; pair < pairs; pair += row_warps * kWarp) {
        A* score = prob + first * p.num_keys + pair * p.tokens;
        A most = score[0], total = 0;
        for (int64_t t = 1; t < p.tokens; ++t) most = max(most, score[t]);
        for (int64_t t = 0; t < p.tokens; ++t) total += score[t] = exponential(score[t] - most);
        for (int64_t t = 0; t < p.tokens; ++t) score[t] /= total;
      }
      group.sync();
    }

    for (int64_t k = 0; k < p.num_keys; ++k) {
      A weight[kRows];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        weight[r] = p.tokens > 1 ? prob[row[r] * p.num_keys + k] : A(1);
        if (mask) weight[r] *= mask[row[r] * p.num_keys + k];
      }
      group.template for_tiles<kPack>([&](int tile, int64_t column) {
        A part[kPack];
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          if (r == 0 || !same)
            load<kPack>(value + (slide[r] * p.num_keys + k) * p.dim + column, part);
#pragma unroll
          for (int e = 0; e < kPack; ++e) z[r][tile][e] += weight[r] * part[e];
        }
      });
    }

    A mean[kRows] = {}, square[kRows] = {};
    group.template for_tiles<kPack>([&](int tile, int64_t column) {
      A bias[kPack] = {};
      if (p.bias) load<kPack>(static_cast<const A*>(p.bias) + column, bias);
#pragma unroll
      for (int r = 0; r < kRows; ++r)
#pragma unroll
        for (int e = 0; e < kPack; ++e) mean[r] += z[r][tile][e] += bias[e];
    });
    group.sum(mean);
#pragma unroll
    for (int r = 0; r < kRows; ++r) mean[r] /= A(p.dim);
    group.template for_tiles<kPack>([&](int tile, int64_t) {
#pragma unroll
      for (int r = 0; r < kRows; ++r)
#pragma unroll
        for (int e = 0; e < kPack; ++e) {
          z[r][tile][e] -= mean[r];
          square[r] += z[r][tile][e] * z[r][tile][e];
        }
    });
    group.sum(square);
    A rstd[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      rstd[r] = inverse_sqrt(square[r] / A(p.dim) + A(p.eps));
      if (group.thread == r && first + r < p.num_rows) {
        static_cast<A*>(p.mean)[row[r]] = mean[r];
        static_cast<A*>(p.rstd)[row[r]] = rstd[r];
      }
    }
    group.template for_tiles<kPack>([&](int tile, int64_t column) {
      A scale[kPack], shift[kPack], y[kPack];
      load<kPack>(static_cast<const A*>(p.norm_weight) + column, scale);
      load<kPack>(static_cast<const A*>(p.norm_bias) + column, shift);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
#pragma unroll
        for (int e = 0; e < kPack; ++e) y[e] = z[r][tile][e] * rstd[r] * scale[e] + shift[e];
        if (first + r < p.num_rows) store<kPack>(static_cast<T*>(p.y) + row[r] * p.dim + column, y);
      }
    });
  }
}

template <class T, int kPack, int kMaxThreads>
void launch(const Params& p, Stream stream) {
  const RowShape shape = row_shape(p.dim);
  const int64_t blocks = ceil_div(p.num_rows, shape.groups * kPackRows<Acc<T>, kPack>);
  HK_LAUNCH((forward_kernel<T, kPack, kMaxThreads>), min(blocks, kMaxBlocks), shape.threads, stream,
            p, shape.row_warps);
}

}  // namespace

Error cancer_cross_attention_cuda(Params p, Stream stream) {
  if (p.dim > kRowLimit) return kTooWide;
  return dispatch(p.dtype, [&](auto zero) {
    using T = decltype(zero);
    constexpr int kPack = sizeof(T) == 8 ? 1 : 16 / sizeof(T);
    const bool wide = kPack > 1 && p.dim <= kWideRowLimit && (p.dim | p.x_stride) % kPack == 0 &&
                      aligned16(p.x) && aligned16(p.y) && aligned16(p.score_weight) &&
                      aligned16(p.value) && aligned16(p.bias) && aligned16(p.norm_weight) &&
                      aligned16(p.norm_bias);
    wide ? launch<T, kPack, kPack == 1 ? 512 : 256>(p, stream) : launch<T, 1, 512>(p, stream);
  });
}

}  // namespace histokit
