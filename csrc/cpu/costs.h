// What points cost an object, kLanes of them at a time: first the least that they may cost, for which the score of the
// object's own class is enough; the sum over all classes, which takes long, is asked of those alone that may be chosen.
//
// Places and Scores hold what costs are computed from.
//
// A Rule is SimOta or SoftLabel. Vector code is no template: each has its find_costs() and sum_over_classes().
#pragma once

#include "choose.h"

namespace mgassign::cpu {

struct CostLanes {
  // What is known of the points: predictions, places, raw scores for the object's class, raw objectness, and sums over
  // classes, 0 where they are not known yet.
  float x1[kLanes], y1[kLanes], x2[kLanes], y2[kLanes], area[kLanes];
  float x[kLanes], y[kLanes];
  double stride[kLanes];
  float raw[kLanes], objectness[kLanes], sum[kLanes];
  // What find_costs() finds: scores, overlaps, what overlap and place cost, and the least that all may cost.
  float score[kLanes], overlap[kLanes], of_overlap[kLanes], of_place[kLanes], least[kLanes];

  // What one costs with its sum over classes: no less than the least.
  template <typename Rule>
  MGASSIGN_INLINE float cost(const Rule& rule, int64_t i, float sum) const {
    return (rule.cost_of_class(sum, score[i], overlap[i]) + of_overlap[i]) + of_place[i];
  }
};

void find_costs(const SimOta& rule, const Object& object, bool has_objectness, CostLanes& lanes);
void find_costs(const SoftLabel& rule, const Object& object, bool has_objectness, CostLanes& lanes);

// The sum over classes of what each costs as background.
float sum_over_classes(const SimOta& rule, const float* raw, int64_t num_classes, bool has_objectness,
                       float objectness);
float sum_over_classes(const SoftLabel& rule, const float* raw, int64_t num_classes, bool has_objectness,
                       float objectness);

template <typename Rule>
MGASSIGN_INLINE float score_of(const Rule& rule, float raw) {
  return rule.sigmoid ? rule.of_logit(raw) : rule.of_probability(raw);
}

// Calls each(i, score) for kLanes raw scores, with what objectness, if any, makes of them; what they are is asked
// before the loops.
template <typename Rule, typename Each>
MGASSIGN_INLINE void score_lanes(const Rule& rule, const float* raw, const float* objectness, const Each& each) {
  if (rule.sigmoid && objectness)
    for (int i = 0; i < kLanes; ++i) each(i, rule.with_objectness(rule.of_logit(raw[i]), objectness[i]));
  else if (rule.sigmoid)
    for (int i = 0; i < kLanes; ++i) each(i, rule.of_logit(raw[i]));
  else
    for (int i = 0; i < kLanes; ++i) {
      const float score = rule.of_probability(raw[i]);
      each(i, objectness ? rule.with_objectness(score, objectness[i]) : score);
    }
}

template <typename Rule>
MGASSIGN_INLINE void cost_lanes(const Rule& rule, const Object& object, bool has_objectness, CostLanes& of) {
  CostLanes found;  // its arrays are nobody else's, which compilers cannot know of those of `of`
  if (has_objectness)
    score_lanes(rule, of.objectness, nullptr,
                [&](int i, float score) MGASSIGN_INLINE_LAMBDA { found.objectness[i] = score; });
  score_lanes(rule, of.raw, has_objectness ? found.objectness : nullptr,
              [&](int i, float score) MGASSIGN_INLINE_LAMBDA { found.score[i] = score; });
  for (int i = 0; i < kLanes; ++i)
    found.overlap[i] = iou_of({of.x1[i], of.y1[i], of.x2[i], of.y2[i]}, of.area[i], object.box, object.area);
  for (int i = 0; i < kLanes; ++i) found.of_overlap[i] = rule.cost_of_overlap(found.overlap[i]);
  for (int i = 0; i < kLanes; ++i) found.of_place[i] = rule.cost_of_place(object.box, of.stride[i], {of.x[i], of.y[i]});
  for (int i = 0; i < kLanes; ++i) of.least[i] = found.cost(rule, i, of.sum[i]);
  std::copy_n(found.score, kLanes, of.score);
  std::copy_n(found.overlap, kLanes, of.overlap);
  std::copy_n(found.of_overlap, kLanes, of.of_overlap);
  std::copy_n(found.of_place, kLanes, of.of_place);
}

template <typename Rule>
MGASSIGN_INLINE float sum_lanes(const Rule& rule, const float* raw, int64_t num_classes, bool has_objectness,
                                float objectness) {
  static_assert(Rule::kSums == kLanes);
  float sums[kLanes], products[kLanes], seen[kLanes], last[kLanes];
  std::fill_n(sums, kLanes, 0.0f);
  std::fill_n(products, kLanes, 1.0f);
  if (has_objectness) std::fill_n(seen, kLanes, score_of(rule, objectness));
  for (int64_t c = 0; c < num_classes; c += kLanes) {
    const int64_t left = num_classes - c;
    if (left < kLanes) {
      std::fill_n(last, kLanes, -kInfinity);  // costs nothing
      std::copy_n(raw + c, left, last);
    }
    score_lanes(rule, left < kLanes ? last : raw + c, has_objectness ? seen : nullptr,
                [&](int i, float score) MGASSIGN_INLINE_LAMBDA { rule.add(sums[i], products[i], score); });
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
  std::vector<float> x, y;
  std::vector<double> stride;

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
template <typename Rule>
class Scores {
 public:
  Scores(const Rule& rule, const FloatView<3>& scores, const std::optional<Tensor>& objectness, int64_t num_images,
         int64_t num_points, int64_t num_classes)
      : rule_(rule),
        scores_(scores),
        num_points_(num_points),
        num_classes_(num_classes),
        objectness_(objectness ? num_images * num_points : 0),
        sums_(new_values<std::atomic<float>>(num_images * num_points)) {
    if (!objectness) return;
    const FloatView<2> view(*objectness);
    for (int64_t b = 0; b < num_images; ++b)
      view.read(b * view.stride[0], view.stride[1], num_points, objectness_.data() + b * num_points);
  }

  int64_t num_classes() const { return num_classes_; }
  bool has_objectness() const { return !objectness_.empty(); }
  // As they came.
  float objectness(int64_t image, int32_t point) const {
    return has_objectness() ? objectness_[image * num_points_ + point] : 0.0f;
  }
  void read_raw(int64_t image, const int32_t* points, int64_t count, int64_t label, float* raw) const {
    scores_.read(image * scores_.stride[0] + label * scores_.stride[2], scores_.stride[1], points, count, raw);
  }
  float score(int64_t image, int32_t point, int64_t label) const {
    const float score = score_of(rule_, scores_.at(place(image, point) + label * scores_.stride[2]));
    return has_objectness() ? rule_.with_objectness(score, score_of(rule_, objectness(image, point))) : score;
  }
  // Soon asked for: its score, all its scores.
  void prefetch(int64_t image, int32_t point, int64_t label) const {
    scores_.prefetch(place(image, point) + label * scores_.stride[2]);
  }
  void prefetch(int64_t image, int32_t point) const {
    const int64_t line = 64 / scores_.bytes_of_one();
    if (scores_.stride[2] != 1) return;
    for (int64_t c = 0; c < num_classes_; c += line) scores_.prefetch(place(image, point) + c);
  }
  void forget(int64_t first, int64_t count) {
    for (int64_t i = first; i < first + count; ++i) sums_[i].store(-1.0f, std::memory_order_relaxed);
  }
  // Below 0: not known yet.
  float known_sum(int64_t image, int32_t point) const {
    return sums_[image * num_points_ + point].load(std::memory_order_relaxed);
  }
  // Threads that ask at once both find it out, and find the same. `classes` has room for one score of each.
  float sum(int64_t image, int32_t point, float* classes) const {
    std::atomic<float>& known = sums_[image * num_points_ + point];
    float sum = known.load(std::memory_order_relaxed);
    if (sum >= 0.0f) return sum;
    const float* of_classes = classes;
    if (scores_.is_float32() && scores_.stride[2] == 1)
      of_classes = scores_.float32() + place(image, point);
    else
      scores_.read(place(image, point), scores_.stride[2], num_classes_, classes);
    sum = sum_over_classes(rule_, of_classes, num_classes_, has_objectness(), objectness(image, point));
    known.store(sum, std::memory_order_relaxed);
    return sum;
  }

 private:
  // Where a point's scores are.
  int64_t place(int64_t image, int32_t point) const { return image * scores_.stride[0] + point * scores_.stride[1]; }

  const Rule& rule_;
  FloatView<3> scores_;
  int64_t num_points_, num_classes_;
  std::vector<float> objectness_;
  std::unique_ptr<std::atomic<float>[]> sums_;  // below 0: not known yet
};

}  // namespace mgassign::cpu
