// The library: op schemas, their kernels by device, and a small module that tells how it was built.
#include <Python.h>
#include <torch/csrc/stable/library.h>

#include "build_info.h"
#include "ops.h"
#include "sets.h"

STABLE_TORCH_LIBRARY(histokit, m) {
  m.def(
      "cancer_cross_attention(Tensor x, Tensor? score_weight, Tensor? score_bias, Tensor value, "
      "Tensor? bias, Tensor norm_weight, Tensor norm_bias, Tensor? slide_index, Tensor? mask, "
      "int tokens, float eps) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "cancer_cross_attention_backward(Tensor grad_y, Tensor x, Tensor? prob, Tensor mean, "
      "Tensor rstd, Tensor value, Tensor? bias, Tensor norm_weight, Tensor? slide_index, "
      "Tensor? mask, int tokens) -> (Tensor, Tensor, Tensor)");
  m.def(
      "prototype_attention(Tensor query, Tensor key, Tensor value, int num_heads) "
      "-> (Tensor, Tensor)");
  m.def(
      "prototype_attention_backward(Tensor grad_out, Tensor query, Tensor key, Tensor value, "
      "Tensor out, Tensor normalizer, int num_heads) -> (Tensor, Tensor, Tensor)");
  m.def(
      "distance_attention(Tensor query, Tensor key, Tensor value, Tensor coords, Tensor slope, "
      "Tensor? seed, float dropout, int products) -> (Tensor, Tensor)");
  m.def(
      "distance_attention_backward(Tensor grad_out, Tensor query, Tensor key, Tensor value, "
      "Tensor coords, Tensor slope, Tensor? seed, float dropout, Tensor out, Tensor normalizer, "
      "bool with_slope, int products) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "pearson_update(Tensor(a!) state, Tensor pred, Tensor target, Tensor? mask, Tensor? order, "
      "Tensor? offsets) -> ()");
  m.def(
      "csr_matmul(Tensor row_offsets, Tensor col_index, Tensor values, Tensor dense, int products) "
      "-> Tensor");
  m.def(
      "csr_transpose_matmul(Tensor row_offsets, Tensor col_index, Tensor values, Tensor dense, "
      "int num_cols) -> (Tensor, Tensor)");
  m.def("csr_check(Tensor row_offsets, Tensor col_index, Tensor values, int num_cols) -> Tensor");
  m.def("csr_assert(Tensor row_offsets, Tensor col_index, Tensor values, int num_cols) -> ()");
  m.def("csr_moments(Tensor row_offsets, Tensor values, int num_cols) -> Tensor");
}

namespace {

// The ops whose glue serves CPU and CUDA alike.
void register_common(torch::stable::detail::StableLibrary& m) {
  m.impl("cancer_cross_attention", TORCH_BOX(&histokit::cancer_cross_attention));
  m.impl("cancer_cross_attention_backward", TORCH_BOX(&histokit::cancer_cross_attention_backward));
  m.impl("prototype_attention", TORCH_BOX(&histokit::prototype_attention));
  m.impl("prototype_attention_backward", TORCH_BOX(&histokit::prototype_attention_backward));
  m.impl("distance_attention", TORCH_BOX(&histokit::distance_attention));
  m.impl("distance_attention_backward", TORCH_BOX(&histokit::distance_attention_backward));
  m.impl("pearson_update", TORCH_BOX(&histokit::pearson_update));
  m.impl("csr_check", TORCH_BOX(&histokit::csr_check));
  m.impl("csr_matmul", TORCH_BOX(&histokit::csr_matmul));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(histokit, CPU, m) {
  register_common(m);
  m.impl("csr_transpose_matmul", TORCH_BOX(&histokit::csr_transpose_matmul));
}

#ifdef HISTOKIT_CUDA
STABLE_TORCH_LIBRARY_IMPL(histokit, CUDA, m) {
  register_common(m);
  m.impl("csr_assert", TORCH_BOX(&histokit::csr_assert));
  m.impl("csr_moments", TORCH_BOX(&histokit::csr_moments));
}
#endif

// Python's own interface, for its stable ABI: one library for Python 3.11 and everything later.
namespace {

PyObject* build_info(PyObject*, PyObject*) {
  return Py_BuildValue("{s:s,s:s,s:s,s:s}", "compiler", "g++ " __VERSION__, "instruction_set",
                       histokit::set_name(), "cuda_architectures", HISTOKIT_BUILD_CUDA_ARCHS,
                       "git_revision", HISTOKIT_BUILD_REVISION);
}

PyMethodDef methods[] = {
    {"build_info", build_info, METH_NOARGS, "How the kernels were built, a dict of strings."},
    {nullptr, nullptr, 0, nullptr}};

PyModuleDef module = {PyModuleDef_HEAD_INIT,
                      "_C",
                      "Compiled kernels of histokit; the ops are torch.ops.histokit.*",
                      -1,
                      methods,
                      nullptr,
                      nullptr,
                      nullptr,
                      nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&module); }
