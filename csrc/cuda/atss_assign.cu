// Adaptive training sample selection in three launches:
//   1. a memset of the owners, which hold keys until the end: of the objects that take a point, the one that overlaps
//      the point's anchor most has the largest;
//   2. select, a block for each object: its threads find the nearest points of one level after the other, then take
//      those that overlap the object more than most;
//   3. finish, a thread for each point: from keys to owners and overlaps; points in regions.
#include "choose.cuh"

namespace mgassign::cuda::atss_assign {

constexpr int kPointThreads = 256;

// The owners are keys until the end.
struct Task : ChooseTask {
  Atss rule;
};

struct Candidate {
  int32_t point;
  float overlap;
};

__global__ void __launch_bounds__(kChoosers) atss_select_kernel(const __grid_constant__ Task t) {
  __shared__ TopList nearest;
  __shared__ Candidate candidates[kMaxLevels * kMostChosen];
  __shared__ Atss::Neighborhood neighborhoods[kMaxLevels];
  __shared__ float threshold;
  const ChooseTask::ObjectOfBlock block = t.object_of_block();
  if (block.image < 0) return;
  const Box box = object_box(t.gt_boxes, block.row);
  const int64_t label = t.gt_labels ? t.gt_labels[block.row] : 0;
  if (!takes_part_in_contests(box, label)) return;
  const Location center = center_of(box);
  const float area = area_of(box);
  if (threadIdx.x < t.levels.count)
    neighborhoods[threadIdx.x] = t.rule.neighborhood(t.levels.level[threadIdx.x], center);

  int32_t num_candidates = 0;
  for (int l = 0; l < t.levels.count; ++l) {
    const Level& level = t.levels.level[l];
    nearest.clear();
    const Atss::Neighborhood& near = neighborhoods[l];
    const uint32_t across = static_cast<uint32_t>(near.columns.end - near.columns.begin);
    const uint32_t count = static_cast<uint32_t>(near.rows.end - near.rows.begin) * across;
    const auto offer = [&](uint32_t place, Choice& mine) {
      const int64_t at_row = near.rows.begin + place / across, at_column = near.columns.begin + place % across;
      const float distance = Atss::distance({level.x.coordinate(at_column), level.y.coordinate(at_row)}, center);
      mine.score = -distance;
      mine.point = static_cast<int32_t>(level.first_point + at_row * level.width + at_column);
      return distance <= near.reach && distance < kInfinity;
    };
    nearest.take(count, t.rule.nearest, offer, [](float) {});
    for (int32_t i = threadIdx.x; i < nearest.count; i += kChoosers) {
      const int32_t point = nearest.choices[i].point;
      candidates[num_candidates + i] = {point, t.rule.overlap(level, level.location_of(point), box, area)};
    }
    num_candidates += nearest.count;
  }
  __syncthreads();
  if (threadIdx.x == 0) threshold = Atss::threshold(num_candidates, [&](int32_t i) { return candidates[i].overlap; });
  __syncthreads();

  const int32_t own = block.index();
  auto* const keys = reinterpret_cast<unsigned long long*>(t.owner) + block.image * t.num_points;
  for (int32_t i = threadIdx.x; i < num_candidates; i += kChoosers) {
    const Candidate& candidate = candidates[i];
    if (Atss::takes(box, location_of(t.levels, candidate.point), candidate.overlap, threshold))
      atomicMax(&keys[candidate.point], claim_key(candidate.overlap, own));
  }
}

__global__ void __launch_bounds__(kPointThreads) atss_finish_kernel(const __grid_constant__ Task t) {
  const int32_t point = static_cast<int32_t>(blockIdx.x * kPointThreads + threadIdx.x);
  const int64_t image = t.objects.first_image + blockIdx.y;
  const bool exists = point < t.num_points;
  const int64_t in_region =
      owner_in_regions(t.levels, t.objects.of(image), t.gt_boxes, t.gt_labels, exists ? point : 0);
  if (!exists) return;
  const int64_t place = image * t.num_points + point;
  const unsigned long long key = static_cast<unsigned long long>(t.owner[place]);
  t.owner[place] = key ? object_of_key(key) : in_region;
  t.iou[place] = key ? claim_of_key(key) : 0.0f;
}

std::tuple<Tensor, Tensor> atss_assign_cuda(const Tensor& gt_boxes, std::optional<Tensor> gt_labels,
                                            MGASSIGN_OBJECTS_PARAMETERS, MGASSIGN_GRID_PARAMETERS, double anchor_scale,
                                            int64_t topk) {
  const Grid grid = make_grid(MGASSIGN_GRID_ARGUMENTS);
  const Atss rule = make_atss(anchor_scale, topk);
  const ObjectBatch batch(gt_boxes, gt_offsets, gt_counts);
  if (gt_labels) check_property(*gt_labels, gt_boxes, "gt_labels");

  const Queue queue(gt_boxes);
  const int64_t num_images = batch.num_images(), num_points = grid.num_points;
  Tensor owner = new_tensor(gt_boxes, {num_images, num_points}, ScalarType::Long);
  Tensor iou = new_tensor(gt_boxes, {num_images, num_points}, ScalarType::Float);
  if (owner.numel() == 0) return {owner, iou};
  queue.zero(owner.mutable_data_ptr<int64_t>(), owner.numel() * sizeof(int64_t));
  Task task{ChooseTask(grid, gt_boxes, gt_labels ? &*gt_labels : nullptr, owner, iou), rule};
  for_each_launch(batch, task, [&](unsigned images, unsigned objects) {
    if (objects > 0) queue.launch(atss_select_kernel, dim3(objects), kChoosers, task);
    queue.launch(atss_finish_kernel, dim3(blocks_for(num_points, kPointThreads), images), kPointThreads, task);
  });
  return {owner, iou};
}

MGASSIGN_CUDA_LIBRARY(m) { m.impl("atss_assign", TORCH_BOX(&atss_assign_cuda)); }

}  // namespace mgassign::cuda::atss_assign
