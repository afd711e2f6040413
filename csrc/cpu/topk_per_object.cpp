// Competition, then selection: each point stands for its best object, each object keeps its k best points.
#include <torch/csrc/stable/library.h>

#include "steps.h"

namespace mgassign::cpu {

TopPointSelector::TopPointSelector(int64_t num_points, int64_t max_objects)
    : num_points_(num_points), contests_(max_objects), heaps_(num_points) {}

void TopPointSelector::run(int64_t* owner, const float* score, const int64_t* k, int64_t num_objects) {
  for (int64_t g = 0; g < num_objects; ++g) contests_[g].candidates = 0;
  for (int64_t j = 0; j < num_points_; ++j)
    if (owner[j] >= 0) ++contests_[owner[j]].candidates;

  // Heaps hold at most one entry per point, whatever k is.
  int64_t start = 0;
  for (int64_t g = 0; g < num_objects; ++g) {
    Contest& contest = contests_[g];
    const int64_t wanted = std::max<int64_t>(k[g], 0);
    contest.capacity = static_cast<int32_t>(std::min<int64_t>(wanted, contest.candidates));
    contest.filled = 0;
    contest.start = start;
    contest.threshold = contest.capacity > 0 ? 0.0f : std::numeric_limits<float>::infinity();
    start += contest.capacity;
  }

  for (int64_t j = 0; j < num_points_; ++j) {
    if (owner[j] < 0) continue;
    Contest& contest = contests_[owner[j]];
    owner[j] = -1;
    // Points come in ascending order, so an equal score never displaces: the lower index stays.
    if (!(score[j] > contest.threshold)) continue;
    ScoredPoint* const heap = heaps_.data() + contest.start;
    if (contest.filled == contest.capacity) {
      std::pop_heap(heap, heap + contest.capacity, ranks_before);
      heap[contest.capacity - 1] = {score[j], static_cast<int32_t>(j)};
    } else {
      heap[contest.filled++] = {score[j], static_cast<int32_t>(j)};
    }
    std::push_heap(heap, heap + contest.filled, ranks_before);
    if (contest.filled == contest.capacity) contest.threshold = heap[0].score;
  }

  for (int64_t g = 0; g < num_objects; ++g)
    for (int32_t i = 0; i < contests_[g].filled; ++i) owner[heaps_[contests_[g].start + i].point] = g;
}

namespace {

// Writes who each point stands for and with what score.
template <typename Element>
void compete(const Strided<Element, 2>& scores, int64_t num_points, int64_t num_objects, const float* areas,
             int64_t* owner, float* best_score) {
  for (int64_t j = 0; j < num_points; ++j) {
    const Element* const row = scores.data + j * scores.stride[0];
    float best = 0.0f;
    int64_t best_object = -1;
    for (int64_t g = 0; g < num_objects; ++g) {
      const float score = static_cast<float>(row[g * scores.stride[1]]);
      const bool tied = score == best && best_object >= 0 && smaller_object(areas[g], g, areas[best_object], best_object);
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
  check(scores.dim() == 2, "scores: expected shape [P, G], got ", shape_of(scores));
  check_floating(scores, "scores");
  const int64_t num_points = scores.size(0), num_objects = scores.size(1);
  check(k.dim() == 1 && k.size(0) == num_objects, "k: expected shape [", num_objects, "], got ", shape_of(k));
  check_packed(k, ScalarType::Long, "k");
  check(areas.dim() == 1 && areas.size(0) == num_objects, "areas: expected shape [", num_objects, "], got ",
        shape_of(areas));
  check_packed(areas, ScalarType::Float, "areas");
  check_point_count(num_points);

  Tensor owners = torch::stable::new_empty(scores, {num_points}, ScalarType::Long);
  int64_t* const owner = owners.mutable_data_ptr<int64_t>();
  const float* const area = areas.const_data_ptr<float>();
  std::vector<float> best_score(num_points);
  with_strided<2>(scores, [&](const auto& view) {
    constexpr int64_t kBlock = 256;
    const int64_t blocks = (num_points + kBlock - 1) / kBlock;
    for_each_unit(blocks, threads_for(blocks, num_points * num_objects), [&](int64_t block, int64_t) {
      const int64_t begin = block * kBlock, count = std::min(kBlock, num_points - begin);
      auto rows = view;
      rows.data += begin * view.stride[0];
      compete(rows, count, num_objects, area, owner + begin, best_score.data() + begin);
    });
  });
  TopPointSelector(num_points, num_objects).run(owner, best_score.data(), k.const_data_ptr<int64_t>(), num_objects);
  return owners;
}

}  // namespace mgassign::cpu

STABLE_TORCH_LIBRARY_IMPL(mgassign, CPU, m) {
  m.impl("topk_per_object", TORCH_BOX(&mgassign::cpu::topk_per_object_cpu));
}
