// Centerness amplified by the classification score, for every pair of point and object.
#include <torch/csrc/stable/library.h>

#include "amplifier.h"

namespace mgassign::cpu {

namespace {

MGASSIGN_VECTOR void sigmoid_all(float* values, int64_t count) {
  for (int64_t i = 0; i < count; ++i) values[i] = sigmoid_f32(values[i]);
}

MGASSIGN_VECTOR void amplify_all(float* values, const float* ratio_x, const float* ratio_y, float sigma,
                                 int64_t count) {
  for (int64_t i = 0; i < count; ++i)
    values[i] = amplify(centerness_of(ratio_x[i], ratio_y[i]), probability_f32(values[i]), sigma);
}

}  // namespace

void Amplifier::score_all() {
  if (sigmoid_) sigmoid_all(score_.data(), count_);
  amplify_all(score_.data(), ratio_x_.data(), ratio_y_.data(), sigma_, count_);
}

Tensor amplified_centerness_cpu(const Tensor& gt_boxes, const Tensor& probs, MGASSIGN_GRID_PARAMETERS, double sigma,
                                bool level_gate) {
  const Grid grid = make_grid(MGASSIGN_GRID_ARGUMENTS);
  check_probabilities(gt_boxes, probs, grid.num_points, sigma);
  const int64_t num_objects = gt_boxes.size(0);

  Tensor result = new_tensor(probs, {grid.num_points, num_objects}, ScalarType::Float);
  float* const amplified = result.mutable_data_ptr<float>();
  std::fill_n(amplified, grid.num_points * num_objects, 0.0f);
  const float* const boxes = gt_boxes.const_data_ptr<float>();

  const int64_t threads = threads_for(num_objects, grid.num_points * num_objects);
  auto amplifiers = scratch_for<Amplifier>(threads, sigma, false, level_gate, grid.widest_level());
  const FloatView<2> view(probs);
  for_each_unit(num_objects, threads, [&](int64_t g, int64_t slot) {
    const Box box{boxes[4 * g], boxes[4 * g + 1], boxes[4 * g + 2], boxes[4 * g + 3]};
    if (!is_valid(box)) return;
    const auto write = [&](int64_t j, int32_t, float score) { amplified[j * num_objects + g] = score; };
    for (const Level& level : grid.levels)
      amplifiers[slot].add(level, {0, level.height}, box, static_cast<int32_t>(g), view, g * view.stride[1],
                           view.stride[0], write);
    amplifiers[slot].flush(write);
  });
  return result;
}

}  // namespace mgassign::cpu

STABLE_TORCH_LIBRARY_IMPL(mgassign, CPU, m) {
  m.impl("amplified_centerness", MGASSIGN_OPERATOR(amplified_centerness_cpu));
}
