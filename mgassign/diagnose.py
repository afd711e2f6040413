"""Which objects got no point, and why: the first thing to ask when a detector does not learn."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from . import _checks
from ._objects import Objects, Packed, pack_boxes, pack_objects
from .points import PointGrid, check_grid

__all__ = ["Unassigned", "unassigned"]

Reason: TypeAlias = Literal[
    "no box", "normalised", "outside", "too thin", "off level", "off center", "taken", "not predicted"
]

_HINTS: dict[Reason, str] = {
    "no box": "not finite, or x2 <= x1 or y2 <= y1: are the boxes x, y, width, height?",
    "normalised": "every box of the batch lies in 0 to 1: multiply by the image's width and height",
    "outside": "no part of it is where points are: is the grid that of the padded image?",
    "too thin": "it falls between the points, or at most touches some: {size}, finest spacing {spacing}",
    "off level": "points lie inside it, none on a level whose range holds its size: {size}, ranges {ranges}",
    "off center": "points of its level lie inside it, none in its central box: {size}, center_radius {radius:g}",
    "taken": "its points are all other objects': {size}; where the assigner takes them, min_points or num_points give it others",
    "not predicted": "points were free, but the assigner chose none for it: {size}: no prediction (ATSS: no anchor) fits it",
}

_AT_ONCE = 64  # objects whose points are looked at together


class Unassigned(NamedTuple):
    """An object without a point. Printed, it is a sentence."""

    image: int
    """Its image."""
    object: int
    """The object, by its index within its image."""
    box: tuple[float, float, float, float]
    """xyxy in pixels."""
    reason: Reason
    """The first that holds: ``"no box"``, ``"normalised"``, ``"outside"``, ``"too thin"``, ``"off level"``, ``"off center"``,
    ``"taken"``, ``"not predicted"``."""
    hint: str
    """What the reason means, in numbers."""

    def __str__(self) -> str:
        corners = ", ".join(f"{corner:g}" for corner in self.box)
        return f"image {self.image}, object {self.object} ({corners}): {self.reason}: {self.hint}"


def unassigned(
    grid: PointGrid,
    owner: Tensor,
    gt_boxes: Objects,
    gt_labels: Objects | None = None,
    *,
    center_radius: float = 1.5,
    level_gate: bool = True,
) -> list[Unassigned]:
    """The objects that got no point, and the first reason why.

    Objects are sparse, so a detector trains without a word when its boxes are in the wrong unit, its objects too small
    for its finest level or of a size that no level takes. Looks at values: it waits for a GPU, and is no part of a
    training step.

    Args:
        grid: Where the P points lie.
        owner: Each point's object by its index within its image, int64 [B, P]: ``cls``, ``loc`` or ``original`` of an
            assignment, ``owner`` where that is the field's name.
        gt_boxes: The objects' boxes in the form they were assigned in.
        gt_labels: Their labels, in the same form, to leave out padding (-1) and regions (-2). Without labels boxes of
            zeros are left out.
        center_radius: As the assigner had it; 0 for one that knows no central box.
        level_gate: Whether the assigner keeps an object to the levels made for its size.

    Returns:
        An :class:`Unassigned` for each, images and objects in order.

    Raises:
        TypeError, ValueError: if an argument's type, dtype, shape, device or value is not as above.

    >>> grid = PointGrid.for_image((64, 64), strides=(8, 16))
    >>> boxes = [torch.tensor([[8.0, 8.0, 40.0, 40.0], [17.0, 8.0, 19.0, 40.0], [48.0, 8.0, 40.0, 40.0]])]
    >>> owner = torch.full((1, grid.num_points), -1)
    >>> owner[0, 18] = 0
    >>> for lost in unassigned(grid, owner, boxes):
    ...     print(lost)
    image 0, object 1 (17, 8, 19, 40): too thin: it falls between the points, or at most touches some: 2 x 32 px, finest
    spacing 8 x 8 px
    image 0, object 2 (48, 8, 40, 40): no box: not finite, or x2 <= x1 or y2 <= y1: are the boxes x, y, width, height?
    """
    check_grid(grid)
    _checks.tensor("owner", owner, dtypes=(torch.int64,))
    _checks.number("center_radius", center_radius, at_least=0)
    _checks.flag("level_gate", level_gate)
    if gt_labels is None:
        boxes = pack_boxes(gt_boxes, like=owner)
        real = (boxes.values != 0).flatten(0, -2).any(-1)
    else:
        boxes, labels = pack_objects(gt_boxes, gt_labels, like=owner)
        real = labels.values.flatten() >= 0
    _checks.shape("owner", owner, (boxes.num_images, grid.num_points))
    values = boxes.values.flatten(0, -2)
    normalised = bool(real.any()) and bool(((values[real] >= 0) & (values[real] <= 1)).all())
    found = []
    for image, (start, stop) in enumerate(_images(boxes)):
        if grid.num_points and int(owner[image].max()) >= stop - start:
            raise ValueError(f"owner[{image}]: expected objects below {stop - start}, got {int(owner[image].max())}")
        owned = torch.zeros(stop - start + 1, dtype=torch.bool, device=owner.device)
        owned[owner[image].clamp(min=-1)] = True  # the last entry is nobody's
        lost = torch.nonzero(real[start:stop] & ~owned[:-1]).flatten()
        for first in range(0, len(lost), _AT_ONCE):
            some = lost[first : first + _AT_ONCE]
            reasons = _reasons(grid, owner[image], values[start:stop][some], normalised, center_radius, level_gate)
            for index, reason in zip(some.tolist(), reasons, strict=True):
                x1, y1, x2, y2 = values[start + index].tolist()
                hint = _HINTS[reason].format(
                    size=f"{x2 - x1:g} x {y2 - y1:g} px",
                    spacing="{1:g} x {0:g} px".format(*grid.spacings[0]),
                    ranges=", ".join(f"{max(lo, 0):g} to {hi:g}" for lo, hi in grid.ranges),
                    radius=center_radius,
                )
                found.append(Unassigned(image, index, (x1, y1, x2, y2), reason, hint))
    return found


def _images(boxes: Packed) -> Iterator[tuple[int, int]]:
    """Where each image's objects begin and end among all."""
    if boxes.counts is not None:
        ends = list(itertools.accumulate(boxes.counts, initial=0))
    elif boxes.offsets is not None:
        ends = boxes.offsets.tolist()
    else:
        ends = [image * boxes.values.shape[1] for image in range(boxes.num_images + 1)]
    return itertools.pairwise(ends)


def _reasons(
    grid: PointGrid, owner: Tensor, boxes: Tensor, normalised: bool, center_radius: float, level_gate: bool
) -> list[Reason]:
    """The first reason that holds for each of some boxes [G, 4] of an image whose points have these owners [P]."""
    # Here, so that importing mgassign does not import the reference.
    from .reference.mutual_guidance import in_center, on_own_level, strictly_inside, valid_boxes

    # Each point's cell is its own: those of all levels cover the image.
    levels = list(zip(grid.spacings, grid.offsets, zip(grid.heights, grid.widths, strict=True), strict=True))
    low = [min(offset[axis] - spacing[axis] / 2 for spacing, offset, _ in levels) for axis in (1, 0)]
    high = [
        max(offset[axis] + spacing[axis] * (cells[axis] - 0.5) for spacing, offset, cells in levels) for axis in (1, 0)
    ]
    inside = strictly_inside(grid, boxes)
    candidates = inside & on_own_level(grid, boxes) if level_gate else inside
    central = candidates & in_center(grid, boxes, center_radius)
    holds: dict[Reason, Tensor] = {
        "no box": ~valid_boxes(boxes),
        "normalised": torch.full_like(boxes[:, 0], normalised, dtype=torch.bool),
        "outside": ((boxes[:, 2:] <= boxes.new_tensor(low)) | (boxes[:, :2] >= boxes.new_tensor(high))).any(1),
        "too thin": ~inside.any(0),
        "off level": ~candidates.any(0),
        "off center": ~central.any(0),
        "taken": ~(central & (owner[:, None] < 0)).any(0),
        "not predicted": torch.ones_like(boxes[:, 0], dtype=torch.bool),
    }
    names = list(holds)
    return [names[k] for k in torch.stack(list(holds.values())).int().argmax(0).tolist()]
