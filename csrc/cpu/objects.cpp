#include "steps.h"

namespace mgassign::cpu {

ObjectBatch::ObjectBatch(const float* boxes, std::vector<int64_t> offsets, const int64_t* labels)
    : boxes_(boxes),
      labels_(labels),
      offsets_(std::move(offsets)),
      num_valid_(offsets_.size() - 1),
      objects_(new Object[offsets_.back()]) {}

int64_t ObjectBatch::largest_image() const {
  int64_t largest = 0;
  for (int64_t image = 0; image < num_images(); ++image) largest = std::max(largest, size(image));
  return largest;
}

ImageObjects ObjectBatch::rank(int64_t image) {
  Object* const begin = objects_.get() + first(image);
  Object* end = begin;
  for (int64_t i = 0; i < size(image); ++i) {
    const int64_t row = first(image) + i;
    const Box box{boxes_[4 * row], boxes_[4 * row + 1], boxes_[4 * row + 2], boxes_[4 * row + 3]};
    const bool padding = labels_ && labels_[row] == -1;
    if (is_valid(box) && !padding) *end++ = {box, area_of(box), static_cast<int32_t>(i)};
  }
  std::sort(begin, end,
            [](const Object& a, const Object& b) { return smaller_object(a.area, a.index, b.area, b.index); });
  num_valid_[image] = end - begin;
  return {begin, end};
}

ImageObjects ObjectBatch::ranked(int64_t image) const {
  const Object* const begin = objects_.get() + first(image);
  return {begin, begin + num_valid_[image]};
}

}  // namespace mgassign::cpu
