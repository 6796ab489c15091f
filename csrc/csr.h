// Products of a sparse (CSR) target Y with small dense matrices, for linear_pearson and linear_mse.
//
// Both ops are algebra over C = Y^T H (G, d), Y W (N, d), per-gene moments of Y, and dense products
// that torch's GEMM does in Python: H^T H, W A, W^T W. Only the sparse products need kernels.
// On CUDA Python transposes the target with a stable sort first, so that csr_matmul serves both
// products and csr_moments reads one gene's values side by side; there is no transposed kernel.
#pragma once
#include "dtype.h"

namespace histokit {

// What is wrong with a row of a sparse matrix.
enum class RowFault : uint8_t { none, duplicate, order, range, offsets };  // the worst last

struct CsrParams {
  Dtype dtype;       // f32 or f64: of values, dense and out
  bool wide_index;   // indices are int64_t, otherwise int32_t
  int64_t num_rows;  // compressed rows
  int64_t num_cols;
  int64_t num_entries;  // nnz
  int64_t dim;          // d
  int64_t products;  // CUDA matmul: 0 plain kernel; on tensor cores float32 in 1 or 3 TF32 products
  const void* row_offsets;  // (num_rows + 1,)
  const void* col_index;    // (nnz,), ascending strictly within a row
  const void* values;       // (nnz,)
  const void* dense;        // matmul: (num_cols, d); transpose_matmul: (num_rows, d)
  int64_t dense_stride;     // row stride of dense, columns contiguous
  void* out;                // matmul: (num_rows, d); transpose_matmul: (num_cols, d); contiguous
  double* moments;   // (2, genes): mean and sum of squared deviations, implicit zeros included;
                     // genes are columns in transpose_matmul, compressed rows in csr_moments
  RowFault* faults;  // check: (num_rows,); null on CUDA: a fault ends the kernel
};

// Rows [begin, end) of out = Y dense on the calling thread.
void csr_matmul_cpu(const CsrParams& p, int64_t begin, int64_t end);
// Columns [begin, end) of Y: rows of out = Y^T dense, and their moments, on the calling thread.
void csr_transpose_matmul_cpu(const CsrParams& p, int64_t begin, int64_t end);

// Faults of rows [begin, end) into p.faults, on the calling thread.
void csr_check_cpu(const CsrParams& p, int64_t begin, int64_t end);

Error csr_check_cuda(CsrParams p, Stream stream);
Error csr_matmul_cuda(CsrParams p, Stream stream);
// The same on tensor cores, and whether it was asked for, and type, device and the share of stored
// entries allow it; the launcher above asks.
bool csr_matmul_by_mma(const CsrParams& p);
Error csr_matmul_mma_cuda(CsrParams p, Stream stream);
Error csr_moments_cuda(CsrParams p, Stream stream);  // reads row_offsets and values, writes moments

}  // namespace histokit
