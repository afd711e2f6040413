#include "choose.h"

namespace mgassign::cpu {

namespace {

// `count` predictions from `first` on.
struct Sides {
  float *x1, *y1, *x2, *y2, *area;
  int64_t first, count;
};

template <typename Element>
MGASSIGN_INLINE void load(const Element* box, int64_t point_step, int64_t side_step, const Sides& to) {
  for (int64_t i = 0; i < to.count; ++i) {
    const Element* const at = box + i * point_step;
    to.x1[to.first + i] = static_cast<float>(at[0]);
    to.y1[to.first + i] = static_cast<float>(at[side_step]);
    to.x2[to.first + i] = static_cast<float>(at[2 * side_step]);
    to.y2[to.first + i] = static_cast<float>(at[3 * side_step]);
  }
}

// Empties what is no box, tells areas, and the box around all others.
MGASSIGN_VECTOR Box clean(const Sides& sides) {
  float *const x1 = sides.x1 + sides.first, *const y1 = sides.y1 + sides.first;
  float *const x2 = sides.x2 + sides.first, *const y2 = sides.y2 + sides.first;
  float* const area = sides.area + sides.first;
  Box around = kNowhere;
  for (int64_t i = 0; i < sides.count; ++i) {
    const Box box{x1[i], y1[i], x2[i], y2[i]};
    const bool valid = is_valid(box);
    around = {smaller(around.x1, valid ? box.x1 : kInfinity), smaller(around.y1, valid ? box.y1 : kInfinity),
              larger(around.x2, valid ? box.x2 : -kInfinity), larger(around.y2, valid ? box.y2 : -kInfinity)};
    x1[i] = valid ? box.x1 : 0.0f;
    y1[i] = valid ? box.y1 : 0.0f;
    x2[i] = valid ? box.x2 : 0.0f;
    y2[i] = valid ? box.y2 : 0.0f;
    area[i] = valid ? area_of(box) : 0.0f;
  }
  return around;
}

}  // namespace

Predictions::Predictions(const Tensor& boxes, int64_t threads, const uint8_t* pool)
    : num_points_(boxes.size(1)),
      runs_((num_points_ + kRun - 1) / kRun),
      x1_(new_values<float>(boxes.size(0) * num_points_ + kLanes)),
      y1_(new_values<float>(boxes.size(0) * num_points_ + kLanes)),
      x2_(new_values<float>(boxes.size(0) * num_points_ + kLanes)),
      y2_(new_values<float>(boxes.size(0) * num_points_ + kLanes)),
      area_(new_values<float>(boxes.size(0) * num_points_ + kLanes)),
      around_(boxes.size(0) * runs_) {
  const int64_t num_images = boxes.size(0), end = num_images * num_points_;
  for (float* const array : {x1_.get(), y1_.get(), x2_.get(), y2_.get(), area_.get()})
    std::fill_n(array + end, kLanes, 0.0f);
  with_strided<3>(boxes, [&](const auto& view) {
    for_each_unit(num_images * runs_, threads, [&](int64_t unit, int64_t) {
      const int64_t image = unit / runs_, first = unit % runs_ * kRun;
      const Sides at{x1_.get(),
                     y1_.get(),
                     x2_.get(),
                     y2_.get(),
                     area_.get(),
                     image * num_points_ + first,
                     std::min(kRun, num_points_ - first)};
      const auto* const box = view.data + image * view.stride[0] + first * view.stride[1];
      if (view.stride[1] == 4 && view.stride[2] == 1)  // numbers the compiler makes vector code for
        load(box, 4, 1, at);
      else
        load(box, view.stride[1], view.stride[2], at);
      for (int64_t i = at.first; pool && i < at.first + at.count; ++i)
        if (!pool[i]) at.x2[i] = at.x1[i];
      around_.set(unit, {clean(at), 0.0f, 0});
    });
  });
}

Predictions::OfImage Predictions::of(int64_t image) const {
  const int64_t at = image * num_points_;
  return {x1_.get() + at, y1_.get() + at,   x2_.get() + at,
          y2_.get() + at, area_.get() + at, around_.view(image * runs_, runs_)};
}

MGASSIGN_VECTOR int64_t overlapping(const Predictions::OfImage& predictions, const Band& band, const Box& box,
                                    float least, int32_t* found) {
  const float area = area_of(box);
  int64_t count = 0;
  for (int64_t row = 0; row < band.rows; ++row)
    for (int64_t column = 0; column < band.columns; column += kLanes) {
      const int64_t j = band.first + row * band.step + column;
      const int left = static_cast<int>(std::min(band.columns - column, kLanes));
      uint8_t hit[kLanes];
      for (int i = 0; i < kLanes; ++i) {
        const Box predicted{predictions.x1[j + i], predictions.y1[j + i], predictions.x2[j + i], predictions.y2[j + i]};
        // Told by a product: it is to be asked often, and `least` has room for roundings.
        const Overlap overlap = overlap_of(predicted, predictions.area[j + i], box, area);
        hit[i] = !(overlap.intersection <= least * overlap.total) & (i < left);
      }
      uint64_t hits[2];
      std::memcpy(hits, hit, sizeof(hits));
      if (!(hits[0] | hits[1])) continue;
      for (int i = 0; i < kLanes; ++i) {
        found[count] = static_cast<int32_t>(j + i);
        count += hit[i];
      }
    }
  return count;
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
