// Task-aligned assignment in four launches, for up to 256 images at a time:
//   1. prepare, a thread for each point: nobody's, unless it lies in a region;
//   2. choose, a block for each object: its threads score the points of its window, the best are kept in shared memory;
//   3. contest, a warp for each choice: a point that several chose goes to the highest overlap of all objects in whose
//      window it lies. Of those that chose it, the one with the best claim sees to it;
//   4. finish, a block for each object: the best of the points it holds, targets.
#include "choose.cuh"

namespace mgassign::cuda::task_aligned_assign {

constexpr int kPointThreads = 256;

// Who claims the points of a batch; [B, P] each.
struct Claims {
  unsigned long long* best;  // claim_key() of the best claim; 0: none
  int32_t* count;            // how many objects chose the point
  int32_t* holder;           // who got it in the end, + 1
};

struct Task : ChooseTask {
  TaskAligned rule;
  const int64_t* wanted;  // [N]: how many points an object chooses; null: as many as the quota allows
  Quota quota;
  int32_t most, keep;  // points that an object chooses, and keeps, at most; 0: all
  FloatView<3> pred_boxes, pred_scores;
  int64_t num_classes;
  Claims claims;        // [B, P]
  Choice* choices;      // [N, most]; a point below 0 is none
  int32_t* num_chosen;  // [N]
  float* target;        // [B, P]; this and the overlaps are those of who holds a point, until the end
};

// An object, as a block or a warp works for it.
struct Objective {
  bool takes_part;
  int32_t index;  // within its image
  Box window;
  TaskAligned::Object object;
  int64_t scores;  // where its class's scores of the image begin, -1 where there is no such class

  __device__ Objective(const Task& t, int64_t image, int64_t first_row, int32_t index)
      : takes_part(false), index(index) {
    const Box box = object_box(t.gt_boxes, first_row + index);
    const int64_t label = t.gt_labels[first_row + index];
    takes_part = takes_part_in_contests(box, label);
    if (!takes_part) return;
    window = t.rule.window(box);
    object = t.rule.object(box);
    scores = scores_of_class(t.pred_scores, image, label, t.num_classes);
  }

  __device__ float score(const Task& t, int32_t point, float overlap) const {
    const float raw = scores < 0 ? 0.0f : t.pred_scores.at(scores + point * t.pred_scores.stride[1]);
    return t.rule.score(scores < 0 ? 0.0f : t.rule.probability(raw), overlap);
  }
};

__global__ void __launch_bounds__(kPointThreads) task_aligned_prepare_kernel(const __grid_constant__ Task t) {
  const int32_t point = static_cast<int32_t>(blockIdx.x * kPointThreads + threadIdx.x);
  const int64_t image = t.objects.first_image + blockIdx.y;
  const bool exists = point < t.num_points;
  const int64_t owner = owner_in_regions(t.levels, t.objects.of(image), t.gt_boxes, t.gt_labels, exists ? point : 0);
  if (!exists) return;
  const int64_t place = image * t.num_points + point;
  t.claims.best[place] = 0;
  t.claims.count[place] = t.claims.holder[place] = 0;
  t.owner[place] = owner;
  t.target[place] = t.iou[place] = 0.0f;
}

__global__ void __launch_bounds__(kChoosers) task_aligned_choose_kernel(const __grid_constant__ Task t) {
  __shared__ Window window;
  __shared__ TopList list;
  const ChooseTask::ObjectOfBlock block = t.object_of_block();
  if (block.image < 0) return;
  const Objective own(t, block.image, block.rows.first, block.index());
  const int32_t most =
      own.takes_part ? static_cast<int32_t>(t.quota.of(t.wanted ? t.wanted[block.row] : t.quota.most)) : 0;
  if (most == 0) {
    if (threadIdx.x == 0) t.num_chosen[block.row] = 0;
    return;
  }
  const Box bounds = t.rule.anywhere ? everywhere() : own.window;
  window.open(t.levels, [&](const Level&) { return bounds; }, t.rule.anywhere ? 0.0f : t.rule.margin);
  list.clear();
  float bar = 0.0f, least = 0.0f;
  const auto offer = [&](int32_t number, Choice& mine) {
    mine.point = window.point(t.levels, number);
    const Box predicted = t.pred_boxes.box_of_point(block.image, mine.point);
    const Overlap both = overlap_of(predicted, area_of(predicted), own.object.box, own.object.area);
    if (!is_valid(predicted) || !(both.intersection > least_in_common(least, both.total))) return false;
    mine.claim = t.rule.overlap(predicted, own.object);
    mine.score = own.score(t, mine.point, mine.claim);
    return mine.score > 0.0f && mine.score >= bar;
  };
  list.take(window.count(t.levels), most, offer, [&](float last) {
    bar = last;
    least = t.rule.least_overlap(bar);
  });
  for (int32_t i = threadIdx.x; i < list.count; i += kChoosers) {
    Choice choice = list.choices[i];
    if (t.rule.anywhere && !t.rule.holds(own.window, location_of(t.levels, choice.point))) choice.point = -1;
    t.choices[block.row * t.most + i] = choice;
    if (choice.point < 0) continue;
    const int64_t place = block.image * t.num_points + choice.point;
    atomicMax(&t.claims.best[place], claim_key(choice.claim, own.index));
    atomicAdd(&t.claims.count[place], 1);
  }
  if (threadIdx.x == 0) t.num_chosen[block.row] = list.count;
}

__global__ void __launch_bounds__(kChoosers) task_aligned_contest_kernel(const __grid_constant__ Task t) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const ChooseTask::ObjectOfBlock block = t.object_of_block();
  if (block.image < 0) return;
  for (int32_t i = warp; i < t.num_chosen[block.row]; i += kChoosers / kWarp) {
    const Choice choice = t.choices[block.row * t.most + i];
    if (choice.point < 0) continue;
    const int64_t place = block.image * t.num_points + choice.point;
    unsigned long long best = claim_key(choice.claim, block.index());
    if (t.claims.best[place] != best) continue;  // another one's to see to
    float score = choice.score;
    if (!t.rule.contest_chosen && t.claims.count[place] > 1) {
      const Location at = location_of(t.levels, choice.point);
      const Box predicted = t.pred_boxes.box_of_point(block.image, choice.point);
      for (int32_t g = lane; g < block.rows.count; g += kWarp) {
        const Objective rival(t, block.image, block.rows.first, g);
        if (!rival.takes_part || !t.rule.holds(rival.window, at)) continue;
        const unsigned long long key = claim_key(t.rule.overlap(predicted, rival.object), g);
        best = key > best ? key : best;
      }
      __syncwarp();
      best = largest_of_warp(best);
      score =
          Objective(t, block.image, block.rows.first, object_of_key(best)).score(t, choice.point, claim_of_key(best));
    }
    if (lane > 0) continue;
    t.claims.holder[place] = object_of_key(best) + 1;
    t.target[place] = score;
    t.iou[place] = claim_of_key(best);
  }
}

__global__ void __launch_bounds__(kChoosers) task_aligned_finish_kernel(const __grid_constant__ Task t) {
  __shared__ Window window;
  __shared__ TopList list;
  __shared__ int32_t best_score, best_overlap;  // ordered()
  const ChooseTask::ObjectOfBlock block = t.object_of_block();
  if (block.image < 0) return;
  const Objective own(t, block.image, block.rows.first, block.index());
  if (!own.takes_part) return;
  window.open(t.levels, [&](const Level&) { return own.window; }, t.rule.margin);
  list.clear();
  if (threadIdx.x == 0) best_score = best_overlap = ordered(0.0f);

  const int32_t count = window.count(t.levels);
  const auto holds = [&](int32_t number, Choice& choice) {
    choice.point = window.point(t.levels, number);
    const int64_t place = block.image * t.num_points + choice.point;
    if (t.claims.holder[place] != own.index + 1) return false;
    choice.score = t.target[place];
    choice.claim = t.iou[place];
    return true;
  };
  if (t.keep > 0) {
    const auto offer = [&](int32_t number, Choice& mine) {
      if (!holds(number, mine)) return false;
      const int64_t place = block.image * t.num_points + mine.point;
      t.target[place] = t.iou[place] = 0.0f;  // unless it is kept
      return mine.score > 0.0f;
    };
    list.take(count, t.keep, offer, [](float) {});
  }
  __syncthreads();
  const auto for_each_kept = [&](const auto& function) {
    for (int32_t i = threadIdx.x; i < (t.keep > 0 ? list.count : count); i += kChoosers) {
      Choice choice;
      if (t.keep > 0)
        function(list.choices[i]);
      else if (holds(i, choice))
        function(choice);
    }
  };
  for_each_kept([&](const Choice& choice) {
    atomicMax(&best_score, ordered(choice.score));
    atomicMax(&best_overlap, ordered(choice.claim));
  });
  __syncthreads();
  const float score = unordered(best_score), overlap = unordered(best_overlap);
  for_each_kept([&](const Choice& choice) {
    const int64_t place = block.image * t.num_points + choice.point;
    t.owner[place] = own.index;
    t.target[place] = t.rule.target(choice.score, score, overlap);
    t.iou[place] = choice.claim;
  });
}

std::tuple<Tensor, Tensor, Tensor> task_aligned_assign_cuda(
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
  const ObjectBatch batch(gt_boxes, gt_offsets, gt_counts);
  const int64_t num_images = batch.num_images(), num_objects = batch.num_objects(), num_points = grid.num_points;
  check_predictions(pred_boxes, pred_scores, gt_boxes, gt_labels, wanted, num_images, num_points, "pred_scores");

  const Queue queue(gt_boxes);
  Tensor owner = new_tensor(gt_boxes, {num_images, num_points}, ScalarType::Long);
  Tensor target = new_tensor(gt_boxes, {num_images, num_points}, ScalarType::Float);
  Tensor iou = new_tensor(gt_boxes, {num_images, num_points}, ScalarType::Float);
  const int64_t all_points = num_images * num_points;
  if (all_points == 0) return {owner, target, iou};

  // One workspace: 16 bytes per point, 12 k + 4 per object.
  const int64_t bytes = 16 * all_points + num_objects * (max_points * sizeof(Choice) + sizeof(int32_t));
  Tensor workspace = new_tensor(gt_boxes, {(bytes + 7) / 8}, ScalarType::Long);
  auto* const best = reinterpret_cast<unsigned long long*>(workspace.mutable_data_ptr<int64_t>());
  auto* const count = reinterpret_cast<int32_t*>(best + all_points);
  auto* const choices = reinterpret_cast<Choice*>(count + 2 * all_points);

  Task task{ChooseTask(grid, gt_boxes, &gt_labels, owner, iou),
            rule,
            wanted ? wanted->const_data_ptr<int64_t>() : nullptr,
            quota,
            static_cast<int32_t>(max_points),
            static_cast<int32_t>(keep),
            FloatView<3>(pred_boxes),
            FloatView<3>(pred_scores),
            pred_scores.size(2),
            {best, count, count + all_points},
            choices,
            reinterpret_cast<int32_t*>(choices + num_objects * max_points),
            target.mutable_data_ptr<float>()};
  for_each_launch(batch, task, [&](unsigned images, unsigned objects) {
    queue.launch(task_aligned_prepare_kernel, dim3(blocks_for(num_points, kPointThreads), images), kPointThreads, task);
    if (objects == 0) return;
    queue.launch(task_aligned_choose_kernel, dim3(objects), kChoosers, task);
    queue.launch(task_aligned_contest_kernel, dim3(objects), kChoosers, task);
    queue.launch(task_aligned_finish_kernel, dim3(objects), kChoosers, task);
  });
  return {owner, target, iou};
}

MGASSIGN_CUDA_LIBRARY(m) { m.impl("task_aligned_assign", TORCH_BOX(&task_aligned_assign_cuda)); }

}  // namespace mgassign::cuda::task_aligned_assign
