// Adaptive training sample selection: each object takes those of its candidates that overlap it more than most, a point
// that several take goes to the highest overlap. Predictions have no say.
//
// Passes, each spread over the threads: objects look at their candidates, which are enumerated on the grid; what was
// taken is handed out image by image; points in regions.
#include <torch/csrc/stable/library.h>

#include "choose.h"

namespace mgassign::cpu {

namespace {

// Shows candidates to objects. Holds the scratch space of one thread.
class Selector {
 public:
  Selector(const Grid& grid, const Atss& rule)
      : grid_(grid), rule_(rule), nearest_(rule.nearest), candidates_(grid.levels.size() * rule.nearest) {}

  void select(const Box& box, BestPoints& taken) {
    const Location center = center_of(box);
    const float area = area_of(box);
    int32_t num_candidates = 0;
    for (const Level& level : grid_.levels) {
      const int32_t count = find_nearest(level, center);
      for (int32_t i = 0; i < count; ++i) {
        const Location at = level.location_of(nearest_[i].point);
        candidates_[num_candidates++] = {nearest_[i].point, at, rule_.overlap(level, at, box, area)};
      }
    }
    const float threshold = Atss::threshold(num_candidates, [&](int32_t i) { return candidates_[i].overlap; });
    for (int32_t i = 0; i < num_candidates; ++i) {
      const Candidate& candidate = candidates_[i];
      if (Atss::takes(box, candidate.at, candidate.overlap, threshold))
        taken.offer({candidate.overlap, candidate.point, candidate.overlap});
    }
  }

 private:
  struct Candidate {
    int32_t point;
    Location at;
    float overlap;
  };

  // Puts the nearest points of a level into nearest_, of equally near ones those of lower index; how many.
  int32_t find_nearest(const Level& level, const Location& center) {
    int32_t count = 0;
    BestPoints nearest(nearest_.data(), &count, rule_.nearest, -kInfinity);
    const Atss::Neighborhood near = rule_.neighborhood(level, center);
    for (int64_t row = near.rows.begin; row < near.rows.end; ++row)
      for (int64_t column = near.columns.begin; column < near.columns.end; ++column) {
        const float distance = Atss::distance({level.x.coordinate(column), level.y.coordinate(row)}, center);
        if (distance <= near.reach)
          nearest.offer({-distance, static_cast<int32_t>(level.first_point + row * level.width + column), 0.0f});
      }
    return count;
  }

  const Grid& grid_;
  const Atss& rule_;
  std::vector<Choice> nearest_;
  std::vector<Candidate> candidates_;
};

}  // namespace

std::tuple<Tensor, Tensor> atss_assign_cpu(const Tensor& gt_boxes, std::optional<Tensor> gt_labels,
                                           MGASSIGN_OBJECTS_PARAMETERS, MGASSIGN_GRID_PARAMETERS, double anchor_scale,
                                           int64_t topk) {
  const Grid grid = make_grid(MGASSIGN_GRID_ARGUMENTS);
  const Atss rule = make_atss(anchor_scale, topk);
  const int64_t num_images = check_objects(gt_boxes, gt_offsets, gt_counts), num_points = grid.num_points;
  if (gt_labels) check_property(*gt_labels, gt_boxes, "gt_labels");

  Tensor owner = new_tensor(gt_boxes, {num_images, num_points}, ScalarType::Long);
  Tensor iou = new_tensor(gt_boxes, {num_images, num_points}, ScalarType::Float);
  if (nothing_to_assign(owner, gt_boxes, gt_offsets, gt_counts)) return {owner, iou};
  const ObjectBatch batch(gt_boxes, gt_labels ? &*gt_labels : nullptr, gt_offsets, gt_counts);
  batch.check_labels(kAnyClass);
  if (owner.numel() == 0) return {owner, iou};

  const int64_t most_taken = std::min(num_points, static_cast<int64_t>(grid.levels.size()) * topk);
  ChoiceLists taken(batch.num_objects(), most_taken);
  const int64_t selecting = threads_for(batch.num_objects(), batch.num_objects() * grid.levels.size() * 32 * topk);
  auto selectors = scratch_for<Selector>(selecting, grid, rule);
  for_each_unit(batch.num_objects(), selecting, [&](int64_t n, int64_t slot) {
    taken.clear(n);
    if (!batch.takes_part(n)) return;
    BestPoints of_object = taken.of(n, most_taken, 0.0f);
    selectors[slot].select(batch.box(n), of_object);
  });

  const auto held = [&](int64_t image) {
    float* const overlaps = iou.mutable_data_ptr<float>() + image * num_points;
    return Holdings{owner.mutable_data_ptr<int64_t>() + image * num_points, overlaps, overlaps};
  };
  hand_out(taken, batch, num_points, held);
  for_each_unit(num_images, threads_for(num_images, num_images * num_points),
                [&](int64_t image, int64_t) { ignore_points_in_regions(grid, batch, image, held(image).owner); });
  return {owner, iou};
}

}  // namespace mgassign::cpu

STABLE_TORCH_LIBRARY_IMPL(mgassign, CPU, m) { m.impl("atss_assign", MGASSIGN_OPERATOR(atss_assign_cpu)); }
