// What SimOTA and dynamic soft labels have in common: an object chooses the points that cost it least, as many as its
// best overlaps add up to. A point costs what its classes cost, what its overlap costs, and what its place costs.
#pragma once

#include "../boxes.h"
#include "../elementary.h"

namespace mgassign {

struct DynamicK {
  int32_t best_overlaps;
  float overlap_weight, epsilon;

  // Classes are dealt to this many sums, which are added in pairs: the same on every device.
  static constexpr int kSums = 16;

  // Costs are at least 0 but for this one, which is at least -overlap_weight * log(1 + epsilon).
  MGASSIGN_HD float cost_of_overlap(float overlap) const { return overlap_weight * -log_f32(overlap + epsilon); }

  // An overlap so small that nothing beneath it costs `limit` or less; -infinity where none is. The cost itself is
  // asked whether the estimate is right.
  MGASSIGN_HD float least_overlap(float limit) const {
    if (!(cost_of_overlap(0.0f) > limit)) return -kInfinity;
    float least = (exp_f32(-limit / overlap_weight) - epsilon) * kWideRoom;
    while (least > 0.0f && !(cost_of_overlap(least) > limit)) least *= 0.5f;
    return larger(least, 0.0f) * kRoom;
  }

  // What the place may cost where a point costs no more than `limit`: more than that, where overlaps may cost less than
  // nothing, and by as much as the sum of both may be rounded.
  MGASSIGN_HD float limit_of_place(float limit) const {
    return larger((limit - cost_of_overlap(1.0f)) * (1.0f / kRoom) + fabsf(limit) * 0x1p-22f, 0.0f);
  }

  // How many points an object chooses, of the sum of its best overlaps.
  MGASSIGN_HD static int64_t number_of_points(double sum) {
    const int64_t number = static_cast<int64_t>(static_cast<float>(sum));
    return number < 1 ? 1 : number;
  }
};

}  // namespace mgassign
