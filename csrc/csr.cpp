#include "csr.h"

#include "glue.h"

namespace histokit {
namespace {

// Checks a sparse matrix and points the parameters at it; keeps the tensors alive.
struct Matrix {
  Tensor offsets, index, values;
  CsrParams p = {};

  Matrix(const char* op, const Tensor& row_offsets, const Tensor& col_index,
         const Tensor& values_) {
    const int64_t nnz = values_.size(0);
    p.dtype = dtype_of(op, values_);
    HK_CHECK(p.dtype == Dtype::f32 || p.dtype == Dtype::f64, op,
             ": values must be float32 or float64");
    p.wide_index = row_offsets.scalar_type() == ScalarType::Long;
    const ScalarType kind = p.wide_index ? ScalarType::Long : ScalarType::Int;
    HK_CHECK(row_offsets.dim() == 1 && row_offsets.size(0) >= 1, op,
             ": row_offsets must be (rows + 1,)");
    p.num_rows = row_offsets.size(0) - 1;
    offsets = checked(op, "row_offsets", row_offsets, kind, {p.num_rows + 1}, values_);
    index = checked(op, "col_index", col_index, kind, {nnz}, values_);
    values = checked(op, "values", values_, values_.scalar_type(), {nnz}, values_);
    if (!values.is_cuda()) p.wide_index ? check_offsets<int64_t>(op) : check_offsets<int32_t>(op);
    p.row_offsets = offsets.const_data_ptr(), p.col_index = index.const_data_ptr();
    p.values = values.const_data_ptr();
  }

  template <typename I>
  void check_offsets(const char* op) const {
    const I* at = static_cast<const I*>(offsets.const_data_ptr());
    bool ascending = at[0] == 0 && at[p.num_rows] == values.size(0);
    for (int64_t n = 0; n < p.num_rows; ++n) ascending = ascending && at[n] <= at[n + 1];
    HK_CHECK(ascending, op, ": row_offsets must ascend from 0 to the number of values");
  }
};

Tensor with_dense(const char* op, const Tensor& dense, int64_t rows, CsrParams& p) {
  HK_CHECK(dense.dim() == 2 && dense.size(0) == rows, op, ": dense must be (", rows,
           ", d), got a first dimension of ", dense.size(0));
  HK_CHECK(dtype_of(op, dense) == p.dtype, op, ": dense must have the type of values");
  const Tensor ready = with_rows(dense);
  p.dim = dense.size(1), p.dense = ready.const_data_ptr(), p.dense_stride = ready.stride(0);
  return ready;
}

void check_visited(const char* op, int64_t visited, const Tensor& values) {
  HK_CHECK(visited == values.size(0), op,
           ": col_index must ascend within each row and stay below the number of columns");
}

}  // namespace

Tensor csr_matmul(Tensor row_offsets, Tensor col_index, Tensor values, Tensor dense) {
  constexpr const char* kOp = "csr_matmul";
  Matrix y(kOp, row_offsets, col_index, values);
  CsrParams& p = y.p;
  p.num_cols = dense.size(0);
  const Tensor other = with_dense(kOp, dense, p.num_cols, p);
  Tensor out = new_tensor(dense, {p.num_rows, p.dim}, dense.scalar_type());
  if (p.num_rows == 0 || p.dim == 0) return out;
  p.out = out.mutable_data_ptr();
  std::atomic<int64_t> visited = 0;
  p.visited = &visited;
  launch(
      kOp, values, p.num_rows, 16, [&](auto stream) { return csr_matmul_cuda(p, stream); },
      [&](int64_t begin, int64_t end) { csr_matmul_cpu(p, begin, end); });
  if (!values.is_cuda()) check_visited(kOp, visited, values);
  return out;
}

std::tuple<Tensor, Tensor> csr_transpose_matmul(Tensor row_offsets, Tensor col_index, Tensor values,
                                                Tensor dense, int64_t num_cols) {
  constexpr const char* kOp = "csr_transpose_matmul";
  Matrix y(kOp, row_offsets, col_index, values);
  CsrParams& p = y.p;
  const Tensor other = with_dense(kOp, dense, p.num_rows, p);
  p.num_cols = num_cols;
  Tensor out = new_tensor(dense, {num_cols, p.dim}, dense.scalar_type());
  Tensor moments = torch::stable::new_zeros(dense, {2, num_cols}, ScalarType::Double);
  p.out = out.mutable_data_ptr();
  p.moments = static_cast<double*>(moments.mutable_data_ptr());
  std::atomic<int64_t> visited = 0;
  p.visited = &visited;
  torch::stable::parallel_for(0, num_cols, 256, [&](int64_t begin, int64_t end) {
    csr_transpose_matmul_cpu(p, begin, end);
  });
  check_visited(kOp, visited, values);
  return {out, moments};
}

Tensor csr_moments(Tensor row_offsets, Tensor values, int64_t num_cols) {
  Tensor moments = new_tensor(values, {2, row_offsets.size(0) - 1}, ScalarType::Double);
  constexpr const char* kOp = "csr_moments";
  CsrParams p = {};
  p.dtype = dtype_of(kOp, values);
  p.wide_index = row_offsets.scalar_type() == ScalarType::Long;
  p.num_rows = row_offsets.size(0) - 1, p.num_cols = num_cols;
  if (p.num_rows == 0) return moments;
  p.row_offsets = row_offsets.const_data_ptr(), p.values = values.const_data_ptr();
  p.moments = static_cast<double*>(moments.mutable_data_ptr());
  launch(
      kOp, values, p.num_rows, 0, [&](auto stream) { return csr_moments_cuda(p, stream); },
      [&](int64_t, int64_t) { fail(kOp, ": on CUDA alone"); });
  return moments;
}

}  // namespace histokit
