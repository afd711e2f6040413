// SimOTA and dynamic soft labels: each object chooses the points of a pool that cost it least, as many as its best
// overlaps add up to; a point that several chose goes to the object that it costs least, of all.
//
// Passes, each spread over the threads: the pool; predictions into arrays; objects choose; what was chosen is handed
// out image by image; contests, some points at a time. Sums over classes are taken when a point is first asked for its
// own.
//
// A Rule is SimOta or SoftLabel. Vector code is no template: each has its price() and sum_over_classes().
#pragma once

#include "choose.h"

namespace mgassign::cpu {

// Points and what is known of them, for vector code: their predictions, places, raw scores for an object's class,
// objectness, and sums over classes.
struct Offers {
  float x1[kLanes] = {}, y1[kLanes] = {}, x2[kLanes] = {}, y2[kLanes] = {}, area[kLanes] = {};
  float x[kLanes] = {}, y[kLanes] = {}, stride[kLanes];
  float raw[kLanes] = {}, objectness[kLanes] = {}, sum[kLanes] = {};

  Offers() { std::fill_n(stride, kLanes, 1.0f); }
};

// An object, and what every overlap with it takes.
struct Bidder {
  Box box;
  float area;
};

// What points cost an object, and their overlaps with it.
void price(const SimOta& rule, const Bidder& object, const Offers& offers, bool has_objectness, float* costs,
           float* overlaps);
void price(const SoftLabel& rule, const Bidder& object, const Offers& offers, bool has_objectness, float* costs,
           float* overlaps);

// The sum over classes of what each costs as background.
float sum_over_classes(const SimOta& rule, const float* raw, int64_t num_classes, float objectness,
                       bool has_objectness);
float sum_over_classes(const SoftLabel& rule, const float* raw, int64_t num_classes, float objectness,
                       bool has_objectness);

template <typename Rule>
MGASSIGN_INLINE float score_of(const Rule& rule, float raw, float objectness, bool has_objectness) {
  const float score = rule.sigmoid ? rule.of_logit(raw) : rule.of_probability(raw);
  return has_objectness ? rule.with_objectness(score, objectness) : score;
}

// The same for kLanes of them; what they are is asked before the loops.
template <typename Rule>
MGASSIGN_INLINE void score_lanes(const Rule& rule, const float* raw, const float* objectness, bool has_objectness,
                                 float* scores) {
  if (rule.sigmoid)
    for (int i = 0; i < kLanes; ++i) scores[i] = rule.of_logit(raw[i]);
  else
    for (int i = 0; i < kLanes; ++i) scores[i] = rule.of_probability(raw[i]);
  if (!has_objectness) return;
  for (int i = 0; i < kLanes; ++i) scores[i] = rule.with_objectness(scores[i], objectness[i]);
}

template <typename Rule>
MGASSIGN_INLINE void price_lanes(const Rule& rule, const Bidder& object, const Offers& of, bool has_objectness,
                                 float* costs, float* overlaps) {
  float scores[kLanes], overlap[kLanes], of_class[kLanes], of_overlap[kLanes], of_place[kLanes];
  score_lanes(rule, of.raw, of.objectness, has_objectness, scores);
  for (int i = 0; i < kLanes; ++i)
    overlap[i] = iou_of({of.x1[i], of.y1[i], of.x2[i], of.y2[i]}, of.area[i], object.box, object.area);
  for (int i = 0; i < kLanes; ++i) of_class[i] = rule.cost_of_class(of.sum[i], scores[i], overlap[i]);
  for (int i = 0; i < kLanes; ++i) of_overlap[i] = rule.cost_of_overlap(overlap[i]);
  for (int i = 0; i < kLanes; ++i) of_place[i] = rule.cost_of_place(object.box, of.stride[i], {of.x[i], of.y[i]});
  for (int i = 0; i < kLanes; ++i) costs[i] = (of_class[i] + of_overlap[i]) + of_place[i];
  std::copy_n(overlap, kLanes, overlaps);
}

template <typename Rule>
MGASSIGN_INLINE float sum_lanes(const Rule& rule, const float* raw, int64_t num_classes, float objectness,
                                bool has_objectness) {
  static_assert(Rule::kSums == kLanes);
  float sums[kLanes], products[kLanes], scores[kLanes], objectnesses[kLanes], last[kLanes] = {};
  std::fill_n(sums, kLanes, 0.0f);
  std::fill_n(products, kLanes, 1.0f);
  std::fill_n(objectnesses, kLanes, objectness);
  for (int64_t c = 0; c < num_classes; c += kLanes) {
    const int64_t left = num_classes - c;
    if (left < kLanes) std::copy_n(raw + c, left, last);
    score_lanes(rule, left < kLanes ? last : raw + c, objectnesses, has_objectness, scores);
    for (int64_t i = left; i < kLanes; ++i) scores[i] = Rule::kNothing;
    for (int i = 0; i < kLanes; ++i) rule.add(sums[i], products[i], scores[i]);
    if (c / kLanes % Rule::kFactors == Rule::kFactors - 1)
      for (int i = 0; i < kLanes; ++i) rule.close(sums[i], products[i]);
  }
  for (int i = 0; i < kLanes; ++i) rule.close(sums[i], products[i]);
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) sums[i] += sums[i + half];
  return sums[0];
}

// Where the points of a grid lie, and their levels' strides.
struct Places {
  std::vector<float> x, y, stride;

  explicit Places(const Grid& grid) : x(grid.num_points), y(grid.num_points), stride(grid.num_points) {
    for (const Level& level : grid.levels)
      for (int64_t row = 0, j = level.first_point; row < level.height; ++row)
        for (int64_t column = 0; column < level.width; ++column, ++j) {
          x[j] = level.x.coordinate(column);
          y[j] = level.y.coordinate(row);
          stride[j] = level.stride;
        }
  }
  Location operator[](int32_t point) const { return {x[point], y[point]}; }
};

// Class scores [B, P, C] and objectness [B, P], if any, of one dtype each; sums over classes, known once asked for.
template <typename Rule, typename Element>
class Scores {
 public:
  Scores(const Rule& rule, const Strided<Element, 3>& scores, const std::optional<Tensor>& objectness,
         int64_t num_images, int64_t num_points, int64_t num_classes)
      : rule_(rule),
        scores_(scores),
        num_points_(num_points),
        num_classes_(num_classes),
        objectness_(objectness ? num_images * num_points : 0),
        sums_(new_values<std::atomic<float>>(num_images * num_points)) {
    if (!objectness) return;
    with_strided<2>(*objectness, [&](const auto& view) {
      for (int64_t b = 0; b < num_images; ++b)
        for (int64_t j = 0; j < num_points; ++j)
          objectness_[b * num_points + j] =
              score_of(rule, static_cast<float>(view.data[b * view.stride[0] + j * view.stride[1]]), 0.0f, false);
    });
  }

  bool has_objectness() const { return !objectness_.empty(); }
  float objectness(int64_t image, int32_t point) const {
    return has_objectness() ? objectness_[image * num_points_ + point] : 0.0f;
  }
  float raw(int64_t image, int32_t point, int64_t label) const {
    return static_cast<float>(at(image, point)[label * scores_.stride[2]]);
  }
  void forget(int64_t first, int64_t count) {
    for (int64_t i = first; i < first + count; ++i) sums_[i].store(-1.0f, std::memory_order_relaxed);
  }
  // Threads that ask at once both find it out, and find the same. `classes` has room for one score of each.
  float sum(int64_t image, int32_t point, float* classes) const {
    std::atomic<float>& known = sums_[image * num_points_ + point];
    float sum = known.load(std::memory_order_relaxed);
    if (sum >= 0.0f) return sum;
    const Element* const own = at(image, point);
    const float* of_classes = classes;
    if (std::is_same_v<Element, float> && scores_.stride[2] == 1)
      of_classes = reinterpret_cast<const float*>(own);
    else
      for (int64_t c = 0; c < num_classes_; ++c) classes[c] = static_cast<float>(own[c * scores_.stride[2]]);
    sum = sum_over_classes(rule_, of_classes, num_classes_, objectness(image, point), has_objectness());
    known.store(sum, std::memory_order_relaxed);
    return sum;
  }
  int64_t num_classes() const { return num_classes_; }

 private:
  const Element* at(int64_t image, int32_t point) const {
    return scores_.data + image * scores_.stride[0] + point * scores_.stride[1];
  }

  const Rule& rule_;
  Strided<Element, 3> scores_;
  int64_t num_points_, num_classes_;
  std::vector<float> objectness_;               // as the rule has scores
  std::unique_ptr<std::atomic<float>[]> sums_;  // below 0: not known yet
};

template <typename Rule, typename Element>
class DynamicKAssigner {
 public:
  // What a thread needs.
  struct Scratch {
    Chooser chooser;
    std::vector<Choice> best_overlaps;
    std::vector<float> classes;
    std::vector<int32_t> found;

    Scratch(const Grid& grid, int64_t most_overlaps, int64_t num_classes, int64_t most_objects)
        : chooser(grid), best_overlaps(most_overlaps), classes(num_classes), found(most_objects + 1) {}
  };

  DynamicKAssigner(const Rule& rule, const Grid& grid, ObjectBatch& batch, const int64_t* labels,
                   const Predictions& predictions, const uint8_t* pool, Scores<Rule, Element>& scores,
                   const Quota& quota)
      : rule_(rule),
        grid_(grid),
        places_(grid),
        batch_(batch),
        labels_(labels),
        predictions_(predictions),
        pool_(pool),
        scores_(scores),
        quota_(quota),
        choices_(batch.num_objects(), quota.most) {}

  // The best overlaps that an object is asked for: enough to say how many points it chooses, and to bound their cost.
  int64_t most_overlaps() const { return std::max<int64_t>(rule_.best_overlaps, quota_.most); }

  // Lets object n choose as many points as wanted or, below 0, as its overlaps say.
  void choose(int64_t n, const int64_t* wanted, Scratch& scratch) {
    choices_.clear(n);
    if (!batch_.takes_part(n)) return;
    const int64_t image = batch_.image_of(n);
    const Bidder object{batch_.box(n), area_of(batch_.box(n))};

    int32_t count = 0;
    BestPoints overlaps(scratch.best_overlaps.data(), &count, most_overlaps(), 0.0f);
    OverlapScorer by_overlap{predictions_.of(image), object.box, object.area};
    scratch.chooser.show_overlapping(by_overlap, overlaps);
    double sum = 0.0;
    for (int32_t i = 0; i < std::min(count, rule_.best_overlaps); ++i) sum += scratch.best_overlaps[i].score;
    const int64_t most = quota_.of(wanted ? wanted[n] : Rule::number_of_points(sum));
    if (most == 0) return;

    CostScorer scorer{*this, object, image, labels_[n], scratch.classes.data(), predictions_.of(image), object.box};
    const float limit = count < most ? kInfinity : scorer.cost_of(scratch.best_overlaps.data(), count, most);
    BestPoints best = choices_.of(n, most, -kInfinity);
    // Few points are looked at first: as many as chosen show what the others must not exceed.
    for (float within = rule_.first_limit(limit);;) {
      best.clear();
      scorer.least = rule_.least_overlap(within);
      scratch.chooser.show_inside(
          [&](const Level& level) { return rule_.window_within(object.box, level.stride, within); }, 0.0f, scorer,
          best);
      const float worst = -best.bar();
      if (worst <= within) return;
      within = std::min(limit, worst);
    }
  }

  void settle(int64_t image, const Holdings& held, Chosen& chosen) const {
    cpu::settle(choices_, batch_.first(image), batch_.size(image), held, chosen);
  }

  // Gives contested points to the objects that they cost least; equal costs: the lower index.
  void contest(int64_t image, const int32_t* points, const int32_t* end, const Holdings& held, Scratch& scratch) const {
    const Objects objects = batch_.ranked(image);
    const int64_t* const labels = labels_ + batch_.first(image);
    const Predictions::OfImage predictions = predictions_.of(image);
    for (; points != end; ++points) {
      const int32_t point = *points;
      const Box predicted = predictions[point];
      float best = -held.score[point];
      const auto consider = [&](const Object& rival) {
        const float overlap = iou_of(predicted, predictions.area[point], rival.box, rival.area);
        const float of_overlap = rule_.cost_of_overlap(overlap);
        const float of_place = rule_.cost_of_place(rival.box, places_.stride[point], places_[point]);
        if (of_overlap + of_place > best) return;  // classes never cost less than 0
        const float score = score_of(rule_, scores_.raw(image, point, labels[rival.index]),
                                     scores_.objectness(image, point), scores_.has_objectness());
        const float of_class = rule_.cost_of_class(scores_.sum(image, point, scratch.classes.data()), score, overlap);
        const float cost = (of_class + of_overlap) + of_place;
        if (!(cost < best || (cost == best && rival.index < held.owner[point]))) return;
        best = cost;
        held.owner[point] = rival.index;
        held.claim[point] = overlap;
      };
      const int64_t count = touching(predicted, objects, scratch.found.data());
      for (int64_t i = 0; i < count; ++i) consider(objects[scratch.found[i]]);
      if (rule_.cost_of_overlap(0.0f) > best) continue;  // than which no other's overlap costs less
      for (int64_t k = 0; k < objects.count; ++k) consider(objects[k]);
    }
  }

 private:
  struct OverlapScorer {
    Predictions::OfImage predictions;
    Box box;
    float area, least = 0.0f;

    void raise(float bar) { least = bar * 0.9999f; }
    void score(const int32_t* points, int64_t count, float* scores, float* claims) const {
      for (int64_t i = 0; i < count; ++i) {
        scores[i] = iou_of(predictions[points[i]], predictions.area[points[i]], box, area);
        claims[i] = scores[i];
      }
    }
  };

  // Scores are costs below 0, claims are overlaps.
  struct CostScorer {
    const DynamicKAssigner& of;
    Bidder object;
    int64_t image, label;
    float* classes;
    Predictions::OfImage predictions;
    Box box;
    float least = 0.0f;

    void raise(float bar) { least = of.rule_.least_overlap(-bar); }
    void score(const int32_t* points, int64_t count, float* scores, float* overlaps) const {
      const uint8_t* const pool = of.pool_ + image * of.grid_.num_points;
      for (int64_t begin = 0; begin < count; begin += kLanes) {
        const int64_t lanes = std::min(count - begin, kLanes);
        Offers offers;
        for (int64_t i = 0; i < lanes; ++i) {
          const int32_t point = points[begin + i];
          const Box predicted = predictions[point];
          offers.x1[i] = predicted.x1;
          offers.y1[i] = predicted.y1;
          offers.x2[i] = predicted.x2;
          offers.y2[i] = predicted.y2;
          offers.area[i] = predictions.area[point];
          offers.x[i] = of.places_.x[point];
          offers.y[i] = of.places_.y[point];
          offers.stride[i] = of.places_.stride[point];
          if (!pool[point]) continue;
          offers.raw[i] = of.scores_.raw(image, point, label);
          offers.objectness[i] = of.scores_.objectness(image, point);
          offers.sum[i] = of.scores_.sum(image, point, classes);
        }
        float cost[kLanes], overlap[kLanes];
        price(of.rule_, object, offers, of.scores_.has_objectness(), cost, overlap);
        for (int64_t i = 0; i < lanes; ++i) {
          scores[begin + i] = pool[points[begin + i]] ? -cost[i] : -kInfinity;
          overlaps[begin + i] = overlap[i];
        }
      }
    }

    // The k-th lowest cost of some points.
    float cost_of(const Choice* choices, int32_t count, int64_t k) const {
      int32_t points[kMostChosen];
      float scores[kMostChosen], overlaps[kMostChosen];
      for (int32_t i = 0; i < count; ++i) points[i] = choices[i].point;
      score(points, count, scores, overlaps);
      std::nth_element(scores, scores + k - 1, scores + count, std::greater<float>());
      return -scores[k - 1];
    }
  };

  const Rule& rule_;
  const Grid& grid_;
  Places places_;
  const ObjectBatch& batch_;
  const int64_t* labels_;
  const Predictions& predictions_;
  const uint8_t* pool_;
  const Scores<Rule, Element>& scores_;
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

template <typename Rule>
std::tuple<Tensor, Tensor> dynamic_k_assign(const Rule& rule, const Grid& grid, const Tensor& pred_boxes,
                                            const Tensor& pred_scores, const std::optional<Tensor>& objectness,
                                            const Tensor& gt_boxes, const Tensor& gt_labels,
                                            const std::optional<Tensor>& gt_offsets,
                                            const std::optional<std::vector<int64_t>>& gt_counts,
                                            const std::optional<Tensor>& wanted, const Quota& quota) {
  const int64_t num_images = check_objects(gt_boxes, gt_offsets, gt_counts), num_points = grid.num_points;
  check_predictions(pred_boxes, pred_scores, gt_boxes, gt_labels, num_images, num_points);
  if (objectness) check_objectness(*objectness, pred_scores);
  if (wanted) check_property(*wanted, gt_boxes, "wanted");

  Tensor owner = new_tensor(gt_boxes, {num_images, num_points}, ScalarType::Long);
  Tensor iou = new_tensor(gt_boxes, {num_images, num_points}, ScalarType::Float);
  if (owner.numel() == 0) return {owner, iou};

  const int64_t* const labels = gt_labels.const_data_ptr<int64_t>();
  ObjectBatch batch(gt_boxes.const_data_ptr<float>(), image_offsets(gt_boxes, gt_offsets, gt_counts), labels);
  check_labels(batch, labels, pred_scores.size(2));
  const int64_t* const counts = wanted ? wanted->const_data_ptr<int64_t>() : nullptr;

  const int64_t work = num_images * num_points, num_levels = static_cast<int64_t>(grid.levels.size());
  const auto pool = new_values<uint8_t>(work);
  for (int64_t image = 0; image < num_images; ++image) batch.list(image);
  for_each_unit(num_images * num_levels, threads_for(num_images * num_levels, work), [&](int64_t unit, int64_t) {
    const int64_t image = unit / num_levels;
    mark_pool(rule, grid.levels[unit % num_levels], batch.ranked(image), pool.get() + image * num_points);
  });
  const Predictions predictions(pred_boxes, threads_for(num_images, 2 * work), pool.get());
  const auto costs = new_values<float>(work);
  with_strided<3>(pred_scores, [&](const auto& class_scores) {
    Scores scores(rule, class_scores, objectness, num_images, num_points, pred_scores.size(2));
    DynamicKAssigner assigner(rule, grid, batch, labels, predictions, pool.get(), scores, quota);
    const int64_t handing = threads_for(num_images, work);
    for_each_unit(num_images, handing, [&](int64_t image, int64_t) { scores.forget(image * num_points, num_points); });

    using Scratch = typename decltype(assigner)::Scratch;
    const int64_t choosing = threads_for(batch.num_objects(), work * batch.num_objects() / num_images / 16);
    auto scratch =
        scratch_for<Scratch>(choosing, grid, assigner.most_overlaps(), scores.num_classes(), batch.largest_image());
    for_each_unit(batch.num_objects(), choosing,
                  [&](int64_t n, int64_t slot) { assigner.choose(n, counts, scratch[slot]); });

    const auto held = [&](int64_t image) {
      const int64_t at = image * num_points;
      return Holdings{owner.mutable_data_ptr<int64_t>() + at, costs.get() + at, iou.mutable_data_ptr<float>() + at};
    };
    std::vector<Chosen> chosen(num_images);
    for (int64_t image = 0; image < num_images; ++image)
      chosen[image].reserve(batch.size(image) * std::min(quota.most, num_points));
    for_each_unit(num_images, handing, [&](int64_t image, int64_t) {
      std::fill_n(held(image).owner, num_points, kBackground);
      std::fill_n(held(image).claim, num_points, 0.0f);
      assigner.settle(image, held(image), chosen[image]);
    });
    for_each_contest(chosen, choosing, [&](int64_t image, const int32_t* begin, const int32_t* end, int64_t slot) {
      assigner.contest(image, begin, end, held(image), scratch[slot]);
    });
    for_each_unit(num_images, handing, [&](int64_t image, int64_t) {
      batch.for_each_region(image, [&](const Box& region) { ignore_points_inside(grid, region, held(image).owner); });
    });
  });
  return {owner, iou};
}

}  // namespace mgassign::cpu
