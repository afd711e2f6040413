"""Draws a small data set in PASCAL VOC's layout: ellipses, rectangles and triangles over one another.

It needs no download and is no easy prey: colours say nothing about the class, sizes vary five-fold, objects hide each
other. An object of which less than a third is seen is marked difficult.
"""

from __future__ import annotations

import argparse
import os
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Generator, Tensor

from runs import HelpFormatter, UserError, command, one_at_a_time, positive, seed, write_file

CLASSES = ("ellipse", "rectangle", "triangle")
SMOOTH = 3  # drawn larger, then reduced, for soft edges
HARD_BELOW = 1 / 3  # of an object's pixels seen
UNSEEN_BELOW = 0.1  # less than that, and it is not in the annotation
LEAST_SIZE, MOST_SIZE = 32, 2048  # below, objects may have no pixel; above, a scene takes gigabytes


def _shape(pen: ImageDraw.ImageDraw, name: str, box: list[float], fill: tuple[int, int, int] | int) -> None:
    x1, y1, x2, y2 = box
    if name == "ellipse":
        pen.ellipse((x1, y1, x2, y2), fill=fill)
    elif name == "rectangle":
        pen.rectangle((x1, y1, x2, y2), fill=fill)
    else:
        pen.polygon([((x1 + x2) / 2, y1), (x2, y2), (x1, y2)], fill=fill)


def draw_scene(size: int, generator: Generator) -> tuple[Image.Image, list[tuple[str, list[float], bool]]]:
    """A picture of size x size, and its objects: name, box xyxy in continuous pixels, whether it is difficult."""

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    def color() -> tuple[int, int, int]:
        red, green, blue = (255 * uniform(3)).int().tolist()
        return red, green, blue

    # A background of soft clouds.
    clouds = (96 + 96 * uniform(5, 5, 3)).to(torch.uint8).numpy()
    image = Image.fromarray(clouds).resize((size * SMOOTH, size * SMOOTH), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(image)
    count = int(torch.randint(1, 7, (), generator=generator))
    sides = size * 0.12 * 5 ** uniform(count, 1) * (0.7 + 0.3 * uniform(count, 2))
    corners = uniform(count, 2) * (size - sides)
    boxes = torch.cat([corners, corners + sides], dim=1).mul(10).round().div(10)  # VOC's decimals
    names = [CLASSES[i] for i in torch.randint(3, (count,), generator=generator).tolist()]
    owner = Image.new("L", image.size)  # 1 + the object a pixel shows, at last
    alone = []
    for i, (name, box) in enumerate(zip(names, (boxes * SMOOTH).tolist(), strict=True)):
        _shape(pen, name, box, color())
        _shape(ImageDraw.Draw(owner), name, box, i + 1)
        mask = Image.new("L", image.size)
        _shape(ImageDraw.Draw(mask), name, box, 255)
        alone.append(mask.histogram()[-1])
    shown = owner.histogram()[1 : count + 1]
    seen = [now / before for now, before in zip(shown, alone, strict=True)]
    objects = [
        (name, box, share < HARD_BELOW)
        for name, box, share in zip(names, boxes.tolist(), seen, strict=True)
        if share >= UNSEEN_BELOW
    ]
    return image.resize((size, size), Image.Resampling.LANCZOS), objects


def _annotation(
    size: int, objects: list[tuple[str, list[float], bool]]
) -> ElementTree.ElementTree[ElementTree.Element]:
    root = ElementTree.Element("annotation")
    dimensions = ElementTree.SubElement(root, "size")
    for key, value in (("width", size), ("height", size), ("depth", 3)):
        ElementTree.SubElement(dimensions, key).text = str(value)
    for name, (x1, y1, x2, y2), hard in objects:
        found = ElementTree.SubElement(root, "object")
        ElementTree.SubElement(found, "name").text = name
        ElementTree.SubElement(found, "difficult").text = str(int(hard))
        bounds = ElementTree.SubElement(found, "bndbox")
        for key, side in (("xmin", x1 + 1), ("ymin", y1 + 1), ("xmax", x2), ("ymax", y2)):
            ElementTree.SubElement(bounds, key).text = f"{side:.1f}"
    ElementTree.indent(root)
    return ElementTree.ElementTree(root)


def draw_set(folder: Path, splits: dict[str, int], size: int, seed: int = 0) -> None:
    """Makes the folder with all of its splits, whole or not at all. An image depends on seed, split and its number.

    Raises:
        UserError: if the folder exists or cannot be written.
    """
    if os.path.lexists(folder):
        raise UserError(f"{folder}: exists already")

    def draw(unfinished: Path) -> None:
        for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (unfinished / part).mkdir(parents=True)
        (unfinished / "classes.txt").write_text("\n".join(CLASSES) + "\n")
        for number, (split, count) in enumerate(splits.items()):
            names = [f"{split}_{i:04}" for i in range(count)]
            (unfinished / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names) + "\n")
            for i, name in enumerate(names):
                generator = Generator().manual_seed((seed * 100 + number) * 1_000_003 + i)
                image, objects = draw_scene(size, generator)
                image.save(unfinished / "JPEGImages" / f"{name}.jpg", quality=90)
                _annotation(size, objects).write(unfinished / "Annotations" / f"{name}.xml")

    write_file(folder, draw)


def default_set() -> Path:
    """The folder of the set that training uses when it is given none: ``runs/drawn``, drawn if it is not there."""
    folder = Path("runs/drawn")
    if not folder.exists():
        folder.parent.mkdir(exist_ok=True)
        with one_at_a_time(folder.parent):
            if not folder.exists():
                draw_set(folder, {"train": 400, "val": 100, "test": 200}, size=128)
    return folder


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("folder", type=Path, help="where to, say drawn; must not exist")
    for split, count in (("train", 400), ("val", 100), ("test", 200)):
        parser.add_argument(f"--{split}", type=positive, default=count, metavar="N", help=f"images of split {split}")
    parser.add_argument("--size", type=int, default=128, help=f"height and width, {LEAST_SIZE} to {MOST_SIZE} pixels")
    parser.add_argument("--seed", type=seed, default=0, help="other images")
    args = parser.parse_args(arguments)
    if not LEAST_SIZE <= args.size <= MOST_SIZE:
        parser.error(f"argument --size: expected {LEAST_SIZE} to {MOST_SIZE}, got {args.size}")
    draw_set(args.folder, {"train": args.train, "val": args.val, "test": args.test}, args.size, args.seed)
    return 0


if __name__ == "__main__":
    sys.exit(command(main))
