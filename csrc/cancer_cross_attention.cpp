#include "cancer_cross_attention.h"

#include "glue.h"

namespace histokit {
namespace {

constexpr const char* kOp = "cancer_cross_attention";

// Checks what both passes read, and points the parameters at it; keeps the tensors alive.
struct Inputs {
  Tensor x, value, norm_weight;
  OptionalTensor bias, slide_index, mask;
  CancerCrossAttentionParams p = {};

  Inputs(const Tensor& x_, const Tensor& values, const OptionalTensor& bias_,
         const Tensor& norm_weight_, const OptionalTensor& slides, const OptionalTensor& mask_,
         int64_t tokens)
      : x(rows_of(kOp, "x", x_)) {
    HK_CHECK(values.dim() == 3, kOp, ": value must be (S, K, D), got ", values.dim(),
             " dimensions");
    p.dtype = dtype_of(kOp, x);
    p.num_rows = x.size(0), p.dim = x.size(1);
    p.num_slides = values.size(0), p.num_keys = values.size(1), p.tokens = tokens;
    HK_CHECK(tokens >= 1 && p.num_keys % tokens == 0 && p.num_keys > 0, kOp,
             ": tokens must divide the number of keys ", p.num_keys, ", got ", tokens);
    HK_CHECK(p.dim > 0 && p.num_slides > 0, kOp, ": x and value must not be empty");
    HK_CHECK(x.is_cuda() || p.dtype == Dtype::f32 || p.dtype == Dtype::f64, kOp,
             ": x must be float32 or float64 on CPU");
    const ScalarType acc = acc_type(p.dtype);
    value = checked(kOp, "value", values, acc, {p.num_slides, p.num_keys, p.dim}, x);
    bias = checked(kOp, "bias", bias_, acc, {p.dim}, x);
    norm_weight = checked(kOp, "norm_weight", norm_weight_, acc, {p.dim}, x);
    slide_index = checked(kOp, "slide_index", slides, ScalarType::Long, {p.num_rows}, x);
    mask = checked(kOp, "dropout_mask", mask_, acc, {p.num_rows, p.num_keys}, x);
    check_index(kOp, "slide_index", slide_index, p.num_slides);
    HK_CHECK(slide_index || p.num_slides == 1, kOp, ": slide_index is needed with ", p.num_slides,
             " slides");
    p.x = x.const_data_ptr(), p.x_stride = x.stride(0);
    p.value = value.const_data_ptr(), p.bias = data(bias);
    p.norm_weight = norm_weight.const_data_ptr();
    p.slide_index = data_as<int64_t>(slide_index), p.mask = data(mask);
  }
};

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> cancer_cross_attention(
    Tensor x, OptionalTensor score_weight, OptionalTensor score_bias, Tensor value,
    OptionalTensor bias, Tensor norm_weight, Tensor norm_bias, OptionalTensor slide_index,
    OptionalTensor mask, int64_t tokens, double eps) {
  Inputs in(x, value, bias, norm_weight, slide_index, mask, tokens);
  CancerCrossAttentionParams& p = in.p;
  const ScalarType acc = acc_type(p.dtype);
  const bool scored = tokens > 1;
  HK_CHECK(!scored || (score_weight && score_bias), kOp, ": scores are needed with ", tokens,
           " tokens");
  const auto a =
      checked(kOp, "score_weight", score_weight, acc, {p.num_slides, p.num_keys, p.dim}, x);
  const auto a0 = checked(kOp, "score_bias", score_bias, acc, {p.num_slides, p.num_keys}, x);
  const Tensor beta = checked(kOp, "norm_bias", norm_bias, acc, {p.dim}, x);
  Tensor y = new_tensor(x, {p.num_rows, p.dim}, x.scalar_type());
  Tensor prob = scored ? new_tensor(x, {p.num_rows, p.num_keys}, acc) : new_tensor(x, {0}, acc);
  Tensor mean = new_tensor(x, {p.num_rows}, acc), rstd = new_tensor(x, {p.num_rows}, acc);
  if (p.num_rows == 0) return {y, prob, mean, rstd};
  p.score_weight = data(a), p.score_bias = data(a0), p.norm_bias = beta.const_data_ptr();
  p.eps = eps, p.y = y.mutable_data_ptr();
  p.prob = scored ? prob.mutable_data_ptr() : nullptr;
  p.mean = mean.mutable_data_ptr(), p.rstd = rstd.mutable_data_ptr();
  launch(
      kOp, x, p.num_rows, 64, [&](auto stream) { return cancer_cross_attention_cuda(p, stream); },
      [&](int64_t begin, int64_t end) { cancer_cross_attention_cpu(p, begin, end); });
  return {y, prob, mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor> cancer_cross_attention_backward(
    Tensor grad_y, Tensor x, OptionalTensor prob, Tensor mean, Tensor rstd, Tensor value,
    OptionalTensor bias, Tensor norm_weight, OptionalTensor slide_index, OptionalTensor mask,
    int64_t tokens) {
  Inputs in(x, value, bias, norm_weight, slide_index, mask, tokens);
  CancerCrossAttentionParams& p = in.p;
  const ScalarType acc = acc_type(p.dtype);
  const bool scored = tokens > 1;
  check_shape(kOp, "grad_y", grad_y, {p.num_rows, p.dim});
  HK_CHECK(grad_y.scalar_type() == x.scalar_type() && same_device(grad_y, x), kOp,
           ": grad_y must have the type and the device of x");
  HK_CHECK(!scored || prob, kOp, ": prob is needed with ", tokens, " tokens");
  const Tensor grad = rows_of(kOp, "grad_y", grad_y);
  const auto weight =
      scored ? checked(kOp, "prob", prob, acc, {p.num_rows, p.num_keys}, x) : OptionalTensor();
  const Tensor centre = checked(kOp, "mean", mean, acc, {p.num_rows}, x);
  const Tensor scale = checked(kOp, "rstd", rstd, acc, {p.num_rows}, x);
  Tensor grad_z = new_tensor(x, {p.num_rows, p.dim}, x.scalar_type());
  Tensor grad_score =
      scored ? new_tensor(x, {p.num_rows, p.num_keys}, acc) : new_tensor(x, {0}, acc);
  if (p.num_rows == 0) return {grad_z, grad_score, torch::stable::new_zeros(x, {2, p.dim}, acc)};
  p.num_partials = by_device(
      x, [&](auto) { return cancer_cross_attention_partials_cuda(p.num_rows); },
      [&] { return cancer_cross_attention_partials_cpu(p.num_rows); });
  Tensor partial = new_tensor(x, {p.num_partials, 2, p.dim}, acc);
  p.grad_y = grad.const_data_ptr(), p.grad_y_stride = grad.stride(0);
  p.prob = const_cast<void*>(data(weight));
  p.mean = const_cast<void*>(centre.const_data_ptr());
  p.rstd = const_cast<void*>(scale.const_data_ptr());
  p.grad_z = grad_z.mutable_data_ptr();
  p.grad_score = scored ? grad_score.mutable_data_ptr() : nullptr;
  p.partial_norm = partial.mutable_data_ptr();
  launch(
      kOp, x, p.num_partials, 1,
      [&](auto stream) { return cancer_cross_attention_backward_cuda(p, stream); },
      [&](int64_t begin, int64_t end) { cancer_cross_attention_backward_cpu(p, begin, end); });
  const std::vector<int64_t> blocks = {0};
  return {grad_z, grad_score, torch::stable::sum(partial, blocks)};
}

}  // namespace histokit
