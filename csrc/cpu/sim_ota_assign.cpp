// SimOTA: dynamic_k.h has the passes.
#include <torch/csrc/stable/library.h>

#include "dynamic_k.h"

namespace mgassign::cpu {

MGASSIGN_VECTOR void price(const SimOta& rule, const Bidder& object, bool has_objectness, Offers& offers) {
  price_lanes(rule, object, has_objectness, offers);
}

MGASSIGN_VECTOR float sum_over_classes(const SimOta& rule, const float* raw, int64_t num_classes, bool has_objectness,
                                       float objectness) {
  return sum_lanes(rule, raw, num_classes, has_objectness, objectness);
}

std::tuple<Tensor, Tensor> sim_ota_assign_cpu(const Tensor& pred_boxes, const Tensor& pred_logits,
                                              const Tensor& gt_boxes, const Tensor& gt_labels,
                                              MGASSIGN_OBJECTS_PARAMETERS, MGASSIGN_GRID_PARAMETERS,
                                              std::optional<Tensor> pred_objectness, std::optional<Tensor> wanted,
                                              int64_t min_points, int64_t max_points, int64_t best_overlaps,
                                              double center_radius, bool inside, double penalty, double overlap_weight,
                                              double class_weight, double epsilon, int64_t activation) {
  const SimOta rule =
      make_sim_ota(best_overlaps, center_radius, inside, penalty, overlap_weight, class_weight, epsilon, activation);
  check_chosen(max_points, 0);
  return dynamic_k_assign(rule, make_grid(MGASSIGN_GRID_ARGUMENTS), pred_boxes, pred_logits, pred_objectness, gt_boxes,
                          gt_labels, gt_offsets, gt_counts, wanted, Quota(min_points, max_points, max_points));
}

}  // namespace mgassign::cpu

STABLE_TORCH_LIBRARY_IMPL(mgassign, CPU, m) { m.impl("sim_ota_assign", MGASSIGN_OPERATOR(sim_ota_assign_cpu)); }
