// Test-only stand-in for the CUDA runtime: g++ compiles a .cu against this folder, and a launch
// runs its blocks one after the other, each thread of a block a real thread. It covers what the
// kernels of csrc/cuda use and no more. A shuffle that not all lanes of a warp reach from the same
// line, undefined on a GPU, is an error here; so is any launch or mask the shim does not cover.
#pragma once

#include <algorithm>
#include <atomic>
#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <optional>
#include <source_location>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static  // blocks run one at a time

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
inline dim3 blockDim, gridDim;
inline thread_local dim3 threadIdx, blockIdx;
constexpr int warpSize = 32;

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorLaunchFailure = 719 };

namespace cuda_host {

constexpr unsigned kMaxValueBytes = 8;

struct Slot {
  alignas(kMaxValueBytes) unsigned char bytes[kMaxValueBytes];
  unsigned line;
};

struct Warp {
  explicit Warp(unsigned lanes) : barrier(lanes) {}
  std::barrier<> barrier;
  Slot slots[2][warpSize] = {};
};

struct Block {
  explicit Block(unsigned threads) : barrier(threads) {
    for (unsigned first = 0; first < threads; first += warpSize)
      warps.push_back(std::make_unique<Warp>(std::min<unsigned>(warpSize, threads - first)));
  }
  std::barrier<> barrier;
  std::vector<std::unique_ptr<Warp>> warps;
};

inline std::optional<Block> block;
inline std::atomic<int> error{cudaSuccess};
inline thread_local Warp* warp;
inline thread_local unsigned lane, phase;

inline void fail(const char* what, unsigned line) {
  std::fprintf(stderr, "cuda_host: line %u: %s\n", line, what);
  error = cudaErrorLaunchFailure;
}

// Every lane publishes its value, then reads that of `source`. Slots alternate between two sets, so
// one barrier an exchange is enough: a set is written again only after all lanes have read it.
template <class T>
T exchange(unsigned mask, T value, unsigned source, unsigned line) {
  static_assert(sizeof(T) <= kMaxValueBytes);
  if (mask != 0xffffffffu) fail("only full-mask shuffles are covered", line);
  Slot* slots = warp->slots[phase++ % 2];
  std::memcpy(slots[lane].bytes, &value, sizeof(T));
  slots[lane].line = line;
  warp->barrier.arrive_and_wait();
  if (slots[source].line != line) fail("lanes of one warp meet in different shuffles", line);
  std::memcpy(&value, slots[source].bytes, sizeof(T));
  return value;
}

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 shape, Arguments... arguments) {
  const unsigned threads = shape.x * shape.y * shape.z;
  if (threads == 0 || threads > 1024 || grid.x * grid.y * grid.z == 0)
    return fail("empty or oversized launch", 0);
  blockDim = shape;
  gridDim = grid;
  std::barrier<> gate(threads + 1);
  auto body = [&](unsigned thread) {
    threadIdx = dim3(thread % shape.x, thread / shape.x % shape.y, thread / (shape.x * shape.y));
    lane = thread % warpSize;
    for (unsigned z = 0; z < grid.z; ++z)
      for (unsigned y = 0; y < grid.y; ++y)
        for (unsigned x = 0; x < grid.x; ++x) {
          blockIdx = dim3(x, y, z);
          gate.arrive_and_wait();
          warp = block->warps[thread / warpSize].get();
          phase = 0;
          kernel(arguments...);
          warp->barrier.arrive_and_drop();  // as on the GPU, who has left is no longer waited for
          block->barrier.arrive_and_drop();
          gate.arrive_and_wait();
        }
  };
  std::vector<std::thread> pool;
  for (unsigned thread = 0; thread < threads; ++thread) pool.emplace_back(body, thread);
  for (unsigned index = 0; index < grid.x * grid.y * grid.z; ++index) {
    block.emplace(threads);
    gate.arrive_and_wait();
    gate.arrive_and_wait();
  }
  for (std::thread& thread : pool) thread.join();
}

using Here = std::source_location;

}  // namespace cuda_host

#define HK_LAUNCH(kernel, grid, block, stream, ...) \
  cuda_host::launch(kernel, grid, block, __VA_ARGS__)

inline void __syncthreads() { cuda_host::block->barrier.arrive_and_wait(); }
inline void __syncwarp(unsigned = ~0u) { cuda_host::warp->barrier.arrive_and_wait(); }

template <class T>
T __shfl_sync(unsigned mask, T value, unsigned source,
              cuda_host::Here here = cuda_host::Here::current()) {
  return cuda_host::exchange(mask, value, source % warpSize, here.line());
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, unsigned bits,
                  cuda_host::Here here = cuda_host::Here::current()) {
  return cuda_host::exchange(mask, value, (cuda_host::lane ^ bits) % warpSize, here.line());
}

template <class T>
T __ldg(const T* pointer) {
  return *pointer;
}
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
using std::max;
using std::min;

inline cudaError_t cudaGetLastError() {
  return static_cast<cudaError_t>(cuda_host::error.exchange(cudaSuccess));
}
inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "the host shim refused a launch or a shuffle";
}
