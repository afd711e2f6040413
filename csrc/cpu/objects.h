// The boxes of many objects in arrays, the objects of a batch, and the regions beside them.
#pragma once

#include "../math/boxes.h"
#include "common.h"

namespace mgassign::cpu {

// A view of boxes, an array for each property: what looks at many of them is vector code.
struct Boxes {
  const float *x1, *y1, *x2, *y2, *area;
  int64_t count;

  MGASSIGN_INLINE Box operator[](int64_t k) const { return {x1[k], y1[k], x2[k], y2[k]}; }
};

// An object that takes part in competition, and where it stood in its image.
struct Object {
  Box box;
  float area;
  int32_t index;
};

// Those of one image are the valid ones: smaller area first, then lower index, where they were ranked; by index where
// they were listed. Visiting them in order and replacing only what is strictly worse settles ties as the rules ask.
struct Objects : Boxes {
  const int32_t* index;

  MGASSIGN_INLINE Object operator[](int64_t k) const { return {Boxes::operator[](k), area[k], index[k]}; }
};

// Touches nothing.
constexpr Box kNowhere{kInfinity, kInfinity, -kInfinity, -kInfinity};

// The memory behind such views, and a little more, which vector code may read.
class BoxArrays {
 public:
  explicit BoxArrays(int64_t size)
      : x1_(size + kLanes), y1_(size + kLanes), x2_(size + kLanes), y2_(size + kLanes), area_(size + kLanes) {}

  void set(int64_t k, const Box& box, float area) {
    x1_[k] = box.x1;
    y1_[k] = box.y1;
    x2_[k] = box.x2;
    y2_[k] = box.y2;
    area_[k] = area;
  }
  Boxes view(int64_t first, int64_t count) const {
    return {x1_.data() + first, y1_.data() + first,   x2_.data() + first,
            y2_.data() + first, area_.data() + first, count};
  }

 private:
  std::vector<float> x1_, y1_, x2_, y2_, area_;
};

class ObjectArrays {
 public:
  explicit ObjectArrays(int64_t size) : boxes_(size), index_(size) {}

  void set(int64_t k, const Object& object) {
    boxes_.set(k, object.box, object.area);
    index_[k] = object.index;
  }
  Objects view(int64_t first, int64_t count) const { return {boxes_.view(first, count), index_.data() + first}; }

 private:
  BoxArrays boxes_;
  std::vector<int32_t> index_;
};

// Finds the boxes that touch the bounds, in their order: writes their places to found, which has room for all of them
// and one more; how many.
int64_t touching(const Box& bounds, const Boxes& boxes, int32_t* found);

// The box around those of kCount lanes, whose sides are overwritten.
template <int kCount>
MGASSIGN_INLINE Box box_around(float (&x1)[kCount], float (&y1)[kCount], float (&x2)[kCount], float (&y2)[kCount]) {
  for (int half = kCount / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) {
      x1[i] = smaller(x1[i], x1[i + half]);
      y1[i] = smaller(y1[i], y1[i + half]);
      x2[i] = larger(x2[i], x2[i + half]);
      y2[i] = larger(y2[i], y2[i + half]);
    }
  return {x1[0], y1[0], x2[0], y2[0]};
}

// The objects of a batch, image by image.
class ObjectBatch {
 public:
  // Without labels all valid boxes are objects. What check_objects() and check_property() ask has been asked.
  ObjectBatch(const Tensor& gt_boxes, const Tensor* gt_labels, const std::optional<Tensor>& gt_offsets,
              const std::optional<std::vector<int64_t>>& gt_counts);

  // Every label has to be a class, padding or a region.
  void check_labels(int64_t num_classes) const;

  int64_t num_images() const { return static_cast<int64_t>(offsets_.size()) - 1; }
  int64_t num_objects() const { return offsets_.back(); }
  int64_t first(int64_t image) const { return offsets_[image]; }
  int64_t size(int64_t image) const { return offsets_[image + 1] - offsets_[image]; }
  int64_t largest_image() const;
  int64_t image_of(int64_t i) const {
    return std::upper_bound(offsets_.begin(), offsets_.end(), i) - offsets_.begin() - 1;
  }

  Box box(int64_t i) const { return {boxes_[4 * i], boxes_[4 * i + 1], boxes_[4 * i + 2], boxes_[4 * i + 3]}; }
  // Whether an object of the batch may have points: those of negative labels are padding or regions.
  bool takes_part(int64_t i) const { return (labels_.empty() || labels_[i] >= 0) && is_valid(box(i)); }
  // Of the objects of an image, where there are any.
  const int64_t* labels(int64_t image) const { return labels_.data() + first(image); }

  // Sorts out and orders the objects of one image; different images may be ranked at once.
  Objects rank(int64_t image) { return order(image, true); }
  // The same, but those that take part stay in the order they came in.
  Objects list(int64_t image) { return order(image, false); }
  // The same, once rank(image) or list(image) has run.
  Objects ranked(int64_t image) const { return objects_.view(first(image), num_valid_[image]); }

  // Calls each(box) for the regions of an image.
  template <typename Each>
  void for_each_region(int64_t image, const Each& each) const {
    for (int64_t i = first(image); !labels_.empty() && i < offsets_[image + 1]; ++i)
      if (labels_[i] == kRegion && is_valid(box(i))) each(box(i));
  }

 private:
  Objects order(int64_t image, bool by_area);

  const float* boxes_;
  std::vector<int64_t> labels_;  // our own: what has been checked is what is looked up, whoever writes to the tensor
  std::vector<int64_t> offsets_;
  std::vector<int64_t> num_valid_;
  std::vector<uint64_t> keys_;  // what rank() sorts
  ObjectArrays objects_;
};

// For check_labels(): every number of at least 0 is a class.
constexpr int64_t kAnyClass = std::numeric_limits<int64_t>::max();

// Whether there are neither points nor objects, however many images: then there is no time for an offset of each.
bool nothing_to_assign(const Tensor& owner, const Tensor& gt_boxes, const std::optional<Tensor>& gt_offsets,
                       const std::optional<std::vector<int64_t>>& gt_counts);

// Of an image's points without an object, those strictly inside a region are to be ignored.
void ignore_points_in_regions(const Grid& grid, const ObjectBatch& batch, int64_t image, int64_t* owner);

// Of an image's points without an object those are to be ignored whose box, box_of(point), has this share of its area
// inside a region.
template <typename BoxOf>
void ignore_boxes_in_regions(const ObjectBatch& batch, int64_t image, float share, int64_t num_points, int64_t* owner,
                             const BoxOf& box_of) {
  batch.for_each_region(image, [&](const Box& region) {
    for (int64_t j = 0; j < num_points; ++j) {
      if (owner[j] != kBackground) continue;
      const Box box = box_of(j);
      if (is_valid(box) && share_inside(box, region) >= share) owner[j] = kIgnored;
    }
  });
}

}  // namespace mgassign::cpu
