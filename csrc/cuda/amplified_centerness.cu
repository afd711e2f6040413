// Centerness amplified by the classification score, for every pair of point and object.
//
// One launch, a thread for each pair, pairs in the order of the result.
#include "steps.cuh"

namespace mgassign::cuda::amplified_centerness {

constexpr int kThreads = 256;

struct Pairs {
  Levels levels;
  const float* gt_boxes;
  FloatView<2> probs;
  int64_t count;
  int64_t num_objects;
  float sigma;
  bool level_gate;
  float* amplified;  // [P, G]
};

__global__ void __launch_bounds__(kThreads) amplified_centerness_kernel(const __grid_constant__ Pairs p) {
  const int64_t pair = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (pair >= p.count) return;
  const auto [j, g] = split_pair(pair, p.num_objects);
  const Level& level = level_of(p.levels, static_cast<int32_t>(j));
  const Location at = level.location_of(j);
  const Box box = object_box(p.gt_boxes, g);
  float score = 0.0f;
  if (is_valid(box) && strictly_inside(at, box)) {
    const Distances distances(at, box);
    if (!p.level_gate || level.accepts(distances.longest())) {
      const float probability = probability_f32(p.probs.at(j * p.probs.stride[0] + g * p.probs.stride[1]));
      score = amplify(distances.centerness(), probability, p.sigma);
    }
  }
  p.amplified[pair] = score;
}

Tensor amplified_centerness_cuda(const Tensor& gt_boxes, const Tensor& probs, MGASSIGN_GRID_PARAMETERS, double sigma,
                                 bool level_gate) {
  const Grid grid = make_grid(MGASSIGN_GRID_ARGUMENTS);
  check_probabilities(gt_boxes, probs, grid.num_points, sigma);
  const Queue queue(probs);
  const int64_t num_objects = gt_boxes.size(0), count = grid.num_points * num_objects;
  Tensor result = new_tensor(probs, {grid.num_points, num_objects}, ScalarType::Float);
  const Pairs pairs{
      Levels(grid), gt_boxes.const_data_ptr<float>(), FloatView<2>(probs), count,
      num_objects,  static_cast<float>(sigma),        level_gate,          result.mutable_data_ptr<float>()};
  if (count > 0) queue.launch(amplified_centerness_kernel, dim3(blocks_for(count, kThreads)), kThreads, pairs);
  return result;
}

MGASSIGN_CUDA_LIBRARY(m) { m.impl("amplified_centerness", TORCH_BOX(&amplified_centerness_cuda)); }

}  // namespace mgassign::cuda::amplified_centerness
