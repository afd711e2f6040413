// Takes the place of the stream in csrc/cuda/common.cuh: runs each launch to its end, as PTX.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

namespace ptx_on_cpu {

void launch(const void* kernel, dim3 blocks, unsigned threads, const void* task, size_t task_bytes);

class Queue {
 public:
  template <typename Tensor>
  explicit Queue(const Tensor&) {}

  template <typename Task>
  void launch(void (*kernel)(Task), dim3 blocks, int threads, const Task& task) const {
    static_assert(sizeof(Task) <= 4096, "a kernel's parameters have 4 KiB on every GPU");
    ptx_on_cpu::launch(reinterpret_cast<const void*>(kernel), blocks, threads, &task, sizeof(task));
  }

  void zero(void* at, int64_t bytes) const { std::memset(at, 0, bytes); }
};

}  // namespace ptx_on_cpu
