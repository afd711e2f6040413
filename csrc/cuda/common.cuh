// What every CUDA kernel uses: launches on the caller's stream, and views of what the kernels read.
//
// tests/ptx_on_cpu puts a queue of its own in the place of the stream, and runs what nvcc makes of the kernels on
// machines without a GPU.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <string>

// Where the kernels of a file are registered. MGASSIGN_PTX_ON_CPU is a name for them.
#if defined(MGASSIGN_PTX_ON_CPU)
#include <queue.h>
#define MGASSIGN_CUDA_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(MGASSIGN_PTX_ON_CPU, CPU, m)
#else
#define MGASSIGN_CUDA_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(mgassign, CUDA, m)
#endif

#include "../checks.h"
#include "../math/boxes.h"
#include "../memory.h"

namespace mgassign::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// Turing's multiprocessors hold 1024 threads, half as many as later ones: fewer blocks, more registers for each thread.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
constexpr bool kTuring = true;
#else
constexpr bool kTuring = false;
#endif

#if defined(MGASSIGN_PTX_ON_CPU)
using ::ptx_on_cpu::Queue;
#else
inline void check_cuda(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::string message = std::string("mgassign: CUDA: ") + cudaGetErrorString(error);
  const bool newer_ptx = error == cudaErrorUnsupportedPtxVersion;
  if (error == cudaErrorNoKernelImageForDevice || newer_ptx) {
    int device = 0, major = 0, minor = 0;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    const std::string capability = std::to_string(major) + "." + std::to_string(minor);
    message = "mgassign: no CUDA kernels for this GPU of compute capability " + capability +
              (newer_ptx ? ", and their PTX is newer than the driver: they need a newer driver, or"
                         : ": they need 7.5 or newer, and") +
              " a build with TORCH_CUDA_ARCH_LIST=" + capability;
  }
  throw std::runtime_error(message);
}

// The current stream of a tensor's device. That device is the current one for as long as this lives.
class Queue {
 public:
  explicit Queue(const Tensor& beside) : device_(beside.get_device_index()) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(beside.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }

  template <typename Task>
  void launch(void (*kernel)(Task), dim3 blocks, int threads, const Task& task) const {
    static_assert(sizeof(Task) <= 4096, "a kernel's parameters have 4 KiB on every GPU");
    kernel<<<blocks, threads, 0, stream_>>>(task);
    check_cuda(cudaGetLastError());
  }

  void zero(void* at, int64_t bytes) const {
    if (bytes > 0) check_cuda(cudaMemsetAsync(at, 0, bytes, stream_));
  }

 private:
  torch::stable::accelerator::DeviceGuard device_;
  cudaStream_t stream_;
};
#endif

inline unsigned blocks_for(int64_t units, int64_t units_per_block) {
  return static_cast<unsigned>((units + units_per_block - 1) / units_per_block);
}

// A floating tensor of any dtype and strides. The dtype is looked up at each read, a branch that all threads
// take alike: a kernel for each combination of two dtypes would be sixteen.
template <int kDims>
struct FloatView {
  const void* data = nullptr;  // of no tensor
  int64_t stride[kDims] = {};
  ScalarType dtype = ScalarType::Float;
  bool wide = false;  // four numbers in a row are one read

  FloatView() = default;
  explicit FloatView(const Tensor& tensor) : data(tensor.const_data_ptr()), dtype(tensor.scalar_type()) {
    for (int d = 0; d < kDims; ++d) stride[d] = tensor.stride(d);
    wide = dtype == ScalarType::Float && stride[kDims - 1] == 1 && reinterpret_cast<uintptr_t>(data) % 16 == 0;
    for (int d = 0; d < kDims - 1; ++d) wide &= stride[d] % 4 == 0;
  }

  __device__ float at(int64_t offset) const {
    if (dtype == ScalarType::Float) return static_cast<const float*>(data)[offset];  // most are: one question
    switch (dtype) {
      case ScalarType::Half:
        return static_cast<float>(static_cast<const torch::headeronly::Half*>(data)[offset]);
      case ScalarType::BFloat16:
        return static_cast<float>(static_cast<const torch::headeronly::BFloat16*>(data)[offset]);
      default:
        return static_cast<float>(static_cast<const double*>(data)[offset]);
    }
  }

  // One look at the dtype for all four, which are read before any is converted: they wait together.
  __device__ Box box_at(int64_t offset) const {
    if (wide) {
      const float4 box = *reinterpret_cast<const float4*>(static_cast<const float*>(data) + offset);
      return {box.x, box.y, box.z, box.w};
    }
    switch (dtype) {
      case ScalarType::Half:
        return box_of<torch::headeronly::Half>(offset);
      case ScalarType::BFloat16:
        return box_of<torch::headeronly::BFloat16>(offset);
      case ScalarType::Double:
        return box_of<double>(offset);
      default:
        return box_of<float>(offset);
    }
  }

  // Of [B, P, 4].
  __device__ Box box_of_point(int64_t image, int64_t point) const {
    return box_at(image * stride[0] + point * stride[1]);
  }

  template <typename Number>
  __device__ Box box_of(int64_t offset) const {
    const int64_t step = stride[kDims - 1];
    const Number* const at = static_cast<const Number*>(data) + offset;
    const Number x1 = at[0], y1 = at[step], x2 = at[2 * step], y2 = at[3 * step];
    return {static_cast<float>(x1), static_cast<float>(y1), static_cast<float>(x2), static_cast<float>(y2)};
  }
};

// The levels of a grid, as kernel arguments: a fixed room for them.
constexpr int kMaxLevels = 16;

struct Levels {
  Level level[kMaxLevels] = {};
  int count;

  explicit Levels(const Grid& grid) : count(static_cast<int>(grid.levels.size())) {
    check(count <= kMaxLevels, "grid: expected at most ", kMaxLevels, " levels on CUDA, got ", count);
    for (int i = 0; i < count; ++i) level[i] = grid.levels[i];
    while (count > 1 && level[count - 1].first_point == grid.num_points) --count;  // the last one kept has points
  }
};

__device__ inline const Level& level_of(const Levels& levels, int32_t point) {
  int i = levels.count - 1;
  while (point < levels.level[i].first_point) --i;
  return levels.level[i];
}
__device__ inline Location location_of(const Levels& levels, int32_t point) {
  return level_of(levels, point).location_of(point);
}

struct Pair {
  int64_t point, object;
};

// Of an element of a [points, objects] matrix. A division of 32 bits where it does is four times as fast.
__device__ inline Pair split_pair(int64_t pair, int64_t num_objects) {
  if ((pair | num_objects) >> 32) return {pair / num_objects, pair % num_objects};
  const uint32_t point = static_cast<uint32_t>(pair) / static_cast<uint32_t>(num_objects);
  return {point, static_cast<uint32_t>(pair) - point * static_cast<uint32_t>(num_objects)};
}

}  // namespace mgassign::cuda
