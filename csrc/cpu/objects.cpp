#include "objects.h"

#include <string>

namespace mgassign::cpu {

// The object rows of each image, B + 1 offsets.
static std::vector<int64_t> image_offsets(const Tensor& gt_boxes, const std::optional<Tensor>& gt_offsets,
                                          const std::optional<std::vector<int64_t>>& gt_counts) {
  std::vector<int64_t> offsets;
  if (gt_offsets) {
    const auto* data = gt_offsets->const_data_ptr<int64_t>();
    offsets.assign(data, data + gt_offsets->size(0));
  } else {
    offsets = count_rows(gt_boxes, gt_counts);
  }
  check_rows(offsets, gt_boxes);
  return offsets;
}

bool nothing_to_assign(const Tensor& owner, const Tensor& gt_boxes, const std::optional<Tensor>& gt_offsets,
                       const std::optional<std::vector<int64_t>>& gt_counts) {
  if (owner.numel() != 0 || gt_boxes.numel() != 0) return false;
  if (gt_offsets || gt_counts) image_offsets(gt_boxes, gt_offsets, gt_counts);
  return true;
}

ObjectBatch::ObjectBatch(const Tensor& gt_boxes, const Tensor* gt_labels, const std::optional<Tensor>& gt_offsets,
                         const std::optional<std::vector<int64_t>>& gt_counts)
    : boxes_(gt_boxes.const_data_ptr<float>()),
      offsets_(image_offsets(gt_boxes, gt_offsets, gt_counts)),
      num_valid_(offsets_.size() - 1),
      keys_(offsets_.back()),
      objects_(offsets_.back()) {
  if (gt_labels)
    labels_.assign(gt_labels->const_data_ptr<int64_t>(), gt_labels->const_data_ptr<int64_t>() + num_objects());
}

void ObjectBatch::check_labels(int64_t num_classes) const {
  for (int64_t image = 0; !labels_.empty() && image < num_images(); ++image)
    for (int64_t i = 0; i < size(image); ++i) {
      const int64_t label = labels(image)[i];
      if (kRegion <= label && label < num_classes) continue;
      check(false, "gt_labels: expected a label ",
            num_classes == kAnyClass ? "of at least 0" : "in [0, " + std::to_string(num_classes) + ")",
            ", -1 (padding) or -2 (a region) for object ", i, " of image ", image, ", got ", label);
    }
}

int64_t ObjectBatch::largest_image() const {
  int64_t largest = 0;
  for (int64_t image = 0; image < num_images(); ++image) largest = std::max(largest, size(image));
  return largest;
}

Objects ObjectBatch::order(int64_t image, bool by_area) {
  const auto object = [&](int64_t i) {
    const Box of_object = box(first(image) + i);
    return Object{of_object, area_of(of_object), static_cast<int32_t>(i)};
  };
  // Areas of valid boxes are not negative, so their bits are in the areas' own order.
  uint64_t* const keys = keys_.data() + first(image);
  int64_t count = 0;
  for (int64_t i = 0; i < size(image); ++i)
    if (takes_part(first(image) + i)) keys[count++] = uint64_t{bits_of(object(i).area)} << 32 | i;
  if (by_area) std::sort(keys, keys + count);
  num_valid_[image] = count;
  for (int64_t k = 0; k < count; ++k) objects_.set(first(image) + k, object(keys[k] & 0xffffffff));
  return ranked(image);
}

MGASSIGN_VECTOR int64_t touching(const Box& bounds, const Boxes& boxes, int32_t* found) {
  return find_hits(boxes.count, found, [&](int64_t k) MGASSIGN_INLINE_LAMBDA {
    return (boxes.x1[k] < bounds.x2) & (boxes.x2[k] > bounds.x1) & (boxes.y1[k] < bounds.y2) &
           (boxes.y2[k] > bounds.y1);
  });
}

void ignore_points_in_regions(const Grid& grid, const ObjectBatch& batch, int64_t image, int64_t* owner) {
  batch.for_each_region(image, [&](const Box& region) {
    for (const Level& level : grid.levels) {
      const Span columns = strictly_between(level.x, level.width, region.x1, region.x2);
      const Span rows = strictly_between(level.y, level.height, region.y1, region.y2);
      for (int64_t row = rows.begin; row < rows.end; ++row) {
        int64_t* const owner_of_row = owner + level.first_point + row * level.width;
        for (int64_t column = columns.begin; column < columns.end; ++column)
          if (owner_of_row[column] < 0) owner_of_row[column] = kIgnored;
      }
    }
  });
}

}  // namespace mgassign::cpu
