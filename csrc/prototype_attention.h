// out[n, i] = sum_m softmax_m(query[n, i] . key[m, i] / sqrt(head_dim)) value[m, i] for each head
// i.
//
// Python multiplies the gate into the values (value = gate[:, None] * value, (M, L): tiny), so the
// kernel is attention over M shared keys that never forms an (N, M, L) or an (N, M) tensor.
// Backward recomputes the probabilities from their normalizer; with dot[n, i] = grad_out[n, i] .
// out[n, i]:
//   p = exp(s - normalizer),  ds = p (grad_out . value - dot)
//   grad_query = scale ds key,  grad_key = scale ds^T query,  grad_value = p^T grad_out
#pragma once
#include "dtype.h"

namespace histokit {

struct PrototypeAttentionParams {
  Dtype dtype;                  // of query, out, grad_out, grad_query; the others are Acc
  int64_t num_rows;             // N
  int64_t num_prototypes;       // M, any number from 1
  int64_t num_heads, head_dim;  // h, d; L = h * d
  const void* query;            // (N, L), row stride query_stride, columns contiguous
  int64_t query_stride;
  const void* key;    // (M, L) contiguous
  const void* value;  // (M, L) contiguous, the gate multiplied in
  void* packed;       // CPU only: prototype_attention_packed_cpu(p) zeros, then what the pack wrote
  void* out;          // (N, L) contiguous; read in the backward pass
  void* normalizer;   // (N, h, 2): the largest scaled score, and log sum exp of the others about it
  // Backward only:
  const void* grad_out;  // (N, L), row stride grad_out_stride
  int64_t grad_out_stride;
  void* grad_query;      // (N, L) contiguous
  int64_t num_partials;  // P: row block p is [p * ceil(N / P), (p + 1) * ceil(N / P))
  void* partial_key;     // (P, M, L): sums over a row block; the glue adds the blocks
  void* partial_value;   // (P, M, L)
};

int64_t prototype_attention_partials_cpu(int64_t num_rows);
int64_t prototype_attention_partials_cuda(int64_t num_rows, int64_t num_prototypes);

// Keys and values of each head, as rows and as columns: how many numbers, and parts [begin, end) of
// 2 num_heads.
int64_t prototype_attention_packed_cpu(const PrototypeAttentionParams& p);
void prototype_attention_pack_cpu(const PrototypeAttentionParams& p, int64_t begin, int64_t end);

// Rows [begin, end) on the calling thread.
void prototype_attention_cpu(const PrototypeAttentionParams& p, int64_t begin, int64_t end);
// Row blocks [begin, end) of num_partials on the calling thread.
void prototype_attention_backward_cpu(const PrototypeAttentionParams& p, int64_t begin,
                                      int64_t end);

Error prototype_attention_cuda(PrototypeAttentionParams p, Stream stream);
Error prototype_attention_backward_cuda(PrototypeAttentionParams p, Stream stream);

}  // namespace histokit
