"""Ground truth in the three forms that detectors keep it in, as the operators take it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, ParamSpec, TypeAlias, TypeVar

import torch
from torch import Tensor

from . import _checks

P = ParamSpec("P")
R = TypeVar("R")

Objects: TypeAlias = Sequence[Tensor] | Tensor

#: The label of a region whose points are nobody's and no background either: crowd, difficult, don't care.
IGNORE = -2


#: What :func:`lists_run_eagerly` has decorated, by name.
EAGER_WITH_LISTS: dict[str, Callable[..., Any]] = {}


class Packed(NamedTuple):
    """A property of the objects: one tensor, and how it falls into images."""

    values: Tensor  # float32 or int64, contiguous: padded [B, G, ...], otherwise [N, ...]
    offsets: Tensor | None  # of the jagged form
    counts: list[int] | None  # of a list
    num_images: int


def lists_run_eagerly(function: Callable[P, R]) -> Callable[P, R]:
    """A function that torch.compile leaves to eager mode where objects come as lists.

    It would compile anew for each image that has no object or one, and soon give up. With ``fullgraph=True`` it says so.
    """
    EAGER_WITH_LISTS[function.__name__] = function

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_dynamo_compiling() and any(
            isinstance(a, (list, tuple)) for a in (*args, *kwargs.values())
        ):
            from . import _eager

            eagerly: Callable[P, R] = getattr(_eager, function.__name__)
            return eagerly(*args, **kwargs)
        return function(*args, **kwargs)

    return call


def pack_objects(gt_boxes: Objects, gt_labels: Objects, like: Tensor | None = None) -> tuple[Packed, Packed]:
    """Boxes and labels, which must agree image by image."""
    boxes = pack_boxes(gt_boxes, like)
    labels = pack("gt_labels", gt_labels, _checks.INTEGER, (), boxes.values if like is None else like)
    _check_match("gt_labels", labels, boxes)
    return boxes, labels


def pack_scene(
    num_points: int,
    pred_boxes: Tensor,
    name: str,
    pred_scores: Tensor,
    gt_boxes: Objects,
    gt_labels: Objects,
    like: Tensor | None = None,
    told_by: str = "images of gt_boxes, points of the grid",
) -> tuple[Packed, Packed]:
    """Boxes and labels of the images that there are predictions for; ``name`` is what the class scores are called, ``told_by``
    where B and P come from.
    """
    _checks.tensor("pred_boxes", pred_boxes, like=like)
    _checks.tensor(name, pred_scores, like=pred_boxes)
    boxes, labels = pack_objects(gt_boxes, gt_labels, like=pred_boxes)
    _checks.shape("pred_boxes", pred_boxes, (boxes.num_images, num_points, 4), told_by)
    _checks.shape(name, pred_scores, (boxes.num_images, num_points, "C"), told_by)
    return boxes, labels


def pack_boxes(gt_boxes: Objects, like: Tensor | None = None) -> Packed:
    return pack("gt_boxes", gt_boxes, _checks.FLOATING, (4,), like)


def pack_if_labelled(
    gt_boxes: Objects, gt_labels: Objects | None, like: Tensor | None = None
) -> tuple[Packed, Tensor | None]:
    """Boxes, and the labels where they are given."""
    if gt_labels is None:
        return pack_boxes(gt_boxes, like), None
    boxes, labels = pack_objects(gt_boxes, gt_labels, like)
    return boxes, labels.values


def pack_quota(
    num_points: int | Objects | None,
    boxes: Packed,
    min_points: int,
    max_points: int,
    limit: int = _checks.LARGEST_COUNT,
) -> tuple[Tensor | None, int, int]:
    """How many points each object is wanted to have, where that is told one by one; the least and the most of all.

    ``min_points`` and ``num_points`` are a caller's, checked here to be at most ``limit``.
    """
    _checks.count("min_points", min_points, at_most=limit)
    if num_points is None:
        return None, min_points, max(min_points, max_points)
    if isinstance(num_points, (int, torch.SymInt)) and not isinstance(num_points, bool):
        _checks.count("num_points", num_points, at_most=limit)
        return None, max(min_points, num_points), max(min_points, num_points)
    scalar = isinstance(num_points, Tensor) and not num_points.dim()
    if scalar or not isinstance(num_points, (Tensor, list, tuple)):
        got = "one of no dimension" if scalar else type(num_points).__name__
        raise TypeError(f"num_points: expected an int, a list of tensors or a tensor, got {got}")
    return pack_counts("num_points", num_points, boxes), min_points, max(min_points, max_points)


def pack_counts(name: str, counts: Any, boxes: Packed) -> Tensor:
    """How many points each object is wanted to have, as int64 of the labels' shape.

    Given in the boxes' form, or as one tensor [N], the objects of the images one after the other.
    """
    if isinstance(counts, Tensor) and counts.dim() == 1 and not counts.is_nested:
        _checks.tensor(name, counts, dtypes=_checks.INTEGER, like=boxes.values)
        _checks.shape(name, counts, (boxes.values.numel() // 4,))
        return _dense(counts, torch.int64).view(boxes.values.shape[:-1])
    packed = pack(name, counts, _checks.INTEGER, (), boxes.values)
    _check_match(name, packed, boxes)
    return packed.values


def pack(
    name: str, objects: Objects, dtypes: tuple[torch.dtype, ...], tail: tuple[int, ...], like: Tensor | None
) -> Packed:
    dtype = torch.float32 if torch.float32 in dtypes else torch.int64
    if isinstance(objects, Tensor):
        if objects.is_nested and objects.layout != torch.jagged:
            raise ValueError(f"{name}: expected a nested tensor of layout torch.jagged, got {objects.layout}")
        _checks.tensor(name, objects, dtypes=dtypes, like=like, jagged=True)
        # Of a jagged tensor too: its images must differ in the second dimension, where their objects lie.
        _checks.shape(name, objects, ("B", "G", *tail))
        if not objects.is_nested:
            return Packed(_dense(objects, dtype), None, None, objects.shape[0])
        jagged: Any = objects  # whose methods torch's annotations do not know
        if jagged.lengths() is not None:  # holes between the images
            jagged = jagged.contiguous()
        values, offsets = jagged.values(), jagged.offsets()
        _checks.shape(f"{name}.values()", values, ("N", *tail))
        return Packed(_dense(values, dtype), _dense(offsets, torch.int64), None, offsets.shape[0] - 1)

    if not isinstance(objects, (list, tuple)):
        raise TypeError(f"{name}: expected a list of tensors or a tensor, got {type(objects).__name__}")
    if not objects:
        return Packed(torch.empty((0, *tail), dtype=dtype, device=None if like is None else like.device), None, [], 0)
    if like is None:
        like = objects[0]
    counts = []
    for b, of_image in enumerate(objects):
        # The names are only made where there is something to say: this runs for every image of every step.
        plain = type(of_image) is Tensor and of_image.layout is torch.strided and not of_image.is_nested
        shape = of_image.shape if plain else ()
        if not shape or shape[1:] != tail or of_image.dtype not in dtypes or of_image.device != like.device:
            _checks.tensor(f"{name}[{b}]", of_image, dtypes=dtypes, like=like)
            _checks.shape(f"{name}[{b}]", of_image, ("G", *tail))
            shape = of_image.shape  # of a subclass of Tensor
        counts.append(shape[0])
    values = objects[0] if len(objects) == 1 else torch.cat(objects)
    return Packed(_dense(values, dtype), None, counts, len(counts))


def _dense(values: Tensor, dtype: torch.dtype) -> Tensor:
    # Asked before, because .to() takes a microsecond to find that there is nothing to do.
    return (values if values.dtype == dtype else values.to(dtype)).contiguous()


def _form(packed: Packed) -> str:
    return "a list" if packed.counts is not None else "padded" if packed.offsets is None else "jagged"


def _check_match(name: str, values: Packed, boxes: Packed) -> None:
    """A property in the form of the boxes, one for each box of each image."""
    if (boxes.counts is None) != (values.counts is None) or (boxes.offsets is None) != (values.offsets is None):
        raise ValueError(f"{name}: expected the form of gt_boxes, {_form(boxes)}, got {_form(values)}")
    if boxes.counts != values.counts:
        raise ValueError(f"{name}: expected as many as boxes in each image, {boxes.counts}, got {values.counts}")
    if boxes.counts is not None:
        return
    if values.values.shape != boxes.values.shape[:-1]:
        expected, got = list(boxes.values.shape[:-1]), list(values.values.shape)
        raise ValueError(f"{name}: expected one per box, shape {expected}, got {got}")
    offsets = values.offsets
    if offsets is None or boxes.offsets is None or offsets is boxes.offsets or not _checks.readable(offsets):
        return
    if not torch.equal(offsets, boxes.offsets):
        expected, got = boxes.offsets.diff().tolist(), offsets.diff().tolist()
        raise ValueError(f"{name}: expected as many as boxes in each image, {expected}, got {got}")
