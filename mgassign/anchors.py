"""Anchors instead of points, for a batch of images: matched by overlap, and Mutual Guidance."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from . import _checks, _library
from ._objects import Objects, lists_run_eagerly, pack_if_labelled, pack_quota, pack_scene
from .assign import Assignment

__all__ = ["AnchorAssignment", "anchor_mutual_guidance_assign", "max_iou_assign"]

_LOW_QUALITY = ("none", "own", "object", "first")


class AnchorAssignment(NamedTuple):
    """Each anchor's object."""

    owner: Tensor
    """int64 [B, A]: the object, by its index within its image; -1: background, -2: to be ignored."""
    iou: Tensor
    """float32 [B, A]: the anchor's highest overlap with any object of its image but regions, whoever it belongs to."""


@lists_run_eagerly
def max_iou_assign(
    anchors: Tensor,
    gt_boxes: Objects,
    *,
    high: float = 0.5,
    low: float = 0.4,
    low_quality: Literal["own", "object", "first", "none"] = "own",
    min_iou: float = 0.0,
    gt_labels: Objects | None = None,
    ignore_share: float = 0.5,
) -> AnchorAssignment:
    """Assigns anchors to objects by their overlap, for a batch of images: RetinaNet's, Faster R-CNN's and SSD's rule.

    An anchor belongs to the object it overlaps most, the first of equals, if by at least ``high``; it is background
    where that is below ``low``, and ignored in between. Then every object gets its best anchors, whatever their
    overlap, as ``low_quality`` says:

    - ``"own"``: all anchors that overlap an object by its highest overlap belong to the object *they* overlap most
      (torchvision's ``Matcher`` with ``allow_low_quality_matches``, detectron2's);
    - ``"object"``: they belong to that object, the last one where several want an anchor (MMDetection's ``MaxIoUAssigner``);
    - ``"first"``: the same, but only the first of equally good anchors (torchvision's ``SSDMatcher``, MMDetection's
      ``gt_max_assign_all=False``);
    - ``"none"``: nothing of the kind.

    The assignments are those of torchvision and MMDetection bit for bit, with two exceptions. An object that no anchor
    overlaps gets none here, and there all anchors without any overlap (torchvision's ``SSDMatcher``: the first). And
    MMDetection takes unions below a millionth of a square pixel to be that large. An image without objects is background.
    Regions are of our own: MMDetection's ``gt_instances_ignore`` takes anchors away before objects choose.

    Every pair of anchor and object is accounted for without ever being stored; memory is in proportion to anchors plus
    objects. Anchors that follow one another should lie near each other, as they do in the order detectors make them in:
    the result does not depend on the order, the time does (a million in random order by 2,000 objects: some 45 times).
    Nothing here is differentiable, nothing waits for a GPU.

    Args:
        anchors: xyxy in pixels, floating point [A, 4], any strides; all images share them. One that is no box overlaps
            nothing.
        gt_boxes: The objects' boxes xyxy in pixels, floating point, in one of the forms
            :func:`mutual_guidance_assign` takes. Without labels padding is known by boxes that are none (zeros, say).
        high: The overlap from which on an anchor is its object's, at most 1.
        low: The overlap below which it is background, above 0, at most ``high``.
        low_quality: What becomes of each object's best anchors.
        min_iou: The overlap that they must have at least (MMDetection's ``min_pos_iou``).
        gt_labels: The objects' classes, in the boxes' form, to tell padding (-1) and regions (-2): a region gets no
            anchors, but what would be background and has ``ignore_share`` of its own area inside one becomes -2.
        ignore_share: How much of its area an anchor must have inside a region to be ignored, above 0, at most 1.

    Returns:
        :class:`AnchorAssignment`: ``owner`` int64 [B, A], ``iou`` float32 [B, A].

    Raises:
        TypeError: if an argument's type or dtype is not as above.
        ValueError: if a shape, device, count or value is not as above.

    >>> anchors = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 4, 4], [20, 20, 30, 30]])
    >>> max_iou_assign(anchors, [torch.tensor([[0.0, 0, 10, 9]])]).owner
    tensor([[ 0,  0, -1, -1]])
    """
    _checks.tensor("anchors", anchors)
    _checks.shape("anchors", anchors, ("A", 4))
    boxes, labels = pack_if_labelled(gt_boxes, gt_labels, like=anchors)
    _checks.number("high", high, above=0, at_most=1)
    _checks.number("low", low, above=0, at_most=high)
    _checks.choice("low_quality", low_quality, _LOW_QUALITY)
    _checks.number("min_iou", min_iou, at_least=0, at_most=1)
    _checks.number("ignore_share", ignore_share, above=0, at_most=1)
    return AnchorAssignment(
        *_library.call(
            torch.ops.mgassign.max_iou_assign.default,
            anchors,
            boxes.values,
            labels,
            boxes.offsets,
            boxes.counts,
            high,
            low,
            _LOW_QUALITY.index(low_quality),
            min_iou,
            ignore_share,
        )
    )


@lists_run_eagerly
def anchor_mutual_guidance_assign(
    anchors: Tensor,
    pred_boxes: Tensor,
    pred_logits: Tensor,
    gt_boxes: Objects,
    gt_labels: Objects,
    *,
    sigma: float = 2.0,
    high: float = 0.5,
    low: float = 0.4,
    min_points: int = 1,
    num_points: int | Objects | None = None,
    ignore_share: float = 0.5,
    activation: Literal["none", "sigmoid"] = "sigmoid",
) -> Assignment:
    """Assigns anchors to objects by Mutual Guidance, for a batch of images.

    Zhang, Fromont, Lefèvre, Avignon: *Localize to Classify and Classify to Localize: Mutual Guidance in Object
    Detection* (ACCV 2020), section 3. The original strategy gives an object the anchors that overlap it most of all objects
    and by at least ``high``, N_g of them, and ignores those between ``low`` and ``high``. For
    **classification** an object gets the N_g anchors whose predicted boxes overlap it most, and as many as were ignored
    come after them: their owner is -2. For **localization** it gets the N_g anchors of highest
    ``iou ** ((sigma - p) / sigma)``: their overlap, amplified by the predicted probability p of its class.

    Each time an object's best anchor, the first of equals, counts as if by an overlap of 1, so that it is the object's
    unless it is another's best too. An object that nothing overlaps has none.

    An anchor is positive for at most one object per task. Equal scores go to the object of smaller area, then
    of lower index; between anchors, to the lower index. The result is the same on every device, for
    any number of threads, run after run. Nothing here is differentiable, nothing waits for a GPU.

    Args:
        anchors: xyxy in pixels, floating point [A, 4], any strides; all images share them. Those that follow one another
            should lie near each other, as in :func:`max_iou_assign`.
        pred_boxes: Decoded predicted boxes xyxy in pixels, floating point [B, A, 4], any strides. A box with a
            non-finite coordinate or without positive width and height overlaps nothing.
        pred_logits: Raw class scores, floating point [B, A, C], any strides. NaN counts as probability 0.
        gt_boxes: The objects' boxes xyxy in pixels, floating point, in one of the forms
            :func:`mutual_guidance_assign` takes. A box that is none gets no anchors.
        gt_labels: The objects' classes, integers in [0, C), or -1 (padding) or -2 (a region). In a region what would be
            background becomes -2: in ``cls`` where a predicted box has ``ignore_share`` of its own area inside one,
            in ``original`` and ``loc`` where an anchor has.
        sigma: How strongly the score amplifies the overlap: above 1, less for larger values.
        high: The overlap from which on an anchor is its object's, at most 1.
        low: The overlap below which it is background, above 0, at most ``high``.
        min_points: Raises N_g to at least this for every valid object. N_g never exceeds A.
        num_points: What takes the place of the original strategy's N_g: a number for all objects, or integers of their
            own in the objects' form or as a tensor [N]; of those, below 0 counts as 0. ``min_points`` raises them, too.
        ignore_share: How much of its area a box must have inside a region to be ignored, above 0, at most 1.
        activation: ``"sigmoid"`` for logits, ``"none"`` when ``pred_logits`` holds probabilities already.

    Returns:
        :class:`Assignment`: ``cls``, ``loc``, ``original`` int64 [B, A], ``original`` being what overlap alone says;
        ``num_points`` int64 [N]; ``iou`` float32 [B, A].

    Raises:
        TypeError: if an argument's type or dtype is not as above.
        ValueError: if a shape, device, count or value is not as above. Another label is told on CPU; on CUDA such a
            label counts as probability 0.

    >>> anchors = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 4, 4], [20, 20, 30, 30]])
    >>> boxes, logits = anchors[None] + torch.tensor([0.0, 0.0, 2.0, 4.0]), torch.zeros(1, 4, 3)
    >>> found = anchor_mutual_guidance_assign(anchors, boxes, logits, [anchors[:1]], [torch.tensor([2])])
    >>> found.original, found.num_points, found.cls
    (tensor([[ 0,  0, -1, -1]]), tensor([2]), tensor([[ 0,  0, -1, -1]]))
    """
    _checks.tensor("anchors", anchors)
    _checks.shape("anchors", anchors, ("A", 4))
    boxes, labels = pack_scene(
        anchors.shape[0],
        pred_boxes,
        "pred_logits",
        pred_logits,
        gt_boxes,
        gt_labels,
        like=anchors,
        told_by="images of gt_boxes, anchors",
    )
    _checks.number("sigma", sigma, above=1)
    _checks.number("high", high, above=0, at_most=1)
    _checks.number("low", low, above=0, at_most=high)
    _checks.number("ignore_share", ignore_share, above=0, at_most=1)
    quota = pack_quota(num_points, boxes, min_points, _checks.LARGEST_COUNT)
    return Assignment(
        *_library.call(
            torch.ops.mgassign.anchor_mutual_guidance_assign.default,
            anchors,
            pred_boxes,
            pred_logits,
            boxes.values,
            labels.values,
            boxes.offsets,
            boxes.counts,
            quota[0],
            sigma,
            high,
            low,
            *quota[1:],
            ignore_share,
            _checks.activation(activation),
        )
    )
