// Anchors by their highest overlap with an object, and each object's best anchors whatever their overlap.
//
// Three launches:
//   1. a memset of the objects' highest overlaps;
//   2. competition, a warp for each 32 anchors that follow one another: lanes take an object each and ask whether it
//      touches the anchors' bounding box; only with those that do, all lanes then compare their anchors;
//   3. the same once more, for those objects alone whose highest overlap one of the anchors may have.
// Each object's highest overlap and its first anchor travel as one number, of which the largest is wanted.
#include "anchors.cuh"

namespace mgassign::cuda::max_iou_assign {

struct Matching {
  ObjectRows objects;
  const float* gt_boxes;
  const int64_t* gt_labels;  // or null
  FloatView<2> anchors;
  int64_t num_anchors;
  float high, low, min_iou, ignore_share;
  LowQuality low_quality;
  unsigned long long* best;  // [N]: of each object, see rank_key()
  int64_t* owner;            // [B, A]
  float* iou;
};

__device__ AnchorTile tile_of(const Matching& m, int lane) {
  const int64_t j = (static_cast<int64_t>(blockIdx.x) * kAnchorWarps + threadIdx.x / kWarp) * kWarp + lane;
  return tile_at(m.anchors, j, m.num_anchors);
}

__global__ void __launch_bounds__(kAnchorThreads) max_iou_compete_kernel(const __grid_constant__ Matching m) {
  __shared__ Object gathered[kAnchorWarps][kWarp];
  const int lane = threadIdx.x % kWarp;
  const int64_t image = m.objects.first_image + blockIdx.y;
  const ObjectRows::Rows rows = m.objects.of(image);
  const AnchorTile tile = tile_of(m, lane);
  float score = 0.0f;
  int64_t owner = kBackground;
  for_each_touching(
      tile, rows, m.gt_boxes, m.gt_labels, gathered[threadIdx.x / kWarp], lane, [](const Object&) { return true; },
      [&](const Object& object, float overlap) {
        // Objects come in ascending order, so an equal overlap never displaces.
        if (overlap > score) {
          score = overlap;
          owner = object.index;
        }
        raise_best(m.best[rows.first + object.index], overlap, tile.anchor, lane);
      });
  if (!tile.exists) return;
  m.owner[image * m.num_anchors + tile.anchor] = owner;
  m.iou[image * m.num_anchors + tile.anchor] = score;
}

__global__ void __launch_bounds__(kAnchorThreads) max_iou_finish_kernel(const __grid_constant__ Matching m) {
  __shared__ Object gathered[kAnchorWarps][kWarp];
  const int lane = threadIdx.x % kWarp;
  const int64_t image = m.objects.first_image + blockIdx.y;
  const ObjectRows::Rows rows = m.objects.of(image);
  const AnchorTile tile = tile_of(m, lane);
  const float most_area = largest_of_warp(tile.area);
  const int64_t at = image * m.num_anchors + tile.anchor;
  int32_t wanted_by = -1;
  if (m.low_quality != LowQuality::kNone)
    for_each_touching(
        tile, rows, m.gt_boxes, m.gt_labels, gathered[threadIdx.x / kWarp], lane,
        [&](const Object& object) {
          // An overlap is at most the one area by the other.
          const float needed = score_of_key(m.best[rows.first + object.index]);
          return needed > 0.0f && needed >= m.min_iou && most_area >= kWideRoom * without_tiny(needed) * object.area;
        },
        [&](const Object& object, float overlap) {
          const unsigned long long best = m.best[rows.first + object.index];
          const bool first = m.low_quality != LowQuality::kFirst || point_of_key(best) == tile.anchor;
          if (overlap == score_of_key(best) && first) wanted_by = object.index;
        });
  const bool in_region = lies_in_region(tile.box, rows, m.gt_boxes, m.gt_labels, m.ignore_share, lane);
  if (!tile.exists) return;
  const int64_t own = m.owner[at];
  const float overlap = m.iou[at];
  int64_t owner = overlap >= m.high ? own : (overlap >= m.low || in_region ? kIgnored : kBackground);
  if (wanted_by >= 0) owner = m.low_quality == LowQuality::kOwn ? own : wanted_by;
  m.owner[at] = owner;
}

std::tuple<Tensor, Tensor> max_iou_assign_cuda(const Tensor& anchors, const Tensor& gt_boxes,
                                               std::optional<Tensor> gt_labels, MGASSIGN_OBJECTS_PARAMETERS,
                                               double high, double low, int64_t low_quality, double min_iou,
                                               double ignore_share) {
  check_anchors(anchors, gt_boxes);
  check_thresholds(high, low);
  check_low_quality(low_quality, min_iou);
  check_ignore_share(ignore_share);
  const ObjectBatch batch(gt_boxes, gt_offsets, gt_counts);
  if (gt_labels) check_property(*gt_labels, gt_boxes, "gt_labels");

  const Queue queue(gt_boxes);
  const int64_t num_images = batch.num_images(), num_anchors = anchors.size(0), num_objects = batch.num_objects();
  Tensor owner = new_tensor(gt_boxes, {num_images, num_anchors}, ScalarType::Long);
  Tensor iou = new_tensor(gt_boxes, {num_images, num_anchors}, ScalarType::Float);
  if (owner.numel() == 0) return {owner, iou};
  Tensor best = new_tensor(gt_boxes, {num_objects}, ScalarType::Long);
  queue.zero(best.mutable_data_ptr<int64_t>(), num_objects * sizeof(int64_t));
  Matching matching{{},
                    gt_boxes.const_data_ptr<float>(),
                    gt_labels ? gt_labels->const_data_ptr<int64_t>() : nullptr,
                    FloatView<2>(anchors),
                    num_anchors,
                    static_cast<float>(high),
                    static_cast<float>(low),
                    static_cast<float>(min_iou),
                    static_cast<float>(ignore_share),
                    static_cast<LowQuality>(low_quality),
                    reinterpret_cast<unsigned long long*>(best.mutable_data_ptr<int64_t>()),
                    owner.mutable_data_ptr<int64_t>(),
                    iou.mutable_data_ptr<float>()};
  const unsigned blocks = blocks_for(num_anchors, kAnchorThreads);
  batch.for_each_launch([&](const ObjectRows& rows, unsigned images) {
    matching.objects = rows;
    queue.launch(max_iou_compete_kernel, dim3(blocks, images), kAnchorThreads, matching);
    queue.launch(max_iou_finish_kernel, dim3(blocks, images), kAnchorThreads, matching);
  });
  return {owner, iou};
}

MGASSIGN_CUDA_LIBRARY(m) { m.impl("max_iou_assign", TORCH_BOX(&max_iou_assign_cuda)); }

}  // namespace mgassign::cuda::max_iou_assign
