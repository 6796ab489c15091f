// What every op's glue needs: typed views of torch's stable tensors, their checks, and launches.
#pragma once
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <initializer_list>
#include <optional>
#include <vector>

#include "check.h"
#include "dtype.h"
#include "ops.h"

namespace histokit {

using torch::headeronly::ScalarType;

inline Dtype dtype_of(const char* op, const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return Dtype::f32;
    case ScalarType::Double:
      return Dtype::f64;
    case ScalarType::Half:
      return Dtype::f16;
    case ScalarType::BFloat16:
      return Dtype::bf16;
    default:
      fail(op, ": the data must be float16, bfloat16, float32 or float64");
  }
}

// The type of sums and parameters beside data of this type.
inline ScalarType acc_type(Dtype dtype) {
  return dtype == Dtype::f64 ? ScalarType::Double : ScalarType::Float;
}

inline bool same_device(const Tensor& a, const Tensor& b) {
  return a.is_cuda() == b.is_cuda() && a.get_device_index() == b.get_device_index();
}

void check_shape(const char* op, const char* name, const Tensor& t,
                 std::initializer_list<int64_t> shape);

// Checks type, shape and device (the one of `like`) and makes the tensor contiguous.
Tensor checked(const char* op, const char* name, const Tensor& t, ScalarType type,
               std::initializer_list<int64_t> shape, const Tensor& like);

// The same for an argument that may be missing; then an empty optional.
OptionalTensor checked(const char* op, const char* name, const OptionalTensor& t, ScalarType type,
                       std::initializer_list<int64_t> shape, const Tensor& like);

// How many products on tensor cores make one of float32 (0 for none), or an error.
int64_t checked_products(const char* op, int64_t products);

// A (rows, cols) tensor whose columns are contiguous; copied only when they are not.
Tensor rows_of(const char* op, const char* name, const Tensor& t);

// On CPU, whether all of an int64 index is in [0, size); an error that names the argument if not.
void check_index(const char* op, const char* name, const OptionalTensor& index, int64_t size);

inline const void* data(const OptionalTensor& t) { return t ? t->const_data_ptr() : nullptr; }

template <typename T>
const T* data_as(const OptionalTensor& t) {
  return static_cast<const T*>(data(t));
}

// A tensor to be written in full. Large ones on CPU ask for huge pages: torch returns large blocks
// to the system, so every call pays for the page faults of its result, a factor of two here.
Tensor new_tensor(const Tensor& like, std::vector<int64_t> shape, ScalarType type);

// torch's current stream on the tensor's device. Looked up by name, because the symbol exists only
// where torch has CUDA, and this library must load where it has not.
Stream current_stream(const Tensor& t);

// What `cuda` gives for a tensor on a GPU, `cpu` for others. `cuda` takes an argument of no
// meaning: a generic lambda is not compiled where it is not called, in a library without CUDA.
template <class Cuda, class Cpu>
auto by_device(const Tensor& t, [[maybe_unused]] Cuda cuda, Cpu cpu) {
#ifdef HISTOKIT_CUDA
  if (t.is_cuda()) return cuda(0);
#endif
  return cpu();
}

// Runs an op where `like` lies: cuda(stream), which returns an Error, or cpu(begin, end) on all
// threads over [0, size) in pieces of at least `grain`.
template <class Cuda, class Cpu>
void launch([[maybe_unused]] const char* op, const Tensor& like, int64_t size, int64_t grain,
            [[maybe_unused]] Cuda cuda, Cpu cpu) {
#ifdef HISTOKIT_CUDA
  if (like.is_cuda()) {
    const torch::stable::accelerator::DeviceGuard guard(like.get_device_index());
    const Error error = cuda(current_stream(like));
    HK_CHECK(!error, op, " (CUDA): ", error);
    return;
  }
#endif
  torch::stable::parallel_for(0, size, grain, cpu);
}

}  // namespace histokit
