"""Label assignment for a batch of images: Mutual Guidance, and FCOS's own strategy."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from . import _checks, _library
from ._objects import Objects, lists_run_eagerly, pack_boxes, pack_quota, pack_scene
from .points import PointGrid, check_grid

__all__ = ["Assignment", "OriginalAssignment", "fcos_assign", "mutual_guidance_assign"]


class Assignment(NamedTuple):
    """Who is positive for what, of P points or anchors. In the first three -1 means nobody's: background, and -2: ignored."""

    cls: Tensor
    """int64 [B, P]: the object, by its index within its image, whose class the point learns (Localize to Classify)."""
    loc: Tensor
    """int64 [B, P]: the object whose box the point learns (Classify to Localize)."""
    original: Tensor
    """int64 [B, P]: the object that geometry alone gives the point to: FCOS's strategy; of anchors, their overlaps."""
    num_points: Tensor
    """int64 [N]: N_g, how many points each object may have, the objects of the images one after the other."""
    iou: Tensor
    """float32 [B, P]: overlap of the point's predicted box with its ``cls`` object, 0 where it has none."""


class OriginalAssignment(NamedTuple):
    """What FCOS's own strategy gives."""

    original: Tensor
    """int64 [B, P]: each point's object, by its index within its image, or -1."""
    num_points: Tensor
    """int64 [N]: how many points each object has, the objects of the images one after the other."""


@lists_run_eagerly
def mutual_guidance_assign(
    grid: PointGrid,
    pred_boxes: Tensor,
    pred_logits: Tensor,
    gt_boxes: Objects,
    gt_labels: Objects,
    *,
    center_radius: float = 1.5,
    sigma: float = 2.0,
    level_gate: bool = True,
    min_points: int = 0,
    num_points: int | Objects | None = None,
    inside: bool = False,
    ignore_share: float = 0.5,
    activation: Literal["none", "sigmoid"] = "sigmoid",
) -> Assignment:
    """Assigns points to objects by Mutual Guidance, for a batch of images.

    Zhang, Fromont, Lefèvre, Avignon: *Localize to Classify and Classify to Localize: Mutual Guidance in Object
    Detection* (ACCV 2020), as its supplementary applies it to FCOS. FCOS's own strategy says how many points N_g each
    object gets. For **classification** an object gets the N_g points whose predicted boxes overlap it
    most; for **localization** the N_g points inside it of highest centerness ``c ** ((sigma - p) / sigma)``,
    amplified by the predicted probability p of its class.

    A point is positive for at most one object per task. Equal scores go to the object of smaller area, then
    of lower index; between points, to the lower point index. The result is the same on every device, for
    any number of threads, run after run. Nothing here is differentiable, nothing waits for a GPU.

    Objects come in one of three forms, boxes and labels in the same one:

    - a list of B tensors, [G_b, 4] and [G_b]; not under ``torch.compile(fullgraph=True)``, which would compile anew
      for each image that has no object or one;
    - padded tensors [B, G, 4] and [B, G]; ``num_points`` then has B * G entries;
    - jagged nested tensors (``torch.nested.nested_tensor(..., layout=torch.jagged)``).

    In every form label -1 marks padding, an object without points, and label -2 (:data:`IGNORE`) a region: crowd,
    difficult, don't care. A region gets no points, but what would be background there becomes -2. In ``cls`` this
    is a point whose predicted box has ``ignore_share`` of its own area inside one region (as COCO's evaluation forgives a
    detection in a crowd), in ``original`` and ``loc`` a point strictly inside a region.

    ``torch.compile`` compiles anew for every value of a float setting that changes from call to call (``center_radius``,
    ``sigma``, ``ignore_share``), and refuses at the ninth under ``fullgraph=True``; whole numbers may change freely.

    Args:
        grid: Where the P points lie.
        pred_boxes: Decoded predicted boxes xyxy in pixels, floating point [B, P, 4], any strides. A box with a
            non-finite coordinate or without positive width and height overlaps nothing.
        pred_logits: Raw class scores, floating point [B, P, C], any strides. NaN counts as probability 0.
        gt_boxes: The objects' boxes xyxy in pixels, floating point. A box that is none gets no points.
        gt_labels: The objects' classes, integers in [0, C), -1 or -2.
        center_radius: FCOS's centre sampling: the half side of the central box, in strides. 0: the whole box.
        sigma: How strongly the score amplifies centerness: above 1, less for larger values.
        level_gate: Whether localization keeps to the levels made for an object's size.
        min_points: Raises N_g to at least this for every valid object. N_g never exceeds P.
        num_points: What takes the place of the original strategy's N_g: a number for all objects (1 for one-to-one
            heads), or integers of their own in the objects' form or as a tensor [N]; of those, below 0 counts as 0.
        inside: Whether a point must lie strictly inside the object whose class it learns: for heads with one set of
            positives.
        ignore_share: How much of its area a predicted box must have inside a region to be ignored, above 0, at most 1.
        activation: ``"sigmoid"`` for logits, ``"none"`` when ``pred_logits`` holds probabilities already.

    Returns:
        :class:`Assignment`: ``cls``, ``loc``, ``original`` int64 [B, P]; ``num_points`` int64 [N]; ``iou``
        float32 [B, P].

    Raises:
        TypeError: if an argument's type or dtype is not as above.
        ValueError: if a shape, device, count or value is not as above. Another label, and jagged boxes and labels
            that fall into images differently, are told on CPU; on CUDA such a label counts as probability 0.

    >>> grid = PointGrid.for_image((64, 64), strides=(8, 16))
    >>> boxes, logits = torch.rand(1, grid.num_points, 4).cumsum(-1) * 20, torch.randn(1, grid.num_points, 3)
    >>> found = mutual_guidance_assign(grid, boxes, logits, [torch.tensor([[8.0, 8.0, 40.0, 40.0]])], [torch.tensor([2])])
    >>> found.num_points, found.cls.shape
    (tensor([4]), torch.Size([1, 80]))
    """
    check_grid(grid)
    boxes, labels = pack_scene(grid.num_points, pred_boxes, "pred_logits", pred_logits, gt_boxes, gt_labels)
    _checks.number("center_radius", center_radius, at_least=0)
    _checks.number("sigma", sigma, above=1)
    _checks.flag("level_gate", level_gate)
    _checks.flag("inside", inside)
    _checks.number("ignore_share", ignore_share, above=0, at_most=1)
    quota = pack_quota(num_points, boxes, min_points, _checks.LARGEST_COUNT)
    return Assignment(
        *_library.call(
            torch.ops.mgassign.mutual_guidance_assign.default,
            pred_boxes,
            pred_logits,
            boxes.values,
            labels.values,
            boxes.offsets,
            boxes.counts,
            *grid.arguments,
            quota[0],
            center_radius,
            sigma,
            level_gate,
            *quota[1:],
            inside,
            ignore_share,
            _checks.activation(activation),
        )
    )


@lists_run_eagerly
def fcos_assign(grid: PointGrid, gt_boxes: Objects, center_radius: float = 1.5) -> OriginalAssignment:
    """Assigns points to objects by FCOS's own strategy, for a batch of images.

    Tian, Shen, Chen, He: *FCOS* (ICCV 2019), section 3, with centre sampling: a point is an object's if it
    lies strictly inside the object's central box and its level is made for the object's size. A point that
    several objects want goes to the smallest area, then to the lowest index.

    Args:
        grid: Where the P points lie.
        gt_boxes: The objects' boxes xyxy in pixels, floating point, in one of the forms
            :func:`mutual_guidance_assign` takes. There are no labels: padding is known by boxes that are none (zeros, say),
            and every other box is an object: regions to be ignored are left out, or left to ``original`` of
            :func:`mutual_guidance_assign`, which marks their points.
        center_radius: Half the side of the central box, in strides. 0: the whole box.

    Returns:
        :class:`OriginalAssignment`: ``original`` int64 [B, P], ``num_points`` int64 [N].

    Raises:
        TypeError, ValueError: if an argument's type, dtype, shape or value is not as above.

    >>> grid = PointGrid.for_image((64, 64), strides=(8, 16))
    >>> fcos_assign(grid, [torch.tensor([[8.0, 8.0, 40.0, 40.0]])]).num_points
    tensor([4])
    """
    check_grid(grid)
    _checks.number("center_radius", center_radius, at_least=0)
    boxes = pack_boxes(gt_boxes)
    operator = torch.ops.mgassign.fcos_assign.default
    return OriginalAssignment(
        *_library.call(operator, boxes.values, boxes.offsets, boxes.counts, *grid.arguments, center_radius)
    )
