// The C++ side's own checks, for callers of torch.ops.mgassign, and the arguments in the form kernels use.
// Python's _checks.py has already said the same with more words to callers of the public functions.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cfloat>
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

// How the operators take objects and a grid: the C++ side of library.cpp's MGASSIGN_OBJECTS and MGASSIGN_GRID.
#define MGASSIGN_OBJECTS_PARAMETERS std::optional<Tensor> gt_offsets, std::optional<std::vector<int64_t>> gt_counts
#define MGASSIGN_GRID_PARAMETERS                                                          \
  std::vector<int64_t> heights, std::vector<int64_t> widths, std::vector<double> strides, \
      std::vector<double> spacings, std::vector<double> offsets, std::vector<double> ranges
#define MGASSIGN_GRID_ARGUMENTS heights, widths, strides, spacings, offsets, ranges

// Labels that are no class: of padding, and of a region whose points are nobody's and no background either.
constexpr int64_t kPadding = -1, kRegion = -2;
// Owners that are no object: of background, and of a point in a region.
constexpr int64_t kBackground = -1, kIgnored = -2;

// std::invalid_argument reaches Python as ValueError, from torch 2.15 on as RuntimeError. The public functions' call()
// makes both ValueError; it knows these messages by "mgassign: " at their beginning and the word "expected", which
// every one of them has to have.
template <typename... Parts>
void check(bool condition, const Parts&... parts) {
  if (condition) return;
  std::ostringstream message;
  message << "mgassign: ";
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

struct device_of {
  const Tensor& tensor;
  explicit device_of(const Tensor& tensor) : tensor(tensor) {}
};

inline std::ostream& operator<<(std::ostream& out, const device_of& device) {
  return device.tensor.is_cpu() ? out << "cpu" : out << "device " << device.tensor.get_device_index();
}

inline void check_floating(const Tensor& tensor, const char* name) {
  const ScalarType dtype = tensor.scalar_type();
  check(dtype == ScalarType::Float || dtype == ScalarType::Half || dtype == ScalarType::BFloat16 ||
            dtype == ScalarType::Double,
        name, ": expected a float32, float16, bfloat16 or float64 tensor, got ", dtype);
}

// What the Python layer hands over after widening: float32 (or int64) and contiguous.
inline void check_packed(const Tensor& tensor, ScalarType dtype, const char* name) {
  check(tensor.scalar_type() == dtype && tensor.is_contiguous(), name, ": expected a contiguous ",
        dtype == ScalarType::Float ? "float32" : "int64", " tensor, got ",
        tensor.is_contiguous() ? "a contiguous " : "a strided ", tensor.scalar_type(), " one");
}

inline void check_same_device(const Tensor& tensor, const Tensor& other, const char* name) {
  check(tensor.is_cpu() == other.is_cpu() && tensor.get_device_index() == other.get_device_index(), name,
        ": expected all tensors on one device, got ", device_of(tensor), " and ", device_of(other));
}

struct Grid {
  std::vector<Level> levels;
  int64_t num_points = 0;

  int64_t widest_level() const {
    int64_t widest = 0;
    for (const Level& level : levels)
      if (level.height > 0) widest = std::max(widest, level.width);
    return widest;
  }

  Location location_of(int64_t point) const {
    size_t i = levels.size() - 1;
    while (point < levels[i].first_point) --i;
    return levels[i].location_of(point);
  }
};

// Point indices travel as int32 inside the kernels.
inline void check_point_count(int64_t num_points, const char* name) {
  check(num_points <= std::numeric_limits<int32_t>::max(), name, ": expected fewer than 2^31 points in an image, got ",
        num_points);
}

inline Grid make_grid(const std::vector<int64_t>& heights, const std::vector<int64_t>& widths,
                      const std::vector<double>& strides, const std::vector<double>& spacings,
                      const std::vector<double>& offsets, const std::vector<double>& ranges) {
  const size_t count = heights.size();
  check(widths.size() == count && strides.size() == count && spacings.size() == 2 * count &&
            offsets.size() == 2 * count && ranges.size() == 2 * count,
        "grid: expected lists of one length (spacings, offsets, ranges: twice that), got ", count, " heights, ",
        widths.size(), " widths, ", strides.size(), " strides, ", spacings.size(), " spacings, ", offsets.size(),
        " offsets, ", ranges.size(), " ranges");
  Grid grid;
  for (size_t i = 0; i < count; ++i) {
    // No infinity travels in an operator's arguments: the largest number stands for it.
    const auto end = [&](size_t place) {
      const float bound = static_cast<float>(ranges[place]);
      return bound >= FLT_MAX ? kInfinity : bound <= -FLT_MAX ? -kInfinity : bound;
    };
    const Level level{heights[i],
                      widths[i],
                      grid.num_points,
                      strides[i],
                      {static_cast<float>(spacings[2 * i]), static_cast<float>(offsets[2 * i])},
                      {static_cast<float>(spacings[2 * i + 1]), static_cast<float>(offsets[2 * i + 1])},
                      end(2 * i),
                      end(2 * i + 1)};
    const float stride = static_cast<float>(level.stride);
    check(level.height >= 0 && level.width >= 0 && stride > 0 && level.y.spacing > 0 && level.x.spacing > 0 &&
              is_finite(stride) && is_finite(level.y.spacing) && is_finite(level.x.spacing) &&
              is_finite(level.y.offset) && is_finite(level.x.offset) && level.lo <= level.hi,
          "grid: level ", i, " is ", level.height, " x ", level.width, " of stride ", level.stride, ", spacing ",
          level.y.spacing, " x ", level.x.spacing, ", offset ", level.y.offset, " x ", level.x.offset, ", range ",
          level.lo, " to ", level.hi,
          "; expected sizes of at least 0, and finite numbers above 0 for strides and "
          "spacings, in float32");
    check_point_count(std::max(level.height, level.width), "grid");  // so that the product cannot overflow
    grid.levels.push_back(level);
    grid.num_points += level.height * level.width;
    check_point_count(grid.num_points, "grid");
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
  check(gt_boxes.numel() / 4 <= std::numeric_limits<int32_t>::max(), "gt_boxes: expected fewer than 2^31 objects, got ",
        gt_boxes.numel() / 4);
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
  for (int64_t b = 0; b < images; ++b) {
    const int64_t count = gt_counts ? (*gt_counts)[b] : gt_boxes.size(1);
    check(count >= 0, "gt_counts: expected at least 0 in each image, got ", count, " in image ", b);
    // Capped instead of overflowing: no tensor has so many rows, so check_rows refuses it all the same.
    offsets.push_back(std::min(offsets.back(), std::numeric_limits<int64_t>::max() - count) + count);
  }
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

inline void check_center_radius(double center_radius) {
  check(center_radius >= 0 && is_finite(static_cast<float>(center_radius)),
        "center_radius: expected a finite number of at least 0, got ", center_radius);
}

inline void check_sigma(double sigma) {
  check(static_cast<float>(sigma) > 1 && is_finite(static_cast<float>(sigma)),
        "sigma: expected a finite number above 1, got ", sigma);
}

// What the objects' boxes have one of each: labels, counts of points.
inline void check_property(const Tensor& property, const Tensor& gt_boxes, const char* name) {
  check_packed(property, ScalarType::Long, name);
  bool fits = property.dim() == gt_boxes.dim() - 1;
  for (int64_t d = 0; fits && d < property.dim(); ++d) fits = property.size(d) == gt_boxes.size(d);
  check(fits, name, ": expected one per object, like gt_boxes ", shape_of(gt_boxes),
        " without its last dimension, got ", shape_of(property));
  check_same_device(property, gt_boxes, name);
}

// Everything about predictions, labels and the counts of points wanted that holds on every device.
inline void check_predictions(const Tensor& pred_boxes, const Tensor& pred_scores, const Tensor& gt_boxes,
                              const Tensor& gt_labels, const std::optional<Tensor>& wanted, int64_t num_images,
                              int64_t num_points, const char* scores = "pred_logits") {
  check_property(gt_labels, gt_boxes, "gt_labels");
  if (wanted) check_property(*wanted, gt_boxes, "wanted");
  check(pred_boxes.dim() == 3 && pred_boxes.size(0) == num_images && pred_boxes.size(1) == num_points &&
            pred_boxes.size(2) == 4,
        "pred_boxes: expected shape [", num_images, ", ", num_points, ", 4], got ", shape_of(pred_boxes));
  check(pred_scores.dim() == 3 && pred_scores.size(0) == num_images && pred_scores.size(1) == num_points, scores,
        ": expected shape [", num_images, ", ", num_points, ", C], got ", shape_of(pred_scores));
  check_floating(pred_boxes, "pred_boxes");
  check_floating(pred_scores, scores);
  check_same_device(pred_scores, pred_boxes, scores);
  check_same_device(gt_boxes, pred_boxes, "gt_boxes");
}

// How many points an object gets: what the original strategy, the caller or the rule gives it, held to
// [min_points, max_points] and to the points there are.
struct Quota {
  int64_t least, most;

  Quota(int64_t min_points, int64_t max_points, int64_t num_points = std::numeric_limits<int64_t>::max())
      : least(std::min(min_points, num_points)), most(std::min(max_points, num_points)) {
    check(0 <= min_points && min_points <= max_points,
          "min_points, max_points: expected 0 <= min_points <= max_points, ", "got ", min_points, " and ", max_points);
  }
  MGASSIGN_HD int64_t of(int64_t points) const { return points < least ? least : (points > most ? most : points); }
};

inline void check_activation(int64_t activation) {
  check(activation == 0 || activation == 1, "activation: expected 0 (none) or 1 (sigmoid), got ", activation);
}

inline void check_ignore_share(double ignore_share) {
  check(static_cast<float>(ignore_share) > 0 && ignore_share <= 1,
        "ignore_share: expected a number above 0, at most 1, ", "got ", ignore_share);
}

// sim_ota_assign
inline void check_objectness(const Tensor& objectness, const Tensor& scores) {
  check(objectness.dim() == 2 && objectness.size(0) == scores.size(0) && objectness.size(1) == scores.size(1),
        "pred_objectness: expected shape [", scores.size(0), ", ", scores.size(1), "], got ", shape_of(objectness));
  check_floating(objectness, "pred_objectness");
  check_same_device(objectness, scores, "pred_objectness");
}

inline void check_boxes(const Tensor& boxes, const char* name, const char* shape) {
  check(boxes.dim() == 2 && boxes.size(1) == 4, name, ": expected shape ", shape, ", got ", shape_of(boxes));
  check_floating(boxes, name);
}

// Anchors [A, 4], which all images share.
inline void check_anchors(const Tensor& anchors, const Tensor& gt_boxes) {
  check_boxes(anchors, "anchors", "[A, 4]");
  check_point_count(anchors.size(0), "anchors");
  check_same_device(gt_boxes, anchors, "gt_boxes");
}

// Overlaps from which on a point is positive, and no background.
inline void check_thresholds(double high, double low) {
  check(static_cast<float>(low) > 0 && high <= 1 && low <= high,
        "low, high: expected numbers above 0, at most 1, the first at most the second, got ", low, " and ", high);
}

// What becomes of an object's best anchors in max_iou_assign: nothing; each goes to its own best object; each goes to
// the object, the later of two; the same, but of equally good ones the first alone.
enum class LowQuality : int64_t { kNone = 0, kOwn = 1, kObject = 2, kFirst = 3 };

inline void check_low_quality(int64_t low_quality, double min_iou) {
  check(0 <= low_quality && low_quality <= 3, "low_quality: expected 0 (none), 1 (own), 2 (object) or 3 (first), got ",
        low_quality);
  check(0 <= min_iou && min_iou <= 1, "min_iou: expected a number of at least 0, at most 1, got ", min_iou);
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
  check_point_count(scores.size(0), "scores");
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
