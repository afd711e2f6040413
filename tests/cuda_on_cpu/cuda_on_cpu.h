// CUDA's execution model on host threads, as far as csrc/cuda uses it: the kernels' own source then compiles as
// C++ and runs, slowly, on machines without a GPU and under the sanitizers.
//
// A thread of the block is a thread of the host. Blocks run one after the other, so `__shared__` is `static`.
// Collective functions check that all lanes of the warp take part, and wait for them.
#pragma once

#include <algorithm>
#include <barrier>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#define MGASSIGN_CUDA_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(mgassign_cuda_on_cpu, CPU, m)

#define __global__
#define __device__
#define __shared__ static
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

inline thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace cuda_on_cpu {

// Where lanes meet.
struct Warp {
  std::barrier<> barrier{32};
  uint32_t word[32];
};

struct Block {
  std::vector<std::unique_ptr<Warp>> warps;
  std::barrier<> barrier;
  explicit Block(int threads) : barrier(threads) {
    for (int t = 0; t < threads; t += 32) warps.push_back(std::make_unique<Warp>());
  }
};

inline thread_local Block* block;
inline Warp& warp() { return *block->warps[threadIdx.x / 32]; }
inline unsigned lane() { return threadIdx.x % 32; }

// Every lane shows a word; combine(words) gives each its result.
template <typename Combine>
auto together(unsigned mask, uint32_t word, const Combine& combine) {
  if (mask != 0xffffffffu) std::abort();  // kernels here never ask for less
  Warp& w = warp();
  w.word[lane()] = word;
  w.barrier.arrive_and_wait();
  const auto result = combine(w.word);
  w.barrier.arrive_and_wait();
  return result;
}

template <typename Value>
Value from_lane(unsigned mask, Value value, unsigned source) {
  static_assert(sizeof(Value) == sizeof(uint32_t));
  uint32_t word;
  std::memcpy(&word, &value, sizeof(word));
  word = together(mask, word, [&](const uint32_t* words) { return words[source]; });
  std::memcpy(&value, &word, sizeof(word));
  return value;
}

// Takes the place of the stream in csrc/cuda/common.cuh: runs each launch to its end.
class Queue {
 public:
  template <typename Tensor>
  explicit Queue(const Tensor&) {}

  template <typename Task>
  void launch(void (*kernel)(Task), dim3 blocks, int threads, const Task& task) const {
    if (threads % 32) std::abort();
    Block shared(threads);
    std::barrier<> between(threads);
    const auto run = [&](unsigned thread) {
      block = &shared;
      threadIdx = dim3(thread);
      blockDim = dim3(threads);
      gridDim = blocks;
      for (unsigned z = 0; z < blocks.z; ++z)
        for (unsigned y = 0; y < blocks.y; ++y)
          for (unsigned x = 0; x < blocks.x; ++x) {
            blockIdx = dim3(x, y, z);
            kernel(task);
            between.arrive_and_wait();
          }
    };
    std::vector<std::thread> pool;
    for (int t = 0; t < threads; ++t) pool.emplace_back(run, t);
    for (std::thread& thread : pool) thread.join();
  }

  void zero(void* at, int64_t bytes) const { std::memset(at, 0, bytes); }
};

}  // namespace cuda_on_cpu

inline void __syncthreads() { cuda_on_cpu::block->barrier.arrive_and_wait(); }
inline void __syncwarp() { cuda_on_cpu::warp().barrier.arrive_and_wait(); }

template <typename Value>
Value __shfl_sync(unsigned mask, Value value, unsigned source) {
  return cuda_on_cpu::from_lane(mask, value, source % 32);
}
template <typename Value>
Value __shfl_xor_sync(unsigned mask, Value value, unsigned step) {
  return cuda_on_cpu::from_lane(mask, value, cuda_on_cpu::lane() ^ step);
}
template <typename Value>
Value __shfl_up_sync(unsigned mask, Value value, unsigned step) {
  const unsigned lane = cuda_on_cpu::lane();
  return cuda_on_cpu::from_lane(mask, value, lane < step ? lane : lane - step);
}
inline unsigned __ballot_sync(unsigned mask, bool vote) {
  return cuda_on_cpu::together(mask, vote, [](const uint32_t* words) {
    unsigned votes = 0;
    for (unsigned i = 0; i < 32; ++i) votes |= words[i] << i;
    return votes;
  });
}
inline unsigned __match_any_sync(unsigned mask, int32_t value) {
  const uint32_t mine = static_cast<uint32_t>(value);
  return cuda_on_cpu::together(mask, mine, [mine](const uint32_t* words) {
    unsigned alike = 0;
    for (unsigned i = 0; i < 32; ++i) alike |= static_cast<unsigned>(words[i] == mine) << i;
    return alike;
  });
}
inline unsigned __reduce_min_sync(unsigned mask, unsigned value) {
  return cuda_on_cpu::together(mask, value, [](const uint32_t* words) { return *std::min_element(words, words + 32); });
}
inline unsigned __reduce_max_sync(unsigned mask, unsigned value) {
  return cuda_on_cpu::together(mask, value, [](const uint32_t* words) { return *std::max_element(words, words + 32); });
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __ffs(unsigned bits) { return __builtin_ffs(static_cast<int>(bits)); }

template <typename Value>
Value atomicAdd(Value* at, Value by) {
  return __atomic_fetch_add(at, by, __ATOMIC_RELAXED);
}
