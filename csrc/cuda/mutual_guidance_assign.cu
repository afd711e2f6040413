// Mutual Guidance, fused: the original strategy, Localize to Classify and Classify to Localize in one call.
//
// Three launches, because N_g must be counted before anyone can be selected, and counters start at 0:
//   1. a memset of the counters;
//   2. competition, a warp for each tile of 8 x 4 points: whom does each point stand for, in either task and in
//      the original strategy? Lanes first take an object each and ask whether it touches the tile's ground or the
//      bounding box of the tile's predictions; only with those that do, all lanes then compare their points.
//      Where there are few tiles and many objects, several warps share a tile's objects;
//   3. selection (selection.cu).
#include "steps.cuh"

namespace mgassign::cuda::mutual_guidance_assign {

constexpr int kWarps = 8;  // of a block
constexpr int kThreads = kWarps * kWarp;
constexpr int kBlocks = kTuring ? 3 : 4;  // on a multiprocessor: leaves the 64 registers a thread needs

struct Competition {
  Levels levels;
  CenterSampling sampling;
  ObjectRows objects;
  const float* gt_boxes;
  const int64_t* gt_labels;
  FloatView<3> pred_boxes, pred_logits;
  int64_t num_points, num_classes;
  float sigma;
  bool level_gate, inside, sigmoid;
  float ignore_share;
  int log_sharing;  // 2^log_sharing warps share a tile's objects
  unsigned blocks;  // of an image
  // [B, P]
  int64_t *original, *cls, *loc;
  float* iou;
  Standing by_box, by_class;  // Localize to Classify, Classify to Localize
  // [N]
  int32_t* num_original;
};

// Localize to Classify: the object a point's predicted box fits best so far. Overlaps are told apart by products, and
// by divisions only where that leaves a doubt: 30 instructions of sm_90 for an object, where asking for a possible
// win first and then dividing took 36, and 80 if one of the warp's points had to divide. (On a CPU, whose divisions run
// beside the rest, the same takes half as long again as dividing always.)
struct BestFit {
  Overlap overlap;
  float area = 0.0f;
  int32_t index = -1;

  __device__ void meet(const Overlap& challenger, const Object& object, float doubt) {
    const Comparison than_best = compare(challenger, overlap, doubt);
    bool wins = than_best.greater();
    if (than_best.close()) {
      Champion exactly = champion();
      exactly.meet(challenger.iou(), object.area, object.index);
      wins = exactly.index == object.index;
    }
    if (wins) {
      overlap = challenger;
      area = object.area;
      index = object.index;
    }
  }
  __device__ Champion champion() const { return {overlap.iou(), area, index}; }
};

// Classify to Localize: the amplified centerness.
__device__ float amplified(const Competition& c, float centerness, int64_t logits_of_point, const Object& object) {
  float probability = 0.0f;
  if (object.logit >= 0) {
    const float logit = c.pred_logits.at(logits_of_point + object.logit);
    probability = probability_of(logit, c.sigmoid);
  }
  return amplify(centerness, probability, c.sigma);
}

// Why a point is not background where nobody is chosen for it: it lies in a region, its predicted box does.
enum : uint8_t { kPointInRegion = 1, kBoxInRegion = 2 };

// `regions` has a bit for each of them among the rows from `first` on; they are rare.
__device__ uint8_t regions_around(const Competition& c, int32_t first, unsigned regions, const Place& place,
                                  const Box& predicted) {
  uint8_t found = 0;
  for (; regions; regions &= regions - 1) {
    const Box region = object_box(c.gt_boxes, first + __ffs(regions) - 1);
    if (!is_valid(region)) continue;
    if (strictly_inside(place.at, region)) found |= kPointInRegion;
    if (share_inside(predicted, region) >= c.ignore_share) found |= kBoxInRegion;
  }
  return found;
}

// With kInside only with objects that the point lies in.
template <bool kInside>
__device__ void meet_all(BestFit& best_fit, const Object* objects, int count, const Place& place, const Box& predicted,
                         float predicted_area, float doubt) {
#pragma unroll 4  // the 2 that nvcc chooses issue 3 % more
  for (int i = 0; i < count; ++i) {
    const Object object = objects[i];
    if (kInside && !strictly_inside(place.at, object.box)) continue;
    best_fit.meet(overlap_of(predicted, predicted_area, object.box, object.area), object, doubt);
  }
}

__device__ void write_standing(const Standing& standing, int64_t at, int32_t first_row, const Champion& champion,
                               int lane) {
  const int32_t slot = count_standing(standing.count + first_row, champion.index, lane);
  if (champion.index < 0) return;
  standing.slot[at] = slot;
  standing.score[at] = champion.score;
}

__global__ void __launch_bounds__(kThreads, kBlocks)
    mutual_guidance_compete_kernel(const __grid_constant__ Competition c) {
  enum { kByBox, kByClass, kOriginal, kContests };
  __shared__ Object objects[kWarps][kWarp];
  __shared__ Champion found[kContests][kWarps][kWarp];
  __shared__ uint8_t ignored[kWarps][kWarp];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int sharing = 1 << c.log_sharing, part = warp & (sharing - 1);
  // Coarse levels first, of all images: their tiles have most to do, and what starts last ends last.
  const unsigned from_end = blockIdx.z * gridDim.y + blockIdx.y;
  if (from_end >= c.blocks) return;
  const int64_t image = c.objects.first_image + blockIdx.x;
  const ObjectRows::Rows rows = c.objects.of(image);
  const int32_t first_row = static_cast<int32_t>(rows.first);  // enough, as check_objects() has seen
  const uint32_t tile = ((c.blocks - 1 - from_end) * kWarps + warp) >> c.log_sharing;
  const Place place = place_of(c.levels, tile, lane);
  const Level& level = c.levels.level[place.level];

  Box predicted{0.0f, 0.0f, 0.0f, 0.0f};
  if (place.exists) predicted = c.pred_boxes.box_of_point(image, place.point);
  const bool predicts = is_valid(predicted);
  const Box bounds = bounds_of_warp(predicted, predicts);
  if (!predicts) predicted = {0.0f, 0.0f, 0.0f, 0.0f};  // overlaps nothing
  const float predicted_area = area_of(predicted);
  const int64_t logits = image * c.pred_logits.stride[0] + place.point * c.pred_logits.stride[1];

  float doubt = __any_sync(kAllLanes, predicts & is_huge(predicted_area)) ? kInfinity : kDoubt;
  BestFit best_fit;
  Champion champion[kContests];
  ignored[warp][lane] = 0;
  for (int32_t base = part * kWarp; base < rows.count; base += sharing * kWarp) {
    const int32_t index = base + lane;
    const bool exists = index < rows.count;
    const int32_t row = first_row + (exists ? index : base);  // lanes without an object read another's box
    const int64_t label = exists ? c.gt_labels[row] : kPadding;
    const Box box = object_box(c.gt_boxes, row);
    // On a GPU nobody tells labels that are no class: they take part with probability 0.
    const bool has_class = static_cast<uint64_t>(label) < static_cast<uint64_t>(c.num_classes);
    const Object mine{box, area_of(box), index, has_class ? label * c.pred_logits.stride[2] : -1};
    const bool takes_part = takes_part_in_contests(box, label);
    if (const unsigned regions = __ballot_sync(kAllLanes, label == kRegion))
      ignored[warp][lane] |= regions_around(c, first_row + base, regions, place, predicted);

    if (__any_sync(kAllLanes, takes_part & is_huge(mine.area))) doubt = kInfinity;
    // Those that may hold points first: they may overlap predictions, too.
    const bool right_size = level.may_accept_inside(mine.box.x2 - mine.box.x1, mine.box.y2 - mine.box.y1);
    const bool may_hold = takes_part & touches(place.tile, mine.box) & (right_size | !c.level_gate);
    const bool may_overlap = takes_part & touches(bounds, mine.box);
    const unsigned holding = __ballot_sync(kAllLanes, may_hold);
    const unsigned others = __ballot_sync(kAllLanes, may_overlap) & ~holding;
    const int num_holding = __popc(holding), count = __popc(holding | others);
    put(objects[warp], mine, may_hold | may_overlap,
        may_hold ? lanes_before(lane, holding) : num_holding + lanes_before(lane, others));
    if (c.inside)
      meet_all<true>(best_fit, objects[warp], count, place, predicted, predicted_area, doubt);
    else
      meet_all<false>(best_fit, objects[warp], count, place, predicted, predicted_area, doubt);

    for (int i = 0; i < num_holding; ++i) {
      const Object object = objects[warp][i];
      if (!place.exists || !strictly_inside(place.at, object.box)) continue;
      const Distances distances(place.at, object.box);
      const bool on_level = level.accepts(distances.longest());
      // The original strategy asks the same of all its candidates, so only their areas and indices compete.
      if (on_level && c.sampling.is_central(place, object.box))
        champion[kOriginal].meet(1.0f, object.area, object.index);
      if (on_level || !c.level_gate)
        champion[kByClass].meet(amplified(c, distances.centerness(), logits, object), object.area, object.index);
    }
  }
  champion[kByBox] = best_fit.champion();
  if (sharing > 1) {  // the first of a tile's warps puts their findings together
    for (int contest = 0; contest < kContests; ++contest) found[contest][warp][lane] = champion[contest];
    __syncthreads();
    if (part) return;
    for (int other = warp + 1; other < warp + sharing; ++other) {
      ignored[warp][lane] |= ignored[other][lane];
      for (int contest = 0; contest < kContests; ++contest) {
        const Champion& theirs = found[contest][other][lane];
        champion[contest].meet(theirs.score, theirs.area, theirs.index);
      }
    }
  }

  const int64_t at = image * c.num_points + place.point;
  if (place.exists) {
    // What nobody is chosen for; selection overwrites it.
    const int64_t rest = ignored[warp][lane] & kPointInRegion ? kIgnored : kBackground;
    c.original[at] = champion[kOriginal].index >= 0 ? champion[kOriginal].index : rest;
    c.cls[at] = ignored[warp][lane] & kBoxInRegion ? kIgnored : kBackground;
    c.loc[at] = rest;
    c.iou[at] = 0.0f;
    c.by_box.owner[at] = champion[kByBox].index;
    c.by_class.owner[at] = champion[kByClass].index;
    if (champion[kOriginal].index >= 0) atomicAdd(&c.num_original[first_row + champion[kOriginal].index], 1);
  }
  write_standing(c.by_box, at, first_row, champion[kByBox], lane);
  write_standing(c.by_class, at, first_row, champion[kByClass], lane);
}

// How many warps share a tile's objects: enough to keep a large GPU busy even where objects crowd into a few
// tiles, none idle for lack of objects.
int log_sharing(int64_t tiles, int64_t objects_per_image) {
  constexpr int64_t kEnoughWarps = 16384;
  int log = 0;
  while (1 << log < kWarps && tiles << log < kEnoughWarps && kWarp << log < objects_per_image) ++log;
  return log;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> mutual_guidance_assign_cuda(
    const Tensor& pred_boxes, const Tensor& pred_logits, const Tensor& gt_boxes, const Tensor& gt_labels,
    MGASSIGN_OBJECTS_PARAMETERS, MGASSIGN_GRID_PARAMETERS, std::optional<Tensor> wanted, double center_radius,
    double sigma, bool level_gate, int64_t min_points, int64_t max_points, bool inside, double ignore_share,
    int64_t activation) {
  const Grid grid = make_grid(MGASSIGN_GRID_ARGUMENTS);
  const Quota quota(min_points, max_points, grid.num_points);
  check_center_radius(center_radius);
  check_sigma(sigma);
  check_ignore_share(ignore_share);
  check_activation(activation);
  const ObjectBatch batch(gt_boxes, gt_offsets, gt_counts);
  const int64_t num_images = batch.num_images(), num_objects = batch.num_objects(), num_points = grid.num_points;
  check_predictions(pred_boxes, pred_logits, gt_boxes, gt_labels, wanted, num_images, num_points);

  const Queue queue(gt_boxes);
  auto [cls, loc, original, counts, iou] = new_guidance(gt_boxes, num_images, num_points, num_objects);
  if (num_images == 0) {
    queue.zero(counts.mutable_data_ptr<int64_t>(), num_objects * sizeof(int64_t));
    return {cls, loc, original, counts, iou};
  }

  // One workspace: 32 bytes per point, 12 per object, 8 per image.
  const int64_t all_points = num_images * num_points;
  const int64_t num_counters = 2 * num_images + 3 * num_objects;
  Tensor workspace = new_tensor(gt_boxes, {4 * all_points + (num_counters + 1) / 2}, ScalarType::Long);
  int32_t* const owners = reinterpret_cast<int32_t*>(workspace.mutable_data_ptr<int64_t>());
  int32_t* const slots = owners + 2 * all_points;
  int32_t* const segments = slots + 2 * all_points;
  float* const scores = reinterpret_cast<float*>(segments + 2 * all_points);
  int32_t* const filled = reinterpret_cast<int32_t*>(scores + 2 * all_points);
  int32_t* const num_standing = filled + 2 * num_images;
  int32_t* const num_original = num_standing + 2 * num_objects;
  queue.zero(filled, num_counters * sizeof(int32_t));

  Competition competition{Levels(grid),
                          CenterSampling(grid, center_radius),
                          {},
                          gt_boxes.const_data_ptr<float>(),
                          gt_labels.const_data_ptr<int64_t>(),
                          FloatView<3>(pred_boxes),
                          FloatView<3>(pred_logits),
                          num_points,
                          pred_logits.size(2),
                          static_cast<float>(sigma),
                          level_gate,
                          inside,
                          activation == 1,
                          static_cast<float>(ignore_share),
                          log_sharing(num_images * tiles_of(grid), num_objects / num_images),
                          0,
                          original.mutable_data_ptr<int64_t>(),
                          cls.mutable_data_ptr<int64_t>(),
                          loc.mutable_data_ptr<int64_t>(),
                          iou.mutable_data_ptr<float>(),
                          {owners, slots, scores, num_standing},
                          {owners + all_points, slots + all_points, scores + all_points, num_standing + num_objects},
                          num_original};
  constexpr unsigned kMostRows = 65535;  // of a grid
  competition.blocks = blocks_for(tiles_of(grid) << competition.log_sharing, kWarps);
  const unsigned grid_rows = std::min(competition.blocks, kMostRows);
  batch.for_each_launch([&](const ObjectRows& rows, unsigned images) {
    competition.objects = rows;
    if (num_points > 0)
      queue.launch(mutual_guidance_compete_kernel, dim3(images, grid_rows, blocks_for(competition.blocks, grid_rows)),
                   kThreads, competition);
  });
  Selection selection{num_images, num_points, quota};
  selection.set_task(0, competition.by_box, competition.cls, segments);
  selection.set_task(1, competition.by_class, competition.loc, segments + all_points);
  selection.filled = filled;
  selection.k = wanted ? wanted->const_data_ptr<int64_t>() : nullptr;
  selection.original = num_original;
  selection.iou = competition.iou;
  selection.gt_boxes = competition.gt_boxes;
  selection.gt_labels = competition.gt_labels;
  selection.allowed = counts.mutable_data_ptr<int64_t>();
  launch_selection(queue, selection, batch, 2);
  return {cls, loc, original, counts, iou};
}

MGASSIGN_CUDA_LIBRARY(m) { m.impl("mutual_guidance_assign", TORCH_BOX(&mutual_guidance_assign_cuda)); }

}  // namespace mgassign::cuda::mutual_guidance_assign
