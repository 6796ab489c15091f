// One warp's products by fragments (tests/ops/test_cuda_host_tensor_cores.py).
#include "../../../csrc/cuda/tensor_cores.cuh"

namespace histokit {
namespace {

constexpr int kSize = 16;
enum Fault { kNone, kNoWait, kOddAddress, kUnrounded };

// first = a across^T, then second = first down: all matrices 16 x 16.
template <class T, int kProducts>
__global__ void chain_kernel(const T* a, const T* across, const T* down, float* first,
                             float* second, const int fault) {
  using F = Fragments<T, kProducts>;
  constexpr int kPack = 16 / sizeof(T), kStride = kSize + kPack, kSteps = kSize / F::kDepth;
  HK_DYNAMIC_SHARED(memory);
  T* const slabs = reinterpret_cast<T*>(memory);
  const T* sources[] = {a, across, down};
  for (int i = threadIdx.x; i < 3 * kSize * kSize / kPack; i += kWarp) {
    const int row = i / (kSize / kPack), c = i % (kSize / kPack) * kPack;
    copy_async(slabs + row * kStride + c, sources[row / kSize] + row % kSize * kSize + c, 16);
  }
  commit_copies();
  if (fault != kNoWait) wait_copies<0>();
  __syncthreads();

  typename F::Sums sums[2], more[2];
  for (int k = 0; k < kSize; k += F::kDepth) {
    typename F::A rows;
    typename F::B columns[2];
    F::load(rows, slabs + k + (fault == kOddAddress ? 1 : 0), kStride);
    F::load_across(columns, slabs + kSize * kStride + k, kStride);
    if (fault == kUnrounded) rows.at[0] |= 1;
    for (int n = 0; n < 2; ++n) sums[n].add(rows, columns[n]);
  }
  float totals[2][4];
  for (int i = 0; i < 8; ++i) totals[i / 4][i % 4] = sums[i / 4].total(i % 4);
  for (int s = 0; s < kSteps; ++s) {
    typename F::A rows;
    typename F::B columns[2];
    F::turn(rows, totals + s * F::kDepth / kTileColumns);
    F::load(columns, slabs + (2 * kSize + s * F::kDepth) * kStride, kStride);
    for (int n = 0; n < 2; ++n) more[n].add(rows, columns[n]);
  }
  for (int i = 0; i < 8; ++i) {
    const int row = lane_id() / 4 + i % 4 / 2 * 8, column = i / 4 * 8 + lane_id() % 4 * 2 + i % 2;
    first[row * kSize + column] = totals[i / 4][i % 4];
    second[row * kSize + column] = more[i / 4].total(i % 4);
  }
}

template <class T, int kProducts>
void chain(const void* a, const void* across, const void* down, float* first, float* second,
           int fault) {
  constexpr int kBytes = 3 * kSize * (kSize * sizeof(T) + 16);
  HK_LAUNCH_SHARED((chain_kernel<T, kProducts>), 1, kWarp, kBytes, nullptr,
                   static_cast<const T*>(a), static_cast<const T*>(across),
                   static_cast<const T*>(down), first, second, fault);
}

// Zeros behind what is copied, and groups that arrive in order.
__global__ void copy_kernel(const float* from, float* out, const int left) {
  HK_SHARED(places, Shared<float, 8>);
  for (int group = 0; group < 2; ++group) {
    if (threadIdx.x == 0) copy_async(places + 4 * group, from + 4 * group, 8);
    commit_copies();
  }
  left ? wait_copies<1>() : wait_copies<0>();
  __syncthreads();
  if (threadIdx.x < 8) out[threadIdx.x] = places[threadIdx.x];
}

__global__ void nothing_kernel(float* out) { *out = 1; }

}  // namespace
}  // namespace histokit

using namespace histokit;

extern "C" const char* run_chain(int kind, const void* a, const void* across, const void* down,
                                 float* first, float* second, int fault) {
  if (kind == 0) chain<__half, 1>(a, across, down, first, second, fault);
  if (kind == 1) chain<__nv_bfloat16, 1>(a, across, down, first, second, fault);
  if (kind == 2) chain<float, 3>(a, across, down, first, second, fault);
  if (kind == 3) chain<float, 1>(a, across, down, first, second, fault);
  return launch_error();
}

extern "C" const char* run_copies(const float* from, float* out, int left) {
  HK_LAUNCH(copy_kernel, 1, kWarp, nullptr, from, out, left);
  return launch_error();
}

extern "C" const char* run_with_shared(int bytes, bool allowed, float* out) {
  if (allowed &&
      cudaFuncSetAttribute(nothing_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes))
    return "not allowed";
  HK_LAUNCH_SHARED(nothing_kernel, 1, kWarp, bytes, nullptr, out);
  return launch_error();
}
