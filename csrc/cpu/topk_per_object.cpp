// Competition, then selection: each point stands for its best object, each object keeps its k best points.
#include <torch/csrc/stable/library.h>

#include "steps.h"

namespace mgassign::cpu {

// Scores are counted roughly, by their leading bits: eight classes an octave, from 1/16 on. What is lower belongs to
// the lowest class, what is higher to the highest.
constexpr int64_t kClasses = 32;
constexpr uint32_t kClassBits = 20, kLowest = 0x3d800000u >> kClassBits;

static int64_t class_of(float score) {
  return std::clamp<int64_t>(int64_t{bits_of(score) >> kClassBits} - kLowest, 0, kClasses - 1);
}

// What scores of this class exceed.
static float just_below(int64_t of_class) {
  return of_class > 0 ? float_of(((kLowest + static_cast<uint32_t>(of_class)) << kClassBits) - 1) : 0.0f;
}

TopPointSelector::TopPointSelector(int64_t num_points, int64_t max_objects)
    : num_points_(num_points),
      threshold_(max_objects + 1),
      segments_(max_objects),
      num_scoring_(max_objects * kClasses),
      lists_(new_values<ScoredPoint>(2 * num_points)) {}

template <typename Each>
static void for_each_point(const PointSet* points, int64_t num_points, const Each& each) {
  if (points) return points->for_each(num_points, each);
  for (int64_t j = 0; j < num_points; ++j) each(j);
}

// An object considers no more points than stand for it. Those of a class cannot be among them, where the classes above
// hold enough.
void TopPointSelector::prepare(const int64_t* owner, const float* score, const int64_t* considered, int64_t num_objects,
                               const PointSet* standing) {
  int32_t* const num_scoring = num_scoring_.data();
  std::fill_n(num_scoring, num_objects * kClasses, 0);
  for_each_point(standing, num_points_, [&](int64_t j) {
    if (owner[j] >= 0) ++num_scoring[owner[j] * kClasses + class_of(score[j])];
  });
  float* const threshold = threshold_.data() + 1;
  threshold[-1] = kInfinity;
  int64_t start = 0;
  for (int64_t g = 0; g < num_objects; ++g) {
    const int64_t wanted = std::clamp<int64_t>(considered[g], 0, num_points_);
    int64_t found = 0, lowest = kClasses;
    while (lowest > 0 && found < wanted) found += num_scoring[g * kClasses + --lowest];
    const int32_t capacity = static_cast<int32_t>(std::min(wanted, found));
    threshold[g] = capacity > 0 ? just_below(lowest) : kInfinity;
    segments_[g] = {start, capacity, 0};
    start += 2 * int64_t{capacity};
  }
}

// Moves the best `count` of a list, which has more, to its front; the worst of these is the last.
static void keep_best(ScoredPoint* list, int32_t count, int32_t size) {
  if (count == 0) return;
  // A lambda, so that it is inlined.
  std::nth_element(list, list + count - 1, list + size,
                   [](const ScoredPoint& a, const ScoredPoint& b) { return ranks_before(a, b); });
}

void TopPointSelector::run(int64_t* owner, float* score, const int64_t* k, int64_t num_objects,
                           const int64_t* considered, const PointSet* standing) {
  prepare(owner, score, considered ? considered : k, num_objects, standing);
  float* const threshold = threshold_.data() + 1;
  for_each_point(standing, num_points_, [&](int64_t j) {
    const int64_t g = owner[j];
    const float scored = score[j];
    owner[j] = kBackground;
    score[j] = 0.0f;
    // Points come in ascending order, so an equal score never displaces: the lower index stays.
    if (!(scored > threshold[g])) return;
    Segment& segment = segments_[g];
    ScoredPoint* const list = lists_.get() + segment.start;
    list[segment.filled++] = {scored, static_cast<int32_t>(j)};
    if (segment.filled < 2 * int64_t{segment.capacity}) return;
    keep_best(list, segment.capacity, segment.filled);
    segment.filled = segment.capacity;
    threshold[g] = list[segment.capacity - 1].score;
  });

  for (int64_t g = 0; g < num_objects; ++g) {
    ScoredPoint* const list = lists_.get() + segments_[g].start;
    const int32_t in_list = std::min(segments_[g].filled, segments_[g].capacity);
    const int32_t kept = static_cast<int32_t>(std::min<int64_t>(in_list, std::max<int64_t>(k[g], 0)));
    if (in_list < segments_[g].filled) keep_best(list, in_list, segments_[g].filled);
    if (kept < in_list) keep_best(list, kept, in_list);
    for (int32_t i = 0; i < kept; ++i) {
      owner[list[i].point] = g;
      score[list[i].point] = list[i].score;
    }
    for (int32_t i = kept; i < in_list; ++i) owner[list[i].point] = kIgnored;
  }
}

namespace {

// Writes who each point stands for and with what score.
void compete(const FloatView<2>& scores, int64_t first_point, int64_t num_points, int64_t num_objects,
             const float* areas, int64_t* owner, float* best_score) {
  for (int64_t j = 0; j < num_points; ++j) {
    const int64_t row = (first_point + j) * scores.stride[0];
    float best = 0.0f;
    int64_t best_object = -1;
    for (int64_t g = 0; g < num_objects; ++g) {
      const float score = scores.at(row + g * scores.stride[1]);
      const bool tied =
          score == best && best_object >= 0 && smaller_object(areas[g], g, areas[best_object], best_object);
      if (score > best || tied) {
        best = score;
        best_object = g;
      }
    }
    owner[j] = best_object;
    best_score[j] = best;
  }
}

}  // namespace

Tensor topk_per_object_cpu(const Tensor& scores, const Tensor& k, const Tensor& areas) {
  check_contest(scores, k, areas);
  const int64_t num_points = scores.size(0), num_objects = scores.size(1);

  Tensor owners = new_tensor(scores, {num_points}, ScalarType::Long);
  int64_t* const owner = owners.mutable_data_ptr<int64_t>();
  const float* const area = areas.const_data_ptr<float>();
  const std::unique_ptr<float[]> best_score = new_values<float>(num_points);
  const FloatView<2> view(scores);
  constexpr int64_t kBlock = 256;
  const int64_t blocks = (num_points + kBlock - 1) / kBlock;
  for_each_unit(blocks, threads_for(blocks, num_points * num_objects), [&](int64_t block, int64_t) {
    const int64_t begin = block * kBlock, count = std::min(kBlock, num_points - begin);
    compete(view, begin, count, num_objects, area, owner + begin, best_score.get() + begin);
  });
  TopPointSelector(num_points, num_objects).run(owner, best_score.get(), k.const_data_ptr<int64_t>(), num_objects);
  return owners;
}

}  // namespace mgassign::cpu

STABLE_TORCH_LIBRARY_IMPL(mgassign, CPU, m) { m.impl("topk_per_object", MGASSIGN_OPERATOR(topk_per_object_cpu)); }
