// Kernels with one fault each, which the shim must show (tests/ops/test_cuda_host_shim.py).
#include "../../../csrc/cuda/common.cuh"

namespace histokit {
namespace {

// Reverses each block's numbers through shared memory.
__global__ void reverse_kernel(const float* in, float* out, const bool with_barrier) {
  HK_SHARED(turned, Shared<float, 64>);
  turned[63 - threadIdx.x] = in[blockIdx.x * 64 + threadIdx.x];
  if (with_barrier) __syncthreads();
  out[blockIdx.x * 64 + threadIdx.x] = turned[threadIdx.x];
}

// Sums what shared memory holds after one thread has left its place empty.
__global__ void unwritten_kernel(const float* in, float* out, const bool all_write) {
  HK_SHARED(values, Shared<float, 64>);
  if (all_write || threadIdx.x != 5) values[threadIdx.x] = in[blockIdx.x * 64 + threadIdx.x];
  __syncthreads();
  float sum = 0;
  for (int i = 0; i < 64; ++i) sum += values[i];
  out[blockIdx.x * 64 + threadIdx.x] = sum;
}

// Half of a block waits at a barrier; the other half waits for lanes that wait there too.
__global__ void divergent_kernel(const float* in, float* out, const bool together) {
  float value = in[blockIdx.x * 64 + threadIdx.x];
  if (together || threadIdx.x % 2) __syncthreads();
  value = __shfl_xor_sync(kAllLanes, value, 1);
  if (!together && threadIdx.x % 2 == 0) __syncthreads();
  out[blockIdx.x * 64 + threadIdx.x] = value;
}

// Lanes of one warp meet in two shuffles.
__global__ void mixed_kernel(const float* in, float* out, const bool together) {
  float value = in[blockIdx.x * 64 + threadIdx.x];
  if (together || threadIdx.x % 2)
    value = __shfl_xor_sync(kAllLanes, value, 1);
  else
    value = __shfl_xor_sync(kAllLanes, value, 1);
  out[blockIdx.x * 64 + threadIdx.x] = value;
}

}  // namespace
}  // namespace histokit

using namespace histokit;

// -> nullptr or what the launch said; 3 blocks of 64 threads
extern "C" const char* run_fault(int which, const float* in, float* out, bool sound) {
  if (which == 0) HK_LAUNCH(reverse_kernel, 3, 64, nullptr, in, out, sound);
  if (which == 1) HK_LAUNCH(unwritten_kernel, 3, 64, nullptr, in, out, sound);
  if (which == 2) HK_LAUNCH(divergent_kernel, 3, 64, nullptr, in, out, sound);
  if (which == 3) HK_LAUNCH(mixed_kernel, 3, 64, nullptr, in, out, sound);
  return launch_error();
}
