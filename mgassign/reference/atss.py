"""Adaptive training sample selection, one image.

Zhang, Chi, Yao, Lei, Li: *Bridging the Gap Between Anchor-based and Anchor-free Detection via Adaptive Training Sample
Selection* (CVPR 2020), algorithm 1, as MMDetection has it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..points import PointGrid
from .mutual_guidance import box_iou, competing_boxes, distances, per_point, regions_of, strictly_inside


def in_order(values: Tensor) -> Tensor:
    """The sum over the first dimension, one after the other."""
    return values.cumsum(0)[-1]


@torch.no_grad()
def atss_assign(
    grid: PointGrid, gt_boxes: Tensor, *, anchor_scale: float = 8.0, topk: int = 9, gt_labels: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The points of one image and their overlaps: owner int64 [P], iou float32 [P]."""
    gt_boxes, gt_labels = gt_boxes.float(), None if gt_labels is None else gt_labels.long()
    objects = competing_boxes(gt_boxes, gt_labels)
    points = grid.points(objects.device)
    owner, overlap = torch.full((len(points),), -1, device=points.device), points.new_zeros(len(points))
    if len(points) > 0 and len(objects) > 0:
        half = per_point(grid, [anchor_scale * s / 2 for s in grid.strides], objects.device)[:, None]
        overlaps = box_iou(torch.cat([points - half, points + half], 1), objects)

        # Candidates: of each level the points nearest to an object's centre; equally near: the lower index.
        apart = points[:, None] - (objects[:, :2] + objects[:, 2:]) / 2
        distance = (apart[..., 0] * apart[..., 0] + apart[..., 1] * apart[..., 1]).sqrt()
        nearest, first = [], 0
        for count in grid.points_per_level:
            of_level = distance[first : first + count]
            nearest.append(first + torch.argsort(of_level, dim=0, stable=True)[:topk])
            first += count
        candidates = torch.cat(nearest)

        # An object's threshold: mean and standard deviation of its candidates' overlaps.
        known = distance.gather(0, candidates).isfinite()
        u = torch.where(known, overlaps.gather(0, candidates), 0.0)
        mean = in_order(u.double()) / known.sum(0)
        squares = torch.where(known, (u.double() - mean) * (u.double() - mean), 0.0)
        deviation = (in_order(squares) / (known.sum(0) - 1)).sqrt()
        threshold = mean.float() + deviation.float()

        # Positive: who reaches it and lies well inside; a point that several objects take goes to the highest overlap.
        inside = torch.stack(distances(grid, objects)).amin(0).gather(0, candidates) > 0.01
        taken = known & inside & (u > 0) & (u >= threshold)
        best, object_of = torch.zeros_like(overlaps).scatter_(0, candidates, torch.where(taken, u, 0.0)).max(1)
        owner, overlap = torch.where(best > 0, object_of, -1), best

    if gt_labels is not None:  # in a region, what would be background is to be ignored
        regions = regions_of(gt_boxes, gt_labels)
        owner = torch.where((owner == -1) & strictly_inside(grid, regions).any(1), -2, owner)
    return owner, overlap
