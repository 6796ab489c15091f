#include "csr.h"

#include "glue.h"

namespace histokit {
namespace {

// Checks a sparse matrix and points the parameters at it; keeps the tensors alive.
struct Matrix {
  Tensor offsets, index, values;
  CsrParams p = {};

  Matrix(const char* op, const Tensor& row_offsets, const Tensor& col_index, const Tensor& values_,
         int64_t num_cols) {
    HK_CHECK(values_.dim() == 1 && row_offsets.dim() == 1 && row_offsets.size(0) >= 1, op,
             ": values must be (nnz,) and row_offsets (rows + 1,)");
    HK_CHECK(num_cols >= 0, op, ": num_cols must not be negative, got ", num_cols);
    p.dtype = dtype_of(op, values_);
    HK_CHECK(p.dtype == Dtype::f32 || p.dtype == Dtype::f64, op,
             ": values must be float32 or float64");
    p.wide_index = row_offsets.scalar_type() == ScalarType::Long;
    const ScalarType kind = p.wide_index ? ScalarType::Long : ScalarType::Int;
    p.num_rows = row_offsets.size(0) - 1, p.num_cols = num_cols, p.num_entries = values_.size(0);
    offsets = checked(op, "row_offsets", row_offsets, kind, {p.num_rows + 1}, values_);
    index = checked(op, "col_index", col_index, kind, {p.num_entries}, values_);
    values = checked(op, "values", values_, values_.scalar_type(), {p.num_entries}, values_);
    p.row_offsets = offsets.const_data_ptr(), p.col_index = index.const_data_ptr();
    p.values = values.const_data_ptr();
  }

  // (num_rows,) uint8: a RowFault for each row.
  Tensor faults(const char* op) {
    Tensor found = torch::stable::new_zeros(values, {p.num_rows}, ScalarType::Byte);
    if (p.num_rows == 0) return found;
    p.faults = static_cast<RowFault*>(found.mutable_data_ptr());
    launch(
        op, values, p.num_rows, 64, [&](auto stream) { return csr_check_cuda(p, stream); },
        [&](int64_t begin, int64_t end) { csr_check_cpu(p, begin, end); });
    return found;
  }

  // On CUDA, where a fault ends the kernel and nobody waits for it.
  void assert_sound(const char* op) {
    HK_CHECK(values.is_cuda(), op, ": on CUDA alone; csr_check serves the CPU");
    HK_CHECK(p.num_rows > 0 || p.num_entries == 0, op, ": entries without a row");
    if (p.num_rows == 0) return;
    launch(
        op, values, p.num_rows, 0, [&](auto stream) { return csr_check_cuda(p, stream); },
        [](int64_t, int64_t) {});
  }

  // On CPU, where a wrong index would be read as it is; on CUDA Python asks once for each matrix.
  void check(const char* op) {
    if (values.is_cuda()) return;
    const Tensor found = faults(op);
    for (int64_t row = 0; row < p.num_rows; ++row)
      HK_CHECK(p.faults[row] == RowFault::none, op, ": row ", row,
               ": row_offsets must ascend from 0 to the number of values, and col_index strictly "
               "within a row, below ",
               p.num_cols);
    HK_CHECK(p.num_rows > 0 || p.num_entries == 0, op, ": entries without a row");
  }
};

Tensor with_dense(const char* op, const Tensor& dense, const Tensor& values, int64_t rows,
                  CsrParams& p) {
  const Tensor ready = rows_of(op, "dense", dense);
  HK_CHECK(dense.size(0) == rows, op, ": dense must be (", rows, ", d), got a first dimension of ",
           dense.size(0));
  HK_CHECK(dense.scalar_type() == values.scalar_type() && same_device(dense, values), op,
           ": dense must have the type and the device of values");
  p.dim = dense.size(1), p.dense = ready.const_data_ptr(), p.dense_stride = ready.stride(0);
  return ready;
}

}  // namespace

Tensor csr_matmul(Tensor row_offsets, Tensor col_index, Tensor values, Tensor dense,
                  int64_t products) {
  constexpr const char* kOp = "csr_matmul";
  Matrix y(kOp, row_offsets, col_index, values, dense.size(0));
  y.check(kOp);
  CsrParams& p = y.p;
  const Tensor other = with_dense(kOp, dense, values, p.num_cols, p);
  p.products = checked_products(kOp, products);
  Tensor out = new_tensor(dense, {p.num_rows, p.dim}, dense.scalar_type());
  if (p.num_rows == 0 || p.dim == 0) return out;
  p.out = out.mutable_data_ptr();
  launch(
      kOp, values, p.num_rows, 16, [&](auto stream) { return csr_matmul_cuda(p, stream); },
      [&](int64_t begin, int64_t end) { csr_matmul_cpu(p, begin, end); });
  return out;
}

std::tuple<Tensor, Tensor> csr_transpose_matmul(Tensor row_offsets, Tensor col_index, Tensor values,
                                                Tensor dense, int64_t num_cols) {
  constexpr const char* kOp = "csr_transpose_matmul";
  Matrix y(kOp, row_offsets, col_index, values, num_cols);
  y.check(kOp);
  CsrParams& p = y.p;
  const Tensor other = with_dense(kOp, dense, values, p.num_rows, p);
  Tensor out = new_tensor(dense, {num_cols, p.dim}, dense.scalar_type());
  Tensor moments = torch::stable::new_zeros(dense, {2, num_cols}, ScalarType::Double);
  p.out = out.mutable_data_ptr();
  p.moments = static_cast<double*>(moments.mutable_data_ptr());
  torch::stable::parallel_for(0, num_cols, 256, [&](int64_t begin, int64_t end) {
    csr_transpose_matmul_cpu(p, begin, end);
  });
  return {out, moments};
}

Tensor csr_check(Tensor row_offsets, Tensor col_index, Tensor values, int64_t num_cols) {
  constexpr const char* kOp = "csr_check";
  return Matrix(kOp, row_offsets, col_index, values, num_cols).faults(kOp);
}

void csr_assert(Tensor row_offsets, Tensor col_index, Tensor values, int64_t num_cols) {
  constexpr const char* kOp = "csr_assert";
  Matrix(kOp, row_offsets, col_index, values, num_cols).assert_sound(kOp);
}

Tensor csr_moments(Tensor row_offsets, Tensor values, int64_t num_cols) {
  constexpr const char* kOp = "csr_moments";
  HK_CHECK(row_offsets.dim() == 1 && row_offsets.size(0) >= 1 && values.dim() == 1, kOp,
           ": values must be (nnz,) and row_offsets (rows + 1,)");
  CsrParams p = {};
  p.dtype = dtype_of(kOp, values);
  HK_CHECK(p.dtype == Dtype::f32 || p.dtype == Dtype::f64, kOp,
           ": values must be float32 or float64");
  p.wide_index = row_offsets.scalar_type() == ScalarType::Long;
  p.num_rows = row_offsets.size(0) - 1, p.num_cols = num_cols;
  const Tensor offsets =
      checked(kOp, "row_offsets", row_offsets, p.wide_index ? ScalarType::Long : ScalarType::Int,
              {p.num_rows + 1}, values);
  Tensor moments = new_tensor(values, {2, p.num_rows}, ScalarType::Double);
  if (p.num_rows == 0) return moments;
  p.row_offsets = offsets.const_data_ptr(), p.values = values.const_data_ptr();
  p.moments = static_cast<double*>(moments.mutable_data_ptr());
  launch(
      kOp, values, p.num_rows, 0, [&](auto stream) { return csr_moments_cuda(p, stream); },
      [&](int64_t, int64_t) { fail(kOp, ": on CUDA alone"); });
  return moments;
}

}  // namespace histokit
