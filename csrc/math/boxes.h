// Boxes in continuous pixel coordinates: what counts as a box, its area, the overlap of two.
#pragma once

#include "portable.h"

namespace mgassign {

struct Box {
  float x1, y1, x2, y2;
};

// A box that takes part: finite and of positive width and height.
MGASSIGN_HD bool is_valid(const Box& box) {
  return is_finite(box.x1) && is_finite(box.y1) && is_finite(box.x2) && is_finite(box.y2) && box.x2 > box.x1 &&
         box.y2 > box.y1;
}

MGASSIGN_HD float area_of(const Box& box) { return (box.x2 - box.x1) * (box.y2 - box.y1); }

// What two valid boxes whose areas are known have in common.
struct Overlap {
  float intersection, total;  // total: the area of the union

  // Intersection over union. 0 where the boxes do not overlap, and where areas overflow or underflow float32
  // and the ratio would be no number.
  MGASSIGN_HD float iou() const {
    const float ratio = intersection / total;
    return ratio > 0.0f ? ratio : 0.0f;
  }

  // False only where iou() is 0 or less than score: spares a division. The two factors outweigh every rounding,
  // also among numbers too small to have all their digits.
  MGASSIGN_HD bool may_reach(float score) const {
    return intersection > 0.0f && intersection >= score * total * 0.99999f - 1e-37f;
  }
};

MGASSIGN_HD Overlap overlap_of(const Box& a, float area_a, const Box& b, float area_b) {
  const float width = smaller(a.x2, b.x2) - larger(a.x1, b.x1);
  const float height = smaller(a.y2, b.y2) - larger(a.y1, b.y1);
  const float intersection = larger(width, 0.0f) * larger(height, 0.0f);
  return {intersection, (area_a + area_b) - intersection};
}

MGASSIGN_HD float iou_of(const Box& a, float area_a, const Box& b, float area_b) {
  return overlap_of(a, area_a, b, area_b).iou();
}

}  // namespace mgassign
