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

// Intersection over union of two valid boxes whose areas are known. 0 where the boxes do not overlap, and
// where areas overflow or underflow float32 and the ratio would be no number.
MGASSIGN_HD float iou_of(const Box& a, float area_a, const Box& b, float area_b) {
  const float width = smaller(a.x2, b.x2) - larger(a.x1, b.x1);
  const float height = smaller(a.y2, b.y2) - larger(a.y1, b.y1);
  const float intersection = larger(width, 0.0f) * larger(height, 0.0f);
  const float iou = intersection / ((area_a + area_b) - intersection);
  return iou > 0.0f ? iou : 0.0f;
}

}  // namespace mgassign
