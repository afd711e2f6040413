"""Draws assignments over images with matplotlib, which is not installed with mgassign: ``pip install matplotlib``.

    from mgassign import draw

    axes = draw.assignment(found, grid, image, gt_boxes[0])
    axes.figure.savefig("assignment.png")

matplotlib is imported by the first call.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from . import _checks
from .points import PointGrid

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["COLORS", "MEANINGS", "assignment", "boxes", "dot_radius", "legend", "picture", "points"]

#: The colours of an assignment's fields.
COLORS = {"original": "#ff4136", "cls": "#ffd60a", "loc": "#2ecc40", "owner": "#ffd60a"}
#: What the fields mean, as :func:`legend` has it.
MEANINGS = {
    "original": "original: by geometry alone",
    "cls": "cls: positive for classification",
    "loc": "loc: positive for localization",
    "owner": "positive",
}
#: Colours that follow one another, of objects and of levels.
PALETTE = ("#00b8d9", "#ffab00", "#ff5c8a", "#8bd450", "#b388ff", "#ff7043", "#4dd0e1", "#dce775")
_IGNORED = "#9aa0a6"

Places: TypeAlias = PointGrid | Tensor


def assignment(
    found: NamedTuple | Mapping[str, Tensor] | Tensor,
    places: Places,
    image: Any = None,
    gt_boxes: Tensor | None = None,
    *,
    index: int = 0,
    fields: Sequence[str] | None = None,
    color: Literal["field", "object", "level"] = "field",
    ignored: bool = False,
    names: Sequence[str] | None = None,
    size: float = 1.0,
    scale: tuple[float, float] = (1.0, 1.0),
    axes: Axes | None = None,
) -> Axes:
    """Draws who got which points of one image: the picture, its objects' boxes, and the points.

    A dot's area grows with the stride of its level. A point that several fields give to an object is a pie of their colours.

    Args:
        found: What an assigner returned, owners by the name of their field, or one owner tensor, int64 [B, P].
        places: The grid of the P points, or anchors xyxy in pixels, floating point [P, 4], of which the centres are drawn.
        image: What :func:`picture` takes, or None.
        gt_boxes: The image's objects, floating point [G, 4], or None.
        index: Which image of the batch is drawn.
        fields: Which fields are drawn. Default: all that are owners.
        color: What a dot's colour tells: its field (:data:`COLORS`), the object it belongs to, or its level.
        ignored: Whether points that are to be ignored (-2) are drawn too, in grey.
        names: What is written at the objects. Default: their indices.
        size: How large the dots are.
        scale: Pixels of the picture to a pixel of the grid, ``(x, y)``: where the detector saw the image in another size.
        axes: Where to draw, matplotlib's. Default: a new figure of the image's shape.

    Returns:
        The axes; ``axes.figure.savefig("x.png")`` writes the picture.

    Raises:
        ImportError: if matplotlib is not installed.
        TypeError, ValueError: if an argument's type, shape or value is not as above.
    """
    owners = _owners(found, fields)
    if isinstance(index, bool) or not isinstance(index, int):
        raise TypeError(f"index: expected an int, got {type(index).__name__}")
    if axes is None:
        axes = _new_axes(image, places, scale)
    if image is not None:
        picture(axes, image)
    if gt_boxes is not None:
        boxes(axes, gt_boxes, names=names, scale=scale, colors=PALETTE if color == "object" else ("white",))
    of_image = {}
    for name, owner in owners.items():
        if not -owner.shape[0] <= index < owner.shape[0]:
            raise ValueError(f"index: expected one of {owner.shape[0]} images, got {index}")
        of_image[name] = owner[index]
    points(axes, places, of_image, color=color, ignored=ignored, size=size, scale=scale)
    return axes


def points(
    axes: Axes,
    places: Places,
    owners: Mapping[str, Tensor],
    *,
    color: Literal["field", "object", "level"] = "field",
    ignored: bool = False,
    size: float = 1.0,
    scale: tuple[float, float] = (1.0, 1.0),
) -> None:
    """Draws the points of one image that belong to an object.

    Args:
        axes: Where to draw.
        places, color, ignored, size, scale: As in :func:`assignment`.
        owners: A point's object, int64 [P], by the name of the field.

    Raises:
        TypeError, ValueError: if an argument's type, shape or value is not as above.
    """
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Wedge

    _checks.choice("color", color, ("field", "object", "level"))
    _checks.number("size", size, above=0)
    centers, radii, levels = _dots(places)
    centers = centers * _scale(scale)
    radii = radii * (size * min(scale))
    drawn, owned = [], {}
    for name, owner in owners.items():
        _checks.tensor(f"owners[{name!r}]", owner, dtypes=(torch.int64,))
        _checks.shape(f"owners[{name!r}]", owner, (len(centers),))
        owned[name] = owner.cpu()
        drawn.append(owned[name] >= 0 if not ignored else owned[name] != -1)
    if not drawn:
        return
    wedges, colors = [], []
    chosen = torch.nonzero(torch.stack(drawn).any(0) & centers.isfinite().all(1)).flatten()
    # Large dots first: small ones stay visible on them.
    for j in chosen[radii[chosen].argsort(descending=True, stable=True)].tolist():
        slices = []
        for name, owner in owned.items():
            object_ = int(owner[j])
            if object_ == -2 and ignored:
                slices.append(_IGNORED)
            elif object_ >= 0:
                number = {"object": object_, "level": int(levels[j])}.get(color)
                slices.append(COLORS.get(name, PALETTE[0]) if number is None else PALETTE[number % len(PALETTE)])
        if color != "field":
            slices = list(dict.fromkeys(slices))
        for i, of_slice in enumerate(slices):
            turn = 360 / len(slices)
            wedges.append(
                Wedge((float(centers[j, 0]), float(centers[j, 1])), float(radii[j]), 90 + i * turn, 90 + (i + 1) * turn)
            )
            colors.append(of_slice)
    axes.add_collection(PatchCollection(wedges, facecolor=colors, edgecolor="black", linewidth=0.45, zorder=4))


def boxes(
    axes: Axes,
    gt_boxes: Tensor,
    *,
    names: Sequence[str] | None = None,
    colors: Sequence[str] = ("white",),
    scale: tuple[float, float] = (1.0, 1.0),
) -> None:
    """Draws objects as dotted frames with a tag each.

    Args:
        axes: Where to draw.
        gt_boxes: xyxy in pixels, floating point [G, 4].
        names: What is written at them. Default: their indices; ``()``: nothing.
        colors: Of the frames, used in turn.
        scale: As in :func:`assignment`.

    Raises:
        TypeError, ValueError: if an argument's type, shape or value is not as above.
    """
    from matplotlib import patheffects
    from matplotlib.patches import Rectangle

    _checks.tensor("gt_boxes", gt_boxes)
    _checks.shape("gt_boxes", gt_boxes, ("G", 4))
    _check_several("names", names)
    _check_several("colors", colors)
    if not colors:
        raise ValueError("colors: expected at least one, got none")
    shadow = [patheffects.Stroke(linewidth=3, foreground="black", alpha=0.5), patheffects.Normal()]
    tag = {"facecolor": "#1c1f26", "edgecolor": "none", "alpha": 0.7, "pad": 1.5}
    corners = gt_boxes.detach().cpu().float() * _scale(scale).repeat(2)
    texts = [str(g) for g in range(len(corners))] if names is None else list(names)
    if texts and len(texts) != len(corners):
        raise ValueError(f"names: expected one for each of {len(corners)} boxes, got {len(texts)}")
    for g, (x1, y1, x2, y2) in enumerate(corners.tolist()):
        if not all(map(math.isfinite, (x1, y1, x2, y2))):
            continue
        edge = colors[g % len(colors)]
        frame = Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=edge, linestyle=":", linewidth=1.6)
        axes.add_patch(frame).set_path_effects(shadow)
        if texts:
            above = y1 - min(axes.get_ylim()) > 12  # otherwise the tag finds room inside
            text: dict[str, Any] = {
                "color": "white",
                "fontsize": 7.5,
                "bbox": tag,
                "zorder": 5,  # above the points
                "clip_on": True,
                "parse_math": False,
            }
            text |= {"va": "bottom", "xytext": (1, 2)} if above else {"va": "top", "xytext": (2, -3)}
            axes.annotate(texts[g], (x1, y1), textcoords="offset points", **text)


def picture(axes: Axes, image: Any) -> None:
    """Shows an image in its own pixels, the upper left corner at (0, 0), without axes.

    Args:
        axes: Where to draw.
        image: A tensor [3, H, W], [1, H, W] or [H, W, 3], uint8 or floating point in [0, 1]; or what matplotlib's
            ``imshow`` takes: an array [H, W, 3], a picture of PIL.

    Raises:
        TypeError, ValueError: if it is none of these.
    """
    pixels, (height, width) = _pixels(image)
    axes.imshow(pixels, extent=(0, width, height, 0))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()


def legend(axes: Axes, fields: Sequence[str], **settings: Any) -> None:
    """Says below the picture what the colours of these fields mean; ``settings`` are those of ``Axes.legend``.

    Raises:
        TypeError: if ``fields`` is a single name.
    """
    from matplotlib.lines import Line2D

    _check_several("fields", fields)
    dots = [
        Line2D(
            [],
            [],
            ls="",
            marker="o",
            mec="black",
            ms=8,
            color=COLORS.get(name, PALETTE[0]),
            label=MEANINGS.get(name, name),
        )
        for name in fields
    ]
    place = {"loc": "upper center", "bbox_to_anchor": (0.5, 0), "ncols": len(dots), "frameon": False}
    axes.legend(handles=dots, **{**place, **settings})


def _check_several(name: str, values: Sequence[str] | None) -> None:
    """A single string is a sequence, too, of its letters."""
    if isinstance(values, str):
        raise TypeError(f"{name}: expected a list, got {values!r}")


def _owners(found: Any, fields: Sequence[str] | None) -> dict[str, Tensor]:
    """The owners by field, in the order asked for."""
    if isinstance(found, Tensor):
        owners = {"owner": found}
    elif isinstance(found, Mapping):
        owners = dict(found)
    elif hasattr(found, "_asdict"):
        named = ((name, value) for name, value in found._asdict().items() if name in COLORS)
        owners = dict(sorted(named, key=lambda item: list(COLORS).index(item[0])))
    else:
        raise TypeError(f"found: expected an assignment or a tensor, got {type(found).__name__}")
    _check_several("fields", fields)
    if fields is not None:
        missing = [name for name in fields if name not in owners]
        if missing:
            raise ValueError(f"fields: expected some of {', '.join(map(repr, owners))}, got {missing[0]!r}")
        owners = {name: owners[name] for name in fields}
    for name, owner in owners.items():
        _checks.tensor(name, owner, dtypes=(torch.int64,))
        _checks.shape(name, owner, ("B", "P"))
    return owners


def _dots(places: Places) -> tuple[Tensor, Tensor, Tensor]:
    """Where the dots are [P, 2], their radii [P] in pixels and their levels [P]."""
    if isinstance(places, PointGrid):
        counts = torch.tensor(places.points_per_level, device="cpu")
        levels = torch.arange(len(counts), device="cpu").repeat_interleave(counts)
        centers, strides = places.points("cpu"), places.point_strides("cpu")
    else:
        _checks.tensor("places", places)
        _checks.shape("places", places, ("A", 4))
        anchors = places.detach().cpu().float()
        centers = (anchors[:, :2] + anchors[:, 2:]) / 2
        # Anchors tell no stride; RetinaNet's are four strides wide.
        strides = (anchors[:, 2:] - anchors[:, :2]).clamp(min=0).prod(1).sqrt() / 4
        levels = strides.clamp(min=1).log2().round().long()
    return centers, torch.tensor([dot_radius(stride) for stride in strides.tolist()], device="cpu"), levels


def dot_radius(stride: float) -> float:
    """A dot's radius in pixels: the area grows with the stride, so that a coarse dot does not bury its neighbours."""
    return 1.15 * math.sqrt(stride)


def _pixels(image: Any) -> tuple[Any, tuple[float, float]]:
    """What matplotlib shows, and its height and width."""
    if isinstance(image, Tensor):
        first, last = (image.shape[0], image.shape[2]) if image.dim() == 3 else (0, 0)
        if not {1, 3} & {first, last}:
            raise ValueError(f"image: expected shape [3, H, W], [1, H, W] or [H, W, 3], got {list(image.shape)}")
        image = image.detach().cpu()
        image = image.float() if image.is_floating_point() else image  # NumPy has no bfloat16
        image = (image.permute(1, 2, 0) if first in (1, 3) else image).expand(-1, -1, 3).numpy()
    if hasattr(image, "shape"):
        if len(image.shape) not in (2, 3) or (len(image.shape) == 3 and image.shape[2] not in (1, 3, 4)):
            raise ValueError(f"image: expected an array [H, W, 3], got {list(image.shape)}")
        return image, (int(image.shape[0]), int(image.shape[1]))
    if not hasattr(image, "size"):
        raise TypeError(f"image: expected a tensor, an array or a picture of PIL, got {type(image).__name__}")
    width, height = image.size
    return image, (int(height), int(width))


def _scale(scale: Any) -> Tensor:
    """Pixels of the picture to one of the grid, x and y [2]."""
    if not isinstance(scale, (tuple, list)) or len(scale) != 2:
        raise TypeError(f"scale: expected two numbers (x, y), got {scale!r}")
    for axis, factor in zip("xy", scale, strict=True):
        _checks.number(f"scale, {axis}", factor, above=0)
    return torch.tensor(scale, dtype=torch.float32, device="cpu")


def _new_axes(image: Any, places: Places, scale: Any) -> Axes:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("mgassign.draw needs matplotlib: pip install matplotlib") from error
    if image is not None:
        _, (height, width) = _pixels(image)
    elif isinstance(places, PointGrid):
        height = max(1, *(n * dy for n, (dy, _) in zip(places.heights, places.spacings, strict=True)))
        width = max(1, *(n * dx for n, (_, dx) in zip(places.widths, places.spacings, strict=True)))
    else:
        _checks.tensor("places", places)
        _checks.shape("places", places, ("A", 4))
        corners = places[:, 2:].detach().cpu()
        corners = corners[corners.isfinite().all(1)]
        width, height = torch.cat([corners, torch.ones(1, 2, device="cpu")]).amax(0).tolist()
    if image is None:
        x, y = _scale(scale).tolist()
        height, width = height * y, width * x
    figure = Figure(figsize=(8, 8 * height / width))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0), aspect="equal")
    return axes
