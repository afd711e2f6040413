// SimOTA: a point costs an object the cross entropy of its class scores, less the logarithm of its overlap, and a
// penalty where it is not central.
#pragma once

#include "dynamic_k.h"

namespace mgassign {

struct SimOta : DynamicK {
  double center_radius;  // in strides
  bool inside;           // central points have to lie inside the object, too
  float penalty, class_weight;
  bool sigmoid;

  // Points that may be chosen lie in one of the windows of an object.
  MGASSIGN_HD int num_windows() const { return inside ? 2 : 1; }
  MGASSIGN_HD Box window(const Box& box, double stride, int i) const {
    return i == 1 ? box : around_center(box, stride, center_radius);
  }

  // Where points may cost no more than `limit` for the place's sake.
  MGASSIGN_HD Box window_within(const Box& box, double stride, float limit) const {
    if (!(limit < penalty)) return everywhere();
    const Box near = around_center(box, stride, center_radius);
    return inside ? intersection_of(near, box) : near;
  }
  MGASSIGN_HD float cost_of_place(const Box& box, double stride, const Location& at) const {
    return contains(window_within(box, stride, -1.0f), at) ? 0.0f : penalty;
  }
  // A limit below `limit` that may be enough: few points are looked at then.
  MGASSIGN_HD float first_limit(float limit) const { return smaller(limit, penalty * 0.5f); }

  // Scores are probabilities.
  MGASSIGN_HD float of_logit(float raw) const { return sigmoid_f32(raw); }
  MGASSIGN_HD float of_probability(float raw) const { return probability_f32(raw); }
  MGASSIGN_HD float with_objectness(float score, float objectness) const { return square_root(score * objectness); }

  // The sum over classes of what each costs as background is taken some classes at a time: of 1 - p only the product
  // needs a logarithm. One that is 0 counts as e^-100.
  static constexpr int kFactors = 4;  // no product of so many underflows
  MGASSIGN_HD void add(float& sum, float& product, float score) const {
    const float factor = 1.0f - score;
    const bool counts = factor > 0.0f;
    product *= chosen(counts, factor, 1.0f);
    sum += chosen(counts, 0.0f, 100.0f);
  }
  MGASSIGN_HD void close(float& sum, float& product) const {
    sum -= log_f32(product);
    product = 1.0f;
  }

  // What the classes cost, of which `score` is the object's.
  MGASSIGN_HD float cost_of_class(float sum, float score, float /*overlap*/) const {
    const float others = sum - surprise(1.0f - score);
    return class_weight * (larger(others, 0.0f) + surprise(score));
  }

 private:
  MGASSIGN_HD static float surprise(float probability) {
    const float cost = -log_f32(probability);
    return chosen(cost < 100.0f, cost, 100.0f);
  }
};

}  // namespace mgassign
