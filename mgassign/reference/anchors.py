"""Anchors matched by their overlap with the objects, and Mutual Guidance on anchors, one image.

Max-IoU is the rule of Faster R-CNN (Ren et al., NeurIPS 2015), SSD (Liu et al., ECCV 2016) and RetinaNet (Lin et al.,
ICCV 2017) as torchvision and MMDetection have it. Mutual Guidance is section 3 of *Localize to Classify and Classify
to Localize: Mutual Guidance in Object Detection* (Zhang et al., ACCV 2020).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .mutual_guidance import (
    box_areas,
    box_iou,
    competing_boxes,
    regions_of,
    scores_of,
    shares_inside,
    topk_per_object,
    valid_boxes,
)


def in_regions(boxes: Tensor, gt_boxes: Tensor, gt_labels: Tensor | None, ignore_share: float) -> Tensor:
    """Which boxes lie by this share of their area inside one region: bool [A]."""
    if gt_labels is None:
        return torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    regions = regions_of(gt_boxes, gt_labels)
    return (shares_inside(boxes.float(), regions) >= ignore_share).any(1)


@torch.no_grad()
def max_iou_assign(
    anchors: Tensor,
    gt_boxes: Tensor,
    *,
    high: float = 0.5,
    low: float = 0.4,
    low_quality: str = "own",
    min_iou: float = 0.0,
    gt_labels: Tensor | None = None,
    ignore_share: float = 0.5,
) -> tuple[Tensor, Tensor]:
    """Anchors by their highest overlap: owner int64 [A] (-1 background, -2 to be ignored), iou float32 [A]."""
    gt_boxes, gt_labels = gt_boxes.float(), None if gt_labels is None else gt_labels.long()
    num_objects = len(gt_boxes)
    overlaps = box_iou(anchors, competing_boxes(gt_boxes, gt_labels))
    if num_objects == 0:
        return torch.full((len(anchors),), -1, device=anchors.device), overlaps.new_zeros(len(anchors))
    iou, best = overlaps.max(1)  # the first of equal maxima
    owner = torch.where(iou >= high, best, torch.where(iou >= low, -2, -1))
    if low_quality != "none" and len(anchors):
        highest, first = overlaps.max(0)
        allowed = (highest > 0) & (highest >= highest.new_tensor(min_iou))
        objects = torch.arange(num_objects, device=owner.device)
        if low_quality == "first":
            least = torch.where(allowed, first, -1)
            favoured = torch.arange(len(anchors), device=owner.device)[:, None] == least
        else:
            favoured = allowed & (overlaps == highest)
        last = torch.where(favoured, objects, -1).amax(1)  # later objects overwrite earlier ones
        owner = torch.where(last >= 0, best if low_quality == "own" else last, owner)
    ignored = (owner == -1) & in_regions(anchors, gt_boxes, gt_labels, ignore_share)
    return torch.where(ignored, -2, owner), iou


def amplified_iou(overlaps: Tensor, probs: Tensor, sigma: float = 2.0) -> Tensor:
    """Overlap of an anchor amplified by the score p: IoU ^ ((sigma - p) / sigma), [A, G] and [A, G] -> [A, G]."""
    p = probs.float().nan_to_num(nan=0.0).clamp(0, 1)
    return torch.where(overlaps > 0, overlaps ** ((sigma - p) / sigma), 0.0)


def force_best(scores: Tensor) -> Tensor:
    """The scores [A, G] with each object's highest, the first of equals, raised to 1."""
    best, first = scores.max(0)
    forced = (torch.arange(len(scores), device=scores.device)[:, None] == first) & (best > 0)
    return torch.where(forced, scores.clamp(min=1.0), scores)


@torch.no_grad()
def anchor_mutual_guidance_assign(
    anchors: Tensor,
    pred_boxes: Tensor,
    pred_logits: Tensor,
    gt_boxes: Tensor,
    gt_labels: Tensor,
    *,
    sigma: float = 2.0,
    high: float = 0.5,
    low: float = 0.4,
    min_points: int = 1,
    num_points: int | Tensor | None = None,
    ignore_share: float = 0.5,
    activation: str = "sigmoid",
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Mutual Guidance on the anchors of one image: cls, loc, original, num_points, iou."""
    gt_boxes, gt_labels = gt_boxes.float(), gt_labels.long()
    num_anchors, num_objects = len(anchors), len(gt_boxes)
    objects = competing_boxes(gt_boxes, gt_labels)
    areas = box_areas(objects)
    if num_anchors == 0 or num_objects == 0:
        nobody = torch.full((num_anchors,), -1, device=anchors.device)
        in_region = in_regions(anchors, gt_boxes, gt_labels, ignore_share)
        nobody = torch.where(in_region, -2, nobody)
        return nobody, nobody, nobody, nobody.new_zeros(num_objects), areas.new_zeros(num_anchors)

    # The original strategy: every anchor stands for the object it overlaps most, an object's best anchor for it.
    static = box_iou(anchors, objects)
    forced = force_best(static)
    owner = topk_per_object(forced, torch.full_like(gt_labels, num_anchors), areas)
    best = torch.where(owner >= 0, forced.gather(1, owner.clamp(min=0)[:, None])[:, 0], 0.0)
    original = torch.where(best >= high, owner, torch.where(best >= low, -2, -1))

    def count(least: float) -> Tensor:
        return ((owner[:, None] == torch.arange(num_objects, device=owner.device)) & (best >= least)[:, None]).sum(0)

    # How many anchors each object gets, and how many more are neither its nor background.
    between = count(low) - count(high)
    wanted = count(high)
    if num_points is not None:
        wanted = torch.as_tensor(num_points).to(wanted).expand_as(wanted)
    wanted = wanted.clamp(min=min_points).clamp(max=num_anchors)
    wanted = torch.where(valid_boxes(objects), wanted, 0)

    # Localize to Classify.
    regressed = box_iou(pred_boxes, objects)
    cls = topk_per_object(force_best(regressed), wanted, areas)
    near = topk_per_object(force_best(regressed), wanted + between, areas)
    iou = torch.where(cls >= 0, regressed.gather(1, cls.clamp(min=0)[:, None])[:, 0], 0.0)
    cls = torch.where((cls < 0) & (near >= 0), -2, cls)

    # Classify to Localize.
    logits = scores_of(pred_logits, gt_labels)
    probs = torch.sigmoid(logits) if activation == "sigmoid" else logits
    loc = topk_per_object(force_best(amplified_iou(static, probs, sigma)), wanted, areas)

    # What is nobody's in a region is no background either.
    in_region = in_regions(anchors, gt_boxes, gt_labels, ignore_share)
    cls = torch.where((cls == -1) & in_regions(pred_boxes, gt_boxes, gt_labels, ignore_share), -2, cls)
    loc, original = (torch.where((owner == -1) & in_region, -2, owner) for owner in (loc, original))
    return cls, loc, original, wanted, iou
