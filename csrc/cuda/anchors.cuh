// Boxes in any order, anchors or what is predicted at them, against the objects of an image: what max_iou_assign.cu and
// anchor_mutual_guidance_assign.cu share. A warp works on 32 boxes that follow one another.
#pragma once

#include "steps.cuh"

namespace mgassign::cuda {

constexpr int kAnchorWarps = 8;  // of a block
constexpr int kAnchorThreads = kAnchorWarps * kWarp;

// The box of a lane; one that is none, or not there, is empty and overlaps nothing. All lanes make one.
struct AnchorTile {
  int64_t anchor;  // of the image
  bool exists;
  Box box;
  float area;
  Box bounds;  // of the warp's boxes

  __device__ AnchorTile(int64_t anchor, bool exists, const Box& given) : anchor(anchor), exists(exists), box(given) {
    const bool valid = is_valid(given);
    bounds = bounds_of_warp(given, valid);
    if (!valid) box = {0.0f, 0.0f, 0.0f, 0.0f};
    area = area_of(box);
  }
};

// The box at a place of a list, or of an image's, as a lane has it.
__device__ inline AnchorTile tile_at(const FloatView<2>& boxes, int64_t place, int64_t count) {
  const bool exists = place < count;
  return {place, exists, exists ? boxes.box_at(place * boxes.stride[0]) : Box{0.0f, 0.0f, 0.0f, 0.0f}};
}

// Lets an object know the scores of a warp's points, which follow one another; 0 where it knows none. All lanes call
// it.
__device__ inline void raise_best(unsigned long long& best, float score, int64_t point, int lane) {
  const float highest = largest_of_warp(score);
  if (!(highest > 0.0f)) return;
  const unsigned equal = __ballot_sync(kAllLanes, score == highest);
  if (lane == __ffs(equal) - 1) atomicMax(&best, static_cast<unsigned long long>(rank_key(highest, point)));
}

// Calls each(object, overlap with the lane's box) for the objects that touch a tile and that may_matter(object), in
// their order. `gathered` is the warp's. All lanes call it, and each() is called by all.
template <typename MayMatter, typename Each>
__device__ void for_each_touching(const AnchorTile& tile, const ObjectRows::Rows& rows, const float* gt_boxes,
                                  const int64_t* gt_labels, Object* gathered, int lane, const MayMatter& may_matter,
                                  const Each& each) {
  for (int32_t base = 0; base < rows.count; base += kWarp) {
    Object mine{{0.0f, 0.0f, 0.0f, 0.0f}, 0.0f, base + lane, -1};
    bool matters = false;
    if (mine.index < rows.count) {
      const int64_t row = rows.first + mine.index;
      mine.box = object_box(gt_boxes, row);
      mine.area = area_of(mine.box);
      matters = takes_part_in_contests(mine.box, gt_labels ? gt_labels[row] : 0) && touches(tile.bounds, mine.box) &&
                may_matter(mine);
    }
    const int count = gather(gathered, mine, matters, lane);
    for (int i = 0; i < count; ++i) {
      const Object object = gathered[i];
      each(object, iou_of(tile.box, tile.area, object.box, object.area));
    }
  }
}

// Whether a box has this share of its area inside one region. All lanes call it.
__device__ inline bool lies_in_region(const Box& box, const ObjectRows::Rows& rows, const float* gt_boxes,
                                      const int64_t* gt_labels, float share, int lane) {
  bool found = false;
  for_each_region(rows, gt_boxes, gt_labels, lane,
                  [&](const Box& region) { found |= is_valid(box) && share_inside(box, region) >= share; });
  return found;
}

}  // namespace mgassign::cuda
