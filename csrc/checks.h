// The C++ side's own checks, for callers of torch.ops.mgassign, and the arguments in the form kernels use.
// Python's _checks.py has already said the same with more words to callers of the public functions.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "math/grid.h"

namespace mgassign {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// std::invalid_argument reaches Python as ValueError.
template <typename... Parts>
void check(bool condition, const Parts&... parts) {
  if (condition) return;
  std::ostringstream message;
  (message << ... << parts);
  throw std::invalid_argument(message.str());
}

inline std::string shape_of(const Tensor& tensor) {
  std::ostringstream shape;
  shape << "[";
  for (int64_t d = 0; d < tensor.dim(); ++d) shape << (d ? ", " : "") << tensor.size(d);
  shape << "]";
  return shape.str();
}

inline void check_floating(const Tensor& tensor, const char* name) {
  const ScalarType dtype = tensor.scalar_type();
  check(dtype == ScalarType::Float || dtype == ScalarType::Half || dtype == ScalarType::BFloat16 ||
            dtype == ScalarType::Double,
        name, ": expected a float32, float16, bfloat16 or float64 tensor");
}

// What the Python layer hands over after widening: float32 (or int64) and contiguous.
inline void check_packed(const Tensor& tensor, ScalarType dtype, const char* name) {
  check(tensor.scalar_type() == dtype && tensor.is_contiguous(), name, ": expected a contiguous ",
        dtype == ScalarType::Float ? "float32" : "int64", " tensor");
}

inline void check_same_device(const Tensor& tensor, const Tensor& other, const char* name) {
  check(tensor.is_cpu() == other.is_cpu() && tensor.get_device_index() == other.get_device_index(), name,
        ": expected all tensors on one device");
}

// A contiguous tensor of one or two dimensions beside another, not initialised. Through the C interface
// directly: new_empty goes round by the dispatcher, 2 microseconds for each of four results.
inline Tensor new_tensor(const Tensor& beside, std::initializer_list<int64_t> sizes, ScalarType dtype) {
  const int64_t strides[] = {sizes.size() == 2 ? *(sizes.begin() + 1) : 1, 1};
  int32_t device_type = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(beside.get(), &device_type));
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.begin(), strides,
                               dtype == ScalarType::Long ? aoti_torch_dtype_int64() : aoti_torch_dtype_float32(),
                               device_type, beside.get_device_index(), &handle));
  return Tensor(handle);
}

struct Grid {
  std::vector<Level> levels;
  int64_t num_points = 0;

  int64_t widest_level() const {
    int64_t widest = 0;
    for (const Level& level : levels) widest = std::max(widest, level.width);
    return widest;
  }
};

// Point indices travel as int32 inside the kernels.
inline void check_point_count(int64_t num_points) {
  check(num_points <= std::numeric_limits<int32_t>::max(), "expected fewer than 2^31 points in an image, got ",
        num_points);
}

inline Grid make_grid(const std::vector<int64_t>& heights, const std::vector<int64_t>& widths,
                      const std::vector<int64_t>& strides, const std::vector<double>& offsets,
                      const std::vector<double>& ranges) {
  const size_t count = heights.size();
  check(widths.size() == count && strides.size() == count && offsets.size() == count && ranges.size() == 2 * count,
        "grid: expected lists of one length (ranges: twice that), got ", count, " heights, ", widths.size(),
        " widths, ", strides.size(), " strides, ", offsets.size(), " offsets, ", ranges.size(), " ranges");
  Grid grid;
  for (size_t i = 0; i < count; ++i) {
    check(heights[i] >= 0 && widths[i] >= 0 && strides[i] > 0, "grid: level ", i, " is ", heights[i], " x ", widths[i],
          " of stride ", strides[i], "; expected sizes of at least 0 and a stride of at least 1");
    check_point_count(std::max(heights[i], widths[i]));  // so that the product cannot overflow
    grid.levels.push_back({heights[i], widths[i], grid.num_points, static_cast<float>(strides[i]),
                           static_cast<float>(offsets[i]), static_cast<float>(ranges[2 * i]),
                           static_cast<float>(ranges[2 * i + 1])});
    grid.num_points += heights[i] * widths[i];
    check_point_count(grid.num_points);
  }
  return grid;
}

// The object rows of each image: B + 1 offsets. Reads gt_offsets, so only for tensors in host memory.
inline std::vector<int64_t> image_offsets(const Tensor& gt_boxes, const std::optional<Tensor>& gt_offsets,
                                          const std::optional<std::vector<int64_t>>& gt_counts) {
  const bool padded = !gt_offsets && !gt_counts;
  check(!(gt_offsets && gt_counts), "gt_offsets, gt_counts: expected at most one of them");
  check(gt_boxes.dim() == (padded ? 3 : 2) && gt_boxes.size(gt_boxes.dim() - 1) == 4, "gt_boxes: expected shape ",
        padded ? "[B, G, 4]" : "[N, 4]", ", got ", shape_of(gt_boxes));
  check_packed(gt_boxes, ScalarType::Float, "gt_boxes");

  std::vector<int64_t> offsets;
  if (gt_offsets) {
    check(gt_offsets->dim() == 1 && gt_offsets->size(0) >= 1, "gt_offsets: expected shape [B + 1], got ",
          shape_of(*gt_offsets));
    check_packed(*gt_offsets, ScalarType::Long, "gt_offsets");
    check_same_device(*gt_offsets, gt_boxes, "gt_offsets");
    const auto* data = gt_offsets->const_data_ptr<int64_t>();
    offsets.assign(data, data + gt_offsets->size(0));
    check(offsets.front() == 0, "gt_offsets: expected the first to be 0, got ", offsets.front());
  } else {
    const int64_t images = padded ? gt_boxes.size(0) : static_cast<int64_t>(gt_counts->size());
    offsets.push_back(0);
    for (int64_t b = 0; b < images; ++b)
      offsets.push_back(offsets.back() + (padded ? gt_boxes.size(1) : (*gt_counts)[b]));
  }
  for (size_t b = 1; b < offsets.size(); ++b)
    check(offsets[b] >= offsets[b - 1], "gt_offsets: expected them not to decrease, got ", offsets[b - 1], " before ",
          offsets[b]);
  check(padded || offsets.back() == gt_boxes.size(0), "gt_boxes: expected ", offsets.back(),
        " rows, one per object, got ", gt_boxes.size(0));
  check(gt_boxes.numel() / 4 <= std::numeric_limits<int32_t>::max(), "gt_boxes: expected fewer than 2^31 objects");
  return offsets;
}

inline void check_center_radius(double center_radius) {
  check(center_radius >= 0 && is_finite(static_cast<float>(center_radius)),
        "center_radius: expected a finite number of at least 0, got ", center_radius);
}

inline void check_sigma(double sigma) {
  check(static_cast<float>(sigma) > 1 && is_finite(static_cast<float>(sigma)),
        "sigma: expected a finite number above 1, got ", sigma);
}

}  // namespace mgassign
