#include "choose.h"

namespace mgassign::cpu {

namespace {

// `count` predictions from `first` on.
struct Sides {
  float *x1, *y1, *x2, *y2, *area;
  int64_t first, count;
};

// Empties what is no box of kLanes at most, tells areas, and the box around all others.
MGASSIGN_VECTOR Box clean(const Sides& sides) {
  float left[kLanes] = {}, top[kLanes] = {}, right[kLanes] = {}, bottom[kLanes] = {}, area[kLanes];
  float* const to[] = {sides.x1 + sides.first, sides.y1 + sides.first, sides.x2 + sides.first, sides.y2 + sides.first};
  std::copy_n(to[0], sides.count, left);
  std::copy_n(to[1], sides.count, top);
  std::copy_n(to[2], sides.count, right);
  std::copy_n(to[3], sides.count, bottom);
  float x1[kLanes], y1[kLanes], x2[kLanes], y2[kLanes];
  int32_t is_box[kLanes];
  for (int i = 0; i < kLanes; ++i) is_box[i] = is_valid({left[i], top[i], right[i], bottom[i]});
  for (int i = 0; i < kLanes; ++i) {
    const Box box{left[i], top[i], right[i], bottom[i]};
    const bool valid = is_box[i];
    area[i] = chosen(valid, area_of(box), 0.0f);
    x1[i] = chosen(valid, box.x1, 0.0f);
    y1[i] = chosen(valid, box.y1, 0.0f);
    x2[i] = chosen(valid, box.x2, 0.0f);
    y2[i] = chosen(valid, box.y2, 0.0f);
    left[i] = chosen(valid, box.x1, kNowhere.x1);
    top[i] = chosen(valid, box.y1, kNowhere.y1);
    right[i] = chosen(valid, box.x2, kNowhere.x2);
    bottom[i] = chosen(valid, box.y2, kNowhere.y2);
  }
  std::copy_n(x1, sides.count, to[0]);
  std::copy_n(y1, sides.count, to[1]);
  std::copy_n(x2, sides.count, to[2]);
  std::copy_n(y2, sides.count, to[3]);
  std::copy_n(area, sides.count, sides.area + sides.first);
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) {
      left[i] = smaller(left[i], left[i + half]);
      top[i] = smaller(top[i], top[i + half]);
      right[i] = larger(right[i], right[i + half]);
      bottom[i] = larger(bottom[i], bottom[i + half]);
    }
  return {left[0], top[0], right[0], bottom[0]};
}

}  // namespace

Predictions::Predictions(const Tensor& boxes, int64_t threads, const uint8_t* pool)
    : num_points_(boxes.size(1)),
      runs_((num_points_ + kLanes - 1) / kLanes),
      x1_(new_values<float>(boxes.size(0) * num_points_ + kLanes)),
      y1_(new_values<float>(boxes.size(0) * num_points_ + kLanes)),
      x2_(new_values<float>(boxes.size(0) * num_points_ + kLanes)),
      y2_(new_values<float>(boxes.size(0) * num_points_ + kLanes)),
      area_(new_values<float>(boxes.size(0) * num_points_ + kLanes)),
      around_(boxes.size(0) * runs_) {
  const int64_t num_images = boxes.size(0), end = num_images * num_points_;
  for (float* const array : {x1_.get(), y1_.get(), x2_.get(), y2_.get(), area_.get()})
    std::fill_n(array + end, kLanes, 0.0f);
  constexpr int64_t kTogether = 16 * kLanes;
  const int64_t parts = (num_points_ + kTogether - 1) / kTogether;
  const FloatView<3> view(boxes);
  for_each_unit(num_images * parts, threads, [&](int64_t unit, int64_t) {
    const int64_t image = unit / parts, first = unit % parts * kTogether;
    Sides at{x1_.get(),
             y1_.get(),
             x2_.get(),
             y2_.get(),
             area_.get(),
             image * num_points_ + first,
             std::min(kTogether, num_points_ - first)};
    view.read_boxes(image * view.stride[0] + first * view.stride[1], view.stride[1], view.stride[2], at.count,
                    {at.x1 + at.first, at.y1 + at.first, at.x2 + at.first, at.y2 + at.first});
    const int64_t end = at.first + at.count;
    for (int64_t i = at.first; pool && i < end; ++i)
      if (!pool[i]) at.x2[i] = at.x1[i];
    for (int64_t run = image * runs_ + first / kLanes; at.first < end; ++run, at.first += kLanes) {
      at.count = std::min(kLanes, end - at.first);
      around_.set(run, {clean(at), 0.0f, 0});
    }
  });
}

Predictions::OfImage Predictions::of(int64_t image) const {
  const int64_t at = image * num_points_;
  return {{x1_.get() + at, y1_.get() + at, x2_.get() + at, y2_.get() + at, area_.get() + at, nullptr, num_points_},
          around_.view(image * runs_, runs_)};
}

namespace {

// Writes those of `left` points from j on behind the `count` that are found already; how many there are then.
MGASSIGN_INLINE int64_t find(const Objects& predictions, int64_t j, int64_t left, const Box& box, float area,
                             float least, int32_t* found, int64_t count) {
  int32_t hit[kLanes];
  for (int i = 0; i < kLanes; ++i) {
    const Box predicted{predictions.x1[j + i], predictions.y1[j + i], predictions.x2[j + i], predictions.y2[j + i]};
    // Told by a product: it is to be asked often, and `least` has room for roundings.
    const Overlap overlap = overlap_of(predicted, predictions.area[j + i], box, area);
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

MGASSIGN_VECTOR int64_t overlapping(const Objects& predictions, const Band& band, const Box& box, float least,
                                    int32_t* found) {
  const float area = area_of(box);
  int64_t count = 0;
  for (int64_t row = 0; row < band.rows; ++row)
    for (int64_t column = 0; column < band.columns; column += kLanes)
      count = find(predictions, band.first + row * band.step + column, std::min(band.columns - column, kLanes), box,
                   area, least, found, count);
  return count;
}

MGASSIGN_VECTOR int64_t overlapping(const Objects& predictions, const int32_t* runs, int64_t num_runs, const Box& box,
                                    float least, int32_t* found) {
  const float area = area_of(box);
  int64_t count = 0;
  for (int64_t i = 0; i < num_runs; ++i) {
    const int64_t first = runs[i] * kLanes;
    count = find(predictions, first, std::min(predictions.count - first, kLanes), box, area, least, found, count);
  }
  return count;
}

MGASSIGN_VECTOR int64_t overlapping_runs(const Objects& around, const Box& box, float least, int32_t* found) {
  const float enough = least * area_of(box);
  return find_hits(around.count, found, [&](int64_t k) MGASSIGN_INLINE_LAMBDA {
    const Box run{around.x1[k], around.y1[k], around.x2[k], around.y2[k]};
    return overlap_of(run, 0.0f, box, 0.0f).intersection > enough;
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
