// Competition, then selection: each point stands for its best object, each object keeps its k best points.
//
// Three launches: a memset of the counters; competition, a warp for each point, its lanes across the objects, which
// also tells each point its place among those of its object; selection.
#include "steps.cuh"

namespace mgassign::cuda::topk_per_object {

constexpr int kWarps = 16;  // of a block
constexpr int kThreads = kWarps * kWarp;

struct Competition {
  FloatView<2> scores;
  const float* areas;
  int64_t num_points, num_objects;
  int64_t* chosen;
  Standing standing;
};

__device__ void meet_from(Champion& champion, const Champion& other, int step) {
  const float score = __shfl_xor_sync(kAllLanes, other.score, step);
  const float area = __shfl_xor_sync(kAllLanes, other.area, step);
  const int32_t index = __shfl_xor_sync(kAllLanes, other.index, step);
  if (index >= 0) champion.meet(score, area, index);
}

__global__ void __launch_bounds__(kThreads) topk_compete_kernel(const __grid_constant__ Competition c) {
  const int lane = threadIdx.x % kWarp;
  const int64_t j = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (j >= c.num_points) return;
  Champion champion;
  for (int64_t g = lane; g < c.num_objects; g += kWarp)
    champion.meet(c.scores.at(j * c.scores.stride[0] + g * c.scores.stride[1]), c.areas[g], static_cast<int32_t>(g));
  for (int step = kWarp / 2; step > 0; step /= 2) meet_from(champion, champion, step);
  if (lane == 0) {
    c.chosen[j] = kBackground;
    c.standing.owner[j] = champion.index;
    c.standing.score[j] = champion.score;
    c.standing.slot[j] = champion.index >= 0 ? atomicAdd(&c.standing.count[champion.index], 1) : 0;
  }
}

Tensor topk_per_object_cuda(const Tensor& scores, const Tensor& k, const Tensor& areas) {
  check_contest(scores, k, areas);
  const int64_t num_points = scores.size(0), num_objects = scores.size(1);
  check(num_objects <= std::numeric_limits<int32_t>::max(), "scores: expected fewer than 2^31 objects");
  const Queue queue(scores);
  Tensor owners = new_tensor(scores, {num_points}, ScalarType::Long);
  if (num_points == 0) return owners;

  // One workspace: 16 bytes per point, 4 per object.
  Tensor workspace = new_tensor(scores, {2 * num_points + (1 + num_objects + 1) / 2}, ScalarType::Long);
  int32_t* const owner = reinterpret_cast<int32_t*>(workspace.mutable_data_ptr<int64_t>());
  int32_t* const slot = owner + num_points;
  int32_t* const segments = slot + num_points;
  float* const score = reinterpret_cast<float*>(segments + num_points);
  int32_t* const filled = reinterpret_cast<int32_t*>(score + num_points);
  const Standing standing{owner, slot, score, filled + 1};
  queue.zero(filled, (1 + num_objects) * sizeof(int32_t));

  int64_t* const chosen = owners.mutable_data_ptr<int64_t>();
  const Competition competition{
      FloatView<2>(scores), areas.const_data_ptr<float>(), num_points, num_objects, chosen, standing};
  queue.launch(topk_compete_kernel, dim3(blocks_for(num_points, kWarps)), kThreads, competition);
  Selection selection{1, num_points, Quota(0, num_points)};
  selection.set_task(0, standing, chosen, segments);
  selection.filled = filled;
  selection.k = k.const_data_ptr<int64_t>();
  launch_selection(queue, selection, ObjectBatch(num_objects), 1);
  return owners;
}

MGASSIGN_CUDA_LIBRARY(m) { m.impl("topk_per_object", TORCH_BOX(&topk_per_object_cuda)); }

}  // namespace mgassign::cuda::topk_per_object
