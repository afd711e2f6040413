"""What the assignment is for: each point's targets, and FCOS's three losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, softplus
from torch.profiler import record_function
from torchvision.ops import generalized_box_iou_loss

from mgassign import (
    IGNORE,
    Assignment,
    PointGrid,
    TaskAligned,
    TaskAlignedAssignment,
    centerness,
    mutual_guidance_assign,
    take,
    task_aligned_assign,
)
from model import Predictions

# Which of an assignment's fields trains classification, and which localization and centerness.
ASSIGNERS = {
    "original": ("original", "original"),
    "l2c": ("cls", "original"),
    "c2l": ("original", "loc"),
    "mutual": ("cls", "loc"),
    "task-aligned": ("owner", "owner"),
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
        assign: What does the work, but of ``"task-aligned"``; ``profile_step.py`` puts plain PyTorch in its place.
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
        """Objects padded: boxes float32 [B, G, 4] xyxy in pixels, labels int64 [B, G], -1 for padding, -2 for regions."""
        for_class, for_box = ASSIGNERS[self.assigner]
        scene = self.grid, predictions.boxes, predictions.logits, boxes, labels
        found: Assignment | TaskAlignedAssignment
        with record_function("assignment"):
            if self.assigner == "task-aligned":
                found = task_aligned_assign(*scene, TaskAligned.ULTRALYTICS_8_3, activation="sigmoid")
            else:
                found = self.assign(*scene, **self.settings)
        # Everywhere below all points are computed and the negatives weighted by 0: no shape depends on
        # the data, so a GPU is never waited for.
        owner = getattr(found, for_class)
        positive = (owner >= 0).float()
        learned = take(owner, labels, fill=-1)
        class_loss = focal_loss(predictions.logits, learned, counted=owner != IGNORE)

        box_owner = getattr(found, for_box)
        positive_box = (box_owner >= 0).float()
        wanted_box = take(box_owner, boxes)
        centered = centerness(self.grid.encode(wanted_box))  # 0 where a point learns no box
        box_loss = (centered * generalized_box_iou_loss(predictions.boxes, wanted_box)).sum()

        wanted, where = centered, positive_box
        if self.quality == "iou":
            wanted, where = paired_iou(predictions.boxes.detach(), take(owner, boxes)), positive
        elif self.quality == "none":
            where = torch.zeros_like(positive)
        quality_loss = binary_cross_entropy_with_logits(predictions.quality, wanted, weight=where, reduction="sum")
        return LossSums(
            torch.stack([class_loss, box_loss, quality_loss]),
            torch.stack([positive.sum(), centered.sum(), where.sum()]),
        )


def focal_loss(logits: Tensor, learned: Tensor, counted: Tensor, alpha: float = 0.25) -> Tensor:
    """The focal loss of gamma 2, summed: torchvision's, without a matrix of targets.

    Args:
        logits: [B, P, C].
        learned: int64 [B, P], the class each point learns; -1: none.
        counted: bool [B, P], which points have a loss.
    """

    def of_background(x: Tensor) -> Tensor:
        return (1 - alpha) * x.sigmoid().square() * softplus(x)

    # All classes as background, then at each positive the one that is not.
    own = logits.gather(2, learned.clamp(min=0)[..., None]).squeeze(2)
    of_own = alpha / (1 - alpha) * of_background(-own) - of_background(own)
    return (counted * of_background(logits).sum(2) + (learned >= 0) * of_own).sum()


def paired_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """The overlap of each box with the other of its place, [..., 4] -> [...]; 0 where neither has an area."""
    least, most = torch.maximum(boxes[..., :2], others[..., :2]), torch.minimum(boxes[..., 2:], others[..., 2:])
    shared = (most - least).clamp(min=0).prod(-1)
    areas = sum((b[..., 2:] - b[..., :2]).clamp(min=0).prod(-1) for b in (boxes, others))
    return shared / (areas - shared).clamp(min=1e-6)
