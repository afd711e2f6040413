// SimOTA and dynamic soft labels: each object chooses the points of a pool that cost it least, as many as its best
// overlaps add up to; a point that several chose goes to the object that it costs least, of all.
//
// Passes, each spread over the threads: the pool; predictions into arrays; objects choose; what was chosen is handed
// out image by image; contests, some points at a time. Sums over classes are taken when a point is first asked for its
// own.
#pragma once

#include "../dynamic_k_operators.h"
#include "costs.h"

namespace mgassign::cpu {

// A point that may be chosen, and its place among those scored at once.
struct Candidate {
  float least;
  int32_t place;

  bool operator<(const Candidate& other) const { return least > other.least; }  // on top of a heap: who may cost least
};

template <typename Rule>
class DynamicKAssigner {
 public:
  // What a thread needs.
  struct Scratch {
    Chooser chooser;
    std::vector<Choice> best_overlaps;
    std::vector<CostLanes> lanes;
    std::vector<Candidate> candidates;
    std::vector<float> classes;
    std::vector<int32_t> found;

    Scratch(const Grid& grid, int64_t most_overlaps, int64_t num_classes, int64_t most_objects)
        : chooser(grid),
          best_overlaps(most_overlaps),
          lanes(Chooser::most_together(grid) / kLanes + 1),
          candidates(Chooser::most_together(grid)),
          classes(num_classes),
          found(most_objects + kLanes) {}
  };

  DynamicKAssigner(const Rule& rule, const Grid& grid, ObjectBatch& batch, const Predictions& predictions,
                   const uint8_t* pool, Scores<Rule>& scores, const Quota& quota)
      : rule_(rule),
        grid_(grid),
        places_(grid),
        batch_(batch),
        predictions_(predictions),
        pool_(pool),
        scores_(scores),
        quota_(quota),
        choices_(batch.num_objects(), quota.most) {}

  // The best overlaps that an object is asked for: enough to say how many points it chooses, and to bound what they
  // cost.
  int64_t most_overlaps() const { return std::max<int64_t>(rule_.best_overlaps, quota_.most); }

  // Lets object n choose as many points as wanted or, where that is not given, as its overlaps say.
  void choose(int64_t n, const int64_t* wanted, Scratch& scratch) {
    choices_.clear(n);
    if (!batch_.takes_part(n)) return;
    const int64_t image = batch_.image_of(n), index = n - batch_.first(image);
    const Object object{batch_.box(n), area_of(batch_.box(n)), static_cast<int32_t>(index)};
    const auto window_within = [&](float limit) {
      return [&, limit](const Level& level) { return rule_.window_within(object.box, level.stride, limit); };
    };

    int32_t count = 0;
    BestPoints overlaps(scratch.best_overlaps.data(), &count, most_overlaps(), 0.0f);
    OverlapScorer by_overlap{predictions_.of(image), object.box, object.area};
    // The points around its centre are the likeliest: first they alone show how high the bar is.
    scratch.chooser.show_inside(window_within(1.0f), 0.0f, by_overlap, overlaps);
    overlaps.clear();
    scratch.chooser.show_overlapping(by_overlap, overlaps);
    double sum = 0.0;
    for (int32_t i = 0; i < std::min(count, rule_.best_overlaps); ++i) sum += scratch.best_overlaps[i].score;
    const int64_t most = quota_.of(wanted ? wanted[n] : Rule::number_of_points(sum));
    if (most == 0) return;

    CostScorer by_cost{*this, object, image, batch_.labels(image)[index], scratch, predictions_.of(image)};
    const float limit = by_cost.limit(count, choices_.of(n, most, -kInfinity));
    BestPoints best = choices_.of(n, most, std::nextafter(-limit, -kInfinity));
    // Few points are looked at first.
    for (float within = rule_.first_limit(limit);;) {
      best.clear();
      by_cost.least = rule_.least_overlap(within);
      scratch.chooser.show_inside(window_within(rule_.limit_of_place(within)), 0.0f, by_cost, best);
      const float wider = std::min(limit, -best.bar());
      if (!(wider > within)) return;
      within = wider;
    }
  }

  const ChoiceLists& choices() const { return choices_; }

  // Gives contested points to the objects that they cost least; equal costs: the lower index.
  void contest(int64_t image, const int32_t* points, const int32_t* end, const Holdings& held, Scratch& scratch) const {
    const Objects objects = batch_.ranked(image);
    const int64_t* const labels = batch_.labels(image);
    const Predictions::OfImage predictions = predictions_.of(image);
    for (; points != end; ++points) {
      const int32_t point = *points;
      const Box predicted = predictions[point];
      float best = -held.score[point];
      const int64_t count =
          overlapping(objects, {0, 1, objects.count, 0}, predicted, rule_.least_overlap(best), scratch.found.data());
      for (int64_t i = 0; i < count; ++i) {
        const Object rival = objects[scratch.found[i]];
        const float overlap = iou_of(predicted, predictions.area[point], rival.box, rival.area);
        const float of_overlap = rule_.cost_of_overlap(overlap);
        const float of_place = rule_.cost_of_place(rival.box, places_.stride[point], places_[point]);
        if (of_overlap + of_place > best) continue;  // classes never cost less than 0
        const float score = scores_.score(image, point, labels[rival.index]);
        const float of_class = rule_.cost_of_class(scores_.sum(image, point, scratch.classes.data()), score, overlap);
        const float cost = (of_class + of_overlap) + of_place;
        if (!(cost < best || (cost == best && rival.index < held.owner[point]))) continue;
        best = cost;
        held.owner[point] = rival.index;
        held.claim[point] = overlap;
      }
    }
  }

 private:
  struct OverlapScorer {
    Predictions::OfImage predictions;
    Box box;
    float area, least = 0.0f;

    void score(const int32_t* points, int64_t count, BestPoints& best) {
      for (int64_t i = 0; i < count; ++i) {
        const float overlap = iou_of(predictions[points[i]], predictions.area[points[i]], box, area);
        if (overlap >= best.bar()) best.offer({overlap, points[i], overlap});
      }
      least = std::max(least, best.bar() * kRoom);
    }
  };

  // Scores are costs below 0, claims are overlaps. Who may cost least comes first, until even that is too much: few are
  // asked for their sum over classes.
  struct CostScorer {
    const DynamicKAssigner& of;
    Object object;
    int64_t image, label;
    Scratch& scratch;
    Predictions::OfImage predictions;
    Box box = object.box;
    float least = -1.0f;

    void score(const int32_t* points, int64_t count, BestPoints& best) {
      Candidate* const candidates = scratch.candidates.data();
      int64_t num_candidates = 0;
      const uint8_t* const pool = of.pool_ + image * of.grid_.num_points;
      for (int64_t i = 0; i < count; ++i) of.scores_.prefetch(image, points[i], label);
      for (int64_t begin = 0; begin < count; begin += kLanes) {
        const int64_t left = std::min(count - begin, kLanes);
        CostLanes& lanes = scratch.lanes[begin / kLanes];
        of.scores_.read_raw(image, points + begin, left, label, lanes.raw);
        for (int64_t i = 0; i < left; ++i) describe(points[begin + i], lanes, i);
        find_costs(of.rule_, object, of.scores_.has_objectness(), lanes);
        for (int64_t i = 0; i < left; ++i) {
          if (!(lanes.least[i] <= -best.bar()) || !pool[points[begin + i]]) continue;
          candidates[num_candidates++] = {lanes.least[i], static_cast<int32_t>(begin + i)};
        }
      }
      std::make_heap(candidates, candidates + num_candidates);
      const float bar = best.bar();
      for (; num_candidates > 0 && candidates[0].least <= -best.bar(); --num_candidates) {
        const int32_t place = candidates[0].place, point = points[place];
        const CostLanes& lanes = scratch.lanes[place / kLanes];
        std::pop_heap(candidates, candidates + num_candidates);
        if (num_candidates > 1) of.scores_.prefetch(image, points[candidates[0].place]);
        const float sum = of.scores_.sum(image, point, scratch.classes.data());
        best.offer({-lanes.cost(of.rule_, place % kLanes, sum), point, lanes.overlap[place % kLanes]});
      }
      if (best.bar() > bar) least = std::max(least, of.rule_.least_overlap(-best.bar()));
    }

    void describe(int32_t point, CostLanes& lanes, int64_t i) const {
      const Box predicted = predictions[point];
      lanes.x1[i] = predicted.x1;
      lanes.y1[i] = predicted.y1;
      lanes.x2[i] = predicted.x2;
      lanes.y2[i] = predicted.y2;
      lanes.area[i] = predictions.area[point];
      lanes.x[i] = of.places_.x[point];
      lanes.y[i] = of.places_.y[point];
      lanes.stride[i] = of.places_.stride[point];
      lanes.objectness[i] = of.scores_.objectness(image, point);
      lanes.sum[i] = std::max(0.0f, of.scores_.known_sum(image, point));
    }

    // What an object's dearest choice costs at most: as if it chose among the points of its best overlaps alone.
    float limit(int32_t num_overlaps, BestPoints best) {
      int32_t points[kMostChosen];
      for (int32_t i = 0; i < num_overlaps; ++i) points[i] = scratch.best_overlaps[i].point;
      score(points, num_overlaps, best);
      return -best.bar();
    }
  };

  const Rule& rule_;
  const Grid& grid_;
  Places places_;
  const ObjectBatch& batch_;
  const Predictions& predictions_;
  const uint8_t* pool_;
  const Scores<Rule>& scores_;
  Quota quota_;
  ChoiceLists choices_;
};

// Marks the points of an image that lie in a window of one of its objects.
template <typename Rule>
void mark_pool(const Rule& rule, const Level& level, const Objects& objects, uint8_t* pool) {
  std::fill_n(pool + level.first_point, level.height * level.width, uint8_t{0});
  for (int64_t k = 0; k < objects.count; ++k)
    for (int i = 0; i < rule.num_windows(); ++i) {
      const Box window = rule.window(objects[k].box, level.stride, i);
      const Span columns = strictly_between(level.x, level.width, window.x1, window.x2);
      const Span rows = strictly_between(level.y, level.height, window.y1, window.y2);
      for (int64_t row = rows.begin; row < rows.end && columns.end > columns.begin; ++row)
        std::fill_n(pool + level.first_point + row * level.width + columns.begin, columns.end - columns.begin,
                    uint8_t{1});
    }
}

struct OnCpu {
  template <typename Rule>
  static std::tuple<Tensor, Tensor> assign(const Rule& rule, const Grid& grid, const DynamicKInputs& given) {
    const Tensor& gt_boxes = given.gt_boxes;
    const int64_t num_images = check_objects(gt_boxes, given.gt_offsets, given.gt_counts), num_points = grid.num_points;
    given.check(num_images, num_points);

    Tensor owner = new_tensor(gt_boxes, {num_images, num_points}, ScalarType::Long);
    Tensor iou = new_tensor(gt_boxes, {num_images, num_points}, ScalarType::Float);
    if (nothing_to_assign(owner, gt_boxes, given.gt_offsets, given.gt_counts)) return {owner, iou};

    ObjectBatch batch(gt_boxes, &given.gt_labels, given.gt_offsets, given.gt_counts);
    batch.check_labels(given.pred_scores.size(2));
    if (owner.numel() == 0) return {owner, iou};
    const int64_t* const wanted = given.wanted ? given.wanted->const_data_ptr<int64_t>() : nullptr;

    const int64_t work = num_images * num_points, num_levels = static_cast<int64_t>(grid.levels.size());
    const auto pool = new_values<uint8_t>(work);
    for (int64_t image = 0; image < num_images; ++image) batch.list(image);
    for_each_unit(num_images * num_levels, threads_for(num_images * num_levels, work), [&](int64_t unit, int64_t) {
      const int64_t image = unit / num_levels;
      mark_pool(rule, grid.levels[unit % num_levels], batch.ranked(image), pool.get() + image * num_points);
    });
    const Predictions predictions(given.pred_boxes, true, pool.get());
    const auto costs = new_values<float>(work);
    Scores<Rule> scores(rule, FloatView<3>(given.pred_scores), given.objectness, num_images, num_points,
                        given.pred_scores.size(2));
    DynamicKAssigner<Rule> assigner(rule, grid, batch, predictions, pool.get(), scores, given.quota);
    const int64_t by_image = threads_for(num_images, work);
    for_each_unit(num_images, by_image, [&](int64_t image, int64_t) { scores.forget(image * num_points, num_points); });

    using Scratch = typename DynamicKAssigner<Rule>::Scratch;
    const int64_t choosing = threads_to_choose(batch, num_points);
    auto scratch =
        scratch_for<Scratch>(choosing, grid, assigner.most_overlaps(), scores.num_classes(), batch.largest_image());
    for_each_unit(batch.num_objects(), choosing,
                  [&](int64_t n, int64_t slot) { assigner.choose(n, wanted, scratch[slot]); });

    const auto held = [&](int64_t image) {
      const int64_t at = image * num_points;
      return Holdings{owner.mutable_data_ptr<int64_t>() + at, costs.get() + at, iou.mutable_data_ptr<float>() + at};
    };
    const std::vector<Chosen> chosen = hand_out(assigner.choices(), batch, num_points, held);
    for_each_contest(chosen, choosing, [&](int64_t image, const int32_t* begin, const int32_t* end, int64_t slot) {
      assigner.contest(image, begin, end, held(image), scratch[slot]);
    });
    for_each_unit(num_images, by_image,
                  [&](int64_t image, int64_t) { ignore_points_in_regions(grid, batch, image, held(image).owner); });
    return {owner, iou};
  }
};

}  // namespace mgassign::cpu
