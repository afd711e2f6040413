// Choose, then contest: what task-aligned assignment and its kin share on a GPU. A block works for an object; its
// threads go through the object's points together and keep the best of them in shared memory.
#pragma once

#include "../rules.h"
#include "steps.cuh"

namespace mgassign::cuda {

constexpr int kChoosers = 128;  // threads of a block

__device__ inline const Level& level_of(const Levels& levels, int32_t point) {
  int i = levels.count - 1;
  while (point < levels.level[i].first_point) --i;
  return levels.level[i];
}
__device__ inline Location location_of(const Levels& levels, int32_t point) {
  return level_of(levels, point).location_of(point);
}

// Whose a point is that no object has: nobody's, or to be ignored where it lies strictly inside a region. Without
// labels there are no regions. All lanes call it.
__device__ inline int64_t owner_in_regions(const Levels& levels, const ObjectRows::Rows& rows, const float* gt_boxes,
                                           const int64_t* gt_labels, int32_t point) {
  const int lane = threadIdx.x % kWarp;
  const Location at = location_of(levels, point);
  int64_t owner = kBackground;
  for (int32_t base = 0; gt_labels && base < rows.count; base += kWarp) {
    unsigned regions =
        __ballot_sync(kAllLanes, base + lane < rows.count && gt_labels[rows.first + base + lane] == kRegion);
    for (; regions; regions &= regions - 1) {
      const Box region = object_box(gt_boxes, rows.first + base + __ffs(regions) - 1);
      if (is_valid(region) && strictly_inside(at.x, at.y, region)) owner = kIgnored;
    }
  }
  return owner;
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

  __device__ int32_t point(const Levels& levels, int32_t number) const {
    int l = 0;
    while (number >= begin[l + 1]) ++l;
    const uint32_t place = number - begin[l], wide = across[l];
    const Level& level = levels.level[l];
    return static_cast<int32_t>(level.first_point + (row[l] + place / wide) * level.width + column[l] + place % wide);
  }
};

// Holds every point.
__device__ inline Box everywhere() { return {-kInfinity, -kInfinity, kInfinity, kInfinity}; }

// The best choices offered by the threads of a block, in any order; shrink() puts them in theirs. All threads call each
// function, with the same `most`.
struct TopList {
  Choice choices[kMostChosen + kChoosers];
  int32_t count;

  __device__ void clear() {
    __syncthreads();
    if (threadIdx.x == 0) count = 0;
    __syncthreads();
  }

  // Whether the list has been shrunk.
  __device__ bool offer(bool offers, const Choice& mine, int32_t most) {
    if (offers) choices[atomicAdd(&count, 1)] = mine;
    __syncthreads();
    const bool crowded = count > kMostChosen;  // no room for another of each thread
    __syncthreads();
    if (crowded) shrink(most);
    return crowded;
  }

  // Leaves the best, best first. No two are equal, so each one's place is how many rank before it.
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

  // Who scores less is not taken any more; after shrink().
  __device__ float bar(int32_t most, float floor) const {
    const float score = most > 0 && count == most ? choices[most - 1].score : floor;
    __syncthreads();  // before another offer
    return score;
  }
};

// Of the objects that claim a point, the one with the largest key gets it: the highest claim, then the lowest index.
// No key is 0.
__device__ inline unsigned long long key_of(float claim, int32_t object) {
  return static_cast<unsigned long long>(ordered(claim)) << 32 | ~static_cast<uint32_t>(object);
}
__device__ inline float claim_of(unsigned long long key) { return unordered(static_cast<uint32_t>(key >> 32)); }
__device__ inline int32_t object_of(unsigned long long key) {
  return static_cast<int32_t>(~static_cast<uint32_t>(key));
}

__device__ inline unsigned long long largest_of_warp(unsigned long long key) {
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const unsigned long long other = __shfl_xor_sync(kAllLanes, key, step);
    key = other > key ? other : key;
  }
  return key;
}

// Who claims the points of a batch; [B, P] each, zeros at first.
struct Claims {
  unsigned long long* best;  // key of the best claim
  int32_t* count;            // how many objects chose the point
  int32_t* holder;           // who got it in the end, + 1
};

}  // namespace mgassign::cuda
