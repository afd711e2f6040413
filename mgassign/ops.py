"""The building blocks, one image each: the steps of the assignment as operators of their own.

Composed they give exactly what :func:`mgassign.mutual_guidance_assign` gives, at the price of [P, G]
matrices. None is differentiable; all run on CPU and CUDA, under ``torch.compile`` and ``torch.export``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import _checks, _library
from .points import PointGrid, check_grid

__all__ = ["amplified_centerness", "box_iou", "topk_per_object"]


def box_iou(boxes: Tensor, gt_boxes: Tensor) -> Tensor:
    """Intersection over union of every predicted box with every object's box.

    The R of Localize to Classify. Boxes are xyxy in pixels, continuous coordinates: the width is
    ``x2 - x1``. A box with a non-finite coordinate or without positive width and height has IoU 0
    with everything.

    Args:
        boxes: Floating point [P, 4], any strides.
        gt_boxes: Floating point [G, 4], any strides.

    Returns:
        float32 [P, G], in [0, 1].

    Raises:
        TypeError, ValueError: if an argument's type, dtype, shape or device is not as above.

    >>> box_iou(torch.tensor([[0.0, 0.0, 4.0, 4.0]]), torch.tensor([[0.0, 0.0, 4.0, 2.0], [4.0, 0.0, 8.0, 4.0]]))
    tensor([[0.5000, 0.0000]])
    """
    _checks.tensor("boxes", boxes)
    _checks.tensor("gt_boxes", gt_boxes, like=boxes)
    _checks.shape("boxes", boxes, ("P", 4))
    _checks.shape("gt_boxes", gt_boxes, ("G", 4))
    result: Tensor = _library.call(torch.ops.mgassign.box_iou.default, boxes, gt_boxes)
    return result


def amplified_centerness(
    grid: PointGrid, gt_boxes: Tensor, probs: Tensor, sigma: float = 2.0, level_gate: bool = True
) -> Tensor:
    """Centerness amplified by the classification score, ``c ** ((sigma - p) / sigma)``.

    The A of Classify to Localize (supplementary of the paper; centerness is FCOS's, section 3.3). 0 where the
    point is not strictly inside the object, and, with ``level_gate``, where FCOS's level rule fails.

    Args:
        grid: Where the P points lie.
        gt_boxes: Objects xyxy in pixels, floating point [G, 4].
        probs: Score of each object's own class at each point, floating point [P, G], any strides. Held
            to [0, 1]; NaN counts as 0.
        sigma: How strongly the score counts: above 1, less for larger values.
        level_gate: Whether an object only reaches points of the levels made for its size.

    Returns:
        float32 [P, G], in [0, 1].

    Raises:
        TypeError, ValueError: if an argument's type, dtype, shape, device or value is not as above.

    >>> grid = PointGrid.for_image((16, 16), strides=(8,))
    >>> amplified_centerness(grid, torch.tensor([[0.0, 0.0, 8.0, 12.0]]), torch.zeros(4, 1)).T
    tensor([[0.7071, 0.0000, 0.0000, 0.0000]])
    """
    check_grid(grid)
    _checks.tensor("gt_boxes", gt_boxes)
    _checks.tensor("probs", probs, like=gt_boxes)
    _checks.shape("gt_boxes", gt_boxes, ("G", 4))
    _checks.shape("probs", probs, (grid.num_points, gt_boxes.shape[0]))
    _checks.number("sigma", sigma, above=1)
    _checks.flag("level_gate", level_gate)
    result: Tensor = _library.call(
        torch.ops.mgassign.amplified_centerness.default,
        gt_boxes.to(torch.float32).contiguous(),
        probs,
        *grid.arguments,
        sigma,
        level_gate,
    )
    return result


def topk_per_object(scores: Tensor, k: Tensor, areas: Tensor) -> Tensor:
    """Competition, then selection: which object each point is positive for.

    1. A point stands only for the object of its highest score. Equal scores: the smaller area, then the
       lower object index.
    2. Among the points that stand for an object with a score above 0, the ``k`` highest are kept. Equal
       scores: the lower point index.

    Args:
        scores: Floating point [P, G], any strides; NaN counts as no score.
        k: How many points each object may keep, integer [G]; below 0 counts as 0.
        areas: Floating point [G], in any unit; NaN counts as larger than all others.

    Returns:
        int64 [P], each point's object or -1.

    Raises:
        TypeError, ValueError: if an argument's type, dtype, shape or device is not as above.

    >>> scores = torch.tensor([[0.9, 0.8], [0.7, 0.2], [0.3, 0.4]])
    >>> topk_per_object(scores, k=torch.tensor([1, 1]), areas=torch.tensor([4.0, 2.0]))
    tensor([ 0, -1,  1])
    """
    _checks.tensor("scores", scores)
    _checks.tensor("k", k, dtypes=_checks.INTEGER, like=scores)
    _checks.tensor("areas", areas, like=scores)
    _checks.shape("scores", scores, ("P", "G"))
    _checks.shape("k", k, (scores.shape[1],))
    _checks.shape("areas", areas, (scores.shape[1],))
    result: Tensor = _library.call(
        torch.ops.mgassign.topk_per_object.default,
        scores,
        k.to(torch.int64).contiguous(),
        areas.to(torch.float32).contiguous(),
    )
    return result
