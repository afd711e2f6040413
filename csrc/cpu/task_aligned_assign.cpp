// Task-aligned assignment: each object chooses the points of highest score inside its window, a point that several
// chose goes to the highest overlap, and targets are scores, scaled so that an object's best gets its best overlap.
//
// Passes, each spread over the threads: predictions into arrays; objects choose; what was chosen is handed out image by
// image; contests, some points at a time; targets, image by image.
#include <torch/csrc/stable/library.h>

#include "choose.h"

namespace mgassign::cpu {

namespace {

// Overlaps and scores with one object. The raw class scores stand where the scores go.
MGASSIGN_VECTOR void score_all(const TaskAligned& rule, const TaskAligned::Object& object,
                               const Predictions::OfImage& predictions, const int32_t* points, int64_t count,
                               float* scores, float* overlaps) {
  for (int64_t begin = 0; begin < count; begin += kLanes) {
    const int64_t lanes = std::min(count - begin, kLanes);
    float x1[kLanes] = {}, y1[kLanes] = {}, x2[kLanes] = {}, y2[kLanes] = {}, overlap[kLanes];
    for (int64_t i = 0; i < lanes; ++i) {
      const Box predicted = predictions[points[begin + i]];
      x1[i] = predicted.x1;
      y1[i] = predicted.y1;
      x2[i] = predicted.x2;
      y2[i] = predicted.y2;
    }
    if (rule.complete)
      for (int i = 0; i < kLanes; ++i)
        overlap[i] = complete_iou_of({x1[i], y1[i], x2[i], y2[i]}, object.box, object.angle);
    else
      for (int i = 0; i < kLanes; ++i) overlap[i] = TaskAligned::iou_with({x1[i], y1[i], x2[i], y2[i]}, object);
    std::copy_n(overlap, lanes, overlaps + begin);
  }
  if (rule.sigmoid)
    for (int64_t i = 0; i < count; ++i) scores[i] = sigmoid_f32(scores[i]);
  else
    for (int64_t i = 0; i < count; ++i) scores[i] = probability_f32(scores[i]);
  rule.alpha.with([&](const auto& alpha) {
    for (int64_t i = 0; i < count; ++i) scores[i] = alpha(scores[i]);
  });
  rule.beta.with([&](const auto& beta) {
    for (int64_t i = 0; i < count; ++i) scores[i] *= beta(overlaps[i]);
  });
}

class Assigner {
 public:
  // What a thread needs to let objects choose.
  struct Scratch {
    Chooser chooser;
    std::vector<float> scores, overlaps;

    explicit Scratch(const Grid& grid)
        : chooser(grid), scores(Chooser::most_together(grid)), overlaps(Chooser::most_together(grid)) {}
  };

  // An object as Chooser wants it.
  struct Scorer {
    const Assigner& of;
    TaskAligned::Object object;
    int64_t image, label;
    Scratch& scratch;
    Predictions::OfImage predictions = of.predictions_.of(image);
    Box box = object.box;
    float least = 0.0f;

    void score(const int32_t* points, int64_t count, BestPoints& best) {
      float *const scores = scratch.scores.data(), *const overlaps = scratch.overlaps.data();
      const FloatView<3>& given = of.class_scores_;
      given.read(image * given.stride[0] + label * given.stride[2], given.stride[1], points, count, scores);
      score_all(of.rule_, object, predictions, points, count, scores, overlaps);
      const float bar = best.bar();
      for (int64_t i = 0; i < count; ++i)
        if (scores[i] >= best.bar()) best.offer({scores[i], points[i], overlaps[i]});
      if (best.bar() > bar) least = of.rule_.least_overlap(best.bar());
    }
  };

  // The highest score and overlap among the points of an object.
  struct Best {
    float score = 0.0f, overlap = 0.0f;
  };

  // What a thread needs for contests: the objects whose windows reach a row of points.
  struct Contestants {
    ObjectArrays in_row;
    std::vector<int32_t> found;

    explicit Contestants(int64_t most_objects) : in_row(most_objects), found(most_objects + 1) {}
  };

  Assigner(const TaskAligned& rule, const Grid& grid, const ObjectBatch& batch, const Predictions& predictions,
           const FloatView<3>& class_scores, int64_t most_chosen, int64_t keep)
      : rule_(rule),
        grid_(grid),
        batch_(batch),
        predictions_(predictions),
        class_scores_(class_scores),
        keep_(keep),
        objects_(batch.num_objects()),
        windows_(batch.num_objects()),
        choices_(batch.num_objects(), most_chosen),
        kept_(batch.num_objects(), keep),
        best_(batch.num_objects()) {}

  // Lets object n choose `count` points.
  void choose(int64_t n, int64_t count, Scratch& scratch) {
    const int64_t image = batch_.image_of(n), index = n - batch_.first(image);
    const bool takes_part = batch_.takes_part(n);
    const Box window = takes_part ? rule_.window(batch_.box(n)) : kNowhere;
    windows_.set(n, {window, 0.0f, static_cast<int32_t>(index)});
    choices_.clear(n);
    if (!takes_part) return;
    BestPoints best = choices_.of(n, count, 0.0f);
    objects_[n] = rule_.object(batch_.box(n));
    Scorer scorer{*this, objects_[n], image, batch_.labels(image)[index], scratch};
    // Of all points, those inside the window are the likeliest: first they alone show how high the bar is.
    scratch.chooser.show_inside([&](const Level&) { return window; }, rule_.margin, scorer, best);
    if (!rule_.anywhere) return;
    best.clear();
    scratch.chooser.show_overlapping(scorer, best);
    choices_.keep_if(n, [&](const Choice& choice) { return rule_.holds(window, grid_.location_of(choice.point)); });
  }

  const ChoiceLists& choices() const { return choices_; }

  // Gives contested points, those of a row one after the other, to the highest overlap of all objects in whose window
  // they lie; equal overlaps: the lower index.
  void contest(int64_t image, const int32_t* points, const int32_t* end, const Holdings& held,
               Contestants& contestants) const {
    const int64_t first = batch_.first(image);
    const Objects windows = windows_.view(first, batch_.size(image));
    const Predictions::OfImage predictions = predictions_.of(image);
    int32_t* const found = contestants.found.data();
    float row = kInfinity;
    int64_t num_in_row = 0;
    for (; points != end; ++points) {
      const int32_t point = *points;
      const Location at = grid_.location_of(point);
      if (at.y != row) {
        row = at.y;
        num_in_row = touching({-kInfinity, at.y, kInfinity, at.y}, windows, found);
        for (int64_t i = 0; i < num_in_row; ++i) contestants.in_row.set(i, windows[found[i]]);
      }
      const Objects in_row = contestants.in_row.view(0, num_in_row);
      const int64_t num_found = touching({at.x, at.y, at.x, at.y}, in_row, found);
      const Box predicted = predictions[point];
      const float area = area_of(predicted);
      float best = -1.0f;
      for (int64_t i = 0; i < num_found; ++i) {
        const Object window = in_row[found[i]];
        const TaskAligned::Object& rival = objects_[first + window.index];
        if (!rule_.holds(window.box, at)) continue;
        const Overlap both = overlap_of(predicted, area, rival.box, rival.area);
        // And overlap() is no more than their ratio.
        if (!(both.intersection > least_in_common(best * kRoom, both.total))) continue;
        const float overlap = rule_.overlap(predicted, rival);
        if (!(overlap > best)) continue;
        best = overlap;
        held.owner[point] = window.index;
      }
      const int64_t* const step = class_scores_.stride;
      const float raw_score =
          class_scores_.at(image * step[0] + point * step[1] + batch_.labels(image)[held.owner[point]] * step[2]);
      held.score[point] = rule_.score(rule_.probability(raw_score), best);
      held.claim[point] = best;
    }
  }

  // Takes from each object all points but its best.
  void keep_best(int64_t image, const Holdings& held, Chosen& chosen) {
    const int64_t first = batch_.first(image), count = batch_.size(image);
    for (int64_t g = 0; g < count; ++g) kept_.clear(first + g);
    for (const int32_t point : chosen.points) {
      kept_.of(first + held.owner[point], keep_, 0.0f).offer({held.score[point], point, held.claim[point]});
      held.owner[point] = kBackground;
      held.score[point] = held.claim[point] = 0.0f;
    }
    settle(kept_, first, count, held, chosen);
  }

  // Turns scores into targets.
  void tell_targets(int64_t image, const Holdings& held, const Chosen& chosen) {
    Best* const best = best_.data() + batch_.first(image);
    for (const int32_t point : chosen.points) {
      Best& of_owner = best[held.owner[point]];
      of_owner.score = std::max(of_owner.score, held.score[point]);
      of_owner.overlap = std::max(of_owner.overlap, held.claim[point]);
    }
    for (const int32_t point : chosen.points) {
      const Best& of_owner = best[held.owner[point]];
      held.score[point] = rule_.target(held.score[point], of_owner.score, of_owner.overlap);
    }
    ignore_points_in_regions(grid_, batch_, image, held.owner);
  }

 private:
  const TaskAligned& rule_;
  const Grid& grid_;
  const ObjectBatch& batch_;
  const Predictions& predictions_;
  FloatView<3> class_scores_;
  int64_t keep_;  // 0: all
  std::vector<TaskAligned::Object> objects_;
  ObjectArrays windows_;
  ChoiceLists choices_, kept_;
  std::vector<Best> best_;
};

}  // namespace

std::tuple<Tensor, Tensor, Tensor> task_aligned_assign_cpu(
    const Tensor& pred_boxes, const Tensor& pred_scores, const Tensor& gt_boxes, const Tensor& gt_labels,
    MGASSIGN_OBJECTS_PARAMETERS, MGASSIGN_GRID_PARAMETERS, std::optional<Tensor> wanted, int64_t min_points,
    int64_t max_points, int64_t keep, double alpha, double beta, int64_t overlap, int64_t candidates, double margin,
    double raise_below, double least_side, int64_t contest, double epsilon, int64_t activation) {
  const Grid grid = make_grid(MGASSIGN_GRID_ARGUMENTS);
  const TaskAligned rule = make_task_aligned(alpha, beta, overlap, candidates, margin, raise_below, least_side, contest,
                                             epsilon, activation);
  check_most_chosen(max_points);
  check_keep(keep);
  const Quota quota(min_points, max_points);
  const int64_t num_images = check_objects(gt_boxes, gt_offsets, gt_counts), num_points = grid.num_points;
  check_predictions(pred_boxes, pred_scores, gt_boxes, gt_labels, wanted, num_images, num_points, "pred_scores");

  Tensor owner = new_tensor(gt_boxes, {num_images, num_points}, ScalarType::Long);
  Tensor target = new_tensor(gt_boxes, {num_images, num_points}, ScalarType::Float);
  Tensor iou = new_tensor(gt_boxes, {num_images, num_points}, ScalarType::Float);
  if (nothing_to_assign(owner, gt_boxes, gt_offsets, gt_counts)) return {owner, target, iou};

  const ObjectBatch batch(gt_boxes, &gt_labels, gt_offsets, gt_counts);
  batch.check_labels(pred_scores.size(2));
  if (owner.numel() == 0) return {owner, target, iou};
  const int64_t* const wanted_counts = wanted ? wanted->const_data_ptr<int64_t>() : nullptr;

  const int64_t work = num_images * num_points;
  const Predictions predictions(pred_boxes, rule.anywhere);
  Assigner assigner(rule, grid, batch, predictions, FloatView<3>(pred_scores), max_points, keep);
  const int64_t choosing = threads_to_choose(batch, num_points);
  auto scratch = scratch_for<Assigner::Scratch>(choosing, grid);
  for_each_unit(batch.num_objects(), choosing, [&](int64_t n, int64_t slot) {
    assigner.choose(n, quota.of(wanted_counts ? wanted_counts[n] : max_points), scratch[slot]);
  });

  const auto held = [&](int64_t image) {
    const int64_t at = image * num_points;
    return Holdings{owner.mutable_data_ptr<int64_t>() + at, target.mutable_data_ptr<float>() + at,
                    iou.mutable_data_ptr<float>() + at};
  };
  const int64_t by_image = threads_for(num_images, work);
  std::vector<Chosen> chosen = hand_out(assigner.choices(), batch, num_points, [&](int64_t image) {
    std::fill_n(held(image).score, num_points, 0.0f);
    return held(image);
  });
  if (!rule.contest_chosen) {
    auto contestants = scratch_for<Assigner::Contestants>(choosing, batch.largest_image());
    for_each_contest(chosen, choosing, [&](int64_t image, const int32_t* begin, const int32_t* end, int64_t slot) {
      assigner.contest(image, begin, end, held(image), contestants[slot]);
    });
  }
  for_each_unit(num_images, by_image, [&](int64_t image, int64_t) {
    if (keep > 0) assigner.keep_best(image, held(image), chosen[image]);
    assigner.tell_targets(image, held(image), chosen[image]);
  });
  return {owner, target, iou};
}

}  // namespace mgassign::cpu

STABLE_TORCH_LIBRARY_IMPL(mgassign, CPU, m) {
  m.impl("task_aligned_assign", MGASSIGN_OPERATOR(task_aligned_assign_cpu));
}
