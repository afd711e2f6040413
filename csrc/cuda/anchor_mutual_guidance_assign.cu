// Mutual Guidance on anchors, fused: the original strategy, Localize to Classify and Classify to Localize in one call.
//
// Seven launches:
//   1. a memset of counters and of the objects' best points;
//   2. competition, a warp for each 32 anchors (or their predicted boxes) that follow one another: whom does each stand
//      for by overlap, by amplified overlap, by its prediction's overlap? Each object's best ones;
//   3. an object a thread and contest: its best point is forced, unless another object's claim is better;
//   4. a point a thread: the original strategy, and how many points stand for each object;
//   5. selection (selection.cu) of those to be ignored with those to learn a class;
//   6. selection of these and of those to learn a box, over them;
//   7. an object a thread: the true overlap of the prediction that was forced.
#include "anchors.cuh"

namespace mgassign::cuda::anchor_mutual_guidance_assign {

enum Contest : int { kByBox, kByClass, kByAnchor, kContests };

struct Guidance {
  ObjectRows objects;
  const float* gt_boxes;
  const int64_t* gt_labels;
  FloatView<2> anchors;
  FloatView<3> pred_boxes, pred_logits;
  int64_t num_points, num_classes;
  float sigma;
  bool sigmoid;
  float high, low, ignore_share;
  Standing standing[kContests];         // [B, A] and [N]
  unsigned long long* best[kContests];  // [N]: see rank_key()
  // [B, A]
  int64_t *cls, *loc, *original;
  float* iou;
  // [N]
  int32_t *num_original, *between;
};

__device__ int64_t point_of_thread() {
  return (static_cast<int64_t>(blockIdx.x) * kAnchorWarps + threadIdx.x / kWarp) * kWarp + threadIdx.x % kWarp;
}

__device__ AnchorTile predictions_of(const Guidance& g, int64_t image, int64_t j) {
  const bool exists = j < g.num_points;
  return {j, exists, exists ? g.pred_boxes.box_of_point(image, j) : Box{0.0f, 0.0f, 0.0f, 0.0f}};
}

__device__ float amplified(const Guidance& g, int64_t image, int64_t j, float overlap, int64_t label) {
  float probability = 0.0f;
  if (label >= 0 && label < g.num_classes) {
    const int64_t offset = image * g.pred_logits.stride[0] + j * g.pred_logits.stride[1];
    const float logit = g.pred_logits.at(offset + label * g.pred_logits.stride[2]);
    probability = probability_of(logit, g.sigmoid);
  }
  return amplify(overlap, probability, g.sigma);
}

__device__ void write_standing(const Standing& standing, int64_t at, const Champion& champion) {
  standing.owner[at] = champion.index;
  standing.score[at] = champion.score;
}

constexpr int kBlocks = 4;  // on a multiprocessor, where they compete: leaves the 64 registers a thread needs

__global__ void __launch_bounds__(kAnchorThreads, kBlocks) anchor_compete_kernel(const __grid_constant__ Guidance g) {
  __shared__ Object gathered[kAnchorWarps][kWarp];
  const int lane = threadIdx.x % kWarp;
  const int64_t image = g.objects.first_image + blockIdx.y, j = point_of_thread(), at = image * g.num_points + j;
  const ObjectRows::Rows rows = g.objects.of(image);
  const auto always = [](const Object&) { return true; };
  if (blockIdx.z == 0) {
    const AnchorTile tile = predictions_of(g, image, j);
    Champion champion;
    for_each_touching(tile, rows, g.gt_boxes, g.gt_labels, gathered[threadIdx.x / kWarp], lane, always,
                      [&](const Object& object, float overlap) {
                        champion.meet(overlap, object.area, object.index);
                        raise_best(g.best[kByBox][rows.first + object.index], overlap, j, lane);
                      });
    if (tile.exists) write_standing(g.standing[kByBox], at, champion);
    return;
  }
  const AnchorTile tile = tile_at(g.anchors, j, g.num_points);
  Champion by_anchor, by_class;
  for_each_touching(tile, rows, g.gt_boxes, g.gt_labels, gathered[threadIdx.x / kWarp], lane, always,
                    [&](const Object& object, float overlap) {
                      const int64_t row = rows.first + object.index;
                      by_anchor.meet(overlap, object.area, object.index);
                      raise_best(g.best[kByAnchor][row], overlap, j, lane);
                      const float score = overlap > 0.0f ? amplified(g, image, j, overlap, g.gt_labels[row]) : 0.0f;
                      by_class.meet(score, object.area, object.index);
                      raise_best(g.best[kByClass][row], score, j, lane);
                    });
  if (!tile.exists) return;
  write_standing(g.standing[kByAnchor], at, by_anchor);
  write_standing(g.standing[kByClass], at, by_class);
}

// Each object's best point is worth at least 1 to it. Of the objects that have the same one, the thread of the winner
// alone writes.
__global__ void __launch_bounds__(kAnchorThreads) anchor_force_kernel(const __grid_constant__ Guidance g) {
  const int contest = blockIdx.z;
  const int64_t image = g.objects.first_image + blockIdx.y;
  const ObjectRows::Rows rows = g.objects.of(image);
  const int64_t mine = static_cast<int64_t>(blockIdx.x) * kAnchorThreads + threadIdx.x;
  if (mine >= rows.count) return;
  const int64_t row = rows.first + mine;
  const Box box = object_box(g.gt_boxes, row);
  const float area = area_of(box);
  const unsigned long long* const best = g.best[contest] + rows.first;
  if (best[mine] == 0) return;
  const int64_t point = point_of_key(best[mine]), at = image * g.num_points + point;
  const float score = larger(score_of_key(best[mine]), 1.0f);
  const auto beaten_by = [&](float other_score, int64_t other) {
    if (other_score != score) return other_score > score;
    return smaller_object(area_of(object_box(g.gt_boxes, rows.first + other)), other, area, mine);
  };
  for (int32_t other = 0; other < rows.count; ++other)
    if (best[other] != 0 && point_of_key(best[other]) == point && other != mine &&
        beaten_by(larger(score_of_key(best[other]), 1.0f), other))
      return;
  const Standing& standing = g.standing[contest];
  const int32_t holder = standing.owner[at];
  if (holder >= 0 && holder != mine && beaten_by(standing.score[at], holder)) return;
  standing.owner[at] = static_cast<int32_t>(mine);
  standing.score[at] = score;
}

__global__ void __launch_bounds__(kAnchorThreads) anchor_count_kernel(const __grid_constant__ Guidance g) {
  const int lane = threadIdx.x % kWarp;
  const int64_t image = g.objects.first_image + blockIdx.y, j = point_of_thread(), at = image * g.num_points + j;
  const ObjectRows::Rows rows = g.objects.of(image);
  const bool exists = j < g.num_points;
  const AnchorTile anchor = tile_at(g.anchors, j, g.num_points), predicted = predictions_of(g, image, j);
  const bool anchor_ignored = lies_in_region(anchor.box, rows, g.gt_boxes, g.gt_labels, g.ignore_share, lane);
  const bool box_ignored = lies_in_region(predicted.box, rows, g.gt_boxes, g.gt_labels, g.ignore_share, lane);
  for (const int contest : {kByBox, kByClass}) {
    const Standing& standing = g.standing[contest];
    const int32_t slot = count_standing(standing.count + rows.first, exists ? standing.owner[at] : -1, lane);
    if (exists) standing.slot[at] = slot;
  }
  const int32_t owner = exists ? g.standing[kByAnchor].owner[at] : -1;
  const float score = owner >= 0 ? g.standing[kByAnchor].score[at] : 0.0f;
  const bool positive = score >= g.high, between = !positive && score >= g.low;
  count_standing(g.num_original + rows.first, positive ? owner : -1, lane);
  count_standing(g.between + rows.first, between ? owner : -1, lane);
  if (!exists) return;
  // What nobody is chosen for; selection overwrites it.
  g.original[at] = positive ? owner : (between || anchor_ignored ? kIgnored : kBackground);
  g.cls[at] = box_ignored ? kIgnored : kBackground;
  g.loc[at] = anchor_ignored ? kIgnored : kBackground;
  g.iou[at] = 0.0f;
}

__global__ void __launch_bounds__(kAnchorThreads) anchor_restore_kernel(const __grid_constant__ Guidance g) {
  const int64_t image = g.objects.first_image + blockIdx.y;
  const ObjectRows::Rows rows = g.objects.of(image);
  const int64_t mine = static_cast<int64_t>(blockIdx.x) * kAnchorThreads + threadIdx.x;
  if (mine >= rows.count) return;
  const unsigned long long best = g.best[kByBox][rows.first + mine];
  if (best == 0) return;
  const int64_t at = image * g.num_points + point_of_key(best);
  if (g.cls[at] == mine) g.iou[at] = score_of_key(best);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> anchor_mutual_guidance_assign_cuda(
    const Tensor& anchors, const Tensor& pred_boxes, const Tensor& pred_logits, const Tensor& gt_boxes,
    const Tensor& gt_labels, MGASSIGN_OBJECTS_PARAMETERS, std::optional<Tensor> wanted, double sigma, double high,
    double low, int64_t min_points, int64_t max_points, double ignore_share, int64_t activation) {
  check_anchors(anchors, gt_boxes);
  const int64_t num_points = anchors.size(0);
  const Quota quota(min_points, max_points, num_points);
  check_sigma(sigma);
  check_thresholds(high, low);
  check_ignore_share(ignore_share);
  check_activation(activation);
  const ObjectBatch batch(gt_boxes, gt_offsets, gt_counts);
  const int64_t num_images = batch.num_images(), num_objects = batch.num_objects();
  check_predictions(pred_boxes, pred_logits, gt_boxes, gt_labels, wanted, num_images, num_points);

  const Queue queue(gt_boxes);
  auto [cls, loc, original, counts, iou] = new_guidance(gt_boxes, num_images, num_points, num_objects);
  if (num_images == 0 || num_points == 0) {
    queue.zero(counts.mutable_data_ptr<int64_t>(), num_objects * sizeof(int64_t));
    return {cls, loc, original, counts, iou};
  }

  // One workspace: 44 bytes per point, 40 per object, 12 per image.
  const int64_t all_points = num_images * num_points;
  const int64_t num_counters = 3 * num_images + 4 * num_objects;
  const int64_t zeroed = kContests * num_objects + (num_counters + 1) / 2;
  Tensor workspace = new_tensor(gt_boxes, {zeroed + ((2 + 3 * kContests) * all_points + 1) / 2}, ScalarType::Long);
  int64_t* const best = workspace.mutable_data_ptr<int64_t>();
  int32_t* const counters = reinterpret_cast<int32_t*>(best + kContests * num_objects);
  int32_t* const segments = reinterpret_cast<int32_t*>(best + zeroed);
  int32_t* const owners = segments + 2 * all_points;
  int32_t* const slots = owners + kContests * all_points;
  float* const scores = reinterpret_cast<float*>(slots + kContests * all_points);
  queue.zero(best, zeroed * sizeof(int64_t));
  int32_t* const filled = counters;  // of three selections
  int32_t* const of_objects = counters + 3 * num_images;

  Guidance guidance{{},
                    gt_boxes.const_data_ptr<float>(),
                    gt_labels.const_data_ptr<int64_t>(),
                    FloatView<2>(anchors),
                    FloatView<3>(pred_boxes),
                    FloatView<3>(pred_logits),
                    num_points,
                    pred_logits.size(2),
                    static_cast<float>(sigma),
                    activation == 1,
                    static_cast<float>(high),
                    static_cast<float>(low),
                    static_cast<float>(ignore_share),
                    {},
                    {},
                    cls.mutable_data_ptr<int64_t>(),
                    loc.mutable_data_ptr<int64_t>(),
                    original.mutable_data_ptr<int64_t>(),
                    iou.mutable_data_ptr<float>(),
                    of_objects + 2 * num_objects,
                    of_objects + 3 * num_objects};
  for (int contest = 0; contest < kContests; ++contest) {
    int32_t* const count = contest == kByAnchor ? nullptr : of_objects + contest * num_objects;
    const int64_t at = contest * all_points;
    guidance.standing[contest] = {owners + at, slots + at, scores + at, count};
    guidance.best[contest] = reinterpret_cast<unsigned long long*>(best + contest * num_objects);
  }
  const unsigned point_blocks = blocks_for(num_points, kAnchorThreads);
  const unsigned object_blocks = std::max(1u, blocks_for(batch.largest_image(), kAnchorThreads));
  batch.for_each_launch([&](const ObjectRows& rows, unsigned images) {
    guidance.objects = rows;
    queue.launch(anchor_compete_kernel, dim3(point_blocks, images, 2), kAnchorThreads, guidance);
    queue.launch(anchor_force_kernel, dim3(object_blocks, images, kContests), kAnchorThreads, guidance);
    queue.launch(anchor_count_kernel, dim3(point_blocks, images), kAnchorThreads, guidance);
  });
  Selection chosen{num_images, num_points, quota};
  chosen.set_task(0, guidance.standing[kByBox], guidance.cls, segments);
  chosen.set_task(1, guidance.standing[kByClass], guidance.loc, segments + all_points);
  chosen.k = wanted ? wanted->const_data_ptr<int64_t>() : nullptr;
  chosen.original = guidance.num_original;
  Selection ignored = chosen;
  ignored.filled = filled;
  ignored.extra = guidance.between;
  ignored.ignored = true;
  launch_selection(queue, ignored, batch, 1);
  chosen.filled = filled + num_images;
  chosen.iou = guidance.iou;
  chosen.gt_boxes = guidance.gt_boxes;
  chosen.gt_labels = guidance.gt_labels;
  chosen.allowed = counts.mutable_data_ptr<int64_t>();
  launch_selection(queue, chosen, batch, 2);
  batch.for_each_launch([&](const ObjectRows& rows, unsigned images) {
    guidance.objects = rows;
    queue.launch(anchor_restore_kernel, dim3(object_blocks, images), kAnchorThreads, guidance);
  });
  return {cls, loc, original, counts, iou};
}

MGASSIGN_CUDA_LIBRARY(m) { m.impl("anchor_mutual_guidance_assign", TORCH_BOX(&anchor_mutual_guidance_assign_cuda)); }

}  // namespace mgassign::cuda::anchor_mutual_guidance_assign
