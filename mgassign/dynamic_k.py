"""SimOTA and dynamic soft labels, for a batch of images: an object chooses as many points as its overlaps say."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from . import _checks, _library
from ._objects import Objects, lists_run_eagerly, pack_quota, pack_scene
from .points import PointGrid, check_grid
from .settings import MOST_CHOSEN, SimOTA, SoftLabel

__all__ = ["DynamicKAssignment", "sim_ota_assign", "soft_label_assign"]


class DynamicKAssignment(NamedTuple):
    """Who is positive."""

    owner: Tensor
    """int64 [B, P]: each point's object, by its index within its image; -1: background, -2: to be ignored."""
    iou: Tensor
    """float32 [B, P]: overlap of the point's predicted box with its object; 0 where it has none."""


@lists_run_eagerly
def sim_ota_assign(
    grid: PointGrid,
    pred_boxes: Tensor,
    pred_logits: Tensor,
    gt_boxes: Objects,
    gt_labels: Objects,
    settings: SimOTA = SimOTA.YOLOX,
    *,
    pred_objectness: Tensor | None = None,
    num_points: int | Objects | None = None,
    activation: Literal["none", "sigmoid"] = "sigmoid",
) -> DynamicKAssignment:
    """Assigns points to objects by SimOTA, for a batch of images.

    Ge, Liu, Wang, Li, Sun: *YOLOX: Exceeding YOLO Series in 2021*, after their *OTA: Optimal Transport Assignment for
    Object Detection* (CVPR 2021). The points that may be chosen, the pool, lie inside an object or near its centre. Each
    object chooses the points of the pool that cost it least (:class:`SimOTA` says what a point costs), as many as its
    ``best_overlaps`` highest overlaps with boxes predicted in the pool add up to, rounded down, but at least one. A point
    that several objects chose goes to the one of all objects that it costs least.

    Equal costs go to the lower point index, then to the lower object index. The result is the same on every device, for
    any number of threads and any instruction set, run after run. Nothing here is differentiable, nothing waits for a
    GPU, and no matrix of points and objects is made.

    Objects come in the forms of :func:`mutual_guidance_assign`, with padding (label -1) and regions (label -2) as
    there: a point without object that lies strictly inside a region has owner -2.

    Args:
        grid: Where the P points lie.
        pred_boxes: Decoded predicted boxes xyxy in pixels, floating point [B, P, 4], any strides. A box with a
            non-finite coordinate or without positive width and height overlaps nothing.
        pred_logits: Class scores, floating point [B, P, C], any strides: logits, or probabilities, held to [0, 1]. NaN
            counts as probability 0.
        gt_boxes: The objects' boxes xyxy in pixels, floating point. A box that is none gets no points.
        gt_labels: The objects' classes, integers in [0, C), -1 or -2.
        settings: Numbers and rules; see :class:`SimOTA` for the presets.
        pred_objectness: Whether a point sees an object at all, as ``pred_logits`` in kind, floating point [B, P]: the
            root of the product of the two probabilities is what costs. None: the class's own probability.
        num_points: What takes the place of the sum of overlaps: a number, at most 128, or integers of their own in the
            objects' form or as a tensor [N]; those count as at most ``settings.best_overlaps``, below 0 as 0.
        activation: ``"none"`` where ``pred_logits`` and ``pred_objectness`` hold probabilities.

    Returns:
        :class:`DynamicKAssignment`: ``owner`` int64 [B, P]; ``iou`` float32 [B, P].

    Raises:
        TypeError: if an argument's type or dtype is not as above.
        ValueError: if a shape, device, count or value is not as above. Another label is told on CPU; on CUDA such a
            label counts as probability 0.

    >>> grid = PointGrid.for_image((64, 64), strides=(8, 16))
    >>> boxes = grid.decode(torch.full((1, grid.num_points, 4), 16.0))
    >>> logits = torch.zeros(1, grid.num_points, 3)
    >>> found = sim_ota_assign(grid, boxes, logits, [torch.tensor([[8.0, 8.0, 40.0, 40.0]])], [torch.tensor([2])])
    >>> (found.owner == 0).sum(), found.iou.max()
    (tensor(4), tensor(1.))
    """
    if not isinstance(settings, SimOTA):
        raise TypeError(f"settings: expected SimOTA, got {type(settings).__name__}")
    check_grid(grid)
    boxes, labels = pack_scene(grid.num_points, pred_boxes, "pred_logits", pred_logits, gt_boxes, gt_labels)
    if pred_objectness is not None:
        _checks.tensor("pred_objectness", pred_objectness, like=pred_boxes)
        _checks.shape("pred_objectness", pred_objectness, (boxes.num_images, grid.num_points))
    return DynamicKAssignment(
        *_library.call(
            torch.ops.mgassign.sim_ota_assign.default,
            pred_boxes,
            pred_logits,
            boxes.values,
            labels.values,
            boxes.offsets,
            boxes.counts,
            *grid.arguments,
            pred_objectness,
            *pack_quota(num_points, boxes, 0, settings.best_overlaps, MOST_CHOSEN),
            settings.best_overlaps,
            settings.center_radius,
            settings.inside,
            settings.penalty,
            settings.overlap_weight,
            settings.class_weight,
            settings.epsilon,
            _checks.activation(activation),
        )
    )


@lists_run_eagerly
def soft_label_assign(
    grid: PointGrid,
    pred_boxes: Tensor,
    pred_logits: Tensor,
    gt_boxes: Objects,
    gt_labels: Objects,
    settings: SoftLabel = SoftLabel.MMDET,
    *,
    num_points: int | Objects | None = None,
    activation: Literal["none", "sigmoid"] = "sigmoid",
) -> DynamicKAssignment:
    """Assigns points to objects by dynamic soft labels, for a batch of images.

    Lyu et al.: *RTMDet: An Empirical Study of Designing Real-Time Object Detectors* (2022), section 3.3. The pool are the
    points strictly inside any object; :class:`SoftLabel` says what a point costs. Everything else, objects, ties, odd
    values and promises, is as with :func:`sim_ota_assign`.

    Args:
        grid: Where the P points lie.
        pred_boxes: Decoded predicted boxes xyxy in pixels, floating point [B, P, 4], any strides.
        pred_logits: Class scores, floating point [B, P, C], any strides: logits, held to 10,000 either way, or
            probabilities, held to [0, 1]. NaN counts as probability 0.
        gt_boxes: The objects' boxes xyxy in pixels, floating point. A box that is none gets no points.
        gt_labels: The objects' classes, integers in [0, C), -1 or -2.
        settings: Numbers; see :class:`SoftLabel` for the preset.
        num_points: As for :func:`sim_ota_assign`.
        activation: ``"none"`` where ``pred_logits`` holds probabilities.

    Returns:
        :class:`DynamicKAssignment`: ``owner`` int64 [B, P]; ``iou`` float32 [B, P].

    Raises:
        TypeError, ValueError: as by :func:`sim_ota_assign`.

    >>> grid = PointGrid.for_image((64, 64), strides=(8, 16))
    >>> boxes = grid.decode(torch.full((1, grid.num_points, 4), 16.0))
    >>> logits = torch.zeros(1, grid.num_points, 3)
    >>> found = soft_label_assign(grid, boxes, logits, [torch.tensor([[8.0, 8.0, 40.0, 40.0]])], [torch.tensor([2])])
    >>> (found.owner == 0).sum(), found.iou.max()
    (tensor(6), tensor(1.))
    """
    if not isinstance(settings, SoftLabel):
        raise TypeError(f"settings: expected SoftLabel, got {type(settings).__name__}")
    check_grid(grid)
    boxes, labels = pack_scene(grid.num_points, pred_boxes, "pred_logits", pred_logits, gt_boxes, gt_labels)
    return DynamicKAssignment(
        *_library.call(
            torch.ops.mgassign.soft_label_assign.default,
            pred_boxes,
            pred_logits,
            boxes.values,
            labels.values,
            boxes.offsets,
            boxes.counts,
            *grid.arguments,
            *pack_quota(num_points, boxes, 0, settings.best_overlaps, MOST_CHOSEN),
            settings.best_overlaps,
            settings.center_radius,
            settings.overlap_weight,
            settings.epsilon,
            _checks.activation(activation),
        )
    )
