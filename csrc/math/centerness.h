// Centerness, and its amplification by the classification score (Classify to Localize).
#pragma once

#include "elementary.h"

namespace mgassign {

// One axis of a point strictly inside a box: l and r (or t and b) seen from the point.
// FCOS's centerness is sqrt(x.ratio * y.ratio), its level rule looks at max(x.longest, y.longest).
struct AxisDistances {
  float ratio;    // min / max of the two distances
  float longest;  // their max
};

MGASSIGN_HD AxisDistances axis_distances(float coordinate, float low, float high) {
  const float before = coordinate - low;
  const float after = high - coordinate;
  const float longest = larger_number(before, after);
  return {smaller_number(before, after) / longest, longest};
}

MGASSIGN_HD float centerness_of(float ratio_x, float ratio_y) { return square_root(ratio_x * ratio_y); }

// c ^ ((sigma - p) / sigma), for 0 <= c <= 1, 0 <= p <= 1 < sigma. 0 where c is 0.
MGASSIGN_HD float amplify(float centerness, float probability, float sigma) {
  return exp_f32(((sigma - probability) / sigma) * log_f32(centerness));
}

}  // namespace mgassign
