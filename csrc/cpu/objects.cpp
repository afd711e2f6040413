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

Objects ObjectBatch::rank(int64_t image) {
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
  std::sort(keys, keys + count);
  num_valid_[image] = count;
  for (int64_t k = 0; k < count; ++k) objects_.set(first(image) + k, object(keys[k] & 0xffffffff));
  return ranked(image);
}

}  // namespace mgassign::cpu
