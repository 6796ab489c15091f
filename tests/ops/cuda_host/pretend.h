// Included ahead of the glue (csrc/*.cpp) so that CPU tensors take its CUDA branches, and with them
// the kernels that the host shim runs. What the glue includes comes first: it must not see the
// names below.
#pragma once
#include <pybind11/pybind11.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

namespace torch::stable::accelerator {
struct HostGuard {
  explicit HostGuard(int64_t) {}
};
}  // namespace torch::stable::accelerator

namespace histokit {
inline void* current_stream(const torch::stable::Tensor&) { return nullptr; }
}  // namespace histokit

#define HISTOKIT_CUDA
#define CUDA CPU
#define DeviceGuard HostGuard
#define is_cuda is_cpu
