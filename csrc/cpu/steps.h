// The steps that operators share. fcos_assign.cpp and topk_per_object.cpp define what
// mutual_guidance_assign.cpp uses too, so composed and fused results cannot drift apart.
#pragma once

#include <memory>

#include "../math/boxes.h"
#include "../math/order.h"
#include "common.h"

namespace mgassign::cpu {

// An object that takes part in competition, and where it stood in its image.
struct Object {
  Box box;
  float area;
  int32_t index;
};

// A view of objects, an array for each property: what looks at many of them is vector code.
// Those of one image are the valid ones: smaller area first, then lower index, where they were ranked; by index where
// they were listed. Visiting them in order and replacing only what is strictly worse settles ties as the rules ask.
struct Objects {
  const float *x1, *y1, *x2, *y2, *area;
  const int32_t* index;
  int64_t count;

  Object operator[](int64_t k) const { return {{x1[k], y1[k], x2[k], y2[k]}, area[k], index[k]}; }
};

// Touches nothing.
constexpr Box kNowhere{kInfinity, kInfinity, -kInfinity, -kInfinity};

// The memory behind such a view, and a little more, which vector code may read.
class ObjectArrays {
 public:
  explicit ObjectArrays(int64_t size)
      : x1_(size + kLanes),
        y1_(size + kLanes),
        x2_(size + kLanes),
        y2_(size + kLanes),
        area_(size + kLanes),
        index_(size) {}

  void set(int64_t k, const Object& object) {
    x1_[k] = object.box.x1;
    y1_[k] = object.box.y1;
    x2_[k] = object.box.x2;
    y2_[k] = object.box.y2;
    area_[k] = object.area;
    index_[k] = object.index;
  }
  Objects view(int64_t first, int64_t count) const {
    return {x1_.data() + first,
            y1_.data() + first,
            x2_.data() + first,
            y2_.data() + first,
            area_.data() + first,
            index_.data() + first,
            count};
  }

 private:
  std::vector<float> x1_, y1_, x2_, y2_, area_;
  std::vector<int32_t> index_;
};

// Finds the objects that touch the bounds, in their order: writes their places to found, which has room for all of them
// and one more; how many.
int64_t touching(const Box& bounds, const Objects& objects, int32_t* found);

// The box around those of so many lanes, whose sides are lost.
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

// Finds those of `count` that is_hit(k): a block's answers first, by vector code, then a loop without a branch, which
// would be mispredicted too often. It is asked for up to kLanes more, whose answers do not matter. `found` has room for
// one more than there are.
template <typename IsHit>
MGASSIGN_INLINE int64_t find_hits(int64_t count, int32_t* found, const IsHit& is_hit) {
  constexpr int64_t kTogether = 64;
  int64_t num_found = 0;
  for (int64_t first = 0; first < count; first += kTogether) {
    const int64_t size = std::min(kTogether, count - first);
    uint8_t hit[kTogether], any = 0;
    for (int64_t run = 0; run < size; run += kLanes)
      for (int64_t i = run; i < run + kLanes; ++i) hit[i] = is_hit(first + i);
    for (int64_t i = 0; i < size; ++i) any |= hit[i];
    if (!any) continue;
    for (int64_t i = 0; i < size; ++i) {
      found[num_found] = static_cast<int32_t>(first + i);
      num_found += hit[i];
    }
  }
  return num_found;
}

// The objects of a batch, image by image.
class ObjectBatch {
 public:
  // boxes [N, 4]; labels [N] or null: objects of negative labels are padding or regions and do not compete.
  ObjectBatch(const float* boxes, std::vector<int64_t> offsets, const int64_t* labels = nullptr);

  int64_t num_images() const { return static_cast<int64_t>(offsets_.size()) - 1; }
  int64_t num_objects() const { return offsets_.back(); }
  int64_t first(int64_t image) const { return offsets_[image]; }
  int64_t size(int64_t image) const { return offsets_[image + 1] - offsets_[image]; }
  int64_t largest_image() const;

  // Sorts out and orders the objects of one image; different images may be ranked at once.
  Objects rank(int64_t image) { return order(image, true); }
  // The same, but those that take part stay in the order they came in.
  Objects list(int64_t image) { return order(image, false); }
  Box box(int64_t i) const { return {boxes_[4 * i], boxes_[4 * i + 1], boxes_[4 * i + 2], boxes_[4 * i + 3]}; }
  // Whether an object of the batch may have points.
  bool takes_part(int64_t i) const { return (!labels_ || labels_[i] >= 0) && is_valid(box(i)); }
  int64_t image_of(int64_t i) const {
    return std::upper_bound(offsets_.begin(), offsets_.end(), i) - offsets_.begin() - 1;
  }
  // Calls each(box) for the regions of an image.
  template <typename Each>
  void for_each_region(int64_t image, const Each& each) const {
    for (int64_t i = first(image); labels_ && i < offsets_[image + 1]; ++i)
      if (labels_[i] == kRegion && is_valid(box(i))) each(box(i));
  }
  // The same, once rank(image) or list(image) has run.
  Objects ranked(int64_t image) const { return objects_.view(first(image), num_valid_[image]); }

 private:
  Objects order(int64_t image, bool by_area);

  const float* boxes_;
  const int64_t* labels_;
  std::vector<int64_t> offsets_;
  std::vector<int64_t> num_valid_;
  std::vector<uint64_t> keys_;  // what rank() sorts
  ObjectArrays objects_;
};

// Every label has to be a class, padding or a region; of kAnyClass classes where nobody knows how many there are.
constexpr int64_t kAnyClass = std::numeric_limits<int64_t>::max();
void check_labels(const ObjectBatch& batch, const int64_t* labels, int64_t num_classes);

// FCOS's own strategy for one image. Writes owner [P] and num_points (one per object of the image).
void assign_original(const Grid& grid, const Objects& objects, int64_t num_objects, double center_radius,
                     int64_t* owner, int64_t* num_points);

// Of the points without an object, those strictly inside a region are to be ignored.
void ignore_points_inside(const Grid& grid, const Box& region, int64_t* owner);

// Whom each point stands for and by what score; of one image or of all.
struct Standing {
  int64_t* owner;
  float* score;

  Standing from(int64_t point) const { return {owner + point, score + point}; }
};

// Some points of an image, a bit each.
struct PointSet {
  static constexpr int64_t kOfWord = 64;
  uint64_t* words;

  static int64_t words_for(int64_t num_points) { return (num_points + kOfWord - 1) / kOfWord; }
  void add(int64_t point) const { words[point / kOfWord] |= uint64_t{1} << point % kOfWord; }
  // Calls each(point) in their order.
  template <typename Each>
  void for_each(int64_t num_points, const Each& each) const {
    for (int64_t w = 0; w < words_for(num_points); ++w)
      for (uint64_t left = words[w]; left != 0; left &= left - 1) each(w * kOfWord + __builtin_ctzll(left));
  }
};

// For each object, keeps its k best points among those standing for it; the others' owner becomes -1, their score 0.
// Where `considered`, not below k, is given, the best so many of them are then to be ignored instead, but for the k.
// Where `standing` is given, no other points stand for an object. Holds the scratch space for one image at a time.
class TopPointSelector {
 public:
  TopPointSelector(int64_t num_points, int64_t max_objects);
  void run(int64_t* owner, float* score, const int64_t* k, int64_t num_objects, const int64_t* considered = nullptr,
           const PointSet* standing = nullptr);

 private:
  struct Contest {
    int64_t start;     // of its list, which has room for twice as many points as it may keep
    int32_t capacity;  // how many that are
    int32_t filled;    // how many are there
  };
  void prepare(const int64_t* owner, const float* score, const int64_t* considered, int64_t num_objects,
               const PointSet* standing);

  int64_t num_points_;
  std::vector<float> threshold_;  // score a further point has to exceed; entry 0 for points of no object
  std::vector<Contest> contests_;
  std::vector<int32_t> num_scoring_;      // points of each object by classes of scores
  std::unique_ptr<ScoredPoint[]> lists_;  // room for every point twice, but only what is used is ever touched
};

}  // namespace mgassign::cpu
