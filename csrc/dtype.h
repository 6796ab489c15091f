// Element types that cross from the glue into the torch-free kernels.
#pragma once
#include <cstdint>

namespace histokit {

enum class Dtype : int32_t { f32 = 0, f64 = 1, f16 = 2, bf16 = 3 };

// Acc, in every header below, is the type that sums are kept in and that small parameters have:
// double where the data are f64, float otherwise.

// A CUDA stream as the glue hands it over: a cudaStream_t that torch-free headers need not know.
using Stream = void*;

// CUDA launchers return nullptr, or the sentence that cudaGetErrorString gave.
using Error = const char*;

}  // namespace histokit
