// SimOTA and dynamic soft labels as operators: the same on every device, but for who assigns.
#pragma once

#include <torch/csrc/stable/library.h>

#include "rules.h"

namespace mgassign {

// What both are given beside a rule and a grid.
struct DynamicKInputs {
  const Tensor &pred_boxes, &pred_scores;
  const std::optional<Tensor>& objectness;
  const Tensor &gt_boxes, &gt_labels;
  const std::optional<Tensor>& gt_offsets;
  const std::optional<std::vector<int64_t>>& gt_counts;
  const std::optional<Tensor>& wanted;
  Quota quota;

  void check(int64_t num_images, int64_t num_points) const {
    check_predictions(pred_boxes, pred_scores, gt_boxes, gt_labels, wanted, num_images, num_points);
    if (objectness) check_objectness(*objectness, pred_scores);
  }
};

// Device::assign(rule, grid, inputs) does the work.
template <typename Device>
std::tuple<Tensor, Tensor> sim_ota_assign(const Tensor& pred_boxes, const Tensor& pred_logits, const Tensor& gt_boxes,
                                          const Tensor& gt_labels, MGASSIGN_OBJECTS_PARAMETERS,
                                          MGASSIGN_GRID_PARAMETERS, std::optional<Tensor> pred_objectness,
                                          std::optional<Tensor> wanted, int64_t min_points, int64_t max_points,
                                          int64_t best_overlaps, double center_radius, bool inside, double penalty,
                                          double overlap_weight, double class_weight, double epsilon,
                                          int64_t activation) {
  const SimOta rule =
      make_sim_ota(best_overlaps, center_radius, inside, penalty, overlap_weight, class_weight, epsilon, activation);
  check_most_chosen(max_points);
  return Device::assign(rule, make_grid(MGASSIGN_GRID_ARGUMENTS),
                        {pred_boxes, pred_logits, pred_objectness, gt_boxes, gt_labels, gt_offsets, gt_counts, wanted,
                         Quota(min_points, max_points)});
}

template <typename Device>
std::tuple<Tensor, Tensor> soft_label_assign(const Tensor& pred_boxes, const Tensor& pred_logits,
                                             const Tensor& gt_boxes, const Tensor& gt_labels,
                                             MGASSIGN_OBJECTS_PARAMETERS, MGASSIGN_GRID_PARAMETERS,
                                             std::optional<Tensor> wanted, int64_t min_points, int64_t max_points,
                                             int64_t best_overlaps, double center_radius, double overlap_weight,
                                             double epsilon, int64_t activation) {
  const SoftLabel rule = make_soft_label(best_overlaps, center_radius, overlap_weight, epsilon, activation);
  check_most_chosen(max_points);
  return Device::assign(rule, make_grid(MGASSIGN_GRID_ARGUMENTS),
                        {pred_boxes, pred_logits, std::nullopt, gt_boxes, gt_labels, gt_offsets, gt_counts, wanted,
                         Quota(min_points, max_points)});
}

}  // namespace mgassign
