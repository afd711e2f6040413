"""From owners to targets: what each point learns of its object. Plain torch, on every device."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from . import _checks
from ._objects import Objects, lists_run_eagerly

__all__ = ["centerness", "dense_scores", "take"]


@lists_run_eagerly
def take(owner: Tensor, objects: Objects, fill: float = 0) -> Tensor:
    """Each point's share of a property of the objects: their labels, boxes, weights, ids.

    Nothing waits for a GPU, no shape depends on data, and a batch without objects is one like any other.
    Differentiable in ``objects``.

    Args:
        owner: A point's object by its index within its image, int64 [B, P]: ``cls``, ``loc`` or ``original`` of an
            assignment, ``owner`` where that is the field's name. Negative: nobody's.
        objects: The property in the form the objects were assigned in, of any dtype: a list of B tensors [G_b, ...]
            (not under ``torch.compile(fullgraph=True)``), a padded tensor [B, G, ...] or a jagged nested tensor.
        fill: What a point learns that is nobody's, a number that the property's dtype holds.

    Returns:
        Of the property's dtype, [B, P, ...]. A list of no images tells neither dtype nor further dimensions: int64 [0, P].

    Raises:
        TypeError: if an argument's type or dtype is not as above.
        ValueError: if a shape, device, count or ``fill`` is not as above, or an image has no such object. The last is
            told on CPU only, and neither by compiled code nor under ``torch.func``'s transforms.

    >>> owner = torch.tensor([[0, -1, 1], [-1, 0, -2]])
    >>> take(owner, [torch.tensor([7, 8]), torch.tensor([9])], fill=-1)
    tensor([[ 7, -1,  8],
            [-1,  9, -1]])
    """
    if not isinstance(fill, (bool, int, float)):
        raise TypeError(f"fill: expected a number, got {type(fill).__name__}")
    return _take("objects", owner, objects, fill)


@lists_run_eagerly
def dense_scores(owner: Tensor, target: Tensor, gt_labels: Objects, num_classes: int) -> Tensor:
    """What each point is to learn for each class, for losses that want it so.

    Args:
        owner: Each point's object by its index within its image, int64 [B, P]; below 0 for none.
        target: What the point is to learn for its object's class, floating point [B, P].
        gt_labels: The objects' classes, in any form that :func:`task_aligned_assign` takes. One below 0 or of at least
            ``num_classes`` has no column: its points get zeros, without an error.
        num_classes: C, at least 1.

    Returns:
        [B, P, C] of ``target``'s dtype, 0 but for the class of the point's object. Points of owner -2 have zeros, too:
        a loss is to leave them out.

    Raises:
        TypeError, ValueError: if an argument's type, dtype, shape, device or value is not as above.

    >>> dense_scores(torch.tensor([[0, -1]]), torch.tensor([[0.75, 0.0]]), [torch.tensor([2])], num_classes=3)
    tensor([[[0.0000, 0.0000, 0.7500],
             [0.0000, 0.0000, 0.0000]]])
    """
    _checks.tensor("owner", owner, dtypes=(torch.int64,))
    _checks.tensor("target", target, like=owner)
    _checks.count("num_classes", num_classes, at_least=1)
    _checks.shape("target", target, tuple(owner.shape))
    if isinstance(gt_labels, Tensor):
        _checks.tensor("gt_labels", gt_labels, dtypes=_checks.INTEGER, jagged=True)
    elif isinstance(gt_labels, (list, tuple)):
        for b, of_image in enumerate(gt_labels):
            _checks.tensor(f"gt_labels[{b}]", of_image, dtypes=_checks.INTEGER)
        gt_labels = [of_image.long() for of_image in gt_labels]  # of several dtypes, maybe
    labels = _take("gt_labels", owner, gt_labels).long()
    if labels.dim() != 2:
        raise ValueError(f"gt_labels: expected one number per object, got shape {list(labels.shape[2:])} for each")
    # Points that have no class write a 0 over a 0: no shape depends on values, and nothing waits for them.
    has_class = (owner >= 0) & (labels >= 0) & (labels < num_classes)
    column, value = labels.where(has_class, 0), target.where(has_class, 0)
    return value.new_zeros((*owner.shape, num_classes)).scatter_(2, column[..., None], value[..., None])


def centerness(ltrb: Tensor) -> Tensor:
    """FCOS's centerness of points, ``sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b))``.

    Tian, Shen, Chen, He: *FCOS* (ICCV 2019), equation 3. What :func:`mutual_guidance_assign` amplifies, and what a
    head's centerness branch learns. It carries no gradient.

    Args:
        ltrb: Distances of points to the left, top, right and bottom of their boxes, floating point [..., 4]:
            ``grid.encode(take(found.loc, gt_boxes))``.

    Returns:
        [...] in [0, 1], float32 (float64 where ``ltrb`` is); 0 for a point on the box's border or outside.

    Raises:
        TypeError, ValueError: if the dtype or shape is not as above.

    >>> centerness(torch.tensor([[8.0, 4.0, 8.0, 4.0], [2.0, 4.0, 8.0, 4.0], [-1.0, 4.0, 9.0, 4.0]]))
    tensor([1.0000, 0.5000, 0.0000])
    """
    _checks.tensor("ltrb", ltrb)
    if ltrb.dim() == 0 or ltrb.shape[-1] != 4:
        raise ValueError(f"ltrb: expected shape [..., 4], got {list(ltrb.shape)}")
    # The sides one after the other: several times as fast on a CPU as taking every fourth number.
    sides = ltrb.detach().to(torch.promote_types(ltrb.dtype, torch.float32)).movedim(-1, 0).contiguous()
    ratio = torch.minimum(sides[:2], sides[2:]).clamp_(min=0) / torch.maximum(sides[:2], sides[2:])
    # A point without object has 0 / 0; one beside its box -0.
    return (ratio[0] * ratio[1]).nan_to_num_(nan=0.0).abs_().sqrt_()


def _take(name: str, owner: Tensor, objects: Objects, fill: float = 0) -> Tensor:
    """:func:`take`, for a caller that has another name for the objects."""
    _checks.tensor("owner", owner, dtypes=(torch.int64,))
    _checks.shape("owner", owner, ("B", "P"))
    num_images = owner.shape[0]
    if isinstance(objects, Tensor):
        if objects.device != owner.device:
            raise ValueError(f"{name}: expected device {owner.device} like owner, got {objects.device}")
        if objects.is_nested:
            return _take_jagged(name, owner, objects, fill)
        _checks.dense(name, objects)
        _checks.shape(name, objects, (num_images, "G", *objects.shape[2:]))
        return _take_rows(owner, [objects.flatten(0, 1)], _every(objects.shape[1], owner), objects.shape[1], fill)
    if not isinstance(objects, (list, tuple)):
        raise TypeError(f"{name}: expected a list of tensors or a tensor, got {type(objects).__name__}")
    if len(objects) != num_images:
        raise ValueError(f"{name}: expected one tensor per image ({num_images}), got {len(objects)}")
    if not objects:
        return torch.empty_like(owner)
    for b, of_image in enumerate(objects):
        _check_image(f"{name}[{b}]", of_image, objects[0], owner)
    # All images made equally long, so that an image's first row follows from its number: the rows' numbers would have
    # to be sent to the GPU, which waits for it.
    counts = [of_image.shape[0] for of_image in objects]
    padding = _filled(objects[0], max(counts), fill)
    rows = [rows for of_image in objects for rows in (of_image, padding[of_image.shape[0] :])]
    return _take_rows(owner, rows, _every(max(counts), owner), counts, fill)


def _take_jagged(name: str, owner: Tensor, objects: Any, fill: float) -> Tensor:
    if objects.layout != torch.jagged:
        raise ValueError(f"{name}: expected a nested tensor of layout torch.jagged, got {objects.layout}")
    if objects.shape[0] != owner.shape[0]:
        raise ValueError(f"{name}: expected one part per image ({owner.shape[0]}), got {objects.shape[0]}")
    # Images must differ in the second dimension, where their objects lie.
    values, offsets, lengths = objects.values(), objects.offsets(), objects.lengths()
    _checks.shape(f"{name}.values()", values, ("N", *objects.shape[2:]))
    counts = offsets.diff() if lengths is None else lengths  # with lengths there are holes between the images
    return _take_rows(owner, [values], offsets[:-1, None], counts, fill)


def _take_rows(
    owner: Tensor, rows: list[Tensor], first: Tensor, counts: int | list[int] | Tensor, fill: float
) -> Tensor:
    """From rows one after the other; those of an image, ``counts``, begin at its entry of ``first`` [B, 1]."""
    if owner.numel() and _checks.readable(owner):
        counts = [counts] * owner.shape[0] if isinstance(counts, int) else counts
        for b, (highest, count) in enumerate(zip(owner.amax(1).tolist(), counts, strict=True)):
            if highest >= count:
                raise ValueError(f"owner[{b}]: expected objects below {int(count)}, got {highest}")
    table = torch.cat([*rows, _filled(rows[0], 1, fill)])
    index = (owner + first).masked_fill(owner < 0, table.shape[0] - 1)
    return table.index_select(0, index.flatten()).view(*owner.shape, *table.shape[1:])


def _check_image(name: str, value: Any, like: Tensor, owner: Tensor) -> None:
    """A part of a list: of the first part's dtype and further dimensions, where the owners are."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")
    _checks.dense(name, value)
    if value.dtype != like.dtype:
        raise TypeError(f"{name}: expected {like.dtype} like the first, got {value.dtype}")
    if value.device != owner.device:
        raise ValueError(f"{name}: expected device {owner.device} like owner, got {value.device}")
    if value.dim() == 0:
        raise ValueError(f"{name}: expected shape [G, ...], got []")
    _checks.shape(name, value, ("G", *like.shape[1:]))


def _every(step: int, owner: Tensor) -> Tensor:
    return torch.arange(owner.shape[0], device=owner.device)[:, None] * step


def _filled(like: Tensor, count: int, fill: float) -> Tensor:
    """Rows of ``fill``, after a look at whether the dtype holds it."""
    if like.dtype.is_floating_point or like.dtype.is_complex:
        most = torch.finfo(like.dtype).max
        held = fill != fill or abs(fill) == math.inf or -most <= fill <= most
    else:
        low, high = (0, 1) if like.dtype == torch.bool else (torch.iinfo(like.dtype).min, torch.iinfo(like.dtype).max)
        held = low <= fill <= high and fill == int(fill)
    if not held:
        raise ValueError(f"fill: expected a number that {like.dtype} holds, got {fill}")
    return like.new_full((count, *like.shape[1:]), fill)
