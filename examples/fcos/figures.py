"""Draws the paper's Figures 1 and 2 from trained models.

    python examples/fcos/figures.py --original runs/original/last.pt --mutual runs/mutual/last.pt --data VOC2007:test

Figure 1: whose points an object's are, by the predictions of the model trained with Mutual Guidance: the original
strategy red, Localize to Classify yellow, Classify to Localize green. Figure 2: what both models find in the same images.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from data import Record, load_image, open_image, read_splits
from evaluate import detect, load_model, readings_of
from metrics import Detections
from mgassign import Assignment, draw, mutual_guidance_assign
from model import FCOS
from runs import HelpFormatter, UserError, command, join_world, positive, write_figure

MEANINGS = {"original": "original", "cls": "Localize to Classify", "loc": "Classify to Localize"}
CLASS_COLORS = ("#00b8d9", "#ffab00", "#ff5c8a", "#8bd450", "#b388ff", "#ff7043", "#4dd0e1", "#dce775")
SHADOW = [patheffects.Stroke(linewidth=2.6, foreground="black", alpha=0.6), patheffects.Normal()]


def panels(records: Sequence[Record], rows: int, per_row: int) -> tuple[Figure, list[Axes]]:
    tallest = max(height / width for width, height in (record.size for record in records))
    figure = Figure(figsize=(3 * per_row, 3 * tallest * rows + 0.5), layout="constrained")  # 0.5 for a title or legend
    axes = figure.subplots(rows, per_row, squeeze=False)
    return figure, [ax for row in axes for ax in row]


def draw_points(ax: Axes, record: Record, model: FCOS, found: Assignment) -> None:
    """An image's objects in dotted white and their points; a point of several strategies is a pie of their colours."""
    draw.picture(ax, open_image(record.image))
    draw.boxes(ax, record.boxes, names=())
    owners = {name: getattr(found, name)[0] for name in MEANINGS}
    width, height = (pixels / model.size for pixels in record.size)
    draw.points(ax, model.grid, owners, scale=(width, height))


def figure_1(records: Sequence[Record], model: FCOS, device: torch.device, settings: dict[str, Any]) -> Figure:
    """The points of each object under the three strategies."""
    columns = min(4, len(records))
    figure, axes = panels(records, -(-len(records) // columns), columns)
    for ax in axes[len(records) :]:
        ax.remove()
    for ax, record in zip(axes, records, strict=False):
        pixels = load_image(record.image, model.size)[None].to(device).float() / 255
        with torch.inference_mode():
            predictions = model(pixels)
        boxes, labels = [record.boxes_at(model.size).to(device)], [record.labels.to(device)]
        found = mutual_guidance_assign(model.grid, predictions.boxes, predictions.logits, boxes, labels, **settings)
        draw_points(ax, record, model, Assignment(*(part.cpu() for part in found)))
    style: dict[str, Any] = {"ls": "", "marker": "o", "mec": "black", "ms": 8}
    handles = [Line2D([], [], color=draw.COLORS[name], label=meaning, **style) for name, meaning in MEANINGS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    return figure


def draw_detections(ax: Axes, record: Record, found: Detections, classes: Sequence[str], min_score: float) -> None:
    draw.picture(ax, open_image(record.image))
    for box, score, label in zip(found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True):
        if score < min_score:
            continue
        (x1, y1, x2, y2), color = box, CLASS_COLORS[label % len(CLASS_COLORS)]
        frame = Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=color, linewidth=1.5)
        ax.add_patch(frame).set_path_effects(SHADOW)
        tag = {"facecolor": color, "edgecolor": "none", "alpha": 0.85, "pad": 0.8}
        text = f"{classes[label]} {score:.2f}"
        # A label that does not fit above its box, or beside its left end, moves inside.
        width, height = record.size
        at_top, at_right = y1 < 0.06 * height, x1 > 0.7 * width
        place: dict[str, Any] = {"va": "top" if at_top else "bottom", "ha": "right" if at_right else "left"}
        end = min(x2, width) if at_right else x1
        ax.text(end, y1, text, size=5.5, bbox=tag, clip_on=True, parse_math=False, **place)


def figure_2(
    records: Sequence[Record], found: dict[str, list[Detections]], classes: Sequence[str], min_score: float
) -> Figure:
    """A row of images for each model."""
    figure, axes = panels(records, len(found), len(records))
    for row, (name, of_model) in enumerate(found.items()):
        for column, (record, detections) in enumerate(zip(records, of_model, strict=True)):
            ax = axes[row * len(records) + column]
            draw_detections(ax, record, detections, classes, min_score)
            if column == 0:
                ax.set_title(f"trained with {name}", loc="left", size=10)
    return figure


def save(figure: Figure, path: Path) -> None:
    write_figure(path, figure)
    print(f"wrote {path}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--original", type=Path, required=True, help="checkpoint trained with --assigner original")
    parser.add_argument("--mutual", type=Path, required=True, help="checkpoint trained with --assigner mutual")
    parser.add_argument("--data", nargs="+", required=True, metavar="FOLDER:SPLIT", help="where images come from")
    parser.add_argument("--images", type=positive, default=4, help="how many: the first ones that have objects")
    parser.add_argument("--names", nargs="+", metavar="NAME", help="these images instead")
    parser.add_argument("--min-score", type=float, default=0.2, help="detections of Figure 2 below it are not drawn")
    parser.add_argument("--output", type=Path, default=Path("runs/figures"), help="the folder for the pictures")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    args = parser.parse_args(arguments)
    with join_world(args.device) as world:
        mutual, classes, config = load_model(args.mutual, world.device)
        original, other_classes, other_config = load_model(args.original, world.device)
        if classes != other_classes:
            raise UserError(f"{args.original} and {args.mutual} were trained for different classes")
        records, _ = read_splits(args.data, classes)
        with_objects = [record for record in records if len(record.boxes)][: args.images]
        if args.names:
            by_name = {record.image.stem: record for record in records}
            missing = [name for name in args.names if name not in by_name]
            if missing:
                raise UserError(f"no image {missing[0]!r} in {' '.join(args.data)}")
            with_objects = [by_name[name] for name in args.names]
        if not with_objects:
            raise UserError(f"{' '.join(args.data)}: no image has an object to show")
        settings = {name: config[name] for name in ("min_points", "level_gate")}
        save(figure_1(with_objects, mutual, world.device, settings), args.output / "figure1.png")
        found = {
            name: detect(model, with_objects, 16, world.device, readings=(reading,))[reading]
            for name, model, reading in (
                ("the original strategy", original, readings_of(other_config["quality"])[0]),
                ("Mutual Guidance", mutual, readings_of(config["quality"])[0]),
            )
        }
        save(figure_2(with_objects, found, classes, args.min_score), args.output / "figure2.png")
    return 0


if __name__ == "__main__":
    sys.exit(command(main))
