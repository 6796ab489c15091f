// The registered ops: glue between torch's stable tensors and the torch-free kernels.
// Shapes and meaning of the arguments are in the header of each op; schemas in registration.cpp.
#pragma once
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>

namespace histokit {

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

// -> y (N, D), prob (N, K) or (0,), mean (N,), rstd (N,)
std::tuple<Tensor, Tensor, Tensor, Tensor> cancer_cross_attention(
    Tensor x, OptionalTensor score_weight, OptionalTensor score_bias, Tensor value,
    OptionalTensor bias, Tensor norm_weight, Tensor norm_bias, OptionalTensor slide_index,
    OptionalTensor mask, int64_t tokens, double eps);

// -> grad_z (N, D), grad_score (N, K) or (0,), grad_norm (2, D): of norm_weight and norm_bias
std::tuple<Tensor, Tensor, Tensor> cancer_cross_attention_backward(
    Tensor grad_y, Tensor x, OptionalTensor prob, Tensor mean, Tensor rstd, Tensor value,
    OptionalTensor bias, Tensor norm_weight, OptionalTensor slide_index, OptionalTensor mask,
    int64_t tokens);

// -> out (N, L), normalizer (N, h, 2)
std::tuple<Tensor, Tensor> prototype_attention(Tensor query, Tensor key, Tensor value,
                                               int64_t num_heads);

// -> grad_query (N, L), grad_key (M, L), grad_value (M, L)
std::tuple<Tensor, Tensor, Tensor> prototype_attention_backward(Tensor grad_out, Tensor query,
                                                                Tensor key, Tensor value,
                                                                Tensor out, Tensor normalizer,
                                                                int64_t num_heads);

// query, key, value (N, h, d) -> out (N, h, d), normalizer (h, N, 2)
std::tuple<Tensor, Tensor> distance_attention(Tensor query, Tensor key, Tensor value, Tensor coords,
                                              Tensor slope, OptionalTensor seed, double dropout,
                                              int64_t products);

// -> grad_query, grad_key, grad_value (N, h, d), grad_slope (h,) float64, (0,) if not wanted
std::tuple<Tensor, Tensor, Tensor, Tensor> distance_attention_backward(
    Tensor grad_out, Tensor query, Tensor key, Tensor value, Tensor coords, Tensor slope,
    OptionalTensor seed, double dropout, Tensor out, Tensor normalizer, bool with_slope,
    int64_t products);

// Updates state (6, S, G) in place.
void pearson_update(Tensor state, Tensor pred, Tensor target, OptionalTensor mask,
                    OptionalTensor order, OptionalTensor offsets);

// -> out (num_rows, d)
Tensor csr_matmul(Tensor row_offsets, Tensor col_index, Tensor values, Tensor dense,
                  int64_t products);

// -> out (num_cols, d), moments (2, num_cols) float64
std::tuple<Tensor, Tensor> csr_transpose_matmul(Tensor row_offsets, Tensor col_index, Tensor values,
                                                Tensor dense, int64_t num_cols);

// -> (num_rows,) uint8: what is wrong with a row, 0 where nothing is (RowFault)
Tensor csr_check(Tensor row_offsets, Tensor col_index, Tensor values, int64_t num_cols);

// On CUDA: the same without an answer; a fault ends the kernel with a device-side assertion
void csr_assert(Tensor row_offsets, Tensor col_index, Tensor values, int64_t num_cols);

// -> moments (2, num_rows) float64 of each compressed row over num_cols entries, zeros included
Tensor csr_moments(Tensor row_offsets, Tensor values, int64_t num_cols);

}  // namespace histokit
