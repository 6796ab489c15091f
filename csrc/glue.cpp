#include "glue.h"

#include <dlfcn.h>
#include <sys/mman.h>

#include <cstdint>

namespace histokit {
namespace {

template <typename Shape>
std::string text(const Shape& shape) {
  std::ostringstream out;
  out << "(";
  for (size_t i = 0; i < shape.size(); ++i) out << (i ? ", " : "") << *(shape.begin() + i);
  out << (shape.size() == 1 ? ",)" : ")");
  return out.str();
}

}  // namespace

void check_shape(const char* op, const char* name, const Tensor& t,
                 std::initializer_list<int64_t> shape) {
  const auto sizes = t.sizes();
  bool same = sizes.size() == shape.size();
  for (size_t i = 0; same && i < shape.size(); ++i) same = sizes[i] == *(shape.begin() + i);
  HK_CHECK(same, op, ": ", name, " must be ", text(shape), ", got ", text(sizes));
}

Tensor checked(const char* op, const char* name, const Tensor& t, ScalarType type,
               std::initializer_list<int64_t> shape, const Tensor& like) {
  HK_CHECK(t.scalar_type() == type, op, ": ", name, " must be ", torch::headeronly::toString(type),
           ", got ", torch::headeronly::toString(t.scalar_type()));
  HK_CHECK(same_device(t, like), op, ": ", name, " is on another device than the data");
  check_shape(op, name, t, shape);
  return t.is_contiguous() ? t : torch::stable::contiguous(t);
}

OptionalTensor checked(const char* op, const char* name, const OptionalTensor& t, ScalarType type,
                       std::initializer_list<int64_t> shape, const Tensor& like) {
  if (!t) return t;
  return checked(op, name, *t, type, shape, like);
}

int64_t checked_products(const char* op, int64_t products) {
  HK_CHECK(products == 0 || products == 1 || products == 3, op,
           ": products must be 0, 1 or 3, got ", products);
  return products;
}

Tensor rows_of(const char* op, const char* name, const Tensor& t) {
  HK_CHECK(t.dim() == 2, op, ": ", name, " must have 2 dimensions, got ", t.dim());
  const bool ready = t.size(1) <= 1 || t.stride(1) == 1;
  return ready ? t : torch::stable::contiguous(t);
}

void check_index(const char* op, const char* name, const OptionalTensor& index, int64_t size) {
  if (!index || index->is_cuda()) return;
  const int64_t* values = data_as<int64_t>(index);
  for (int64_t i = 0; i < index->numel(); ++i)
    HK_CHECK(values[i] >= 0 && values[i] < size, op, ": ", name, " must be in [0, ", size,
             "), got ", values[i], " at ", i);
}

Tensor new_tensor(const Tensor& like, std::vector<int64_t> shape, ScalarType type) {
  Tensor t = torch::stable::new_empty(like, shape, type);
#ifdef __linux__
  constexpr uintptr_t kHugePage = uintptr_t(2) << 20;
  const size_t bytes = t.numel() * (type == ScalarType::Double ? 8 : 4);  // half types: CUDA only
  if (!t.is_cuda() && bytes >= 2 * kHugePage) {
    const uintptr_t start = reinterpret_cast<uintptr_t>(t.mutable_data_ptr());
    const uintptr_t first = (start + kHugePage - 1) / kHugePage * kHugePage;
    madvise(reinterpret_cast<void*>(first), (start + bytes - first) / kHugePage * kHugePage,
            MADV_HUGEPAGE);  // advice: its failure changes nothing
  }
#endif
  return t;
}

Stream current_stream(const Tensor& t) {
  using Getter = int32_t (*)(int32_t, void**);
  static const Getter getter = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
    return library ? reinterpret_cast<Getter>(dlsym(library, "aoti_torch_get_current_cuda_stream"))
                   : nullptr;
  }();
  void* stream = nullptr;
  HK_CHECK(getter && getter(t.get_device_index(), &stream) == 0,
           "histokit: torch's current CUDA stream is not available in this process");
  return stream;
}

}  // namespace histokit
