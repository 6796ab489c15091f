#include "prototype_attention.h"

#include "glue.h"

namespace histokit {
namespace {

constexpr const char* kOp = "prototype_attention";

// Checks what both passes read, and points the parameters at it; keeps the tensors alive.
struct Inputs {
  Tensor query, key, value, packed;
  PrototypeAttentionParams p = {};

  Inputs(const Tensor& query_, const Tensor& key_, const Tensor& value_, int64_t num_heads)
      : query(rows_of(kOp, "query", query_)) {
    HK_CHECK(key_.dim() == 2, kOp, ": key must be (M, L), got ", key_.dim(), " dimensions");
    p.dtype = dtype_of(kOp, query);
    p.num_rows = query.size(0), p.num_heads = num_heads;
    const int64_t width = query.size(1), num = key_.size(0);
    HK_CHECK(num_heads >= 1 && width > 0 && width % num_heads == 0, kOp,
             ": num_heads must divide the width ", width, ", got ", num_heads);
    HK_CHECK(num > 0, kOp, ": key must have at least one prototype");
    HK_CHECK(query.is_cuda() || p.dtype == Dtype::f32 || p.dtype == Dtype::f64, kOp,
             ": query must be float32 or float64 on CPU");
    p.num_prototypes = num, p.head_dim = width / num_heads;
    key = checked(kOp, "key", key_, acc_type(p.dtype), {num, width}, query);
    value = checked(kOp, "value", value_, acc_type(p.dtype), {num, width}, query);
    p.query = query.const_data_ptr(), p.query_stride = query.stride(0);
    p.key = key.const_data_ptr(), p.value = value.const_data_ptr();
  }

  // Keys and values in the order in which the CPU kernels read them, once for all threads.
  void pack() {
    if (query.is_cuda()) return;
    packed = torch::stable::new_zeros(key, {prototype_attention_packed_cpu(p)});
    p.packed = packed.mutable_data_ptr();
    torch::stable::parallel_for(0, 2 * p.num_heads, 1, [&](int64_t begin, int64_t end) {
      prototype_attention_pack_cpu(p, begin, end);
    });
  }
};

}  // namespace

std::tuple<Tensor, Tensor> prototype_attention(Tensor query, Tensor key, Tensor value,
                                               int64_t num_heads) {
  Inputs in(query, key, value, num_heads);
  PrototypeAttentionParams& p = in.p;
  Tensor out = new_tensor(query, {p.num_rows, query.size(1)}, query.scalar_type());
  Tensor normalizer = new_tensor(query, {p.num_rows, num_heads, 2}, acc_type(p.dtype));
  if (p.num_rows == 0) return {out, normalizer};
  p.out = out.mutable_data_ptr(), p.normalizer = normalizer.mutable_data_ptr();
  in.pack();
  launch(
      kOp, query, p.num_rows, 64, [&](auto stream) { return prototype_attention_cuda(p, stream); },
      [&](int64_t begin, int64_t end) { prototype_attention_cpu(p, begin, end); });
  return {out, normalizer};
}

std::tuple<Tensor, Tensor, Tensor> prototype_attention_backward(Tensor grad_out, Tensor query,
                                                                Tensor key, Tensor value,
                                                                Tensor out, Tensor normalizer,
                                                                int64_t num_heads) {
  Inputs in(query, key, value, num_heads);
  PrototypeAttentionParams& p = in.p;
  const int64_t width = query.size(1);
  const ScalarType acc = acc_type(p.dtype);
  check_shape(kOp, "grad_out", grad_out, {p.num_rows, width});
  HK_CHECK(grad_out.scalar_type() == query.scalar_type() && same_device(grad_out, query), kOp,
           ": grad_out must have the type and the device of query");
  const Tensor grad = rows_of(kOp, "grad_out", grad_out);
  const Tensor result = checked(kOp, "out", out, query.scalar_type(), {p.num_rows, width}, query);
  const Tensor sums =
      checked(kOp, "normalizer", normalizer, acc, {p.num_rows, num_heads, 2}, query);
  Tensor grad_query = new_tensor(query, {p.num_rows, width}, query.scalar_type());
  if (p.num_rows == 0) {
    const Tensor zeros = torch::stable::new_zeros(key, {p.num_prototypes, width});
    return {grad_query, zeros, torch::stable::new_zeros(key, {p.num_prototypes, width})};
  }
  p.num_partials = by_device(
      query, [&](auto) { return prototype_attention_partials_cuda(p.num_rows, p.num_prototypes); },
      [&] { return prototype_attention_partials_cpu(p.num_rows); });
  Tensor partial_key = new_tensor(query, {p.num_partials, p.num_prototypes, width}, acc);
  Tensor partial_value = new_tensor(query, {p.num_partials, p.num_prototypes, width}, acc);
  p.grad_out = grad.const_data_ptr(), p.grad_out_stride = grad.stride(0);
  p.out = const_cast<void*>(result.const_data_ptr());
  p.normalizer = const_cast<void*>(sums.const_data_ptr());
  p.grad_query = grad_query.mutable_data_ptr();
  p.partial_key = partial_key.mutable_data_ptr();
  p.partial_value = partial_value.mutable_data_ptr();
  in.pack();
  launch(
      kOp, query, p.num_partials, 1,
      [&](auto stream) { return prototype_attention_backward_cuda(p, stream); },
      [&](int64_t begin, int64_t end) { prototype_attention_backward_cpu(p, begin, end); });
  const std::vector<int64_t> blocks = {0};
  return {grad_query, torch::stable::sum(partial_key, blocks),
          torch::stable::sum(partial_value, blocks)};
}

}  // namespace histokit
