// Anchors by their highest overlap with an object, and each object's best anchors whatever their overlap.
//
// Two passes over blocks of anchors: competition, which also finds each object's highest overlap; then, where all that
// have it matter, for the few tiles whose boxes may reach it, once more the overlaps of those objects. There is no list
// of who has the highest one: any number of anchors may.
#include <torch/csrc/stable/library.h>

#include "anchors.h"

namespace mgassign::cpu {

namespace {

// Of a tile's anchors, those that some object wants: by whom, the last one; -1 where there is none.
MGASSIGN_VECTOR void find_wanted(const BoxTile& tile, const Objects& objects, const float* needed,
                                 const int32_t* places, int64_t count, int32_t* by) {
  for (int i = 0; i < kTilePoints; ++i) by[i] = -1;
  for (int64_t k = 0; k < count; ++k) {
    const Object object = objects[places[k]];
    const float overlap = needed[places[k]];
    for (int i = 0; i < kTilePoints; ++i) by[i] = iou_with(tile, i, object) == overlap ? object.index : by[i];
  }
}

struct Thresholds {
  float high, low;

  int64_t owner(int64_t best, float overlap) const {
    return overlap >= high ? best : (overlap >= low ? kIgnored : kBackground);
  }
};

}  // namespace

std::tuple<Tensor, Tensor> max_iou_assign_cpu(const Tensor& anchors, const Tensor& gt_boxes,
                                              std::optional<Tensor> gt_labels, MGASSIGN_OBJECTS_PARAMETERS, double high,
                                              double low, int64_t low_quality, double min_iou, double ignore_share) {
  check_anchors(anchors, gt_boxes);
  check_thresholds(high, low);
  check_low_quality(low_quality, min_iou);
  check_ignore_share(ignore_share);
  const int64_t num_images = check_objects(gt_boxes, gt_offsets, gt_counts), num_anchors = anchors.size(0);
  if (gt_labels) check_property(*gt_labels, gt_boxes, "gt_labels");

  Tensor owners = new_tensor(gt_boxes, {num_images, num_anchors}, ScalarType::Long);
  Tensor overlaps = new_tensor(gt_boxes, {num_images, num_anchors}, ScalarType::Float);
  if (nothing_to_assign(owners, gt_boxes, gt_offsets, gt_counts)) return {owners, overlaps};
  ObjectBatch batch(gt_boxes, gt_labels ? &*gt_labels : nullptr, gt_offsets, gt_counts);
  batch.check_labels(kAnyClass);
  if (owners.numel() == 0) return {owners, overlaps};
  for (int64_t image = 0; image < num_images; ++image) batch.list(image);

  const int64_t num_blocks = blocks_for(num_anchors), work = num_images * num_anchors;
  const int64_t threads = threads_for(num_blocks, 2 * work);
  auto workspaces = scratch_for<BlockWorkspace>(threads, batch.largest_image());
  BestPlaces best(batch.num_objects());
  int64_t* const owner = owners.mutable_data_ptr<int64_t>();
  float* const iou = overlaps.mutable_data_ptr<float>();

  const LowQuality kind = static_cast<LowQuality>(low_quality);
  const bool ties_count = kind == LowQuality::kOwn || kind == LowQuality::kObject;
  const Thresholds thresholds{static_cast<float>(high), static_cast<float>(low)};
  const float least = static_cast<float>(min_iou), share = static_cast<float>(ignore_share);
  // The overlap that each object's best anchors have, in the order of batch.ranked(); kInfinity where they do not
  // matter.
  std::vector<float> needed(batch.num_objects() + kLanes);

  const FloatView<2> boxes(anchors);
  // Anchors are read block by block, once in a pass for all images, and never kept.
  const auto load = [&](int64_t b, BlockWorkspace& workspace) {
    BoxTile* const tiles = workspace.tiles.data();
    const Block block = block_at(b, num_anchors, tiles);
    load_tiles(block, boxes, 0, boxes.stride[0], boxes.stride[1], tiles);
    return block;
  };
  const auto for_each_block = [&](const auto& each) {
    for_each_unit(num_blocks, threads, [&](int64_t b, int64_t slot) {
      const Block block = load(last_first(b, num_blocks), workspaces[slot]);
      for (int64_t image = 0; image < num_images; ++image) each(image, block, workspaces[slot]);
    });
  };

  for_each_block([&](int64_t image, const Block& block, BlockWorkspace& workspace) {
    int64_t* const owner_of_image = owner + image * num_anchors;
    const float* const iou_of_image = iou + image * num_anchors;
    compete_for_block(block, batch.ranked(image), workspace, owner_of_image, iou + image * num_anchors, best,
                      batch.first(image));
    if (ties_count) return;
    for (int64_t j = block.first; j < block.first + block.count; ++j)
      owner_of_image[j] = thresholds.owner(owner_of_image[j], iou_of_image[j]);
  });

  for (int64_t image = 0; image < num_images; ++image)
    for (int64_t k = 0; k < batch.ranked(image).count; ++k) {
      const float overlap = best.of(batch.first(image) + batch.ranked(image).index[k]).score;
      needed[batch.first(image) + k] = overlap > 0.0f && overlap >= least ? overlap : kInfinity;
    }
  const auto settle_ties = [&](int64_t image, const Block& block, BlockWorkspace& workspace) {
    int64_t* const owner_of_image = owner + image * num_anchors;
    const float* const iou_of_image = iou + image * num_anchors;
    const float* const needed_of_image = needed.data() + batch.first(image);
    int32_t* const found = workspace.found.data();
    const Objects objects = batch.ranked(image);
    const int64_t num_near = within_reach(block.extent(), objects, needed_of_image, found);
    const Objects near = workspace.take_near(objects, num_near, needed_of_image);
    block.for_each_tile([&](const BoxTile& tile, int64_t first, int64_t count) {
      const int64_t reaching = within_reach(tile.extent, near, workspace.needed.data(), found);
      int32_t by[kTilePoints];
      if (reaching) find_wanted(tile, near, workspace.needed.data(), found, reaching, by);
      for (int64_t i = 0; i < count; ++i) {
        int64_t& own = owner_of_image[first + i];
        if (reaching && by[i] >= 0)
          own = kind == LowQuality::kOwn ? own : by[i];
        else
          own = thresholds.owner(own, iou_of_image[first + i]);
      }
    });
  };
  if (ties_count) for_each_block(settle_ties);

  const int64_t finishing = std::min(threads, threads_for(num_images, work));
  for_each_unit(num_images, finishing, [&](int64_t image, int64_t slot) {
    const Objects objects = batch.ranked(image);
    int64_t* const owner_of_image = owner + image * num_anchors;
    for (int64_t k = 0; kind == LowQuality::kFirst && k < objects.count; ++k) {
      const float overlap = needed[batch.first(image) + k];
      if (overlap == kInfinity) continue;
      const Block block = load(best.of(batch.first(image) + objects.index[k]).point, workspaces[slot]);
      const int64_t j = first_with(block, objects[k], overlap);
      if (j >= 0) owner_of_image[j] = objects.index[k];
    }
    ignore_boxes_in_regions(batch, image, share, num_anchors, owner_of_image,
                            [&](int64_t j) { return boxes.box_at(j * boxes.stride[0], boxes.stride[1]); });
  });
  return {owners, overlaps};
}

}  // namespace mgassign::cpu

STABLE_TORCH_LIBRARY_IMPL(mgassign, CPU, m) { m.impl("max_iou_assign", MGASSIGN_OPERATOR(max_iou_assign_cpu)); }
