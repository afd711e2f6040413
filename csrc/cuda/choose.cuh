// Choose, then contest: what task-aligned assignment and its kin share on a GPU. A block works for an object; its
// threads go through the object's points together and keep the best of them in shared memory.
#pragma once

#include "../rules.h"
#include "steps.cuh"

namespace mgassign::cuda {

constexpr int kChoosers = 128;  // threads of a block

// The owner of a point that no object has: kBackground, or kIgnored where it lies strictly inside a region. Without
// labels there are no regions. All lanes call it.
__device__ inline int64_t owner_in_regions(const Levels& levels, const ObjectRows::Rows& rows, const float* gt_boxes,
                                           const int64_t* gt_labels, int32_t point) {
  const int lane = threadIdx.x % kWarp;
  const Location at = location_of(levels, point);
  int64_t owner = kBackground;
  for_each_region(rows, gt_boxes, gt_labels, lane, [&](const Box& region) {
    if (strictly_inside(at, region)) owner = kIgnored;
  });
  return owner;
}

// Where the scores of a class begin among those of an image, -1 where there is no such class.
__device__ inline int64_t scores_of_class(const FloatView<3>& scores, int64_t image, int64_t label,
                                          int64_t num_classes) {
  return label >= 0 && label < num_classes ? image * scores.stride[0] + label * scores.stride[2] : -1;
}

// What the kernels are told of a batch; an assigner's own task has more. Where a block works for an object, the first
// one does for the launch's first.
struct ChooseTask {
  Levels levels;
  const float* gt_boxes;
  const int64_t* gt_labels;  // or null
  int64_t num_points;
  int64_t* owner;  // [B, P]
  float* iou;      // [B, P]
  // Of this launch.
  ObjectRows objects = {};
  int32_t num_images = 0;
  int64_t first_row = 0;

  ChooseTask(const Grid& grid, const Tensor& gt_boxes, const Tensor* gt_labels, Tensor& owner, Tensor& iou)
      : levels(grid),
        gt_boxes(gt_boxes.const_data_ptr<float>()),
        gt_labels(gt_labels ? gt_labels->const_data_ptr<int64_t>() : nullptr),
        num_points(grid.num_points),
        owner(owner.mutable_data_ptr<int64_t>()),
        iou(iou.mutable_data_ptr<float>()) {}

  struct ObjectOfBlock {
    int64_t row, image;  // below 0: there is no object
    ObjectRows::Rows rows;

    __device__ int32_t index() const { return static_cast<int32_t>(row - rows.first); }  // within its image
  };
  __device__ ObjectOfBlock object_of_block() const {
    const int64_t row = first_row + blockIdx.x, image = objects.image_of(row, num_images);
    return {row, image, image < 0 ? ObjectRows::Rows{0, 0} : objects.of(image)};
  }
};

// Calls launch(number of images, number of objects) for each launch that the batch needs, of which the task is told.
template <typename Task, typename Launch>
void for_each_launch(const ObjectBatch& batch, Task& task, const Launch& launch) {
  batch.for_each_launch([&](const ObjectRows& rows, unsigned images) {
    task.objects = rows;
    task.num_images = static_cast<int32_t>(images);
    task.first_row = rows.listed ? rows.row_of[0] : 0;
    const int64_t num_rows = rows.listed ? rows.row_of[images] - task.first_row : batch.num_objects();
    launch(images, static_cast<unsigned>(num_rows));
  });
}

// The points of a window, numbered level by level, row by row.
struct Window {
  int32_t row[kMaxLevels], column[kMaxLevels], across[kMaxLevels];
  int32_t begin[kMaxLevels + 1];  // the number of a level's first point; at the end, of all

  // box_of(level) tells where they lie. All threads of the block call it.
  template <typename BoxOf>
  __device__ void open(const Levels& levels, const BoxOf& box_of, float margin) {
    const int i = threadIdx.x;
    if (i < levels.count) {
      const Level& level = levels.level[i];
      const Box box = box_of(level);
      const Span columns = strictly_between(level.x, level.width, box.x1, box.x2, margin);
      const Span rows = strictly_between(level.y, level.height, box.y1, box.y2, margin);
      row[i] = static_cast<int32_t>(rows.begin);
      column[i] = static_cast<int32_t>(columns.begin);
      across[i] = static_cast<int32_t>(columns.end - columns.begin);
      begin[i + 1] = static_cast<int32_t>(rows.end - rows.begin) * across[i];
    }
    __syncthreads();
    if (i == 0) {
      begin[0] = 0;
      for (int l = 0; l < levels.count; ++l) begin[l + 1] += begin[l];
    }
    __syncthreads();
  }

  __device__ int32_t count(const Levels& levels) const { return begin[levels.count]; }

  __device__ int32_t point(const Levels& levels, int32_t number) const {
    int l = 0;
    while (number >= begin[l + 1]) ++l;
    const uint32_t place = number - begin[l], wide = across[l];
    const Level& level = levels.level[l];
    return static_cast<int32_t>(level.first_point + (row[l] + place / wide) * level.width + column[l] + place % wide);
  }
};

// The best choices offered by the threads of a block, best first. All threads call each function.
struct TopList {
  Choice choices[kMostChosen + kChoosers];
  int32_t count;

  __device__ void clear() {
    __syncthreads();
    if (threadIdx.x == 0) count = 0;
    __syncthreads();
  }

  // Takes those of `number` choices that are worth it, as offer(i, choice) says, and leaves the best of all so far, at
  // most `most` > 0. Who scores less than the last of `most` is not worth it any more: narrow(its score) is told so.
  template <typename Offer, typename Narrow>
  __device__ void take(uint32_t number, int32_t most, const Offer& offer, const Narrow& narrow) {
    for (uint32_t base = 0; base < number; base += kChoosers) {
      Choice mine{0.0f, 0, 0.0f};
      if (base + threadIdx.x < number && offer(base + threadIdx.x, mine)) choices[atomicAdd(&count, 1)] = mine;
      __syncthreads();
      const bool waits = count <= kMostChosen && base + kChoosers < number;  // there is room for all of the next round
      __syncthreads();
      if (waits) continue;
      shrink(most);
      if (count == most) narrow(choices[most - 1].score);
      __syncthreads();  // before another is taken
    }
  }

 private:
  // No two are equal, so each one's place is how many rank before it.
  __device__ void shrink(int32_t most) {
    constexpr int kEach = (kMostChosen + kChoosers) / kChoosers;
    Choice mine[kEach];
    int32_t place[kEach];
    const int32_t before = count;
#pragma unroll
    for (int e = 0; e < kEach; ++e) {
      const int32_t i = e * kChoosers + threadIdx.x;
      place[e] = most;
      if (i >= before) continue;
      mine[e] = choices[i];
      place[e] = 0;
      for (int32_t j = 0; j < before; ++j) place[e] += ranks_before(choices[j], mine[e]);
    }
    __syncthreads();
#pragma unroll
    for (int e = 0; e < kEach; ++e)
      if (place[e] < most) choices[place[e]] = mine[e];
    if (threadIdx.x == 0) count = before < most ? before : most;
    __syncthreads();
  }
};

__device__ inline unsigned long long largest_of_warp(unsigned long long key) {
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const unsigned long long other = __shfl_xor_sync(kAllLanes, key, step);
    key = other > key ? other : key;
  }
  return key;
}

}  // namespace mgassign::cuda
