// The C++ side's own checks, for callers of torch.ops.mgassign, and the arguments in the form kernels use.
// Python's _checks.py has already said the same with more words to callers of the public functions.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <vector>

#include "glibc.h"
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

// Put together only where it is printed: every call's shapes pass by here.
struct shape_of {
  const Tensor& tensor;
  explicit shape_of(const Tensor& tensor) : tensor(tensor) {}
};

inline std::ostream& operator<<(std::ostream& out, const shape_of& shape) {
  out << "[";
  for (int64_t d = 0; d < shape.tensor.dim(); ++d) out << (d ? ", " : "") << shape.tensor.size(d);
  return out << "]";
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
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(beside.get(), &device_type));
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(
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

// The three forms of objects, by shape; returns the number of images.
inline int64_t check_objects(const Tensor& gt_boxes, const std::optional<Tensor>& gt_offsets,
                             const std::optional<std::vector<int64_t>>& gt_counts) {
  const bool padded = !gt_offsets && !gt_counts;
  check(!(gt_offsets && gt_counts), "gt_offsets, gt_counts: expected at most one of them");
  check(gt_boxes.dim() == (padded ? 3 : 2) && gt_boxes.size(gt_boxes.dim() - 1) == 4, "gt_boxes: expected shape ",
        padded ? "[B, G, 4]" : "[N, 4]", ", got ", shape_of(gt_boxes));
  check_packed(gt_boxes, ScalarType::Float, "gt_boxes");
  check(gt_boxes.numel() / 4 <= std::numeric_limits<int32_t>::max(), "gt_boxes: expected fewer than 2^31 objects");
  if (padded) return gt_boxes.size(0);
  if (gt_counts) return static_cast<int64_t>(gt_counts->size());
  check(gt_offsets->dim() == 1 && gt_offsets->size(0) >= 1, "gt_offsets: expected shape [B + 1], got ",
        shape_of(*gt_offsets));
  check_packed(*gt_offsets, ScalarType::Long, "gt_offsets");
  check_same_device(*gt_offsets, gt_boxes, "gt_offsets");
  return gt_offsets->size(0) - 1;
}

// The object rows of each image, B + 1 offsets, from what is known without reading a tensor.
inline std::vector<int64_t> count_rows(const Tensor& gt_boxes, const std::optional<std::vector<int64_t>>& gt_counts) {
  std::vector<int64_t> offsets{0};
  const int64_t images = gt_counts ? static_cast<int64_t>(gt_counts->size()) : gt_boxes.size(0);
  for (int64_t b = 0; b < images; ++b)
    offsets.push_back(offsets.back() + (gt_counts ? (*gt_counts)[b] : gt_boxes.size(1)));
  return offsets;
}

inline void check_rows(const std::vector<int64_t>& offsets, const Tensor& gt_boxes) {
  check(offsets.front() == 0, "gt_offsets: expected the first to be 0, got ", offsets.front());
  for (size_t b = 1; b < offsets.size(); ++b)
    check(offsets[b] >= offsets[b - 1], "gt_offsets: expected them not to decrease, got ", offsets[b - 1], " before ",
          offsets[b]);
  check(offsets.back() == gt_boxes.numel() / 4, "gt_boxes: expected ", offsets.back(), " rows, one per object, got ",
        gt_boxes.numel() / 4);
}

// The same with gt_offsets read, so only for tensors in host memory.
inline std::vector<int64_t> image_offsets(const Tensor& gt_boxes, const std::optional<Tensor>& gt_offsets,
                                          const std::optional<std::vector<int64_t>>& gt_counts) {
  check_objects(gt_boxes, gt_offsets, gt_counts);
  std::vector<int64_t> offsets;
  if (gt_offsets) {
    const auto* data = gt_offsets->const_data_ptr<int64_t>();
    offsets.assign(data, data + gt_offsets->size(0));
  } else {
    offsets = count_rows(gt_boxes, gt_counts);
  }
  check_rows(offsets, gt_boxes);
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

// Everything about mutual_guidance_assign's arguments that holds on every device.
inline void check_predictions(const Tensor& pred_boxes, const Tensor& pred_logits, const Tensor& gt_boxes,
                              const Tensor& gt_labels, int64_t num_images, int64_t num_points) {
  check_packed(gt_labels, ScalarType::Long, "gt_labels");
  check(gt_labels.dim() == gt_boxes.dim() - 1 && gt_labels.numel() == gt_boxes.numel() / 4,
        "gt_labels: expected one label per object (", gt_boxes.numel() / 4, "), got shape ", shape_of(gt_labels));
  check(pred_boxes.dim() == 3 && pred_boxes.size(0) == num_images && pred_boxes.size(1) == num_points &&
            pred_boxes.size(2) == 4,
        "pred_boxes: expected shape [", num_images, ", ", num_points, ", 4], got ", shape_of(pred_boxes));
  check(pred_logits.dim() == 3 && pred_logits.size(0) == num_images && pred_logits.size(1) == num_points,
        "pred_logits: expected shape [", num_images, ", ", num_points, ", C], got ", shape_of(pred_logits));
  check_floating(pred_boxes, "pred_boxes");
  check_floating(pred_logits, "pred_logits");
  check_same_device(pred_logits, pred_boxes, "pred_logits");
  check_same_device(gt_boxes, pred_boxes, "gt_boxes");
  check_same_device(gt_labels, pred_boxes, "gt_labels");
}

inline void check_settings(double center_radius, double sigma, int64_t min_points, int64_t activation) {
  check_center_radius(center_radius);
  check_sigma(sigma);
  check(min_points >= 0, "min_points: expected at least 0, got ", min_points);
  check(activation == 0 || activation == 1, "activation: expected 0 (none) or 1 (sigmoid), got ", activation);
}

inline void check_boxes(const Tensor& boxes, const char* name, const char* shape) {
  check(boxes.dim() == 2 && boxes.size(1) == 4, name, ": expected shape ", shape, ", got ", shape_of(boxes));
  check_floating(boxes, name);
}

// amplified_centerness
inline void check_probabilities(const Tensor& gt_boxes, const Tensor& probs, int64_t num_points, double sigma) {
  check_sigma(sigma);
  check_boxes(gt_boxes, "gt_boxes", "[G, 4]");
  check_packed(gt_boxes, ScalarType::Float, "gt_boxes");
  check(probs.dim() == 2 && probs.size(0) == num_points && probs.size(1) == gt_boxes.size(0), "probs: expected shape [",
        num_points, ", ", gt_boxes.size(0), "], got ", shape_of(probs));
  check_floating(probs, "probs");
  check_same_device(probs, gt_boxes, "probs");
}

// topk_per_object
inline void check_contest(const Tensor& scores, const Tensor& k, const Tensor& areas) {
  check(scores.dim() == 2, "scores: expected shape [P, G], got ", shape_of(scores));
  check_floating(scores, "scores");
  check_point_count(scores.size(0));
  const int64_t num_objects = scores.size(1);
  check(k.dim() == 1 && k.size(0) == num_objects, "k: expected shape [", num_objects, "], got ", shape_of(k));
  check_packed(k, ScalarType::Long, "k");
  check(areas.dim() == 1 && areas.size(0) == num_objects, "areas: expected shape [", num_objects, "], got ",
        shape_of(areas));
  check_packed(areas, ScalarType::Float, "areas");
  check_same_device(k, scores, "k");
  check_same_device(areas, scores, "areas");
}

}  // namespace mgassign
