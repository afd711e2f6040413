// Task-aligned assignment: a point's score for an object is s^alpha * u^beta, s the probability of the object's class
// there, u the overlap of predicted box and object.
#pragma once

#include "../boxes.h"
#include "../elementary.h"

namespace mgassign {

struct TaskAligned {
  Power alpha, beta;
  bool complete;  // u is complete IoU
  bool anywhere;  // objects choose among all points, and lose those outside their window
  float margin, raise_below, least_side;
  bool contest_chosen;  // a point is contested only by those that chose it, not by all in whose window it lies
  float epsilon;
  bool sigmoid;

  // An object, and what every overlap with it takes.
  struct Object {
    Box box;
    float area, angle;
  };

  MGASSIGN_HD Object object(const Box& box) const { return {box, area_of(box), complete ? angle_of(box) : 0.0f}; }

  // Where the points of a valid object lie: its box, short sides raised.
  MGASSIGN_HD Box window(const Box& box) const {
    if (least_side == 0.0f) return box;
    const Location center = center_of(box);
    const float width = box.x2 - box.x1, height = box.y2 - box.y1;
    const float across = (width < raise_below ? least_side : width) * 0.5f;
    const float down = (height < raise_below ? least_side : height) * 0.5f;
    return {center.x - across, center.y - down, center.x + across, center.y + down};
  }

  MGASSIGN_HD bool holds(const Box& window, const Location& point) const { return contains(window, point, margin); }

  MGASSIGN_HD float probability(float raw) const { return probability_of(raw, sigmoid); }

  // u; never above the plain IoU, which shows from below where it is too little.
  MGASSIGN_HD float overlap(const Box& predicted, const Object& object) const {
    return complete ? complete_iou_of(predicted, object.box, object.angle) : iou_with(predicted, object);
  }
  MGASSIGN_HD static float iou_with(const Box& predicted, const Object& object) {
    const Overlap both = overlap_of(predicted, area_of(predicted), object.box, object.area);
    const float ratio = both.intersection / larger_number(both.total, 1e-6f);
    return ratio > 0.0f ? ratio : 0.0f;
  }

  MGASSIGN_HD float score(float probability, float overlap) const { return alpha.of(probability) * beta.of(overlap); }

  // An overlap so small that nothing beneath it scores `bar`, whatever the probability: it is at most 1. The power
  // itself is asked whether the estimate is right.
  MGASSIGN_HD float least_overlap(float bar) const {
    if (!(bar > 0.0f)) return 0.0f;
    float least = exp_f32(log_f32(bar) / beta.exponent()) * kRoom;
    while (least > 0.0f && !(beta.of(least) < bar)) least *= 0.5f;
    return least * kRoom;
  }

  // What a point is to learn, from its score and the best score and overlap among its object's points.
  MGASSIGN_HD float target(float score, float best_score, float best_overlap) const {
    return score * best_overlap / (best_score + epsilon);
  }
};

}  // namespace mgassign
