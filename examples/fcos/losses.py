"""What the assignment is for: each point's targets, and FCOS's three losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.profiler import record_function
from torchvision.ops import generalized_box_iou_loss, sigmoid_focal_loss

from mgassign import Assignment, PointGrid, mutual_guidance_assign
from model import Predictions

# Which of an Assignment's fields trains classification, and which localization and centerness.
ASSIGNERS = {
    "original": ("original", "original"),
    "l2c": ("cls", "original"),
    "c2l": ("original", "loc"),
    "mutual": ("cls", "loc"),
}
LOSSES = ("class", "box", "quality")
QUALITIES = ("centerness", "iou", "none")  # what the third branch learns


class LossSums(NamedTuple):
    """The losses of ``LOSSES`` before the division, so that processes can add theirs up first."""

    sums: Tensor
    """float32 [3]: summed over this process's points."""
    counts: Tensor
    """float32 [3]: what to divide by: points positive for the loss, for ``box`` counted by their centerness."""


class Criterion:
    """The losses of a batch.

    Args:
        grid: Where the points lie.
        assigner: A name of ``ASSIGNERS``; may be changed between steps.
        quality: A name of ``QUALITIES``: the centerness of points that learn a box, the overlap of its own box where a
            point learns a class, or nothing.
        assign: What does the work; ``profile_step.py`` puts plain PyTorch in its place.
        settings: Keywords for ``assign``.
    """

    def __init__(
        self,
        grid: PointGrid,
        assigner: str,
        quality: str = "centerness",
        assign: Callable[..., Assignment] = mutual_guidance_assign,
        **settings: float | bool,
    ) -> None:
        self.grid, self.assigner, self.quality = grid, assigner, quality
        self.assign, self.settings = assign, settings

    def __call__(self, predictions: Predictions, boxes: Tensor, labels: Tensor) -> LossSums:
        """Objects padded: boxes float32 [B, G, 4] xyxy in pixels, labels int64 [B, G], -1 for padding; G > 0."""
        for_class, for_box = ASSIGNERS[self.assigner]
        with record_function("assignment"):
            found = self.assign(self.grid, predictions.boxes, predictions.logits, boxes, labels, **self.settings)
        # Everywhere below all points are computed and the negatives weighted by 0: no shape depends on
        # the data, so a GPU is never waited for.
        owner = getattr(found, for_class)
        positive = (owner >= 0).float()
        learned = labels.gather(1, owner.clamp(min=0)).clamp(min=0)
        target = torch.zeros_like(predictions.logits).scatter_(2, learned[..., None], positive[..., None])
        class_loss = sigmoid_focal_loss(predictions.logits, target, alpha=0.25, gamma=2, reduction="sum")
        overlap = paired_iou(predictions.boxes.detach(), _of_owner(boxes, owner)) * positive

        owner = getattr(found, for_box)
        positive_box = (owner >= 0).float()
        of_owner = _of_owner(boxes, owner)
        centerness = self.centerness(of_owner)
        weight = positive_box * centerness
        box_loss = (weight * generalized_box_iou_loss(predictions.boxes, of_owner)).sum()

        wanted, where = {
            "centerness": (centerness, positive_box),
            "iou": (overlap, positive),
            "none": (overlap, torch.zeros_like(positive)),
        }[self.quality]
        quality_loss = binary_cross_entropy_with_logits(predictions.quality, wanted, weight=where, reduction="sum")
        return LossSums(
            torch.stack([class_loss, box_loss, quality_loss]),
            torch.stack([positive.sum(), weight.sum(), where.sum()]),
        )

    def centerness(self, boxes: Tensor) -> Tensor:
        """FCOS's centerness of each point in its box, [B, P, 4] -> [B, P]; 0 outside of it."""
        points = self.grid.points(boxes.device)
        before, after = points - boxes[..., :2], boxes[..., 2:] - points
        ratios = torch.minimum(before, after).clamp(min=0) / torch.maximum(before, after).clamp(min=1e-6)
        return ratios.prod(-1).sqrt()


def _of_owner(boxes: Tensor, owner: Tensor) -> Tensor:
    """[B, G, 4] and [B, P] -> [B, P, 4]; of points that are nobody's, those of object 0."""
    return boxes.gather(1, owner.clamp(min=0)[..., None].expand(-1, -1, 4))


def paired_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """The overlap of each box with the other of its place, [..., 4] -> [...]; 0 where neither has an area."""
    least, most = torch.maximum(boxes[..., :2], others[..., :2]), torch.minimum(boxes[..., 2:], others[..., 2:])
    shared = (most - least).clamp(min=0).prod(-1)
    areas = sum((b[..., 2:] - b[..., :2]).clamp(min=0).prod(-1) for b in (boxes, others))
    return shared / (areas - shared).clamp(min=1e-6)
