"""Task-aligned assignment, one image.

Feng, Zhong, Gao, Scott, Huang: *TOOD: Task-aligned One-stage Object Detection* (ICCV 2021), section 3.2, and what
YOLOv8 and its successors have made of it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..points import PointGrid
from ..settings import TaskAligned
from .mutual_guidance import distances, regions_of, scores_of, strictly_inside, valid_boxes


@torch.no_grad()
def task_aligned_overlap(boxes: Tensor, gt_boxes: Tensor, overlap: str) -> Tensor:
    """IoU or complete IoU, at least 0: [P, 4] and [G, 4] -> [P, G]; 0 for boxes that are none."""
    boxes, gt_boxes = boxes.float(), gt_boxes.float()
    x1, y1, x2, y2 = boxes[:, None].unbind(-1)
    gx1, gy1, gx2, gy2 = gt_boxes.unbind(-1)
    width = (torch.minimum(x2, gx2) - torch.maximum(x1, gx1)).clamp(min=0)
    height = (torch.minimum(y2, gy2) - torch.maximum(y1, gy1)).clamp(min=0)
    intersection = width * height
    if overlap == "iou":
        union = (x2 - x1) * (y2 - y1) + (gx2 - gx1) * (gy2 - gy1) - intersection
        u = intersection / union.clamp(min=1e-6)
    else:  # Zheng et al., Distance-IoU Loss (AAAI 2020), with the small numbers where YOLOv8 has them
        small = 1e-7
        w, h, gw, gh = x2 - x1, y2 - y1 + small, gx2 - gx1, gy2 - gy1 + small
        iou = intersection / (gw * gh + w * h - intersection + small)
        across = torch.maximum(x2, gx2) - torch.minimum(x1, gx1)
        down = torch.maximum(y2, gy2) - torch.minimum(y1, gy1)
        apart = ((x1 + x2 - gx1 - gx2) ** 2 + (y1 + y2 - gy1 - gy2) ** 2) / 4
        v = 4 / math.pi**2 * (torch.atan(w / h) - torch.atan(gw / gh)) ** 2
        u = iou - (apart / (across**2 + down**2 + small) + v * (v / (1 - iou + v + small)))
    overlapping = valid_boxes(boxes)[:, None] & valid_boxes(gt_boxes) & (u > 0)
    return torch.where(overlapping, u, 0.0)


def window(gt_boxes: Tensor, settings: TaskAligned) -> Tensor:
    """Where the points of an object may lie: its box with short sides raised, [G, 4]."""
    gt_boxes = gt_boxes.float()
    if settings.least_side == 0:
        return gt_boxes
    center, sides = (gt_boxes[:, :2] + gt_boxes[:, 2:]) / 2, gt_boxes[:, 2:] - gt_boxes[:, :2]
    below = settings.least_side if settings.raise_below is None else settings.raise_below
    sides = torch.where(sides < below, settings.least_side, sides)
    return torch.cat([center - sides / 2, center + sides / 2], dim=1)


def holding(grid: PointGrid, gt_boxes: Tensor, gt_labels: Tensor, settings: TaskAligned) -> Tensor:
    """Which points lie in which objects' windows, bool [P, G]; none in those that take no part."""
    left, top, right, bottom = distances(grid, window(gt_boxes, settings))
    inside = torch.stack([left, top, right, bottom]).amin(0) > settings.margin
    return inside & valid_boxes(gt_boxes) & (gt_labels >= 0)


@torch.no_grad()
def task_aligned_assign(
    grid: PointGrid,
    pred_boxes: Tensor,
    pred_scores: Tensor,
    gt_boxes: Tensor,
    gt_labels: Tensor,
    settings: TaskAligned = TaskAligned.ULTRALYTICS,
    *,
    num_points: int | Tensor | None = None,
    min_points: int = 0,
    activation: str = "none",
) -> tuple[Tensor, Tensor, Tensor]:
    """Task-aligned assignment for one image: owner int64 [P], target and iou float32 [P]."""
    gt_boxes, gt_labels = gt_boxes.float(), gt_labels.long()
    device, num_objects = pred_boxes.device, len(gt_boxes)
    owner = torch.full((grid.num_points,), -1, device=device)

    # Scores m = s^alpha * u^beta, overlaps u, and who may have which point: [P, G] each.
    s = scores_of(pred_scores, gt_labels)
    s = torch.sigmoid(s).nan_to_num(0) if activation == "sigmoid" else s.nan_to_num(0, 1, 0).clamp(0, 1)
    u = task_aligned_overlap(pred_boxes, gt_boxes, settings.overlap)
    holds = holding(grid, gt_boxes, gt_labels, settings)
    m = s**settings.alpha * u**settings.beta
    may_choose = holds if settings.candidates == "inside" else (gt_labels >= 0).expand_as(holds)

    # Each object chooses its k best; equal scores: the lower point index.
    k = settings.k if num_points is None else num_points
    if isinstance(k, Tensor):
        k = k.clamp(max=settings.k)
    k = torch.as_tensor(k, device=device).clamp(min=min_points).expand(num_objects)
    scores = torch.where(may_choose, m, 0.0)
    order = torch.argsort(scores, dim=0, descending=True, stable=True)
    chosen = torch.zeros_like(holds)
    ranks = torch.arange(len(owner), device=device)[:, None].expand(-1, num_objects)
    chosen.scatter_(0, order, ranks < k)
    chosen &= holds & (scores > 0)

    # A point that several chose goes to the highest overlap; equal overlaps: the lower object index.
    if num_objects > 0:
        contested = chosen.sum(1, keepdim=True) > 1
        rivals = torch.where(contested, holds, chosen) if settings.contest == "inside" else chosen
        owner = torch.where(chosen.any(1), torch.where(rivals, u, -1.0).max(1).indices, -1)

    # Of the points it has now, an object keeps so many.
    target, iou = torch.zeros(2, len(owner), dtype=torch.float32, device=device)
    for g in range(num_objects):
        own = (owner == g).nonzero().flatten()
        best = torch.argsort(m[own, g], descending=True, stable=True)
        if settings.keep is not None:
            owner[own] = -1
            own = own[best[: settings.keep]]
            own = own[m[own, g] > 0]
            owner[own] = g
        if len(own):
            iou[own] = u[own, g]
            target[own] = m[own, g] * u[own, g].max() / (m[own, g].max() + settings.epsilon)

    # In a region, what would be background is to be ignored.
    regions = regions_of(gt_boxes, gt_labels)
    owner[(owner == -1) & strictly_inside(grid, regions).any(1)] = -2
    return owner, target, iou
