#include "choose.h"

namespace mgassign::cpu {

namespace {

constexpr int64_t kTogether = 16 * kLanes;

// Predictions that follow one another.
struct Sides {
  float x1[kTogether], y1[kTogether], x2[kTogether], y2[kTogether], area[kTogether];
};

// Empties what is no box, and tells areas.
MGASSIGN_VECTOR void clean(Sides& sides) {
  for (int i = 0; i < kTogether; ++i) {
    const Box box{sides.x1[i], sides.y1[i], sides.x2[i], sides.y2[i]};
    const bool valid = is_valid(box);
    sides.x1[i] = chosen(valid, box.x1, 0.0f);
    sides.y1[i] = chosen(valid, box.y1, 0.0f);
    sides.x2[i] = chosen(valid, box.x2, 0.0f);
    sides.y2[i] = chosen(valid, box.y2, 0.0f);
    sides.area[i] = chosen(valid, area_of(box), 0.0f);
  }
}

// The box around the kLanes predictions from `first` on, without those that are empty.
MGASSIGN_VECTOR Box around(const Sides& sides, int64_t first) {
  float left[kLanes], top[kLanes], right[kLanes], bottom[kLanes];
  for (int i = 0; i < kLanes; ++i) {
    const bool any = sides.x2[first + i] > sides.x1[first + i];
    left[i] = chosen(any, sides.x1[first + i], kNowhere.x1);
    top[i] = chosen(any, sides.y1[first + i], kNowhere.y1);
    right[i] = chosen(any, sides.x2[first + i], kNowhere.x2);
    bottom[i] = chosen(any, sides.y2[first + i], kNowhere.y2);
  }
  return box_around(left, top, right, bottom);
}

}  // namespace

Predictions::Predictions(const Tensor& boxes, bool with_runs, const uint8_t* pool)
    : num_points_(boxes.size(1)),
      runs_(with_runs ? (num_points_ + kLanes - 1) / kLanes : 0),
      x1_(new_values<float>(boxes.size(0) * num_points_ + kLanes)),
      y1_(new_values<float>(boxes.size(0) * num_points_ + kLanes)),
      x2_(new_values<float>(boxes.size(0) * num_points_ + kLanes)),
      y2_(new_values<float>(boxes.size(0) * num_points_ + kLanes)),
      area_(new_values<float>(boxes.size(0) * num_points_ + kLanes)),
      around_(boxes.size(0) * runs_) {
  const int64_t num_images = boxes.size(0), end = num_images * num_points_;
  for (float* const array : {x1_.get(), y1_.get(), x2_.get(), y2_.get(), area_.get()})
    std::fill_n(array + end, kLanes, 0.0f);
  const int64_t parts = (num_points_ + kTogether - 1) / kTogether;
  const FloatView<3> view(boxes);
  const int64_t threads = threads_for(num_images * parts, 2 * end);
  for_each_unit(num_images * parts, threads, [&](int64_t unit, int64_t) {
    const int64_t image = unit / parts, first = unit % parts * kTogether;
    const int64_t count = std::min(kTogether, num_points_ - first), at = image * num_points_ + first;
    Sides sides;
    if (count < kTogether) sides = {};
    view.read_boxes(image * view.stride[0] + first * view.stride[1], view.stride[1], view.stride[2], count,
                    {sides.x1, sides.y1, sides.x2, sides.y2});
    for (int64_t i = 0; pool && i < count; ++i)
      if (!pool[at + i]) sides.x2[i] = sides.x1[i];
    clean(sides);
    std::copy_n(sides.x1, count, x1_.get() + at);
    std::copy_n(sides.y1, count, y1_.get() + at);
    std::copy_n(sides.x2, count, x2_.get() + at);
    std::copy_n(sides.y2, count, y2_.get() + at);
    std::copy_n(sides.area, count, area_.get() + at);
    for (int64_t i = 0; runs_ && i < count; i += kLanes)
      around_.set(image * runs_ + (first + i) / kLanes, around(sides, i), 0.0f);
  });
}

Predictions::OfImage Predictions::of(int64_t image) const {
  const int64_t at = image * num_points_;
  return {{x1_.get() + at, y1_.get() + at, x2_.get() + at, y2_.get() + at, area_.get() + at, num_points_},
          around_.view(image * runs_, runs_)};
}

namespace {

// `least`, or 0 where what an object of this area must have in common with another box is so little that roundings
// are as large.
float without_tiny_product(float least, float area) {
  return least > 0.0f && least_in_common(least, area) == 0.0f ? 0.0f : least;
}

// Writes those of `left` points from j on behind the `count` that are found already; how many there are then.
MGASSIGN_INLINE int64_t find(const Boxes& predictions, int64_t j, int64_t left, const Box& box, float area, float least,
                             int32_t* found, int64_t count) {
  int32_t hit[kLanes];
  for (int i = 0; i < kLanes; ++i) {
    // Told by a product: it is to be asked often, and `least` has room for roundings.
    const Overlap overlap = overlap_of(predictions[j + i], predictions.area[j + i], box, area);
    hit[i] = !(overlap.intersection <= least * overlap.total) & (i < static_cast<int>(left));
  }
  uint8_t narrow[kLanes];
  for (int i = 0; i < kLanes; ++i) narrow[i] = static_cast<uint8_t>(hit[i]);
  uint64_t hits[2];
  std::memcpy(hits, narrow, sizeof(hits));
  if (!(hits[0] | hits[1])) return count;
  for (int i = 0; i < kLanes; ++i) {
    found[count] = static_cast<int32_t>(j + i);
    count += narrow[i];
  }
  return count;
}

}  // namespace

MGASSIGN_VECTOR int64_t overlapping(const Boxes& predictions, const Band& band, const Box& box, float least,
                                    int32_t* found) {
  const float area = area_of(box);
  least = without_tiny_product(least, area);
  int64_t count = 0;
  for (int64_t row = 0; row < band.rows; ++row)
    for (int64_t column = 0; column < band.columns; column += kLanes)
      count = find(predictions, band.first + row * band.step + column, std::min(band.columns - column, kLanes), box,
                   area, least, found, count);
  return count;
}

MGASSIGN_VECTOR int64_t overlapping(const Boxes& predictions, const int32_t* runs, int64_t num_runs, const Box& box,
                                    float least, int32_t* found) {
  const float area = area_of(box);
  least = without_tiny_product(least, area);
  int64_t count = 0;
  for (int64_t i = 0; i < num_runs; ++i) {
    const int64_t first = runs[i] * kLanes;
    count = find(predictions, first, std::min(predictions.count - first, kLanes), box, area, least, found, count);
  }
  return count;
}

MGASSIGN_VECTOR int64_t overlapping_runs(const Boxes& around, const Box& box, float least, int32_t* found) {
  const float enough = least_in_common(least, area_of(box));
  return find_hits(around.count, found, [&](int64_t k) MGASSIGN_INLINE_LAMBDA {
    return overlap_of(around[k], 0.0f, box, 0.0f).intersection > enough;
  });
}

void settle(const ChoiceLists& lists, int64_t first, int64_t count, const Holdings& held, Chosen& chosen) {
  chosen.points.clear();
  chosen.contested.clear();
  for (int64_t g = 0; g < count; ++g)
    lists.for_each(first + g, [&](const Choice& choice) {
      const bool free = held.owner[choice.point] == kBackground;
      (free ? chosen.points : chosen.contested).push_back(choice.point);
      if (!free && !(choice.claim > held.claim[choice.point])) return;
      held.owner[choice.point] = g;
      held.score[choice.point] = choice.score;
      held.claim[choice.point] = choice.claim;
    });
  std::vector<int32_t>& contested = chosen.contested;
  std::sort(contested.begin(), contested.end());
  contested.erase(std::unique(contested.begin(), contested.end()), contested.end());
}

}  // namespace mgassign::cpu
