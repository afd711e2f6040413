"""The points of a detector's feature pyramid, as a description."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor

from . import _checks

__all__ = ["FCOS_RANGES", "PointGrid"]

#: FCOS, section 3.2: the size of object each level is made for, from fine to coarse, in pixels.
FCOS_RANGES = ((-1.0, 64.0), (64.0, 128.0), (128.0, 256.0), (256.0, 512.0), (512.0, math.inf))

Numbers: TypeAlias = Sequence[float] | Tensor
#: One number for all levels and both axes, one for each level, or ``(y, x)`` for each level.
PerLevel: TypeAlias = float | Sequence[float] | Sequence[Sequence[float]] | Tensor
#: heights, widths, strides, spacings, offsets and ranges, the last three with two entries a level.
GridArguments: TypeAlias = tuple[
    tuple[int, ...], tuple[int, ...], tuple[float, ...], tuple[float, ...], tuple[float, ...], tuple[float, ...]
]

_LARGEST = _checks.LARGEST_NUMBER
_SMALLEST = 2.0**-149  # above 0, of float32


@dataclass(frozen=True)
class PointGrid:
    """The levels of a feature pyramid, from fine to coarse.

    The point of row ``i``, column ``k`` of a level lies at ``(dx * k + ox, dy * i + oy)`` in image pixels, ``(dy, dx)``
    the level's spacing and ``(oy, ox)`` its offset. Points are numbered row by row, level after level. A grid holds
    numbers, no tensors: it can be compared, hashed, printed, pickled, and used on every device.

    Build one with :meth:`for_image` or :meth:`from_features`. Numbers may be of any type that says it is one: Python's,
    NumPy's, tensors of no dimension. They are kept as Python's own, so that equal grids are alike in everything.

    Attributes:
        heights, widths: Rows and columns of each level.
        strides: Pixels of the image to a cell of each level: the unit of centre sampling. They increase.
        spacings: ``(dy, dx)``, distance of neighbouring points of each level, in pixels.
        offsets: ``(oy, ox)``, where each level's first point lies, in pixels from the image's upper left corner.
        ranges: ``(lo, hi)`` of each level: the level serves objects for which the longest of a point's
            distances to the four sides is in this interval, both ends inclusive, in pixels.
        num_points: P, the number of points of an image.
        arguments: The grid as the operators' schemas take it.

    Raises:
        TypeError, ValueError: at construction, if a number is none, is out of range, or the lengths differ.
    """

    heights: tuple[int, ...]
    widths: tuple[int, ...]
    strides: tuple[float, ...]
    spacings: tuple[tuple[float, float], ...]
    offsets: tuple[tuple[float, float], ...]
    ranges: tuple[tuple[float, float], ...]
    num_points: int = field(init=False, repr=False, compare=False)
    arguments: GridArguments = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        strides = _strides(self.strides)
        count = len(strides)
        a_level = f"one number per level ({count})"
        heights, widths = _sides("heights", self.heights, count, a_level), _sides("widths", self.widths, count, a_level)
        for name, sides in (("heights", heights), ("widths", widths)):
            if any(isinstance(side, int) and side > _checks.LARGEST_COUNT for side in sides):  # one may be symbolic
                raise ValueError(f"{name}: expected numbers below 2^31, got {sides!r}")
        spacings = _above_0("spacings", self.spacings, _pairs("spacings", self.spacings, count))
        offsets = _pairs("offsets", self.offsets, count)
        ranges = _pairs("ranges", self.ranges, count, finite=False)
        if any(lo > hi for lo, hi in ranges):
            raise ValueError(f"ranges: expected (lo, hi) with lo <= hi, got {self.ranges!r}")
        num_points = sum(h * w for h, w in zip(heights, widths, strict=True))
        if num_points > _checks.LARGEST_COUNT:  # point indices travel as int32 inside the kernels
            raise ValueError(f"heights, widths: expected fewer than 2^31 points in all, got {num_points}")
        # No infinity among the operators' arguments: compilers that write them down as text do not know it.
        bounds = tuple(min(max(bound, -_LARGEST), _LARGEST) for pair in ranges for bound in pair)
        flat = tuple(tuple(number for pair in pairs for number in pair) for pairs in (spacings, offsets))
        # The last two are kept, because both are wanted at every call; torch.compile does not trace
        # functools.cached_property.
        for name, value in (
            ("heights", heights),
            ("widths", widths),
            ("strides", strides),
            ("spacings", spacings),
            ("offsets", offsets),
            ("ranges", ranges),
            ("num_points", num_points),
            ("arguments", (heights, widths, tuple(float(s) for s in strides), *flat, bounds)),
        ):
            object.__setattr__(self, name, value)

    @classmethod
    def for_image(
        cls,
        size: Sequence[int],
        strides: Numbers = (8, 16, 32, 64, 128),
        *,
        ranges: Sequence[Sequence[float]] | Tensor | None = None,
        spacing: PerLevel | None = None,
        offset: PerLevel | None = None,
    ) -> PointGrid:
        """The grid of an image of ``size = (height, width)`` pixels.

        A level of stride ``s`` has ``ceil(height / s)`` rows and ``ceil(width / s)`` columns; a quotient that is
        whole but for rounding is whole.

        Args:
            size: Height and width of the (padded) image, in pixels: ``image.shape[-2:]``.
            strides, ranges, spacing, offset: as in :meth:`from_features`.

        Raises:
            TypeError, ValueError: if a number is none, is out of range, or the lengths differ.

        >>> PointGrid.for_image((320, 320), strides=(8, 16, 32, 64)).num_points
        2125
        """
        height, width = _sides("size", size, 2, "(height, width)")
        cells = [(_cells(height, s), _cells(width, s)) for s in _strides(strides)]
        return cls.from_features(cells, strides, ranges=ranges, spacing=spacing, offset=offset)

    @classmethod
    def from_features(
        cls,
        sizes: Sequence[Sequence[int]],
        strides: Numbers,
        *,
        ranges: Sequence[Sequence[float]] | Tensor | None = None,
        spacing: PerLevel | None = None,
        offset: PerLevel | None = None,
    ) -> PointGrid:
        """The grid of feature maps of the given ``(height, width)``, from fine to coarse.

        Args:
            sizes: Rows and columns of each feature map: ``[f.shape[-2:] for f in features]``.
            strides: Stride of each level in pixels, from fine to coarse: they increase.
            ranges: ``(lo, hi)`` of each level in pixels. Default: four to eight strides, the first one open to
                small objects, the last one to large ones; for strides 8 to 128 these are FCOS's. Where strides
                more than double this leaves sizes to no level: give ranges then.
            spacing: Distance of neighbouring points in pixels: a number for all levels, one for each, or
                ``(dy, dx)`` for each. Default: the stride.
            offset: Where the first point lies, in pixels: a number, one for each level, or ``(oy, ox)`` for each.
                Default: ``stride // 2``, as in FCOS.

        Raises:
            TypeError, ValueError: if a number is none, is out of range, or the lengths differ.

        >>> grid = PointGrid.from_features([(40, 40), (20, 20), (10, 10), (5, 5)], strides=(8, 16, 32, 64))
        >>> grid == PointGrid.for_image((320, 320), strides=(8, 16, 32, 64))
        True
        """
        strides = _strides(strides)
        count = len(strides)
        rows = _sequence("sizes", sizes)
        if len(rows) != count:
            raise ValueError(f"sizes: expected one (height, width) per stride ({count}), got {len(rows)}")
        cells = [_sides(f"sizes[{i}]", size, 2, "(height, width)") for i, size in enumerate(rows)]
        return cls(
            heights=tuple(height for height, _ in cells),
            widths=tuple(width for _, width in cells),
            strides=strides,
            spacings=_above_0("spacing", spacing, _per_level("spacing", spacing, strides, default=lambda s: s)),
            offsets=_per_level("offset", offset, strides, default=lambda s: s // 2),
            ranges=_default_ranges(strides) if ranges is None else _pairs("ranges", ranges, count, finite=False),
        )

    @property
    def points_per_level(self) -> tuple[int, ...]:
        """How many of the points lie on each level, for ``torch.split``."""
        return tuple(h * w for h, w in zip(self.heights, self.widths, strict=True))

    def points(self, device: torch.device | str | None = None) -> Tensor:
        """The locations ``(x, y)`` of all points in pixels, float32 [P, 2]."""
        levels = []
        numbers = torch.arange(max(*self.heights, *self.widths), dtype=torch.float32, device=device)
        for h, w, (dy, dx), (oy, ox) in zip(self.heights, self.widths, self.spacings, self.offsets, strict=True):
            x = y = numbers[: max(h, w)] * dx + ox
            if (dy, oy) != (dx, ox):
                y = numbers[:h] * dy + oy
            levels.append(torch.stack([x[:w].expand(h, w), y[:h, None].expand(h, w)], dim=-1).reshape(-1, 2))
        return torch.cat(levels)

    def point_strides(self, device: torch.device | str | None = None) -> Tensor:
        """The stride of each point's level in pixels, float32 [P]."""
        strides = [
            torch.full((n,), float(s), dtype=torch.float32, device=device)
            for n, s in zip(self.points_per_level, self.strides, strict=True)
        ]
        return torch.cat(strides)

    def decode(self, ltrb: Tensor) -> Tensor:
        """Boxes from FCOS distances: ``(x - l, y - t, x + r, y + b)``.

        Args:
            ltrb: Distances from each point to the left, top, right and bottom of its box, in pixels,
                floating point [..., P, 4]. Multiply by :meth:`point_strides` first where the network
                predicts in units of the stride.

        Returns:
            Boxes xyxy in pixels, float32 [..., P, 4] whatever ``ltrb``'s dtype: in bfloat16 a point of a large image
            would be up to 8 pixels off. Differentiable.

        Raises:
            TypeError, ValueError: if the dtype or shape is not as above; torchvision's boxes: the format.
        """
        self._check_per_point("ltrb", ltrb)
        points, ltrb = self.points(ltrb.device), ltrb.float()
        return torch.cat([points - ltrb[..., :2], points + ltrb[..., 2:]], dim=-1)

    def encode(self, boxes: Tensor) -> Tensor:
        """FCOS distances from each point to the sides of its box: what :meth:`decode` undoes.

        Args:
            boxes: A box for each point, xyxy in pixels, floating point [..., P, 4]: ``take(found.loc, gt_boxes)``.

        Returns:
            ltrb in pixels, float32 [..., P, 4] whatever the boxes' dtype; below 0 where a point is outside of its box.
            Divide by :meth:`point_strides` where the network predicts in units of the stride. Differentiable.

        Raises:
            TypeError, ValueError: if the dtype or shape is not as above; torchvision's boxes: the format.

        >>> grid = PointGrid.for_image((8, 16), strides=(8,))
        >>> grid.encode(torch.tensor([[0.0, 0, 12, 8], [0, 0, 12, 8]]))
        tensor([[ 4.,  4.,  8.,  4.],
                [12.,  4.,  0.,  4.]])
        """
        self._check_per_point("boxes", boxes)
        points, boxes = self.points(boxes.device), boxes.float()
        return torch.cat([points - boxes[..., :2], boxes[..., 2:] - points], dim=-1)

    def _check_per_point(self, name: str, value: Tensor) -> None:
        _checks.tensor(name, value)
        if value.dim() < 2 or value.shape[-1] != 4 or value.shape[-2] != self.num_points:
            raise ValueError(f"{name}: expected shape [..., {self.num_points}, 4], got {list(value.shape)}")


def _sequence(name: str, values: Any) -> tuple[Any, ...]:
    """The entries of anything that has a length: a list, a tuple, a tensor, an array."""
    if isinstance(values, (list, tuple)):
        return tuple(values)
    if isinstance(values, (str, bytes, dict)) or not hasattr(values, "__len__") or getattr(values, "ndim", 1) == 0:
        raise TypeError(f"{name}: expected a sequence of numbers, got {type(values).__name__} {values!r}")
    return tuple(values)


def _number(name: str, value: Any, *, finite: bool = True) -> float:
    """A number of any type as Python's own: an int where it is whole."""
    given = value
    # Symbolic sizes, which torch.export traces with, are whole numbers without a value.
    if isinstance(value, torch.SymInt):
        return cast(int, value)
    if not isinstance(value, (int, float)) and hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        value = value.item()  # NumPy's, and tensors of no dimension
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: expected a number, got {type(given).__name__} {given!r}")
    if isinstance(value, float) and torch.compiler.is_dynamo_compiling():
        value.hex()  # asks for its value, see _checks.number
    if value != value or (finite and not -_LARGEST <= value <= _LARGEST):
        raise ValueError(f"{name}: expected a {'finite ' if finite else ''}number, got {given!r}")
    if not finite and not -_LARGEST <= value <= _LARGEST:
        return math.inf if value > 0 else -math.inf  # integers beyond any float, too
    if isinstance(value, int):
        return value
    return int(value) if finite and value == value // 1 else float(value) + 0.0  # + 0.0 turns -0.0 into 0.0


def check_grid(value: Any) -> None:
    if not isinstance(value, PointGrid):
        raise TypeError(f"grid: expected a PointGrid, got {type(value).__name__}")


def _cells(side: int, stride: float) -> int:
    """ceil(side / stride); a quotient that is whole but for rounding is whole."""
    if stride % 1:
        return math.ceil(side / stride * (1 - 1e-12))
    return -(-side // cast(int, stride))


def _sides(name: str, values: Any, count: int, expected: str) -> tuple[int, ...]:
    """``count`` whole numbers of at least 0, which a message calls ``expected``."""
    shape = getattr(values, "shape", (count,))
    if len(shape) > 1:  # a feature map in the place of its size
        raise ValueError(f"{name}: expected {expected}, got {type(values).__name__} of shape {list(shape)}")
    sides = _sequence(name, values)
    if len(sides) != count:
        raise ValueError(f"{name}: expected {expected}, got {values!r}")
    numbers = [_number(name, side) for side in sides]
    if any(number % 1 != 0 or number < 0 for number in numbers):
        raise ValueError(f"{name}: expected whole numbers of at least 0, got {values!r}")
    return cast(tuple[int, ...], tuple(numbers))


def _strides(values: Any) -> tuple[float, ...]:
    strides = tuple(_number("strides", s) for s in _sequence("strides", values))
    if not strides or strides[0] < _SMALLEST or any(a >= b for a, b in itertools.pairwise(strides)):
        raise ValueError(f"strides: expected at least one number, above 0 in float32 and increasing, got {values!r}")
    return strides


def _pairs(name: str, values: Any, count: int, *, finite: bool = True) -> tuple[tuple[float, float], ...]:
    """Two numbers for each level."""
    levels = [_sequence(f"{name}[{i}]", pair) for i, pair in enumerate(_sequence(name, values))]
    if len(levels) != count or any(len(pair) != 2 for pair in levels):
        raise ValueError(f"{name}: expected two numbers per level ({count}), got {values!r}")
    first, second = ([float(_number(name, pair[i], finite=finite)) for pair in levels] for i in (0, 1))
    return tuple(zip(first, second, strict=True))


def _above_0(name: str, values: Any, pairs: tuple[tuple[float, float], ...]) -> tuple[tuple[float, float], ...]:
    if any(side < _SMALLEST for pair in pairs for side in pair):
        raise ValueError(f"{name}: expected numbers above 0 in float32, got {values!r}")
    return pairs


def _per_level(name: str, values: Any, strides: tuple[float, ...], default: Any) -> tuple[tuple[float, float], ...]:
    """``(y, x)`` of each level from the ways to give it: not at all, a number, one a level, two a level."""
    if values is None:
        return tuple((float(default(s)), float(default(s))) for s in strides)
    if isinstance(values, (int, float)) or getattr(values, "ndim", 1) == 0:
        both = float(_number(name, values))
        return ((both, both),) * len(strides)
    levels = _sequence(name, values)
    if len(levels) != len(strides):
        raise ValueError(f"{name}: expected a number, or one per stride ({len(strides)}), got {values!r}")
    if any(hasattr(level, "__len__") and getattr(level, "ndim", 1) > 0 for level in levels):
        return _pairs(name, levels, len(strides))
    return tuple((float(_number(name, level)),) * 2 for level in levels)


def _default_ranges(strides: tuple[float, ...]) -> tuple[tuple[float, float], ...]:
    ends = [(4.0 * s, 8.0 * s) for s in strides]
    ends[0] = (-1.0, ends[0][1])
    ends[-1] = (ends[-1][0], math.inf)
    return tuple(ends)
