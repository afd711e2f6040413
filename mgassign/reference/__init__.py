"""What mgassign computes, in plain PyTorch: slow, obvious, and the yardstick of the tests and the benchmark.

A file per assigner. Everything here handles one image with its P points and G objects as [P, G] matrices, in float32.
The compiled operators give the same assignments without ever holding such a matrix.
"""

from .anchors import amplified_iou, anchor_mutual_guidance_assign, force_best, max_iou_assign
from .atss import atss_assign
from .dynamic_k import sim_ota_assign, soft_label_assign
from .mutual_guidance import (
    amplified_centerness,
    box_areas,
    box_iou,
    distances,
    fcos_assign,
    mutual_guidance_assign,
    on_own_level,
    shares_inside,
    strictly_inside,
    topk_per_object,
    valid_boxes,
)
from .task_aligned import task_aligned_assign, task_aligned_overlap

__all__ = [
    "amplified_centerness",
    "amplified_iou",
    "anchor_mutual_guidance_assign",
    "atss_assign",
    "box_areas",
    "box_iou",
    "distances",
    "fcos_assign",
    "force_best",
    "max_iou_assign",
    "mutual_guidance_assign",
    "on_own_level",
    "shares_inside",
    "sim_ota_assign",
    "soft_label_assign",
    "strictly_inside",
    "task_aligned_assign",
    "task_aligned_overlap",
    "topk_per_object",
    "valid_boxes",
]
