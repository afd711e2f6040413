"""Task-aligned assignment, for a batch of images."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from . import _checks, _library
from ._objects import Objects, lists_run_eagerly, pack_quota, pack_scene
from .points import PointGrid, check_grid
from .settings import MOST_CHOSEN, TaskAligned

__all__ = ["TaskAlignedAssignment", "task_aligned_assign"]


class TaskAlignedAssignment(NamedTuple):
    """Who is positive for what, and how much."""

    owner: Tensor
    """int64 [B, P]: each point's object, by its index within its image; -1: background, -2: to be ignored."""
    target: Tensor
    """float32 [B, P]: the score that the point is to learn for its object's class; 0 where it has no object."""
    iou: Tensor
    """float32 [B, P]: overlap of the point's predicted box with its object, as the settings measure it; 0 without."""


@lists_run_eagerly
def task_aligned_assign(
    grid: PointGrid,
    pred_boxes: Tensor,
    pred_scores: Tensor,
    gt_boxes: Objects,
    gt_labels: Objects,
    settings: TaskAligned = TaskAligned.ULTRALYTICS,
    *,
    num_points: int | Objects | None = None,
    min_points: int = 0,
    activation: Literal["none", "sigmoid"] = "none",
) -> TaskAlignedAssignment:
    """Assigns points to objects by task alignment, for a batch of images.

    Feng, Zhong, Gao, Scott, Huang: *TOOD: Task-aligned One-stage Object Detection* (ICCV 2021), section 3.2, and what
    YOLOv8 and its successors have made of it. A point's score for an object is ``s ** alpha * u ** beta``: s the
    predicted probability of the object's class, u the overlap of predicted box and object. Each object chooses the
    ``k`` points of highest score above 0 inside its window. A point that several objects chose goes to the highest
    overlap; as that may be of an object that did not choose it, an object may end up with more than k points. What a
    point is to learn is its score, scaled so that an object's highest becomes its highest overlap.

    Equal scores go to the lower point index, equal overlaps to the lower object index. The result is the same on every
    device, for any number of threads, run after run. Nothing here is differentiable, nothing waits for a GPU.

    Objects come in the forms of :func:`mutual_guidance_assign`, with padding (label -1) and regions (label -2) as
    there: a point without object that lies strictly inside a region has owner -2.

    Args:
        grid: Where the P points lie.
        pred_boxes: Decoded predicted boxes xyxy in pixels, floating point [B, P, 4], any strides. A box with a
            non-finite coordinate or without positive width and height overlaps nothing.
        pred_scores: Class scores, floating point [B, P, C], any strides: probabilities, held to [0, 1], or logits. NaN
            counts as probability 0.
        gt_boxes: The objects' boxes xyxy in pixels, floating point. A box that is none gets no points.
        gt_labels: The objects' classes, integers in [0, C), -1 or -2.
        settings: Numbers and rules; see :class:`TaskAligned` for the presets.
        num_points: What takes the place of ``settings.k``: a number, at most 128, or integers of their own in the
            objects' form or as a tensor [N]; those count as at most ``settings.k``, below 0 as 0.
        min_points: Raises the number of points an object chooses to at least this.
        activation: ``"sigmoid"`` where ``pred_scores`` holds logits. For the same labels as a detector that trains under
            autocast, give the probabilities it has computed itself.

    Returns:
        :class:`TaskAlignedAssignment`: ``owner`` int64 [B, P]; ``target``, ``iou`` float32 [B, P].

    Raises:
        TypeError: if an argument's type or dtype is not as above.
        ValueError: if a shape, device, count or value is not as above. Another label is told on CPU; on CUDA such a
            label counts as probability 0.

    >>> grid = PointGrid.for_image((64, 64), strides=(8, 16))
    >>> boxes = grid.decode(torch.full((1, grid.num_points, 4), 16.0))
    >>> scores = torch.full((1, grid.num_points, 3), 0.25)
    >>> found = task_aligned_assign(grid, boxes, scores, [torch.tensor([[8.0, 8.0, 40.0, 40.0]])], [torch.tensor([2])])
    >>> (found.owner == 0).sum(), found.target.max(), found.iou.max()
    (tensor(10), tensor(1.), tensor(1.))
    """
    check_grid(grid)
    boxes, labels = pack_scene(grid.num_points, pred_boxes, "pred_scores", pred_scores, gt_boxes, gt_labels)
    if not isinstance(settings, TaskAligned):
        raise TypeError(f"settings: expected TaskAligned, got {type(settings).__name__}")
    quota = pack_quota(num_points, boxes, min_points, settings.k, MOST_CHOSEN)
    return TaskAlignedAssignment(
        *_library.call(
            torch.ops.mgassign.task_aligned_assign.default,
            pred_boxes,
            pred_scores,
            boxes.values,
            labels.values,
            boxes.offsets,
            boxes.counts,
            *grid.arguments,
            *quota,
            settings.keep or 0,
            settings.alpha,
            settings.beta,
            1 if settings.overlap == "ciou" else 0,
            1 if settings.candidates == "anywhere" else 0,
            settings.margin,
            settings.least_side if settings.raise_below is None else settings.raise_below,
            settings.least_side,
            1 if settings.contest == "chosen" else 0,
            settings.epsilon,
            _checks.activation(activation),
        )
    )
