"""Mutual Guidance and its steps, one image.

Read it beside the paper: Zhang, Fromont, Lefèvre, Avignon, *Localize to Classify and Classify to Localize:
Mutual Guidance in Object Detection* (ACCV 2020), whose supplementary applies it to FCOS (Tian et al.,
ICCV 2019).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..points import PointGrid


def valid_boxes(boxes: Tensor) -> Tensor:
    """Which boxes take part: finite, of positive width and height. [..., 4] -> bool [...]."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return boxes.isfinite().all(-1) & (x2 > x1) & (y2 > y1)


def competing_boxes(gt_boxes: Tensor, gt_labels: Tensor | None) -> Tensor:
    """The boxes with NaN in place of padding and regions, which get nothing."""
    return gt_boxes if gt_labels is None else torch.where(gt_labels[:, None] >= 0, gt_boxes, torch.nan)


def regions_of(gt_boxes: Tensor, gt_labels: Tensor) -> Tensor:
    """The boxes of regions to be ignored, [R, 4]."""
    return gt_boxes[(gt_labels == -2) & valid_boxes(gt_boxes)]


def box_areas(boxes: Tensor) -> Tensor:
    """[..., 4] -> [...], in square pixels."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return (x2 - x1) * (y2 - y1)


def distances(grid: PointGrid, gt_boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """l, t, r, b from every point to the sides of every box, [P, G] each."""
    x, y = grid.points(gt_boxes.device)[:, :, None].unbind(1)
    x1, y1, x2, y2 = gt_boxes.unbind(-1)
    return x - x1, y - y1, x2 - x, y2 - y


def strictly_inside(grid: PointGrid, gt_boxes: Tensor) -> Tensor:
    """Which points lie inside which boxes, not on their sides: bool [P, G]."""
    return torch.stack(distances(grid, gt_boxes)).amin(0) > 0


def on_own_level(grid: PointGrid, gt_boxes: Tensor) -> Tensor:
    """FCOS's level rule: is max(l, t, r, b) in the range of the point's level? bool [P, G]."""
    longest = torch.stack(distances(grid, gt_boxes)).amax(0)
    ranges = torch.tensor(grid.ranges, dtype=torch.float32, device=gt_boxes.device)
    lo, hi = ranges.repeat_interleave(torch.tensor(grid.points_per_level, device=gt_boxes.device), dim=0)[
        :, :, None
    ].unbind(1)
    return (lo <= longest) & (longest <= hi)


def intersections(boxes: Tensor, gt_boxes: Tensor) -> Tensor:
    """What pairs of boxes have in common, [P, 4] and [G, 4] -> [P, G] in square pixels."""
    upper_left = torch.maximum(boxes[:, None, :2], gt_boxes[:, :2])
    lower_right = torch.minimum(boxes[:, None, 2:], gt_boxes[:, 2:])
    return (lower_right - upper_left).clamp(min=0).prod(-1)


def shares_inside(boxes: Tensor, regions: Tensor) -> Tensor:
    """How much of each box lies inside each region, [P, 4] and [R, 4] -> [P, R]; NaN or 0 for boxes that are none."""
    return torch.where(valid_boxes(boxes)[:, None], intersections(boxes, regions) / box_areas(boxes)[:, None], 0.0)


@torch.no_grad()
def box_iou(boxes: Tensor, gt_boxes: Tensor) -> Tensor:
    """Intersection over union, [P, 4] and [G, 4] -> [P, G]; 0 for boxes that are none."""
    boxes, gt_boxes = boxes.float(), gt_boxes.float()
    intersection = intersections(boxes, gt_boxes)
    iou = intersection / (box_areas(boxes)[:, None] + box_areas(gt_boxes) - intersection)
    overlapping = valid_boxes(boxes)[:, None] & valid_boxes(gt_boxes) & (iou > 0)
    return torch.where(overlapping, iou, 0.0)


@torch.no_grad()
def amplified_centerness(
    grid: PointGrid, gt_boxes: Tensor, probs: Tensor, sigma: float = 2.0, level_gate: bool = True
) -> Tensor:
    """Centerness c amplified by the score p: c ^ ((sigma - p) / sigma), [G, 4] and [P, G] -> [P, G]."""
    gt_boxes, probs = gt_boxes.float(), probs.float()
    left, top, right, bottom = distances(grid, gt_boxes)
    inside = strictly_inside(grid, gt_boxes)
    horizontal = torch.minimum(left, right) / torch.maximum(left, right)
    vertical = torch.minimum(top, bottom) / torch.maximum(top, bottom)
    centerness = torch.sqrt(torch.where(inside, horizontal * vertical, 0.0))
    p = probs.nan_to_num(nan=0.0).clamp(0, 1)
    amplified = centerness ** ((sigma - p) / sigma)
    candidate = inside & valid_boxes(gt_boxes)
    if level_gate:
        candidate &= on_own_level(grid, gt_boxes)
    return torch.where(candidate, amplified, 0.0)


def topk_per_object(scores: Tensor, k: Tensor, areas: Tensor) -> Tensor:
    """Competition, then selection: [P, G], [G], [G] -> int64 [P], each point's object or -1."""
    # 1. One object per point: the highest score; equal scores: the smaller area, then the lower index.
    if scores.shape[1] == 0:
        return torch.full(scores.shape[:1], -1, device=scores.device)
    scores = torch.where(scores.float() > 0, scores.float(), 0.0)
    by_area = torch.argsort(areas.float(), stable=True)  # NaN comes last
    best, position = scores[:, by_area].max(1)  # the first of equal maxima
    owner = torch.where(best > 0, by_area[position], -1)
    # 2. Top k per object: a point's rank among those standing for the same object; equal scores: the
    #    lower point index.
    by_score = torch.argsort(best, descending=True, stable=True)
    stands_for = owner[by_score][:, None] == torch.arange(len(k), device=k.device)
    rank = stands_for.cumsum(0)
    kept = (stands_for & (rank <= k)).sum(1) > 0  # any(1), but torch 2.14's CPU compiler fails on that
    result = torch.full_like(owner, -1)
    result[by_score] = torch.where(kept, owner[by_score], -1)
    return result


def scores_of(scores: Tensor, gt_labels: Tensor) -> Tensor:
    """Each point's score for each object's class, [P, C] and [G] -> float32 [P, G]; any for those without a class."""
    if scores.shape[1] == 0:
        return scores.new_zeros((len(scores), len(gt_labels)), dtype=torch.float32)
    return scores[:, gt_labels.clamp(min=0)].float()


def per_point(grid: PointGrid, per_level: list[float], device: torch.device) -> Tensor:
    """A number of each level, worked out in double precision and then rounded, for each of its points: float32 [P]."""
    counts = torch.tensor(grid.points_per_level, device=device)
    return torch.tensor(per_level, dtype=torch.float32, device=device).repeat_interleave(counts)


def in_center(grid: PointGrid, gt_boxes: Tensor, center_radius: float = 1.5) -> Tensor:
    """Which points lie strictly inside which central boxes: bool [P, G]."""
    x, y = grid.points(gt_boxes.device)[:, :, None].unbind(1)
    x1, y1, x2, y2 = gt_boxes.unbind(-1)
    if center_radius > 0:
        reach = per_point(grid, [center_radius * s for s in grid.strides], gt_boxes.device)[:, None]
        cx, cy = (x1 + x2) / 2, (y1 + y2) / 2
        x1, x2 = torch.maximum(cx - reach, x1), torch.minimum(cx + reach, x2)
        y1, y2 = torch.maximum(cy - reach, y1), torch.minimum(cy + reach, y2)
    return (x > x1) & (x < x2) & (y > y1) & (y < y2)


@torch.no_grad()
def fcos_assign(grid: PointGrid, gt_boxes: Tensor, center_radius: float = 1.5) -> tuple[Tensor, Tensor]:
    """FCOS's own strategy for one image: original int64 [P], and num_points int64 [G]."""
    gt_boxes = gt_boxes.float()
    candidate = in_center(grid, gt_boxes, center_radius) & on_own_level(grid, gt_boxes) & valid_boxes(gt_boxes)

    # A contested point goes to the smallest area, then to the lowest index.
    num_objects = len(gt_boxes)
    if num_objects == 0:
        return torch.full(candidate.shape[:1], -1, device=gt_boxes.device), gt_boxes.new_zeros(0, dtype=torch.int64)
    by_area = torch.argsort(box_areas(gt_boxes), stable=True)
    wanted, position = candidate[:, by_area].int().max(1)  # the first of those that want it
    original = torch.where(wanted > 0, by_area[position], -1)
    num_points = (original[:, None] == torch.arange(num_objects, device=gt_boxes.device)).sum(0)
    return original, num_points


@torch.no_grad()
def mutual_guidance_assign(
    grid: PointGrid,
    pred_boxes: Tensor,
    pred_logits: Tensor,
    gt_boxes: Tensor,
    gt_labels: Tensor,
    *,
    center_radius: float = 1.5,
    sigma: float = 2.0,
    level_gate: bool = True,
    min_points: int = 0,
    num_points: int | Tensor | None = None,
    inside: bool = False,
    ignore_share: float = 0.5,
    activation: str = "sigmoid",
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Mutual Guidance for one image: cls, loc, original, num_points, iou."""
    pred_boxes, gt_boxes, gt_labels = pred_boxes.float(), gt_boxes.float(), gt_labels.long()
    regions = regions_of(gt_boxes, gt_labels)
    gt_boxes = competing_boxes(gt_boxes, gt_labels)
    areas = box_areas(gt_boxes)

    original, wanted = fcos_assign(grid, gt_boxes, center_radius)
    if num_points is not None:
        wanted = torch.as_tensor(num_points).to(wanted).expand_as(wanted)
    wanted = wanted.clamp(min=min_points).clamp(max=grid.num_points)
    wanted = torch.where(valid_boxes(gt_boxes), wanted, 0)

    # Localize to Classify: positive for classification where the predicted box is good.
    overlaps = box_iou(pred_boxes, gt_boxes)
    if inside:
        overlaps = torch.where(strictly_inside(grid, gt_boxes), overlaps, 0.0)
    cls = topk_per_object(overlaps, wanted, areas)
    iou = torch.zeros(grid.num_points, device=cls.device, dtype=torch.float32)
    if len(gt_boxes):
        iou = torch.where(cls >= 0, overlaps.gather(1, cls.clamp(min=0)[:, None])[:, 0], 0.0)

    # Classify to Localize: positive for localization where the score of the object's class is good.
    logits = scores_of(pred_logits, gt_labels)
    probs = torch.sigmoid(logits) if activation == "sigmoid" else logits
    loc = topk_per_object(amplified_centerness(grid, gt_boxes, probs, sigma, level_gate), wanted, areas)

    # What is nobody's in a region is no background either.
    in_region = strictly_inside(grid, regions).any(1)
    predicted_in_region = (shares_inside(pred_boxes, regions) >= ignore_share).any(1)
    cls = torch.where((cls < 0) & predicted_in_region, -2, cls)
    loc = torch.where((loc < 0) & in_region, -2, loc)
    original = torch.where((original < 0) & in_region, -2, original)
    return cls, loc, original, wanted, iou
