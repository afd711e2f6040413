// Dynamic soft labels: a point costs an object the quality focal loss of its class scores, less the logarithm of its
// overlap, and ten times as much for each stride that it lies farther from the object's centre.
#pragma once

#include "dynamic_k.h"

namespace mgassign {

struct SoftLabel : DynamicK {
  float center_radius;  // in strides: there the place costs 1
  bool sigmoid;         // logits are given

  MGASSIGN_HD int num_windows() const { return 1; }
  MGASSIGN_HD Box window(const Box& box, double, int) const { return box; }

  MGASSIGN_HD Box window_within(const Box& box, double stride, float limit) const {
    if (!(limit < 1e30f)) return everywhere();
    // Farther away by more than roundings than where the power reaches the limit: they grow with the coordinates.
    const Location center = center_of(box);
    const float rounding = 0.01f + (fabsf(center.x) + fabsf(center.y)) * 0x1p-22f / static_cast<float>(stride);
    const float strides = center_radius + log_f32(larger(limit, 1e-3f)) * kLog10E + rounding;
    return around_center(box, stride, larger(strides, rounding));
  }
  MGASSIGN_HD float cost_of_place(const Box& box, double stride, const Location& at) const {
    const Location center = center_of(box);
    const float dx = at.x - center.x, dy = at.y - center.y;
    return exp_f32((square_root(dx * dx + dy * dy) / static_cast<float>(stride) - center_radius) * kLn10);
  }
  // Some strides around the centre.
  MGASSIGN_HD float first_limit(float limit) const { return smaller(limit, 10.0f); }

  // Scores are logits, held so that no cost is infinite for their sake.
  MGASSIGN_HD float of_logit(float raw) const {
    constexpr float kLargest = 10000.0f;
    return chosen(raw > -kLargest, chosen(raw < kLargest, raw, kLargest), -kLargest);
  }
  MGASSIGN_HD float of_probability(float raw) const {
    const float p = probability_f32(raw);
    return of_logit(larger(log_f32(p), -100.0f) - larger(log_f32(1.0f - p), -100.0f));
  }
  MGASSIGN_HD float with_objectness(float score, float) const { return score; }

  static constexpr int kFactors = 4;
  MGASSIGN_HD void add(float& sum, float&, float score) const { sum += as_background(score); }
  MGASSIGN_HD void close(float&, float&) const {}

  MGASSIGN_HD float cost_of_class(float sum, float score, float overlap) const {
    const Logit x(score);
    const float off = overlap - x.probability;
    return larger(sum - as_background(score), 0.0f) + larger(x.softplus - score * overlap, 0.0f) * (off * off);
  }

 private:
  static constexpr float kLn10 = 0x1.26bb1cp+1f, kLog10E = 0x1.bcb7b2p-2f;

  struct Logit {
    float probability, softplus;

    MGASSIGN_HD explicit Logit(float x) {
      const bool above = x > 0.0f;
      const float e = exp_f32(chosen(above, -x, x)), share = 1.0f / (1.0f + e);
      probability = chosen(above, share, e * share);
      softplus = chosen(above, x, 0.0f) + log_f32(1.0f + e);
    }
  };
  MGASSIGN_HD static float as_background(float score) {
    const Logit x(score);
    return x.softplus * (x.probability * x.probability);
  }
};

}  // namespace mgassign
