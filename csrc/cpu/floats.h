// Floating tensors of any dtype and strides, whose numbers are widened to float32 as they are read. The dtype is asked
// at each read, of one number or of many: as the argument of a template it would make four of every pass.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include "../math/boxes.h"

namespace mgassign::cpu {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Where boxes are read to, an array for each side.
struct SideArrays {
  float *x1, *y1, *x2, *y2;
};

// The numbers, by their place behind the first.
class Floats {
 public:
  explicit Floats(const Tensor& tensor) : data_(tensor.const_data_ptr()), dtype_(tensor.scalar_type()) {}

  float at(int64_t offset) const { return is_float32() ? float32()[offset] : widened(offset); }
  // `count` numbers, `step` apart.
  void read(int64_t offset, int64_t step, int64_t count, float* to) const;
  // Those at `count` places, `step` apart.
  void read(int64_t offset, int64_t step, const int32_t* places, int64_t count, float* to) const;
  // `count` boxes, `point_step` apart.
  void read_boxes(int64_t offset, int64_t point_step, int64_t side_step, int64_t count, const SideArrays& to) const;
  Box box_at(int64_t offset, int64_t side_step) const {
    return {at(offset), at(offset + side_step), at(offset + 2 * side_step), at(offset + 3 * side_step)};
  }

  bool is_float32() const { return dtype_ == ScalarType::Float; }
  const float* float32() const { return static_cast<const float*>(data_); }
  int64_t bytes_of_one() const { return dtype_ == ScalarType::Double ? 8 : is_float32() ? 4 : 2; }
  // Soon asked for.
  void prefetch(int64_t offset) const { __builtin_prefetch(static_cast<const char*>(data_) + offset * bytes_of_one()); }

 private:
  float widened(int64_t offset) const;

  const void* data_;
  ScalarType dtype_;
};

// A tensor of kDims dimensions.
template <int kDims>
struct FloatView : Floats {
  int64_t stride[kDims];

  explicit FloatView(const Tensor& tensor) : Floats(tensor) {
    for (int d = 0; d < kDims; ++d) stride[d] = tensor.stride(d);
  }
};

}  // namespace mgassign::cpu
