"""Label assignment for a batch of images: Mutual Guidance, and FCOS's own strategy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from . import _checks, _library  # noqa: F401  (loads the operators)
from .points import PointGrid

__all__ = ["Assignment", "OriginalAssignment", "fcos_assign", "mutual_guidance_assign"]

Objects: TypeAlias = Sequence[Tensor] | Tensor


class Assignment(NamedTuple):
    """Who is positive for what. In the first three, -1 means nobody's point: background."""

    cls: Tensor
    """int64 [B, P]: the object, by its index within its image, whose class the point learns (Localize to Classify)."""
    loc: Tensor
    """int64 [B, P]: the object whose box the point learns (Classify to Localize)."""
    original: Tensor
    """int64 [B, P]: the object FCOS's own strategy gives the point to."""
    num_points: Tensor
    """int64 [N]: N_g, how many points each object may have, the objects of the images one after the other."""


class OriginalAssignment(NamedTuple):
    """What FCOS's own strategy gives."""

    original: Tensor
    """int64 [B, P]: each point's object, by its index within its image, or -1."""
    num_points: Tensor
    """int64 [N]: how many points each object has, the objects of the images one after the other."""


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
    activation: Literal["sigmoid", "none"] = "sigmoid",
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

    - a list of B tensors, [G_b, 4] and [G_b];
    - padded tensors [B, G, 4] and [B, G], where label -1 marks padding. Padding counts as objects without points
      in ``num_points``, which then has B * G entries;
    - jagged nested tensors (``torch.nested.nested_tensor(..., layout=torch.jagged)``).

    Args:
        grid: Where the P points lie.
        pred_boxes: Decoded predicted boxes xyxy in pixels, floating point [B, P, 4], any strides. A box with a
            non-finite coordinate or without positive width and height overlaps nothing.
        pred_logits: Raw class scores, floating point [B, P, C], any strides. NaN counts as probability 0.
        gt_boxes: The objects' boxes xyxy in pixels, floating point. A box that is none gets no points.
        gt_labels: The objects' classes, integers in [0, C).
        center_radius: FCOS's centre sampling: the half side of the central box, in strides. 0: the whole box.
        sigma: How strongly the score amplifies centerness: above 1, less for larger values.
        level_gate: Whether localization keeps to the levels made for an object's size.
        min_points: Raises N_g to at least this for every valid object.
        activation: ``"sigmoid"`` for logits, ``"none"`` when ``pred_logits`` holds probabilities already.

    Returns:
        :class:`Assignment`: ``cls``, ``loc``, ``original`` int64 [B, P]; ``num_points`` int64 [N].

    Raises:
        TypeError: if an argument's type or dtype is not as above.
        ValueError: if a shape, device, count or value is not as above. A label outside [0, C) is told on CPU;
            on CUDA it counts as probability 0.

    >>> grid = PointGrid.for_image((64, 64), strides=(8, 16))
    >>> boxes, logits = torch.rand(1, grid.num_points, 4).cumsum(-1) * 20, torch.randn(1, grid.num_points, 3)
    >>> found = mutual_guidance_assign(grid, boxes, logits, [torch.tensor([[8.0, 8.0, 40.0, 40.0]])], [torch.tensor([2])])
    >>> found.num_points, found.cls.shape
    (tensor([4]), torch.Size([1, 80]))
    """
    _checks.grid(grid)
    _checks.tensor("pred_boxes", pred_boxes)
    _checks.tensor("pred_logits", pred_logits, like=pred_boxes)
    boxes = _pack("gt_boxes", gt_boxes, _checks.FLOATING, (4,), like=pred_boxes)
    labels = _pack("gt_labels", gt_labels, _checks.INTEGER, (), like=pred_boxes)
    _check_match(boxes, labels)
    num_points = grid.num_points
    _checks.shape("pred_boxes", pred_boxes, (boxes.num_images, num_points, 4))
    _checks.shape("pred_logits", pred_logits, (boxes.num_images, num_points, "C"))
    _checks.number("center_radius", center_radius, at_least=0)
    _checks.number("sigma", sigma, above=1)
    _checks.flag("level_gate", level_gate)
    _checks.count("min_points", min_points)
    _checks.choice("activation", activation, ("sigmoid", "none"))
    # By position: the dispatcher looks keywords up one by one, which is time on every call.
    return Assignment(
        *torch.ops.mgassign.mutual_guidance_assign.default(
            pred_boxes,
            pred_logits,
            boxes.values,
            labels.values,
            boxes.offsets,
            boxes.counts,
            *grid.arguments,
            center_radius,
            sigma,
            level_gate,
            min_points,
            1 if activation == "sigmoid" else 0,
        )
    )


def fcos_assign(grid: PointGrid, gt_boxes: Objects, center_radius: float = 1.5) -> OriginalAssignment:
    """Assigns points to objects by FCOS's own strategy, for a batch of images.

    Tian, Shen, Chen, He: *FCOS* (ICCV 2019), section 3, with centre sampling: a point is an object's if it
    lies strictly inside the object's central box and its level is made for the object's size. A point that
    several objects want goes to the smallest area, then to the lowest index.

    Args:
        grid: Where the P points lie.
        gt_boxes: The objects' boxes xyxy in pixels, floating point, in one of the forms
            :func:`mutual_guidance_assign` takes. Without labels padding is known by boxes that are none (zeros, say).
        center_radius: Half the side of the central box, in strides. 0: the whole box.

    Returns:
        :class:`OriginalAssignment`: ``original`` int64 [B, P], ``num_points`` int64 [N].

    Raises:
        TypeError, ValueError: if an argument's type, dtype, shape or value is not as above.

    >>> grid = PointGrid.for_image((64, 64), strides=(8, 16))
    >>> fcos_assign(grid, [torch.tensor([[8.0, 8.0, 40.0, 40.0]])]).num_points
    tensor([4])
    """
    _checks.grid(grid)
    _checks.number("center_radius", center_radius, at_least=0)
    boxes = _pack("gt_boxes", gt_boxes, _checks.FLOATING, (4,))
    return OriginalAssignment(
        *torch.ops.mgassign.fcos_assign.default(
            boxes.values, boxes.offsets, boxes.counts, *grid.arguments, center_radius
        )
    )


class _Packed(NamedTuple):
    """Objects of any form as the operators take them: float32 or int64, contiguous."""

    values: Tensor
    offsets: Tensor | None  # of the jagged form
    counts: list[int] | None  # of a list
    num_images: int


def _pack(
    name: str, objects: Objects, dtypes: tuple[torch.dtype, ...], tail: tuple[int, ...], like: Tensor | None = None
) -> _Packed:
    dtype = torch.float32 if dtypes is _checks.FLOATING else torch.int64
    if isinstance(objects, Tensor):
        _checks.tensor(name, objects, dtypes=dtypes, like=like)
        if not objects.is_nested:
            _checks.shape(name, objects, ("B", "G", *tail))
            return _Packed(_dense(objects, dtype), None, None, objects.shape[0])
        if objects.layout != torch.jagged:
            raise ValueError(f"{name}: expected a nested tensor of layout torch.jagged, got {objects.layout}")
        jagged: Any = objects  # whose methods torch's annotations do not know
        if jagged.lengths() is not None:  # holes between the images
            jagged = jagged.contiguous()
        values, offsets = jagged.values(), jagged.offsets()
        _checks.shape(f"{name}.values()", values, ("N", *tail))
        return _Packed(_dense(values, dtype), _dense(offsets, torch.int64), None, offsets.shape[0] - 1)

    if not isinstance(objects, (list, tuple)):
        raise TypeError(f"{name}: expected a list of tensors or a tensor, got {type(objects).__name__}")
    if not objects:
        return _Packed(torch.empty((0, *tail), dtype=dtype, device=None if like is None else like.device), None, [], 0)
    if like is None:
        like = objects[0]
    counts = []
    for b, of_image in enumerate(objects):
        # The names are only made where there is something to say: this runs for every image of every step.
        if not (isinstance(of_image, Tensor) and of_image.dtype in dtypes and of_image.shape[1:] == tail):
            _checks.tensor(f"{name}[{b}]", of_image, dtypes=dtypes, like=like)
            _checks.shape(f"{name}[{b}]", of_image, ("G", *tail))
        if of_image.device != like.device:
            _checks.tensor(f"{name}[{b}]", of_image, dtypes=dtypes, like=like)
        counts.append(of_image.shape[0])
    values = objects[0] if len(objects) == 1 else torch.cat(objects)
    return _Packed(_dense(values, dtype), None, counts, len(counts))


def _dense(values: Tensor, dtype: torch.dtype) -> Tensor:
    # Asked before, because .to() takes a microsecond to find that there is nothing to do.
    return (values if values.dtype == dtype else values.to(dtype)).contiguous()


def _check_match(boxes: _Packed, labels: _Packed) -> None:
    """Boxes and labels in the same form, one label per box."""
    if (boxes.counts is None) != (labels.counts is None) or (boxes.offsets is None) != (labels.offsets is None):
        raise ValueError("gt_labels: expected the form of gt_boxes (list, padded or jagged), got another")
    if boxes.counts != labels.counts:
        raise ValueError(f"gt_labels: expected as many as boxes in each image, {boxes.counts}, got {labels.counts}")
    if labels.values.shape != boxes.values.shape[:-1]:
        expected, got = list(boxes.values.shape[:-1]), list(labels.values.shape)
        raise ValueError(f"gt_labels: expected one per box, shape {expected}, got {got}")
