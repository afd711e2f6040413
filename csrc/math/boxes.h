// Boxes in continuous pixel coordinates: what counts as a box, its area, the overlap of two.
#pragma once

#include <cmath>

#include "elementary.h"

namespace mgassign {

struct Box {
  float x1, y1, x2, y2;
};

struct Location {
  float x, y;
};

// Holds every point.
MGASSIGN_HD Box everywhere() { return {-kInfinity, -kInfinity, kInfinity, kInfinity}; }

MGASSIGN_HD Location center_of(const Box& box) { return {(box.x1 + box.x2) * 0.5f, (box.y1 + box.y2) * 0.5f}; }

// What lies within reach of a box's centre, along each axis.
MGASSIGN_HD Box around_center(const Box& box, float reach) {
  const Location center = center_of(box);
  return {center.x - reach, center.y - reach, center.x + reach, center.y + reach};
}
// The same, of a reach in strides.
MGASSIGN_HD Box around_center(const Box& box, double stride, double radius) {
  return around_center(box, static_cast<float>(radius * stride));
}

MGASSIGN_HD Box intersection_of(const Box& a, const Box& b) {
  return {larger(a.x1, b.x1), larger(a.y1, b.y1), smaller(a.x2, b.x2), smaller(a.y2, b.y2)};
}

// Whether a point lies in a box, farther from its sides than a margin (of 0: strictly inside).
MGASSIGN_HD bool contains(const Box& box, const Location& at, float margin = 0.0f) {
  return at.x - box.x1 > margin && box.x2 - at.x > margin && at.y - box.y1 > margin && box.y2 - at.y > margin;
}

// contains() without a margin, all of it at once, as in is_valid(): a comparison is cheaper than a branch.
MGASSIGN_HD bool strictly_inside(const Location& at, const Box& box) {
  return (at.x > box.x1) & (at.x < box.x2) & (at.y > box.y1) & (at.y < box.y2);
}

// A box that takes part: finite and of positive width and height.
MGASSIGN_HD bool is_valid(const Box& box) {
  return (-kInfinity < box.x1) & (box.x1 < box.x2) & (box.x2 < kInfinity) & (-kInfinity < box.y1) & (box.y1 < box.y2) &
         (box.y2 < kInfinity);
}

MGASSIGN_HD float area_of(const Box& box) { return (box.x2 - box.x1) * (box.y2 - box.y1); }

// What two valid boxes whose areas are known have in common; at first nothing.
struct Overlap {
  float intersection = 0.0f, total = 1.0f;  // total: the area of the union

  // Intersection over union. 0 where the boxes do not overlap, and where areas overflow or underflow float32
  // and the ratio would be no number.
  MGASSIGN_HD float iou() const {
    const float ratio = intersection / total;
    return ratio > 0.0f ? ratio : 0.0f;
  }
};

MGASSIGN_HD Overlap overlap_of(const Box& a, float area_a, const Box& b, float area_b) {
  const float width = smaller_number(a.x2, b.x2) - larger_number(a.x1, b.x1);
  const float height = smaller_number(a.y2, b.y2) - larger_number(a.y1, b.y1);
  const float intersection = larger_number(width, 0.0f) * larger_number(height, 0.0f);
  return {intersection, (area_a + area_b) - intersection};
}

// Of a bound worked out in other steps than what it bounds: room for roundings; more where powers or areas are in it
// and nothing asks again.
constexpr float kRoom = 0.9999f, kWideRoom = 0.999f;

// Of an overlap that bounds others, or areas: where overlaps are subnormal, roundings are as large as they are, and
// there is no bound.
MGASSIGN_HD float without_tiny(float overlap) { return chosen(overlap > 1e-30f, overlap, 0.0f); }

// How much a box must have in common with another, their union given, for an overlap above `least`.
MGASSIGN_HD float least_in_common(float least, float total) {
  const float common = least * total;
  return common > 0.0f ? without_tiny(common) : common;
}

MGASSIGN_HD float iou_of(const Box& a, float area_a, const Box& b, float area_b) {
  return overlap_of(a, area_a, b, area_b).iou();
}

// How much of a valid box lies inside a valid region; NaN or 0 where areas overflow or underflow float32.
MGASSIGN_HD float share_inside(const Box& box, const Box& region) {
  const float area = area_of(box);
  return overlap_of(box, area, region, area).intersection / area;
}

// Complete IoU (Zheng et al., Distance-IoU Loss, AAAI 2020): IoU less what the distance of the centres and the aspects'
// difference take away. The small numbers stand where YOLOv8 has them; `angle` is known for the object beforehand.
constexpr float kSmall = 1e-7f;

MGASSIGN_HD float angle_of(const Box& box) { return atan_f32((box.x2 - box.x1) / (box.y2 - box.y1 + kSmall)); }

// At least 0. Never above iou_of() of the same boxes, so that where that is too little, this is.
MGASSIGN_HD float complete_iou_of(const Box& a, const Box& b, float angle_of_b) {
  const float area_a = (a.x2 - a.x1) * (a.y2 - a.y1 + kSmall), area_b = (b.x2 - b.x1) * (b.y2 - b.y1 + kSmall);
  const Overlap overlap = overlap_of(b, area_b, a, area_a);
  const float iou = overlap.intersection / (overlap.total + kSmall);

  const float width = larger_number(a.x2, b.x2) - smaller_number(a.x1, b.x1);
  const float height = larger_number(a.y2, b.y2) - smaller_number(a.y1, b.y1);
  const float diagonal = width * width + height * height + kSmall;
  const float dx = a.x1 + a.x2 - b.x1 - b.x2, dy = a.y1 + a.y2 - b.y1 - b.y2;
  const float apart = (dx * dx + dy * dy) * 0.25f;

  constexpr float kFourByPiSquared = 0x1.9f02f6p-2f;
  const float turn = angle_of(a) - angle_of_b;
  const float v = kFourByPiSquared * (turn * turn);
  const float complete = iou - (apart / diagonal + v * (v / (1.0f - iou + v + kSmall)));
  return complete > 0.0f ? complete : 0.0f;
}

// How the iou() of an overlap compares with that of the best one so far, told by products instead of divisions.
struct Comparison {
  float intersection, lead, margin;

  MGASSIGN_HD bool greater() const { return lead > margin; }
  // Only the divisions can tell. Where neither holds, it is less or 0. NaN, from products that overflow, is close.
  MGASSIGN_HD bool close() const { return (intersection > 0.0f) & !(fabsf(lead) > margin); }
};

// Roundings change a product by less than its 2^20th part, and by less than kDoubt where it is small. With boxes that
// are huge, divisions too lose digits: then `doubt` has to be infinite, and every overlap is close.
constexpr float kDoubt = 0x1p-30f;

MGASSIGN_HD bool is_huge(float area) { return !(area <= 0x1p+32f); }

MGASSIGN_HD Comparison compare(const Overlap& challenger, const Overlap& best, float doubt) {
  const float ours = challenger.intersection * best.total, theirs = best.intersection * challenger.total;
  return {challenger.intersection, ours - theirs, ours * 0x1p-20f + doubt};
}

}  // namespace mgassign
