// Test-only stand-in for the CUDA runtime: g++ compiles a .cu against this folder, and a launch
// runs its blocks one after the other in a shuffled order, each thread of a block as a fiber that
// hands over at barriers and shuffles. Who goes on first is shuffled too, so that a missing barrier
// shows as a wrong value, and shared memory is poisoned before each block. It covers what the
// kernels of csrc/cuda use and no more. A shuffle that not all lanes of a warp reach from the same
// line, undefined on a GPU, is an error here; so are a barrier that some threads never reach, and
// any launch or mask the shim does not cover.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <source_location>
#include <type_traits>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
inline dim3 blockDim, gridDim, threadIdx, blockIdx;
constexpr int warpSize = 32;

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorLaunchFailure = 719 };

namespace cuda_host {

constexpr unsigned kMaxValueBytes = 24;  // of a shuffle, or of a product's operands
constexpr size_t kStackBytes = 256 << 10;

struct Slot {
  alignas(8) unsigned char bytes[kMaxValueBytes];
  unsigned line;
};

struct Fiber;

struct Barrier {
  unsigned expected = 0;
  std::vector<Fiber*> waiting;
};

struct Warp {
  Barrier barrier;
  Slot slots[2][warpSize];
};

struct Fiber {
  jmp_buf place;
  std::unique_ptr<unsigned char[]> stack;
  dim3 index;
  unsigned lane = 0, phase = 0;
  Warp* warp = nullptr;
};

inline std::vector<std::unique_ptr<Fiber>> fibers;  // kept from launch to launch
inline std::vector<std::unique_ptr<Warp>> warps;
inline Barrier block_barrier;
inline std::vector<Fiber*> ready;
inline Fiber* current;
inline jmp_buf scheduler;
inline std::function<void()> kernel_call;
inline uint64_t block_number;
inline int error = cudaSuccess;
inline std::minstd_rand order;

inline void fail(const char* what, unsigned line) {
  std::fprintf(stderr, "cuda_host: line %u: %s\n", line, what);
  error = cudaErrorLaunchFailure;
}

// Goes on with another thread of the block, or with the launch when none can go on.
[[noreturn]] inline void next() {
  if (ready.empty()) _longjmp(scheduler, 1);
  current = ready.back();
  ready.pop_back();
  threadIdx = current->index;
  _longjmp(current->place, 1);
}

inline void open(Barrier& barrier) {
  std::shuffle(barrier.waiting.begin(), barrier.waiting.end(), order);
  ready.insert(ready.end(), barrier.waiting.begin(), barrier.waiting.end());
  barrier.waiting.clear();
}

// Not inlined: a function that calls setjmp keeps nothing in registers.
__attribute__((noinline)) inline void arrive_and_wait(Barrier& barrier) {
  barrier.waiting.push_back(current);
  if (barrier.waiting.size() == barrier.expected) open(barrier);
  if (_setjmp(current->place) == 0) next();
}

// As on a GPU, who has left is no longer waited for.
inline void leave(Barrier& barrier) {
  --barrier.expected;
  if (!barrier.waiting.empty() && barrier.waiting.size() == barrier.expected) open(barrier);
}

// A fiber's whole life: one block's thread after another.
inline void run_fiber() {
  if (_setjmp(current->place) == 0) _longjmp(scheduler, 1);
  for (;;) {
    kernel_call();
    leave(current->warp->barrier);
    leave(block_barrier);
    if (_setjmp(current->place) == 0) next();
  }
}

inline std::unique_ptr<Fiber> new_fiber() {
  auto fiber = std::make_unique<Fiber>();
  fiber->stack = std::unique_ptr<unsigned char[]>(new unsigned char[kStackBytes]);
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = fiber->stack.get();
  context.uc_stack.ss_size = kStackBytes;
  context.uc_link = nullptr;
  makecontext(&context, run_fiber, 0);
  current = fiber.get();
  if (_setjmp(scheduler) == 0) setcontext(&context);
  return fiber;
}

inline void run_block(unsigned threads) {
  ++block_number;
  block_barrier = {threads, {}};
  for (unsigned first = 0; first < threads; first += warpSize) {
    Warp& warp = *warps[first / warpSize];
    warp.barrier = {std::min<unsigned>(warpSize, threads - first), {}};
    std::memset(warp.slots, 0xff, sizeof(warp.slots));
  }
  ready.clear();
  for (unsigned thread = 0; thread < threads; ++thread) {
    Fiber& fiber = *fibers[thread];
    fiber.index = dim3(thread % blockDim.x, thread / blockDim.x % blockDim.y,
                       thread / (blockDim.x * blockDim.y));
    fiber.lane = thread % warpSize, fiber.phase = 0;
    fiber.warp = warps[thread / warpSize].get();
    ready.push_back(&fiber);
  }
  std::shuffle(ready.begin(), ready.end(), order);
  if (_setjmp(scheduler) == 0) next();
  if (block_barrier.expected > 0) {
    fail("threads of a block wait for others that never come", 0);
    fibers.clear();  // who waits cannot be used again
  }
}

// Every lane publishes its value, then reads that of `source`. Slots alternate between two sets, so
// one barrier an exchange is enough: a set is written again only after all lanes have read it.
template <class T>
T exchange(unsigned mask, T value, unsigned source, unsigned line) {
  static_assert(sizeof(T) <= kMaxValueBytes);
  if (mask != 0xffffffffu) fail("only full-mask shuffles are covered", line);
  Warp& warp = *current->warp;
  Slot* slots = warp.slots[current->phase++ % 2];
  std::memcpy(slots[current->lane].bytes, &value, sizeof(T));
  slots[current->lane].line = line;
  arrive_and_wait(warp.barrier);
  if (slots[source].line != line) fail("lanes of one warp meet in different shuffles", line);
  std::memcpy(&value, slots[source].bytes, sizeof(T));
  return value;
}

inline uint64_t num_launches;  // tests read it

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 shape, Arguments... arguments) {
  const unsigned threads = shape.x * shape.y * shape.z;
  ++num_launches;
  if (threads == 0 || threads > 1024 || grid.x * grid.y * grid.z == 0)
    return fail("empty or oversized launch", 0);
  blockDim = shape;
  gridDim = grid;
  kernel_call = [&] { kernel(arguments...); };
  while (warps.size() * warpSize < threads) warps.push_back(std::make_unique<Warp>());
  std::vector<unsigned> blocks(grid.x * grid.y * grid.z);
  std::iota(blocks.begin(), blocks.end(), 0u);
  std::shuffle(blocks.begin(), blocks.end(), order);
  for (unsigned block : blocks) {
    while (fibers.size() < threads) fibers.push_back(new_fiber());
    blockIdx = dim3(block % grid.x, block / grid.x % grid.y, block / (grid.x * grid.y));
    run_block(threads);
    if (error != cudaSuccess) return;
  }
}

// Whether a variable of shared memory is met for the first time in this block; then it is poisoned:
// no float is finite and no index is in range.
template <class T>
void poison(T& shared, uint64_t& seen) {
  if (seen == block_number) return;
  seen = block_number;
  std::memset(static_cast<void*>(&shared), 0xff, sizeof(T));
}

using Here = std::source_location;

// Dynamic shared memory: as long as the launch asked for, which may be more than 48 KB only after
// the kernel was allowed to.
inline int max_shared_bytes = 227 << 10;  // tests change it
inline int num_processors = 132;          // the same
inline std::map<const void*, int> allowed_shared_bytes;
inline std::unique_ptr<unsigned char[]> shared_bytes;
inline size_t num_shared_bytes;
inline uint64_t shared_bytes_met_in_block;

inline unsigned char* dynamic_shared() {
  if (std::exchange(shared_bytes_met_in_block, block_number) != block_number)
    std::memset(shared_bytes.get(), 0xff, num_shared_bytes);
  return shared_bytes.get();
}

template <class... Parameters, class... Arguments>
void launch_shared(void (*kernel)(Parameters...), dim3 grid, dim3 shape, size_t bytes,
                   Arguments... arguments) {
  const auto found = allowed_shared_bytes.find(reinterpret_cast<const void*>(kernel));
  const int allowed = found == allowed_shared_bytes.end() ? 48 << 10 : found->second;
  if (bytes > static_cast<size_t>(allowed)) return fail("more shared memory than is allowed", 0);
  shared_bytes.reset(new unsigned char[bytes]);
  num_shared_bytes = bytes;
  launch(kernel, grid, shape, arguments...);
}

}  // namespace cuda_host

// The thread leaves, as all do on a GPU.
#define HK_ASSERT(condition, text)   \
  if (!(condition)) {                \
    cuda_host::fail(text, __LINE__); \
    return;                          \
  }

#define HK_LAUNCH(kernel, grid, block, stream, ...) \
  cuda_host::launch(kernel, grid, block, __VA_ARGS__)

// Blocks run one at a time, so that one copy serves all.
#define HK_SHARED(name, ...)           \
  alignas(16) static __VA_ARGS__ name; \
  static uint64_t name##_met_in_block; \
  cuda_host::poison(name, name##_met_in_block)

inline void __syncthreads() { cuda_host::arrive_and_wait(cuda_host::block_barrier); }
inline void __syncwarp(unsigned = ~0u) {
  cuda_host::arrive_and_wait(cuda_host::current->warp->barrier);
}

template <class T>
T __shfl_sync(unsigned mask, T value, unsigned source,
              cuda_host::Here here = cuda_host::Here::current()) {
  return cuda_host::exchange(mask, value, source % warpSize, here.line());
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, unsigned bits,
                  cuda_host::Here here = cuda_host::Here::current()) {
  return cuda_host::exchange(mask, value, (cuda_host::current->lane ^ bits) % warpSize,
                             here.line());
}

template <class T>
T __ldg(const T* pointer) {
  return *pointer;
}
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }

// CUDA's max and min of floats drop NaN, where std::max keeps its first argument.
template <class T>
T max(T a, T b) {
  if constexpr (std::is_floating_point_v<T>) return std::fmax(a, b);
  return b > a ? b : a;
}
template <class T>
T min(T a, T b) {
  if constexpr (std::is_floating_point_v<T>) return std::fmin(a, b);
  return b < a ? b : a;
}

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaDeviceAttr {
  cudaDevAttrComputeCapabilityMajor,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrMultiProcessorCount,
};
template <class... Parameters>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Parameters...), cudaFuncAttribute, int bytes) {
  if (bytes > cuda_host::max_shared_bytes) return cudaErrorLaunchFailure;
  cuda_host::allowed_shared_bytes[reinterpret_cast<const void*>(kernel)] = bytes;
  return cudaSuccess;
}
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int) {
  *value = which == cudaDevAttrComputeCapabilityMajor ? 9
           : which == cudaDevAttrMultiProcessorCount  ? cuda_host::num_processors
                                                      : cuda_host::max_shared_bytes;
  return cudaSuccess;
}

inline cudaError_t cudaGetLastError() {
  return static_cast<cudaError_t>(std::exchange(cuda_host::error, cudaSuccess));
}
inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "the host shim refused a launch or a shuffle";
}
