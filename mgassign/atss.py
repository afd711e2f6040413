"""Adaptive training sample selection, for a batch of images."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import _checks, _library
from ._objects import Objects, lists_run_eagerly, pack_if_labelled
from .points import PointGrid, check_grid
from .settings import MOST_CHOSEN

__all__ = ["AtssAssignment", "atss_assign"]


class AtssAssignment(NamedTuple):
    """Each point's object."""

    owner: Tensor
    """int64 [B, P]: the object, by its index within its image; -1: background, -2: to be ignored."""
    iou: Tensor
    """float32 [B, P]: overlap of the point's anchor with its object; 0 where it has none."""


@lists_run_eagerly
def atss_assign(
    grid: PointGrid, gt_boxes: Objects, *, anchor_scale: float = 8.0, topk: int = 9, gt_labels: Objects | None = None
) -> AtssAssignment:
    """Assigns points to objects by adaptive training sample selection (ATSS), for a batch of images.

    Zhang, Chi, Yao, Lei, Li: *Bridging the Gap Between Anchor-based and Anchor-free Detection via Adaptive Training
    Sample Selection* (CVPR 2020), algorithm 1, as MMDetection's ``ATSSAssigner`` has it. Each point has one square anchor,
    ``anchor_scale`` strides wide; MMDetection's points begin at the image's corner, ``offset=0`` of a grid. An object's
    candidates are, of each level, the ``topk`` points nearest to its centre. It takes those candidates whose anchor
    overlaps it by at least the mean plus the (unbiased) standard deviation of all its candidates' overlaps, and that lie
    inside it by more than 0.01 pixels. A point that several objects take goes to the highest overlap. Predictions have
    no say, so that the result is the same at every step.

    Of equally near points those of lower index are candidates (MMDetection leaves that to ``torch.topk``), of equal
    overlaps the object of lower index has the point. An object with one candidate (a grid of one point, or ``topk=1`` on
    one level) gets none: one number has no deviation; nor does one so large or far away that areas or distances are no
    finite float32.
    The result is the same on every device, for any number of threads, run after run. Candidates are enumerated on
    the grid: memory is in proportion to points plus objects. Nothing here is differentiable, nothing waits for a GPU.

    Args:
        grid: Where the P points lie.
        gt_boxes: The objects' boxes xyxy in pixels, floating point, in one of the forms
            :func:`mutual_guidance_assign` takes. A box that is none gets no points; without labels that tells padding.
        anchor_scale: The side of a level's anchors, in its strides, above 0.
        topk: How many points of each level are candidates, 1 to 128.
        gt_labels: The objects' classes, in the boxes' form, to tell padding (-1) and regions (-2): a region gets no
            points, but what would be background and lies strictly inside one becomes -2.

    Returns:
        :class:`AtssAssignment`: ``owner`` int64 [B, P], ``iou`` float32 [B, P].

    Raises:
        TypeError: if an argument's type or dtype is not as above.
        ValueError: if a shape, device, count or value is not as above.

    >>> grid = PointGrid.for_image((128, 128), strides=(8, 16))
    >>> found = atss_assign(grid, [torch.tensor([[20.0, 20.0, 84.0, 84.0]])])
    >>> (found.owner == 0).sum(), found.iou.max()
    (tensor(5), tensor(1.))
    """
    check_grid(grid)
    boxes, labels = pack_if_labelled(gt_boxes, gt_labels)
    _checks.number("anchor_scale", anchor_scale, above=0)
    _checks.count("topk", topk, at_least=1, at_most=MOST_CHOSEN)
    return AtssAssignment(
        *_library.call(
            torch.ops.mgassign.atss_assign.default,
            boxes.values,
            labels,
            boxes.offsets,
            boxes.counts,
            *grid.arguments,
            anchor_scale,
            topk,
        )
    )
