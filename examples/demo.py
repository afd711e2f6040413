"""Draws Figure 1 of the paper: which points of an image an object trains, under three strategies.

There is no trained network here. Predictions are simulated: every object has one random spot where its
box comes out best and another where its class is recognised best; both get worse away from it.
"""

from __future__ import annotations

import argparse
import os
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image, ImageDraw
from torch import Tensor

from mgassign import Assignment, PointGrid, box_iou, draw, mutual_guidance_assign

LONGER_SIDE, STRIDES = 640, (8, 16, 32, 64, 128)
BACKGROUND, TEXT, MUTED = "#1c1f26", "#f2f2f2", "#a9b0bc"


class InputError(Exception):
    """Something is wrong with what the user gave; the message says what."""


class Scene(NamedTuple):
    image: Image.Image
    names: list[str]
    boxes: Tensor  # float32 [G, 4], xyxy in pixels of the image


def draw_scene(generator: torch.Generator) -> Scene:
    """A picture of a few shapes: large, wide, nested, small; where exactly depends on the seed."""
    shapes = [
        ("circle", "#3d7ea6", (40, 120, 320, 400)),
        ("square", "#e07a5f", (196, 286, 268, 358)),
        ("rectangle", "#81b29a", (330, 50, 610, 150)),
        ("triangle", "#9a6fb0", (410, 230, 570, 420)),
        ("circle", "#e9c46a", (352, 352, 388, 388)),
    ]
    smooth = 3  # drawn larger, then reduced, for soft edges
    image = Image.new("RGB", (640 * smooth, 480 * smooth), "#5c6470")
    pen = ImageDraw.Draw(image)
    boxes = torch.tensor([box for _, _, box in shapes], dtype=torch.float32)
    boxes += torch.randint(-16, 17, (len(shapes), 2), generator=generator).repeat(1, 2)
    for (name, color, _), box in zip(shapes, (boxes * smooth).tolist(), strict=True):
        x1, y1, x2, y2 = box
        if name == "circle":
            pen.ellipse((x1, y1, x2, y2), fill=color)
        elif name == "triangle":
            pen.polygon([((x1 + x2) / 2, y1), (x2, y2), (x1, y2)], fill=color)
        else:
            pen.rectangle((x1, y1, x2, y2), fill=color)
    return Scene(image.resize((640, 480), Image.Resampling.LANCZOS), [name for name, _, _ in shapes], boxes)


def read_scene(image_path: Path, annotation_path: Path) -> Scene:
    """An image and its PASCAL VOC annotation, brought to the size a detector would see."""
    try:
        image = Image.open(image_path)
        if image.mode in ("I", "F"):  # what is black in them, what white?
            raise ValueError(f"expected 8 or 16 bits a channel, got pixels of Pillow's mode {image.mode}")
        if image.mode.startswith("I;16"):  # Pillow would make white of all above 255
            image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
        image = image.convert("RGB")
    except (
        OSError,
        ValueError,
        SyntaxError,
        Image.DecompressionBombError,
    ) as error:  # the third: Pillow, of broken PNGs
        raise InputError(f"cannot read the image {image_path}: {error}") from error
    names, boxes = [], []
    try:
        for found in ElementTree.parse(annotation_path).iter("object"):
            x1, y1, x2, y2 = (float(found.findtext(f"bndbox/{key}", "")) for key in ("xmin", "ymin", "xmax", "ymax"))
            names.append(found.findtext("name", "object"))
            boxes.append([x1 - 1, y1 - 1, x2, y2])  # VOC counts pixels from 1 and includes the last one
    except (OSError, ElementTree.ParseError, ValueError, LookupError) as error:  # the last one: of an unknown encoding
        raise InputError(f"cannot read the annotation {annotation_path}: {error}") from error
    if not boxes:
        raise InputError(f"the annotation {annotation_path} names no objects")
    for name, (x1, y1, x2, y2) in zip(names, boxes, strict=True):
        if not (-1 <= x1 < x2 <= image.width + 1 and -1 <= y1 < y2 <= image.height + 1):
            raise InputError(f"{annotation_path}: the box of {name!r} does not lie in the image {image_path}")
    scale = LONGER_SIDE / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    shrink = torch.tensor([size[0] / image.width, size[1] / image.height]).repeat(2)
    return Scene(image.resize(size, Image.Resampling.LANCZOS), names, torch.tensor(boxes) * shrink)


def simulate(grid: PointGrid, boxes: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """What a half-trained network might say: predicted boxes [P, 4] and class logits [P, C]."""
    points, strides, every = grid.points(), grid.point_strides(), torch.arange(grid.num_points)
    corner, size = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
    ltrb = torch.cat([points[:, None] - corner, corner + size - points[:, None]], dim=-1)  # [P, G, 4]
    inside = ltrb.amin(-1) > 0
    seen = torch.where(inside, size.prod(-1), torch.inf).argmin(1)  # the smallest object around a point
    sees, ltrb = inside.any(1)[:, None], ltrb[every, seen]
    suits = torch.exp(-0.5 * torch.log2(ltrb.amax(-1).abs() / (6 * strides)) ** 2)  # is the level made for its size?

    def skill() -> Tensor:
        spots = corner + size * (0.3 + 0.4 * torch.rand(len(boxes), 2, generator=generator))
        away = ((points - spots[seen]) / size[seen]).norm(dim=1)
        return suits * torch.exp(-((away / 0.35) ** 2))

    noise = torch.randn(grid.num_points, 4, generator=generator) * 0.7 * (1 - skill())[:, None]
    aimless = strides[:, None] * (1 + 3 * torch.rand(grid.num_points, 4, generator=generator))
    pred_boxes = grid.decode(torch.where(sees, ltrb * noise.exp(), aimless))
    logits = -4 + 0.5 * torch.randn(grid.num_points, int(labels.max()) + 1, generator=generator)
    logits[every, labels[seen]] += torch.where(sees[:, 0], 8 * skill(), 0)
    return pred_boxes, logits


def summarize(scene: Scene, found: Assignment, pred_boxes: Tensor) -> list[str]:
    """The numbers as lines of text: a header, then an object each."""
    table = [["#", "object", "box", "original", "cls", "loc", "all 3", "IoU at cls", "at original"]]
    overlaps = box_iou(pred_boxes, scene.boxes)
    for g, name in enumerate(scene.names):
        original, cls, loc = (owners[0] == g for owners in (found.original, found.cls, found.loc))
        box = ", ".join(f"{side:.0f}" for side in scene.boxes[g].tolist())
        counts = [str(int(mask.sum())) for mask in (original, cls, loc, original & cls & loc)]
        ious = [f"{overlaps[mask, g].mean():.2f}" if mask.any() else "-" for mask in (cls, original)]
        table.append([str(g + 1), name, box, *counts, *ious])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    line = "  ".join(f"{{:{side}{width}}}" for side, width in zip("<<<>>>>>>", widths, strict=True))
    return [line.format(*row) for row in table]


def compose(scene: Scene, grid: PointGrid, found: Assignment, table: list[str]) -> Figure:
    """The image, its title above, numbers and legend to the right; saving crops or extends the figure to all that."""
    pixel = min(8.5 / scene.image.width, 8 / scene.image.height)  # inches
    width, height = scene.image.width * pixel, scene.image.height * pixel
    figure = Figure(figsize=(width, height), facecolor=BACKGROUND)
    tags = [str(g + 1) for g in range(len(scene.names))]
    draw.assignment(found, grid, scene.image, scene.boxes, names=tags, axes=figure.add_axes((0, 0, 1, 1)))

    right, bottom = 1 + 0.3 / width, min(0, 1 - (0.21 * len(table) + 2.7) / height)  # below the table, however long
    title = "Which points learn the class, which the box?"
    note = "Mutual Guidance on FCOS. The predictions are simulated, no network was trained. "
    note += f"Boxes in pixels of the image as drawn, {scene.image.width} x {scene.image.height}."
    figure.text(0, 1 + 0.48 / height, title, color=TEXT, size=17, weight="bold")
    figure.text(0, 1 + 0.18 / height, note, color=MUTED, size=10.5)
    for text, color in [(table[0], MUTED), ("\n" + "\n".join(table[1:]), TEXT)]:
        figure.text(
            right, 1, text, color=color, size=9.5, family="monospace", va="top", linespacing=1.6, parse_math=False
        )

    def dot(color: str, label: str, size: float = 11, **kwargs: Any) -> Line2D:
        return Line2D([], [], ls="", marker="o", color=color, mec="black", ms=size, label=label, **kwargs)

    red, yellow, green = (draw.COLORS[name] for name in ("original", "cls", "loc"))
    meanings = [
        dot(red, "original: FCOS's own positives, N$_g$ for each object"),
        dot(yellow, "cls: Localize to Classify, positive for classification"),
        dot(green, "loc: Classify to Localize, positive for localization"),
        dot(red, "a sliced dot is shared", fillstyle="left", markerfacecoloralt=green),
        Line2D([], [], color="white", ls=":", lw=1.6, label="an object's box"),
    ]
    sizes = [dot(MUTED, str(stride), 144 * pixel * draw.dot_radius(stride)) for stride in STRIDES]
    style: dict[str, Any] = {"loc": "lower left", "frameon": False, "borderaxespad": 0, "labelcolor": TEXT}
    figure.legend(handles=meanings, bbox_to_anchor=(right, bottom + 0.85 / height), labelspacing=0.8, **style)
    style |= {"title": "stride of the point's level", "alignment": "left", "ncols": len(STRIDES)}
    figure.legend(handles=sizes, bbox_to_anchor=(right, bottom), **style).get_title().set_color(MUTED)
    return figure


def save(figure: Figure, output: Path) -> None:
    """Writes the picture whole or not at all."""
    unfinished = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        try:
            figure.savefig(unfinished, format=output.suffix[1:] or "png", dpi=130, bbox_inches="tight", pad_inches=0.3)
            os.replace(unfinished, output)
        finally:
            unfinished.unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot write {output}: {error}") from error


def run(args: argparse.Namespace) -> None:
    if not 0 <= args.seed < 2**63:
        raise InputError(f"--seed: expected from 0 to 2**63 - 1, got {args.seed}")
    generator = torch.Generator().manual_seed(args.seed)
    if (args.image is None) != (args.annotation is None):
        raise InputError("--image and --annotation go together")
    scene = draw_scene(generator) if args.image is None else read_scene(args.image, args.annotation)
    classes = sorted(set(scene.names))
    labels = torch.tensor([classes.index(name) for name in scene.names])
    grid = PointGrid.for_image((scene.image.height, scene.image.width), strides=STRIDES)
    pred_boxes, pred_logits = simulate(grid, scene.boxes, labels, generator)
    found = mutual_guidance_assign(grid, pred_boxes[None], pred_logits[None], [scene.boxes], [labels])
    table = summarize(scene, found, pred_boxes)
    save(compose(scene, grid, found, table), args.output)
    print(
        *table,
        "",
        "original: FCOS's own positives, N_g of them; cls: Localize to Classify; loc: Classify to Localize; all 3:",
        "points they share. IoU: how well the boxes predicted at those points overlap the object, on average.",
        f"The predictions are simulated (seed {args.seed}): no network was trained. Wrote {args.output}",
        sep="\n",
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Assign the points of a detector to the objects of an image by three strategies, and draw who got "
        "which. Without --image it draws an image of its own. The network's predictions are simulated.",
    )
    parser.add_argument("--image", type=Path, help="a photograph, say x.jpg; needs --annotation")
    parser.add_argument("--annotation", type=Path, help="its objects, in PASCAL VOC's XML")
    parser.add_argument("--output", type=Path, default=Path("demo/figure1.png"), help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="other predictions, other shapes; default: %(default)s")
    try:
        run(parser.parse_args())
    except InputError as error:
        print(f"demo.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
