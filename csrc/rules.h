// The rules of assigners that choose first, made of an operator's arguments and checked.
#pragma once

#include "checks.h"
#include "math/rules/atss.h"
#include "math/rules/sim_ota.h"
#include "math/rules/soft_label.h"
#include "math/rules/task_aligned.h"

namespace mgassign {

// Points that an object may choose.
constexpr int64_t kMostChosen = 128;

// As the float that a rule computes with.
inline bool is_above_0(double number) {
  return static_cast<float>(number) > 0 && is_finite(static_cast<float>(number));
}
inline bool is_at_least_0(double number) { return number >= 0 && is_finite(static_cast<float>(number)); }

// task_aligned_assign
inline TaskAligned make_task_aligned(double alpha, double beta, int64_t overlap, int64_t candidates, double margin,
                                     double raise_below, double least_side, int64_t contest, double epsilon,
                                     int64_t activation) {
  check(is_at_least_0(alpha), "alpha: expected a finite number of at least 0, got ", alpha);
  check(is_above_0(beta) && is_above_0(epsilon), "beta, epsilon: expected finite numbers above 0, got ", beta, " and ",
        epsilon);
  check(overlap == 0 || overlap == 1, "overlap: expected 0 (IoU) or 1 (complete IoU), got ", overlap);
  check(candidates == 0 || candidates == 1, "candidates: expected 0 (inside) or 1 (anywhere), got ", candidates);
  check(contest == 0 || contest == 1, "contest: expected 0 (inside) or 1 (chosen), got ", contest);
  check(is_at_least_0(margin) && is_at_least_0(raise_below) && is_at_least_0(least_side),
        "margin, raise_below, least_side: expected finite numbers of at least 0, got ", margin, ", ", raise_below,
        " and ", least_side);
  check_activation(activation);
  return {Power(alpha),
          Power(beta),
          overlap == 1,
          candidates == 1,
          static_cast<float>(margin),
          static_cast<float>(raise_below),
          static_cast<float>(least_side),
          contest == 1,
          static_cast<float>(epsilon),
          activation == 1};
}

// How many of the points that an object got it keeps.
inline void check_keep(int64_t keep) {
  check(0 <= keep && keep <= kMostChosen, "keep: expected 0 (all) to ", kMostChosen, ", got ", keep);
}

inline void check_most_chosen(int64_t max_points) {
  check(max_points <= kMostChosen, "max_points: expected at most ", kMostChosen, ", got ", max_points);
}

// sim_ota_assign, soft_label_assign
inline DynamicK make_dynamic_k(int64_t best_overlaps, double overlap_weight, double epsilon) {
  check(1 <= best_overlaps && best_overlaps <= kMostChosen, "best_overlaps: expected 1 to ", kMostChosen, ", got ",
        best_overlaps);
  check(is_above_0(overlap_weight) && is_above_0(epsilon),
        "overlap_weight, epsilon: expected finite numbers above 0, got ", overlap_weight, " and ", epsilon);
  return {static_cast<int32_t>(best_overlaps), static_cast<float>(overlap_weight), static_cast<float>(epsilon)};
}

inline SimOta make_sim_ota(int64_t best_overlaps, double center_radius, bool inside, double penalty,
                           double overlap_weight, double class_weight, double epsilon, int64_t activation) {
  check_center_radius(center_radius);
  check(is_at_least_0(penalty) && is_at_least_0(class_weight),
        "penalty, class_weight: expected finite numbers of at least 0, got ", penalty, " and ", class_weight);
  check_activation(activation);
  return {make_dynamic_k(best_overlaps, overlap_weight, epsilon),
          center_radius,
          inside,
          static_cast<float>(penalty),
          static_cast<float>(class_weight),
          activation == 1};
}

inline SoftLabel make_soft_label(int64_t best_overlaps, double center_radius, double overlap_weight, double epsilon,
                                 int64_t activation) {
  check_center_radius(center_radius);
  check_activation(activation);
  return {make_dynamic_k(best_overlaps, overlap_weight, epsilon), static_cast<float>(center_radius), activation == 1};
}

// atss_assign
inline Atss make_atss(double anchor_scale, int64_t topk) {
  check(anchor_scale > 0 && is_finite(static_cast<float>(anchor_scale)),
        "anchor_scale: expected a finite number above 0, got ", anchor_scale);
  check(1 <= topk && topk <= kMostChosen, "topk: expected 1 to ", kMostChosen, ", got ", topk);
  int32_t side = 1;
  while (side * side < topk) ++side;
  return {anchor_scale, static_cast<int32_t>(topk), side};
}

}  // namespace mgassign
