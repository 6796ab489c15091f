// y = LayerNorm(x + attention(x, context of the slide)), with the projections folded away.
//
// Python folds the projections into the context with tiny torch products, so autograd reaches all
// parameters through them; for head i and token t, k = i * tokens + t:
//   score_weight[s, k] = W_q^i key[s, i, t] / sqrt(head_dim),  score_bias likewise from b_q
//   value[s, k]        = W_o^i value[s, i, t]
// The kernel is one pass over rows:
//   p[n, i, :] = softmax_t(x[n] . score_weight[s, i, :] + score_bias[s, i, :])     s = slide of n
//   z[n]       = x[n] + bias + sum_k p[n, k] mask[n, k] value[s, k]
//   y[n]       = (z[n] - mean[n]) rstd[n] norm_weight + norm_bias
// tokens == 1 needs no scores: p = 1; without a mask Python also sums the heads, so num_keys == 1.
#pragma once
#include "dtype.h"

namespace histokit {

struct CancerCrossAttentionParams {
  Dtype dtype;               // of x, y, grad_y, grad_z; the others are Acc
  int64_t num_rows, dim;     // N, D
  int64_t num_slides;        // S
  int64_t num_keys, tokens;  // K = heads * tokens, T
  const void* x;             // (N, D), row stride x_stride, columns contiguous
  int64_t x_stride;
  const void* score_weight;    // (S, K, D), null when tokens == 1
  const void* score_bias;      // (S, K), null when tokens == 1
  const void* value;           // (S, K, D)
  const void* bias;            // (D,) or null
  const void* norm_weight;     // (D,)
  const void* norm_bias;       // (D,)
  const int64_t* slide_index;  // (N,) in [0, S), or null: all rows are of slide 0
  const void* mask;            // (N, K) attention dropout (0 or 1 / (1 - p)), or null
  double eps;
  // Written by the forward pass, read by the backward pass:
  void* y;     // (N, D) contiguous; forward only
  void* prob;  // (N, K) p before the mask, null when tokens == 1
  void* mean;  // (N,)
  void* rstd;  // (N,)
  // Backward only. Sums over rows that are matrix products stay in Python (torch.mm of dscore and
  // grad_z), so the kernel writes per-row results and per-block sums:
  const void* grad_y;  // (N, D), row stride grad_y_stride
  int64_t grad_y_stride;
  void* grad_z;          // (N, D) contiguous: gradient to z, the input of LayerNorm
  void* grad_score;      // (N, K) gradient to the scores, null when tokens == 1
  int64_t num_partials;  // P: row block p is [p * ceil(N / P), (p + 1) * ceil(N / P))
  void* partial_norm;  // (P, 2, D): sums over a row block of grad_y xhat and grad_y; glue adds the
                       // blocks
};

// How many row blocks the backward pass of each device wants; depends on the shape alone, so that
// sums do not change with the number of threads.
int64_t cancer_cross_attention_partials_cpu(int64_t num_rows);
int64_t cancer_cross_attention_partials_cuda(int64_t num_rows);

// Rows [begin, end) on the calling thread.
void cancer_cross_attention_cpu(const CancerCrossAttentionParams& p, int64_t begin, int64_t end);
// Row blocks [begin, end) of num_partials on the calling thread.
void cancer_cross_attention_backward_cpu(const CancerCrossAttentionParams& p, int64_t begin,
                                         int64_t end);

Error cancer_cross_attention_cuda(CancerCrossAttentionParams p, Stream stream);
Error cancer_cross_attention_backward_cuda(CancerCrossAttentionParams p, Stream stream);

}  // namespace histokit
