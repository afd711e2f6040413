// SimOTA and dynamic soft labels in three launches, for up to 256 images at a time:
//   1. prepare, a warp for each tile of points: nobody's, unless they lie in a region; which of them are in the pool,
//      the sums over classes of those, and the box around their predictions;
//   2. choose, a block for each object: the best overlaps, found in the tiles whose predictions it touches, say how
//      many points it chooses; its threads work out what the points of a window cost, a window that widens until no
//      other point can cost as little, and the cheapest are kept in shared memory;
//   3. contest, a warp for each choice: a point that several chose goes to the object that it costs least, of all. Of
//      those that chose it, the one that it costs least sees to it.
//
// A Rule is SimOta or SoftLabel.
#include "../dynamic_k_operators.h"
#include "choose.cuh"

namespace mgassign::cuda::dynamic_k {

constexpr int kPreparers = 128;  // threads of a block that prepares points
constexpr int kBlocks = 7;       // of a multiprocessor: registers enough for each thread

template <typename Rule>
struct DynamicKTask : ChooseTask {
  Rule rule;
  const int64_t* wanted;  // [N]: how many points an object chooses; null: as its overlaps say
  Quota quota;
  FloatView<3> pred_boxes, pred_scores;
  FloatView<2> objectness;  // of no data: there is none
  int64_t num_classes, num_tiles;
  unsigned long long* best;  // [B, P]: claim_key() of the object that chose the point and that it costs least; 0: none
  Box* around;               // [B, tiles]: the box around what a tile's points of the pool predict
  float* sum;                // [B, P]: over classes, of points in the pool; infinite elsewhere
  Choice* choices;           // [N, quota.most]; scores are costs below 0, claims are overlaps
  int32_t* num_chosen;       // [N]

  __device__ bool in_pool(int64_t image, int32_t point) const { return sum[image * num_points + point] < kInfinity; }
  // How many objects chose a point: until the contest it stands where the overlap will.
  __device__ int32_t* count(int64_t place) const { return reinterpret_cast<int32_t*>(iou) + place; }

  // What is no box is empty: it overlaps nothing.
  __device__ Box predicted(int64_t image, int32_t point) const {
    const Box box = pred_boxes.box_of_point(image, point);
    return is_valid(box) ? box : Box{0.0f, 0.0f, 0.0f, 0.0f};
  }

  // How sure a point is that it sees an object at all, as the rule has scores.
  __device__ float objectness_of(int64_t image, int32_t point) const {
    if (!objectness.data) return 0.0f;
    return plain_score(objectness.at(image * objectness.stride[0] + point * objectness.stride[1]));
  }
  __device__ float score(float raw, float objectness_of_point) const {
    return objectness.data ? rule.with_objectness(plain_score(raw), objectness_of_point) : plain_score(raw);
  }
  __device__ float plain_score(float raw) const { return rule.sigmoid ? rule.of_logit(raw) : rule.of_probability(raw); }
};

// A point of the pool, as objects look at it.
template <typename Rule>
struct PoolPoint {
  int64_t image;
  int32_t point;
  Box box;
  float area;

  __device__ PoolPoint(const DynamicKTask<Rule>& t, int64_t image, int32_t point)
      : image(image), point(point), box(t.predicted(image, point)), area(area_of(box)) {}
};

// An object, as a block or a warp works for it.
template <typename Rule>
struct Objective {
  bool takes_part;
  int32_t index;  // within its image
  Box box;
  float area;
  int64_t scores;  // where its class's scores of the image begin, -1 where there is no such class

  __device__ Objective(const DynamicKTask<Rule>& t, int64_t image, int64_t first_row, int32_t index)
      : index(index), box(object_box(t.gt_boxes, first_row + index)), area(area_of(box)) {
    const int64_t label = t.gt_labels[first_row + index];
    takes_part = takes_part_in_contests(box, label);
    scores = scores_of_class(t.pred_scores, image, label, t.num_classes);
  }

  // The negative of what a point costs; of infinity where that is more than `most` anyway, or no number.
  __device__ float negative_cost(const DynamicKTask<Rule>& t, const PoolPoint<Rule>& point, float overlap,
                                 float most) const {
    const Level& level = level_of(t.levels, point.point);
    const float of_overlap = t.rule.cost_of_overlap(overlap);
    const float of_place = t.rule.cost_of_place(box, level.stride, level.location_of(point.point));
    if (of_overlap + of_place > most) return -kInfinity;  // classes never cost less than 0
    const float nothing = t.rule.sigmoid ? -kInfinity : 0.0f;
    const float raw = scores < 0 ? nothing : t.pred_scores.at(scores + point.point * t.pred_scores.stride[1]);
    const float score = t.score(raw, t.objectness_of(point.image, point.point));
    const float of_class = t.rule.cost_of_class(t.sum[point.image * t.num_points + point.point], score, overlap);
    const float cost = (of_class + of_overlap) + of_place;
    return cost < kInfinity ? 0.0f - cost : -kInfinity;  // of the two zeros, the same for all
  }
};

// What all classes of a point cost as background: half a warp takes a sum each. All lanes call it.
template <typename Rule>
__device__ float sum_over_classes(const DynamicKTask<Rule>& t, int64_t image, int32_t point) {
  const int own = threadIdx.x % Rule::kSums;
  const float objectness = t.objectness_of(image, point);
  const int64_t at = image * t.pred_scores.stride[0] + point * t.pred_scores.stride[1];
  float sum = 0.0f, product = 1.0f;
  int round = 0;
  for (int64_t base = 0; base < t.num_classes; base += Rule::kSums, ++round) {
    if (base + own < t.num_classes)
      t.rule.add(sum, product, t.score(t.pred_scores.at(at + (base + own) * t.pred_scores.stride[2]), objectness));
    if (round % Rule::kFactors == Rule::kFactors - 1) t.rule.close(sum, product);
  }
  t.rule.close(sum, product);
  for (int half = Rule::kSums / 2; half > 0; half /= 2) sum += __shfl_xor_sync(kAllLanes, sum, half);
  return sum;
}

// Whether a point, one for each lane of a tile, lies in a window of one of the objects. All lanes call it.
template <typename Rule>
__device__ bool is_in_pool(const DynamicKTask<Rule>& t, const ObjectRows::Rows& rows, const Place& place) {
  const int lane = threadIdx.x % kWarp;
  const double stride = t.levels.level[place.level].stride;
  bool found = false;
  for (int32_t base = 0; base < rows.count; base += kWarp) {
    if (__all_sync(kAllLanes, found || !place.exists)) break;
    Box box{};
    bool takes_part = false;
    if (base + lane < rows.count) {
      box = object_box(t.gt_boxes, rows.first + base + lane);
      takes_part = takes_part_in_contests(box, t.gt_labels[rows.first + base + lane]);
    }
    for (int i = 0; i < t.rule.num_windows(); ++i) {
      const Box own = t.rule.window(box, stride, i);
      unsigned near = __ballot_sync(kAllLanes, takes_part && touches(own, place.tile));
      for (; near; near &= near - 1) {
        const int whose = __ffs(near) - 1;
        const Box window{__shfl_sync(kAllLanes, own.x1, whose), __shfl_sync(kAllLanes, own.y1, whose),
                         __shfl_sync(kAllLanes, own.x2, whose), __shfl_sync(kAllLanes, own.y2, whose)};
        found |= strictly_inside(place.at, window);
      }
    }
  }
  return found && place.exists;
}

template <typename Rule>
__global__ void __launch_bounds__(kPreparers, kBlocks)
    dynamic_k_prepare_kernel(const __grid_constant__ DynamicKTask<Rule> t) {
  static_assert(2 * Rule::kSums == kWarp);
  const int lane = threadIdx.x % kWarp;
  const uint32_t tile = blockIdx.x * (kPreparers / kWarp) + threadIdx.x / kWarp;
  if (tile >= t.num_tiles) return;
  const int64_t image = t.objects.first_image + blockIdx.y;
  const ObjectRows::Rows rows = t.objects.of(image);
  const Place place = place_of(t.levels, tile, lane);
  const int32_t point = place.exists ? place.point : 0;
  const int64_t owner = owner_in_regions(t.levels, rows, t.gt_boxes, t.gt_labels, point);
  const bool in_pool = is_in_pool(t, rows, place);

  float sum = kInfinity;
  for (unsigned left = __ballot_sync(kAllLanes, in_pool); left;) {  // two at a time
    const int first = __ffs(left) - 1;
    left &= left - 1;
    const int second = left ? __ffs(left) - 1 : first;
    left &= left - 1;
    const int whose = lane < Rule::kSums ? first : second;
    const float of_pair = sum_over_classes(t, image, __shfl_sync(kAllLanes, point, whose));
    const float of_first = __shfl_sync(kAllLanes, of_pair, 0), of_second = __shfl_sync(kAllLanes, of_pair, Rule::kSums);
    if (lane == first) sum = of_first;
    if (lane == second) sum = of_second;
  }

  const Box predicted = t.predicted(image, point);
  const Box around = bounds_of_warp(predicted, in_pool && is_valid(predicted));
  if (lane == 0) t.around[image * t.num_tiles + tile] = around;
  if (!place.exists) return;
  const int64_t at = image * t.num_points + point;
  t.owner[at] = owner;
  t.best[at] = 0;
  *t.count(at) = 0;
  t.sum[at] = sum;
}

// Leaves in the list the points of the pool whose predictions overlap an object most. All threads of the block call it.
template <typename Rule>
__device__ void find_best_overlaps(const DynamicKTask<Rule>& t, int64_t image, const Objective<Rule>& own,
                                   TopList& list, int32_t most) {
  __shared__ int32_t near[kChoosers], num_near;
  float bar = 0.0f;
  const auto offer = [&](int32_t number, Choice& mine) {
    const Place place = place_of(t.levels, near[number / kWarp], number % kWarp);
    if (!place.exists || !t.in_pool(image, place.point)) return false;
    const PoolPoint<Rule> candidate(t, image, place.point);
    mine.point = place.point;
    mine.score = mine.claim = iou_of(candidate.box, candidate.area, own.box, own.area);
    return mine.score > 0.0f && mine.score >= bar;
  };
  list.clear();
  for (uint32_t base = 0; base < t.num_tiles; base += kChoosers) {
    if (threadIdx.x == 0) num_near = 0;
    __syncthreads();
    const uint32_t tile = base + threadIdx.x;
    if (tile < t.num_tiles && touches(t.around[image * t.num_tiles + tile], own.box))
      near[atomicAdd(&num_near, 1)] = static_cast<int32_t>(tile);
    __syncthreads();
    list.take(num_near * kWarp, most, offer, [&](float last) { bar = last; });
    __syncthreads();  // nobody still asks how many are near
  }
}

// Leaves in the list the points of the pool that cost an object least; there are `most` that cost `limit` or less. All
// threads of the block call it.
template <typename Rule>
__device__ void find_cheapest(const DynamicKTask<Rule>& t, int64_t image, const Objective<Rule>& own, TopList& list,
                              int32_t most, float limit) {
  __shared__ Window window;
  // Few points are looked at first: as many as chosen show what the others must not exceed.
  for (float within = t.rule.first_limit(limit);;) {
    const float of_place = t.rule.limit_of_place(within);
    const auto reach = [&](const Level& level) { return t.rule.window_within(own.box, level.stride, of_place); };
    window.open(t.levels, reach, 0.0f);
    float worst = kInfinity, least = t.rule.least_overlap(within);
    const auto offer = [&](int32_t number, Choice& mine) {
      mine.point = window.point(t.levels, number);
      if (!t.in_pool(image, mine.point)) return false;
      const PoolPoint<Rule> candidate(t, image, mine.point);
      const Overlap both = overlap_of(candidate.box, candidate.area, own.box, own.area);
      if (both.intersection <= least_in_common(least, both.total)) return false;
      mine.claim = both.iou();
      mine.score = own.negative_cost(t, candidate, mine.claim, worst);
      return mine.score > -kInfinity && mine.score >= -worst;
    };
    const int32_t count = window.count(t.levels);
    list.clear();  // all know by now how many there are: the next window may open
    list.take(count, most, offer, [&](float last) {
      worst = -last;
      least = larger(least, t.rule.least_overlap(worst));
    });
    const float wider = smaller(limit, worst);
    if (!(wider > within)) return;
    within = wider;
  }
}

template <typename Rule>
__global__ void __launch_bounds__(kChoosers, kBlocks)
    dynamic_k_choose_kernel(const __grid_constant__ DynamicKTask<Rule> t) {
  static_assert(kChoosers >= kMostChosen, "a thread for each of the best overlaps");
  __shared__ TopList list;
  __shared__ int32_t number;
  const ChooseTask::ObjectOfBlock block = t.object_of_block();
  if (block.image < 0) return;
  const Objective<Rule> own(t, block.image, block.rows.first, block.index());
  if (threadIdx.x == 0) t.num_chosen[block.row] = 0;
  if (!own.takes_part) return;

  // The best overlaps are enough to say how many points are chosen, and to bound what they cost.
  const int32_t quota = static_cast<int32_t>(t.quota.most);
  find_best_overlaps(t, block.image, own, list, quota > t.rule.best_overlaps ? quota : t.rule.best_overlaps);
  const int32_t count = list.count;
  if (threadIdx.x == 0) {
    double sum = 0.0;
    for (int32_t i = 0; i < count && i < t.rule.best_overlaps; ++i) sum += list.choices[i].score;
    number = static_cast<int32_t>(t.quota.of(t.wanted ? t.wanted[block.row] : Rule::number_of_points(sum)));
  }
  __syncthreads();
  const int32_t most = number;
  if (most == 0) return;

  float limit = kInfinity;
  if (count >= most) {
    Choice known{-kInfinity, 0, 0.0f};
    if (static_cast<int32_t>(threadIdx.x) < count) {
      known = list.choices[threadIdx.x];
      known.score = own.negative_cost(t, PoolPoint<Rule>(t, block.image, known.point), known.claim, kInfinity);
    }
    list.clear();
    const auto offer = [&](int32_t, Choice& mine) {
      mine = known;
      return known.score > -kInfinity;
    };
    list.take(count, most, offer, [&](float last) { limit = -last; });
  }
  find_cheapest(t, block.image, own, list, most, limit);
  for (int32_t i = threadIdx.x; i < list.count; i += kChoosers) {
    const Choice choice = list.choices[i];
    const int64_t place = block.image * t.num_points + choice.point;
    t.choices[block.row * quota + i] = choice;
    atomicMax(&t.best[place], claim_key(choice.score, own.index));
    atomicAdd(t.count(place), 1);
  }
  if (threadIdx.x == 0) t.num_chosen[block.row] = list.count;
}

template <typename Rule>
__global__ void __launch_bounds__(kChoosers, kBlocks)
    dynamic_k_contest_kernel(const __grid_constant__ DynamicKTask<Rule> t) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const ChooseTask::ObjectOfBlock block = t.object_of_block();
  if (block.image < 0) return;
  for (int32_t i = warp; i < t.num_chosen[block.row]; i += kChoosers / kWarp) {
    const Choice choice = t.choices[block.row * t.quota.most + i];
    const int64_t place = block.image * t.num_points + choice.point;
    unsigned long long best = claim_key(choice.score, block.index());
    if (t.best[place] != best) continue;  // another one's to see to
    float overlap = choice.claim;
    if (*t.count(place) > 1) {
      const PoolPoint<Rule> contested(t, block.image, choice.point);
      const float least = t.rule.least_overlap(-choice.score);
      for (int32_t g = lane; g < block.rows.count; g += kWarp) {
        const Objective<Rule> rival(t, block.image, block.rows.first, g);
        if (!rival.takes_part) continue;
        const Overlap both = overlap_of(contested.box, contested.area, rival.box, rival.area);
        if (both.intersection <= least_in_common(least, both.total)) continue;
        const unsigned long long key = claim_key(rival.negative_cost(t, contested, both.iou(), -claim_of_key(best)), g);
        best = key > best ? key : best;
      }
      __syncwarp();
      best = largest_of_warp(best);
      const Box winner = object_box(t.gt_boxes, block.rows.first + object_of_key(best));
      overlap = iou_of(contested.box, contested.area, winner, area_of(winner));
    }
    __syncwarp();  // all know how many chose the point
    if (lane > 0) continue;
    t.owner[place] = object_of_key(best);
    t.iou[place] = overlap;
  }
}

struct OnCuda {
  template <typename Rule>
  static std::tuple<Tensor, Tensor> assign(const Rule& rule, const Grid& grid, const DynamicKInputs& given) {
    const Tensor& gt_boxes = given.gt_boxes;
    const ObjectBatch batch(gt_boxes, given.gt_offsets, given.gt_counts);
    const int64_t num_images = batch.num_images(), num_objects = batch.num_objects(), num_points = grid.num_points;
    given.check(num_images, num_points);

    const Queue queue(gt_boxes);
    Tensor owner = new_tensor(gt_boxes, {num_images, num_points}, ScalarType::Long);
    Tensor iou = new_tensor(gt_boxes, {num_images, num_points}, ScalarType::Float);
    const int64_t all_points = num_images * num_points;
    if (all_points == 0) return {owner, iou};

    // One workspace: 12 bytes per point, 16 per tile of them, 12 k + 4 per object.
    const int64_t num_tiles = tiles_of(grid), all_tiles = num_images * num_tiles;
    const int64_t all_choices = num_objects * given.quota.most;
    const int64_t bytes = 12 * all_points + all_tiles * sizeof(Box) + all_choices * sizeof(Choice) + 4 * num_objects;
    Tensor workspace = new_tensor(gt_boxes, {(bytes + 7) / 8}, ScalarType::Long);
    auto* const best = reinterpret_cast<unsigned long long*>(workspace.mutable_data_ptr<int64_t>());
    auto* const around = reinterpret_cast<Box*>(best + all_points);
    auto* const sum = reinterpret_cast<float*>(around + all_tiles);
    auto* const choices = reinterpret_cast<Choice*>(sum + all_points);

    DynamicKTask<Rule> task{ChooseTask(grid, gt_boxes, &given.gt_labels, owner, iou),
                            rule,
                            given.wanted ? given.wanted->const_data_ptr<int64_t>() : nullptr,
                            given.quota,
                            FloatView<3>(given.pred_boxes),
                            FloatView<3>(given.pred_scores),
                            given.objectness ? FloatView<2>(*given.objectness) : FloatView<2>(),
                            given.pred_scores.size(2),
                            num_tiles,
                            best,
                            around,
                            sum,
                            choices,
                            reinterpret_cast<int32_t*>(choices + all_choices)};
    for_each_launch(batch, task, [&](unsigned images, unsigned objects) {
      queue.launch(dynamic_k_prepare_kernel<Rule>, dim3(blocks_for(num_tiles, kPreparers / kWarp), images), kPreparers,
                   task);
      if (objects == 0) return;
      queue.launch(dynamic_k_choose_kernel<Rule>, dim3(objects), kChoosers, task);
      queue.launch(dynamic_k_contest_kernel<Rule>, dim3(objects), kChoosers, task);
    });
    return {owner, iou};
  }
};

MGASSIGN_CUDA_LIBRARY(m) {
  m.impl("sim_ota_assign", TORCH_BOX(&sim_ota_assign<OnCuda>));
  m.impl("soft_label_assign", TORCH_BOX(&soft_label_assign<OnCuda>));
}

}  // namespace mgassign::cuda::dynamic_k
