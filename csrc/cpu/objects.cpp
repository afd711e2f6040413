#include <string>

#include "steps.h"

namespace mgassign::cpu {

ObjectBatch::ObjectBatch(const float* boxes, std::vector<int64_t> offsets, const int64_t* labels)
    : boxes_(boxes),
      labels_(labels),
      offsets_(std::move(offsets)),
      num_valid_(offsets_.size() - 1),
      keys_(offsets_.back()),
      objects_(offsets_.back()) {}

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
  for (int64_t i = 0; i < size(image); ++i) {
    const bool competes = !labels_ || labels_[first(image) + i] >= 0;
    const Object candidate = object(i);
    if (is_valid(candidate.box) && competes) keys[count++] = uint64_t{bits_of(candidate.area)} << 32 | i;
  }
  if (by_area) std::sort(keys, keys + count);
  num_valid_[image] = count;
  for (int64_t k = 0; k < count; ++k) objects_.set(first(image) + k, object(keys[k] & 0xffffffff));
  return ranked(image);
}

MGASSIGN_VECTOR int64_t touching(const Box& bounds, const Objects& objects, int32_t* found) {
  return find_hits(objects.count, found, [&](int64_t k) MGASSIGN_INLINE_LAMBDA {
    return (objects.x1[k] < bounds.x2) & (objects.x2[k] > bounds.x1) & (objects.y1[k] < bounds.y2) &
           (objects.y2[k] > bounds.y1);
  });
}

void check_labels(const ObjectBatch& batch, const int64_t* labels, int64_t num_classes) {
  for (int64_t image = 0; image < batch.num_images(); ++image)
    for (int64_t i = 0; i < batch.size(image); ++i) {
      const int64_t label = labels[batch.first(image) + i];
      if (kRegion <= label && label < num_classes) continue;
      check(false, "gt_labels: expected a label ",
            num_classes == kAnyClass ? "of at least 0" : "in [0, " + std::to_string(num_classes) + ")",
            ", -1 (padding) or -2 (a region) for object ", i, " of image ", image, ", got ", label);
    }
}

}  // namespace mgassign::cpu
