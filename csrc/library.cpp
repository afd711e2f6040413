// Every operator of mgassign, one schema each. The kernels stand in cpu/<op>.cpp and cuda/<op>.cu (SimOTA's and soft
// labels': cuda/dynamic_k.cu, and cpu/dynamic_k.h for both).
//
// A grid travels as lists, a level per entry: heights, widths, strides; two entries a level: spacings (dy, dx) and
// offsets (oy, ox) of the points, in pixels, and ranges (lo, hi). The largest float32 stands for infinity.
//
// Objects travel in one of three forms:
//   gt_counts given              gt_boxes [N, 4], the objects of the images one after the other
//   gt_offsets given (int64)     the same, image b holding rows gt_offsets[b] to gt_offsets[b + 1]
//   neither                      gt_boxes [B, G, 4]
// Labels [N] or [B, G]: -1 marks padding, -2 a region to be ignored.
#include <torch/csrc/stable/library.h>

#include "glibc.h"

#define MGASSIGN_OBJECTS "Tensor? gt_offsets, SymInt[]? gt_counts"
#define MGASSIGN_GRID \
  "SymInt[] heights, SymInt[] widths, float[] strides, float[] spacings, float[] offsets, float[] ranges"

// clang-format off
STABLE_TORCH_LIBRARY(mgassign, m) {
  // original [B, P] and num_points [N] of FCOS's own strategy
  m.def("fcos_assign(Tensor gt_boxes, " MGASSIGN_OBJECTS ", " MGASSIGN_GRID ", float center_radius)"
        " -> (Tensor original, Tensor num_points)");

  // pred_boxes [B, P, 4] xyxy and pred_logits [B, P, C], any float dtype and strides; activation: 0 none, 1 sigmoid.
  // wanted, of the labels' shape, takes the place of the original strategy's counts; both are held to
  // [min_points, max_points] and to P.
  m.def("mutual_guidance_assign(Tensor pred_boxes, Tensor pred_logits, Tensor gt_boxes, Tensor gt_labels, "
        MGASSIGN_OBJECTS ", " MGASSIGN_GRID ", "
        "Tensor? wanted, float center_radius, float sigma, bool level_gate, SymInt min_points, SymInt max_points, "
        "bool inside, float ignore_share, int activation)"
        " -> (Tensor cls, Tensor loc, Tensor original, Tensor num_points, Tensor iou)");

  // pred_scores [B, P, C]; an object chooses at most wanted points, held to [min_points, max_points], max_points of them
  // where wanted is not given, and keeps `keep` (0: all). overlap: 0 IoU, 1 complete IoU; candidates: 0 inside, 1
  // anywhere; contest: 0 inside, 1 chosen
  m.def("task_aligned_assign(Tensor pred_boxes, Tensor pred_scores, Tensor gt_boxes, Tensor gt_labels, "
        MGASSIGN_OBJECTS ", " MGASSIGN_GRID ", "
        "Tensor? wanted, SymInt min_points, SymInt max_points, SymInt keep, float alpha, float beta, int overlap, "
        "int candidates, float margin, float raise_below, float least_side, int contest, float epsilon, int activation)"
        " -> (Tensor owner, Tensor target, Tensor iou)");

  // An object chooses as many points as its best_overlaps best overlaps add up to, or as wanted, held to [min_points,
  // max_points]. pred_objectness [B, P], any float dtype and strides.
  m.def("sim_ota_assign(Tensor pred_boxes, Tensor pred_logits, Tensor gt_boxes, Tensor gt_labels, "
        MGASSIGN_OBJECTS ", " MGASSIGN_GRID ", "
        "Tensor? pred_objectness, Tensor? wanted, SymInt min_points, SymInt max_points, SymInt best_overlaps, "
        "float center_radius, bool inside, float penalty, float overlap_weight, float class_weight, float epsilon, "
        "int activation) -> (Tensor owner, Tensor iou)");
  m.def("soft_label_assign(Tensor pred_boxes, Tensor pred_logits, Tensor gt_boxes, Tensor gt_labels, "
        MGASSIGN_OBJECTS ", " MGASSIGN_GRID ", "
        "Tensor? wanted, SymInt min_points, SymInt max_points, SymInt best_overlaps, float center_radius, "
        "float overlap_weight, float epsilon, int activation) -> (Tensor owner, Tensor iou)");

  // square anchors around the points, anchor_scale strides wide; of each level an object looks at the topk nearest
  m.def("atss_assign(Tensor gt_boxes, Tensor? gt_labels, " MGASSIGN_OBJECTS ", " MGASSIGN_GRID ", "
        "float anchor_scale, SymInt topk) -> (Tensor owner, Tensor iou)");

  // anchors [A, 4], any float dtype and strides; low_quality: 0 none, 1 own, 2 object, 3 first
  m.def("max_iou_assign(Tensor anchors, Tensor gt_boxes, Tensor? gt_labels, " MGASSIGN_OBJECTS ", "
        "float high, float low, int low_quality, float min_iou, float ignore_share) -> (Tensor owner, Tensor iou)");

  // mutual_guidance_assign for anchors [A, 4], which take the points' place
  m.def("anchor_mutual_guidance_assign(Tensor anchors, Tensor pred_boxes, Tensor pred_logits, Tensor gt_boxes, "
        "Tensor gt_labels, " MGASSIGN_OBJECTS ", Tensor? wanted, float sigma, float high, float low, "
        "SymInt min_points, SymInt max_points, float ignore_share, int activation)"
        " -> (Tensor cls, Tensor loc, Tensor original, Tensor num_points, Tensor iou)");

  // [P, 4], [G, 4] -> [P, G]
  m.def("box_iou(Tensor boxes, Tensor gt_boxes) -> Tensor");

  // gt_boxes [G, 4], probs [P, G] -> [P, G]
  m.def("amplified_centerness(Tensor gt_boxes, Tensor probs, " MGASSIGN_GRID ", float sigma, bool level_gate) -> Tensor");

  // scores [P, G], k [G] int64, areas [G] -> [P]
  m.def("topk_per_object(Tensor scores, Tensor k, Tensor areas) -> Tensor");
}
// clang-format on
