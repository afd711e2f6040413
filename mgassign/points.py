"""The points of a detector's feature pyramid, as a description."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

__all__ = ["FCOS_RANGES", "PointGrid"]

#: FCOS, section 3.2: the size of object each level is made for, from fine to coarse, in pixels.
FCOS_RANGES = ((-1.0, 64.0), (64.0, 128.0), (128.0, 256.0), (256.0, 512.0), (512.0, math.inf))


GridArguments: TypeAlias = tuple[
    tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[float, ...], tuple[float, ...]
]


@dataclass(frozen=True)
class PointGrid:
    """The levels of a feature pyramid, from fine to coarse.

    The point of row ``i``, column ``k`` of a level lies at ``(stride * k + offset, stride * i + offset)``
    in image pixels. Points are numbered row by row, level after level. A grid holds numbers, no tensors:
    it can be compared, hashed, printed, and used on every device.

    Build one with :meth:`for_image` or :meth:`from_features`.

    Attributes:
        heights, widths: Rows and columns of each level.
        strides: Distance of neighbouring points of each level, in pixels.
        offsets: Distance of each level's first point from the image's upper left corner, in pixels.
        ranges: ``(lo, hi)`` of each level: the level serves objects for which the longest of a point's
            distances to the four sides is in this interval, both ends inclusive, in pixels.
        num_points: P, the number of points of an image.
        arguments: The grid as the operators' schemas take it.
    """

    heights: tuple[int, ...]
    widths: tuple[int, ...]
    strides: tuple[int, ...]
    offsets: tuple[float, ...]
    ranges: tuple[tuple[float, float], ...]
    num_points: int = field(init=False, repr=False, compare=False)
    arguments: GridArguments = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        bounds = tuple(bound for pair in self.ranges for bound in pair)
        # Kept, because both are wanted at every call; torch.compile does not trace functools.cached_property.
        object.__setattr__(self, "num_points", sum(self.points_per_level))
        object.__setattr__(self, "arguments", (self.heights, self.widths, self.strides, self.offsets, bounds))

    @classmethod
    def for_image(
        cls,
        size: tuple[int, int],
        strides: Sequence[int] = (8, 16, 32, 64, 128),
        *,
        ranges: Sequence[tuple[float, float]] | None = None,
        offset: float | Sequence[float] | None = None,
    ) -> PointGrid:
        """The grid of an image of ``size = (height, width)`` pixels.

        A level of stride ``s`` has ``ceil(height / s)`` rows and ``ceil(width / s)`` columns.

        Args:
            size: Height and width of the (padded) image, in pixels.
            strides: Stride of each level, from fine to coarse.
            ranges: ``(lo, hi)`` of each level in pixels. Default: FCOS's, the last one opened to infinity.
            offset: Where the first point lies, in pixels; one number for all levels or one for each.
                Default: ``stride // 2``, as in FCOS.

        Raises:
            ValueError: if a number is out of range or the lengths differ.

        >>> PointGrid.for_image((320, 320), strides=(8, 16, 32, 64)).num_points
        2125
        """
        if not isinstance(size, (tuple, list)) or len(size) != 2:
            raise TypeError(f"size: expected (height, width), got {size!r}")
        _check_strides(strides)
        height, width = size
        return cls.from_features(
            [(-(-height // s), -(-width // s)) for s in strides], strides, ranges=ranges, offset=offset
        )

    @classmethod
    def from_features(
        cls,
        sizes: Sequence[tuple[int, int]],
        strides: Sequence[int],
        *,
        ranges: Sequence[tuple[float, float]] | None = None,
        offset: float | Sequence[float] | None = None,
    ) -> PointGrid:
        """The grid of feature maps of the given ``(height, width)``, from fine to coarse.

        Args:
            sizes: Rows and columns of each feature map: ``[f.shape[-2:] for f in features]``.
            strides, ranges, offset: as in :meth:`for_image`.

        Raises:
            ValueError: if a number is out of range or the lengths differ.

        >>> grid = PointGrid.from_features([(40, 40), (20, 20), (10, 10), (5, 5)], strides=(8, 16, 32, 64))
        >>> grid == PointGrid.for_image((320, 320), strides=(8, 16, 32, 64))
        True
        """
        _check_strides(strides)
        count = len(strides)
        if len(sizes) != count:
            raise ValueError(f"sizes: expected one (height, width) per stride ({count}), got {len(sizes)}")
        if any(len(hw) != 2 or hw[0] < 0 or hw[1] < 0 for hw in sizes):
            raise ValueError(f"sizes: expected (height, width) pairs of at least 0, got {list(sizes)!r}")
        if offset is None:
            offsets = tuple(float(s // 2) for s in strides)
        elif isinstance(offset, (int, float)):
            offsets = (float(offset),) * count
        else:
            offsets = tuple(float(o) for o in offset)
        if len(offsets) != count or not all(math.isfinite(o) for o in offsets):
            raise ValueError(f"offset: expected a finite number, or one per stride ({count}), got {offset!r}")
        return cls(
            heights=tuple(hw[0] for hw in sizes),
            widths=tuple(hw[1] for hw in sizes),
            strides=tuple(strides),
            offsets=offsets,
            ranges=_default_ranges(count) if ranges is None else _checked_ranges(ranges, count),
        )

    @property
    def points_per_level(self) -> tuple[int, ...]:
        """How many of the points lie on each level, for ``torch.split``."""
        return tuple(h * w for h, w in zip(self.heights, self.widths, strict=True))

    def points(self, device: torch.device | str | None = None) -> Tensor:
        """The locations ``(x, y)`` of all points in pixels, float32 [P, 2]."""
        levels = [torch.empty(0, 2, device=device)]
        for h, w, stride, offset in zip(self.heights, self.widths, self.strides, self.offsets, strict=True):
            y = torch.arange(h, dtype=torch.float32, device=device) * stride + offset
            x = torch.arange(w, dtype=torch.float32, device=device) * stride + offset
            levels.append(torch.stack([x.expand(h, w), y[:, None].expand(h, w)], dim=-1).reshape(-1, 2))
        return torch.cat(levels)

    def point_strides(self, device: torch.device | str | None = None) -> Tensor:
        """The stride of each point's level in pixels, float32 [P]."""
        strides = [
            torch.full((n,), float(s), device=device) for n, s in zip(self.points_per_level, self.strides, strict=True)
        ]
        return torch.cat([torch.empty(0, device=device), *strides])

    def decode(self, ltrb: Tensor) -> Tensor:
        """Boxes from FCOS distances: ``(x - l, y - t, x + r, y + b)``.

        Args:
            ltrb: Distances from each point to the left, top, right and bottom of its box, in pixels,
                floating point [..., P, 4]. Multiply by :meth:`point_strides` first where the network
                predicts in units of the stride.

        Returns:
            Boxes xyxy in pixels, [..., P, 4], of ``ltrb``'s dtype. Differentiable.

        Raises:
            ValueError: if the shape is not [..., P, 4].
        """
        if ltrb.dim() < 2 or ltrb.shape[-1] != 4 or ltrb.shape[-2] != self.num_points:
            raise ValueError(f"ltrb: expected shape [..., {self.num_points}, 4], got {list(ltrb.shape)}")
        points = self.points(ltrb.device).to(ltrb.dtype)
        return torch.cat([points - ltrb[..., :2], points + ltrb[..., 2:]], dim=-1)


def _check_strides(strides: Sequence[int]) -> None:
    if len(strides) == 0 or any(int(s) != s or s < 1 for s in strides):
        raise ValueError(f"strides: expected at least one, each a whole number of at least 1, got {tuple(strides)!r}")


def _default_ranges(count: int) -> tuple[tuple[float, float], ...]:
    if count > len(FCOS_RANGES):
        raise ValueError(f"ranges: expected to be given for {count} levels; FCOS's ranges cover {len(FCOS_RANGES)}")
    return (*FCOS_RANGES[: count - 1], (FCOS_RANGES[count - 1][0], math.inf))


def _checked_ranges(ranges: Sequence[tuple[float, float]], count: int) -> tuple[tuple[float, float], ...]:
    if len(ranges) != count or any(len(pair) != 2 or not pair[0] <= pair[1] for pair in ranges):
        raise ValueError(f"ranges: expected {count} pairs (lo, hi) with lo <= hi, got {list(ranges)!r}")
    return tuple((float(lo), float(hi)) for lo, hi in ranges)
