#include "distance_attention.h"

#include <cmath>

#include "glue.h"

namespace histokit {
namespace {

constexpr const char* kOp = "distance_attention";

// A (N, h, d) tensor whose columns are contiguous; copied only when they are not.
Tensor with_columns(const Tensor& t) {
  return t.size(2) <= 1 || t.stride(2) == 1 ? t : torch::stable::contiguous(t);
}

// Checks what both passes read, and points the parameters at it; keeps the tensors alive.
struct Inputs {
  Tensor query, key, value, coords, slope;
  OptionalTensor seed;
  DistanceAttentionParams p = {};

  Inputs(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& places,
         const Tensor& slopes, const OptionalTensor& seeds, double dropout, int64_t products) {
    HK_CHECK(q.dim() == 3, kOp, ": query must be (N, h, d), got ", q.dim(), " dimensions");
    p.dtype = dtype_of(kOp, q);
    p.num_rows = q.size(0), p.num_heads = q.size(1), p.head_dim = q.size(2);
    HK_CHECK(p.num_heads > 0 && p.head_dim > 0, kOp, ": query must have heads and columns");
    HK_CHECK(q.is_cuda() || p.dtype == Dtype::f32 || p.dtype == Dtype::f64, kOp,
             ": query must be float32 or float64 on CPU");
    query = with_columns(q);
    key = like_query("key", k);
    value = like_query("value", v);
    const ScalarType acc = acc_type(p.dtype);
    coords = checked(kOp, "coords", places, acc, {p.num_rows, 2}, q);
    slope = checked(kOp, "slope", slopes, acc, {p.num_heads}, q);
    p.query = query.const_data_ptr(), p.query_row = query.stride(0), p.query_head = query.stride(1);
    p.key = key.const_data_ptr(), p.key_row = key.stride(0), p.key_head = key.stride(1);
    p.value = value.const_data_ptr(), p.value_row = value.stride(0), p.value_head = value.stride(1);
    HK_CHECK(dropout >= 0 && dropout < 1 && (seeds || dropout == 0), kOp,
             ": dropout must be in [0, 1), with a seed where it is not 0, got ", dropout);
    p.products = checked_products(kOp, products);
    seed = checked(kOp, "seed", seeds, ScalarType::Long, {1}, q);
    p.seed = data_as<int64_t>(seed), p.dropout = dropout;
    p.finite_coords = q.is_cuda() || (p.dtype == Dtype::f64 ? finite<double>() : finite<float>());
    p.coords = coords.const_data_ptr(), p.slope = slope.const_data_ptr();
  }

  template <typename T>
  bool finite() const {
    const T* at = static_cast<const T*>(coords.const_data_ptr());
    bool all = true;
    for (int64_t i = 0; i < 2 * p.num_rows; ++i) all &= std::isfinite(at[i]);
    return all;
  }

  Tensor like_query(const char* name, const Tensor& t) const {
    HK_CHECK(t.scalar_type() == query.scalar_type() && same_device(t, query), kOp, ": ", name,
             " must have the type and the device of query");
    check_shape(kOp, name, t, {p.num_rows, p.num_heads, p.head_dim});
    return with_columns(t);
  }

  // Into how many a head is parted in the backward pass.
  int64_t parts() const {
    return by_device(
        query,
        [&](auto) {
          const torch::stable::accelerator::DeviceGuard guard(query.get_device_index());
          return distance_attention_blocks_cuda(p);
        },
        [&] { return distance_attention_chunks_cpu(p.num_rows); });
  }
};

}  // namespace

std::tuple<Tensor, Tensor> distance_attention(Tensor query, Tensor key, Tensor value, Tensor coords,
                                              Tensor slope, OptionalTensor seed, double dropout,
                                              int64_t products) {
  Inputs in(query, key, value, coords, slope, seed, dropout, products);
  DistanceAttentionParams& p = in.p;
  Tensor out = new_tensor(query, {p.num_rows, p.num_heads, p.head_dim}, query.scalar_type());
  Tensor normalizer = new_tensor(query, {p.num_heads, p.num_rows, 2}, acc_type(p.dtype));
  if (p.num_rows == 0) return {out, normalizer};
  p.out = out.mutable_data_ptr(), p.normalizer = normalizer.mutable_data_ptr();
  launch(
      kOp, query, p.num_heads * distance_attention_blocks_cpu(p.num_rows), 1,
      [&](auto stream) { return distance_attention_cuda(p, stream); },
      [&](int64_t begin, int64_t end) { distance_attention_cpu(p, begin, end); });
  return {out, normalizer};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> distance_attention_backward(
    Tensor grad_out, Tensor query, Tensor key, Tensor value, Tensor coords, Tensor slope,
    OptionalTensor seed, double dropout, Tensor out, Tensor normalizer, bool with_slope,
    int64_t products) {
  Inputs in(query, key, value, coords, slope, seed, dropout, products);
  DistanceAttentionParams& p = in.p;
  const std::vector<int64_t> shape = {p.num_rows, p.num_heads, p.head_dim};
  const ScalarType type = query.scalar_type(), acc = acc_type(p.dtype);
  const Tensor grad = in.like_query("grad_out", grad_out);
  const Tensor result =
      checked(kOp, "out", out, type, {p.num_rows, p.num_heads, p.head_dim}, query);
  const Tensor sums =
      checked(kOp, "normalizer", normalizer, acc, {p.num_heads, p.num_rows, 2}, query);
  Tensor grad_key = new_tensor(query, shape, type), grad_value = new_tensor(query, shape, type);
  const int64_t slopes = with_slope ? p.num_heads : 0;
  if (p.num_rows == 0)
    return {new_tensor(query, shape, type), grad_key, grad_value,
            torch::stable::new_zeros(query, {slopes}, ScalarType::Double)};
  const int64_t parts = in.parts();
  Tensor partial = new_tensor(query, {slopes, parts}, ScalarType::Double);
  p.grad_out = grad.const_data_ptr(), p.grad_out_row = grad.stride(0);
  p.grad_out_head = grad.stride(1);
  p.out = const_cast<void*>(result.const_data_ptr());
  p.normalizer = const_cast<void*>(sums.const_data_ptr());
  p.grad_key = grad_key.mutable_data_ptr(), p.grad_value = grad_value.mutable_data_ptr();
  if (with_slope) p.partial_slope = static_cast<double*>(partial.mutable_data_ptr());
  const std::vector<int64_t> over_chunks = {0}, over_parts = {1};
  const int64_t chunks =
      query.is_cuda() ? 1 : parts;  // the CPU sums over chunks of keys at the end
  Tensor grad_query = new_tensor(query, {chunks, p.num_rows, p.num_heads, p.head_dim}, type);
  Tensor delta = new_tensor(query, {query.is_cuda() ? p.num_heads : 0, p.num_rows}, acc);
  p.grad_query = grad_query.mutable_data_ptr(), p.delta = delta.mutable_data_ptr();
  launch(
      kOp, query, p.num_heads * parts, 1,
      [&](auto stream) { return distance_attention_backward_cuda(p, stream); },
      [&](int64_t begin, int64_t end) { distance_attention_backward_cpu(p, begin, end); });
  grad_query = chunks == 1 ? torch::stable::select(grad_query, 0, 0)
                           : torch::stable::sum(grad_query, over_chunks);
  return {grad_query, grad_key, grad_value, torch::stable::sum(partial, over_parts)};
}

}  // namespace histokit
