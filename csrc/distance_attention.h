// out[n, i] = sum_m softmax_m(query[n, i] . key[m, i] / sqrt(head_dim) + slope[i] |c_n - c_m|)
//             value[m, i] for each head i, over the N patches of one slide; with dropout, each
// softmax weight times keep[i, n, m], which is 0 or 1 / (1 - dropout) (dropout.h).
//
// Nothing of size (N, N) is formed: tiles of scores live in the cache, distances are computed where
// they are used, and the softmax keeps a running maximum. Backward recomputes the probabilities
// from their normalizer; with delta[n, i] = grad_out[n, i] . out[n, i]:
//   p = exp(s - normalizer),  ds = p (keep grad_out . value - delta)
//   grad_query = scale ds key,  grad_key = scale ds^T query,  grad_value = (keep p)^T grad_out
//   grad_slope = sum over n, m of ds |c_n - c_m|
// On CUDA two passes, one over blocks of queries and one over blocks of keys, each with all its
// sums to itself: they need no order between them. On CPU one pass over keys, which forms each
// probability once, and a fixed number of partial sums for the gradient of the queries.
#pragma once
#include "dtype.h"

namespace histokit {

// Tensors of (N, h, d) have strides by row and by head; columns are contiguous.
struct DistanceAttentionParams {
  Dtype dtype;  // of query, key, value, out and their gradients; the others are Acc
  int64_t num_rows, num_heads, head_dim;  // N, h, d
  const void* query;
  int64_t query_row, query_head;
  const void* key;
  int64_t key_row, key_head;
  const void* value;
  int64_t value_row, value_head;
  bool finite_coords;   // CPU only: where the slope is 0, distances need not be formed
  const void* coords;   // (N, 2)
  const void* slope;    // (h,)
  const int64_t* seed;  // (1,) of the dropout, or null
  double dropout;       // rate, 0 without seed
  int64_t products;     // CUDA: 0 plain kernels; on tensor cores float32 in 1 or 3 TF32 products
  void* out;            // (N, h, d) contiguous; read in the backward pass
  void* normalizer;  // (h, N, 2): the largest score, and log sum exp of the others about it; their
                     // sum would round to the size of the scores
  // Backward only:
  const void* grad_out;
  int64_t grad_out_row, grad_out_head;
  void* delta;            // CUDA: (h, N), written by the pass over queries, read by that over keys
  void* grad_query;       // (N, h, d) contiguous; on CPU (B, N, h, d), a sum for each chunk of keys
  void* grad_key;         // (N, h, d) contiguous
  void* grad_value;       // (N, h, d) contiguous
  double* partial_slope;  // (h, B): sums over a part of the head; null where not wanted
};

// B: into how many parts a head is divided, one task each. Forward on CPU, backward on CPU, CUDA.
int64_t distance_attention_blocks_cpu(int64_t num_rows);
int64_t distance_attention_chunks_cpu(int64_t num_rows);
int64_t distance_attention_blocks_cuda(const DistanceAttentionParams& p);

// Tasks [begin, end) of num_heads * B on the calling thread; task t is head t / B, part t % B.
void distance_attention_cpu(const DistanceAttentionParams& p, int64_t begin, int64_t end);
void distance_attention_backward_cpu(const DistanceAttentionParams& p, int64_t begin, int64_t end);

Error distance_attention_cuda(DistanceAttentionParams p, Stream stream);
Error distance_attention_backward_cuda(DistanceAttentionParams p, Stream stream);

// The same on tensor cores, and whether it was asked for and type, head and the current device
// allow it; the launchers above ask.
bool distance_attention_by_mma(const DistanceAttentionParams& p);
int64_t distance_attention_blocks_mma(const DistanceAttentionParams& p);
Error distance_attention_mma_cuda(DistanceAttentionParams p, Stream stream);
Error distance_attention_backward_mma_cuda(DistanceAttentionParams p, Stream stream);

}  // namespace histokit
