"""Looks for why a strategy helps or does not: how far class scores follow true overlaps, and what is chosen by them.

    python examples/fcos/diagnose.py runs/frozen8/lite0-{original,mutual,l2c,c2l}-? --data runs/voc2007test:val --figure why.png

Of each run the last checkpoint, and those that train.py --keep-every kept. Of each object with at least three points, all
that lie in it on its own level: Spearman's correlation of score and overlap, the overlap of the point that scores best
beside the best at hand, and how many of the points that Mutual Guidance chooses by these predictions, whatever they learned
from, are not FCOS's own. Means over objects, then seeds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.stats import spearmanr
from torch import Tensor
from tqdm import tqdm

from data import Record, check_scorable, load_image, read_splits
from evaluate import READINGS, load_model, readings_of
from losses import paired_iou
from mgassign import fcos_assign, mutual_guidance_assign, take
from model import FCOS
from options import config_of, parse
from runs import (
    HelpFormatter,
    RunFolder,
    UserError,
    command,
    join_world,
    load_checkpoint,
    picture,
    positive,
    write_figure,
    write_json,
)
from table import NAMES, by_name

LEAST_POINTS = 3  # of an object: two are in order or not
BEST = "best at hand"
MEASURES = {
    "rank": "rank correlation of score and overlap",
    "overlap": "overlap of the point that scores best",
    "other": "points of Mutual Guidance that are not the original's",
}
OF_CLASS, OF_BOX = "for classification", "for localization"


def of_object(
    overlap: Tensor, scores: dict[str, Tensor], chosen: dict[str, Tensor], original: Tensor
) -> dict[str, Any]:
    """What is told of one object.

    Args:
        overlap: [n], of the predictions of its points with it.
        scores: [n] for each reading.
        chosen: bool [P] for each side, the points that would learn it by Mutual Guidance.
        original: bool [P], those that would by the original strategy.
    """
    ranks = {reading: float(spearmanr(overlap, score).statistic) for reading, score in scores.items()}
    overlaps = {reading: float(overlap[score.argmax()]) for reading, score in scores.items()} | {
        BEST: float(overlap.max())
    }
    others = {side: float((own & ~original).sum() / own.sum()) for side, own in chosen.items() if own.any()}
    return {"rank": ranks, "overlap": overlaps, "other": others}


@torch.inference_mode()
def measure(
    model: FCOS, records: Sequence[Record], batch: int, device: torch.device, config: dict[str, Any]
) -> dict[str, dict[str, float]]:
    """The means over the objects of a set, of each of ``MEASURES`` by reading or by what is learned."""
    values: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    for start in tqdm(range(0, len(records), batch), "predicting", disable=None, leave=False):
        part = records[start : start + batch]
        predictions = model(
            torch.stack([load_image(record.image, model.size) for record in part]).to(device).float() / 255
        )
        boxes = [record.boxes_at(model.size).to(device) for record in part]
        labels = [record.labels.to(device) for record in part]
        found = mutual_guidance_assign(
            model.grid,
            predictions.boxes,
            predictions.logits,
            boxes,
            labels,
            **{name: config[name] for name in ("min_points", "level_gate")},
        )
        inside = fcos_assign(model.grid, boxes, center_radius=0.0).original
        overlap = paired_iou(predictions.boxes, take(inside, boxes))
        own_class = take(inside, labels)[..., None]
        of_class = predictions.logits.gather(2, own_class).squeeze(2).sigmoid()
        scores = dict(zip(READINGS, (of_class * predictions.quality.sigmoid(), of_class), strict=True))
        for image in range(len(part)):
            for g in range(len(boxes[image])):
                own = inside[image] == g
                if own.sum() < LEAST_POINTS:
                    continue
                told = of_object(
                    overlap[image][own].cpu(),
                    {reading: scores[reading][image][own].cpu() for reading in readings_of(config["quality"])},
                    {OF_CLASS: found.cls[image] == g, OF_BOX: found.loc[image] == g},
                    found.original[image] == g,
                )
                for name, of_name in told.items():
                    for key, value in of_name.items():
                        if value == value:  # scores or overlaps that are all the same have no order
                            values[name, key].append(value)
    means: dict[str, dict[str, float]] = {name: {} for name in MEASURES}
    for (name, key), of_objects in values.items():
        means[name][key] = round(statistics.fmean(of_objects), 4)
    return means


def checkpoints_of(run: Path) -> list[tuple[int, Path]]:
    """Those that were kept and the last one, with the whole epochs they have seen.

    Raises:
        UserError: if there is none.
    """
    folder = RunFolder(run)
    if not folder.last.is_file():
        raise UserError(f"{run}: no last.pt in it")
    state = load_checkpoint(folder.last, "step", "steps")
    last = state["step"] * state["config"]["epochs"] // state["steps"]
    return sorted({last: folder.last, **dict(folder.kept())}.items())


def check_alike(runs: Sequence[Path]) -> None:
    """That runs differ in strategy and seed, by which tables tell them apart, and in nothing else.

    Raises:
        UserError: if they do not.
    """
    seen: dict[tuple[str, int], Path] = {}
    alike: dict[str, Any] = {}
    for run in runs:
        # A setting that there was not yet when a run was begun was as it is by default.
        config = config_of(parse([str(run)])) | load_checkpoint(RunFolder(run).last)["config"]
        which = config.pop("assigner"), config.pop("seed")
        for name, value in config.items():
            if by_name(alike.setdefault(name, value)) != by_name(value):
                told = f"{name} was {value!r} there, {alike[name]!r} in {runs[0]}"
                raise UserError(f"{run}: expected runs that differ in --assigner and --seed, but {told}")
        if seen.setdefault(which, run) != run:
            raise UserError(f"{run}: expected one run of each --assigner and --seed, got {seen[which]} of the same")


def by_arm(models: Sequence[dict[str, Any]]) -> dict[tuple[str, int], dict[str, dict[str, float]]]:
    """Means over the seeds of each arm and epoch."""
    groups: defaultdict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
    for model in models:
        groups[model["arm"], model["epoch"]].append(model)
    return {
        key: {
            name: {entry: statistics.fmean(model[name][entry] for model in group) for entry in group[0][name]}
            for name in MEASURES
        }
        for key, group in sorted(groups.items(), key=lambda item: (list(NAMES).index(item[0][0]), item[0][1]))
    }


def markdown(models: Sequence[dict[str, Any]]) -> str:
    """A table for each measure: a row for each arm and epoch."""
    seeds = defaultdict(set)
    for model in models:
        seeds[model["arm"], model["epoch"]].add(model["seed"])
    text, means = "", by_arm(models)
    for name, title in MEASURES.items():
        columns = list(next(iter(means.values()))[name])
        text += f"| {title} | epoch | seeds | {' | '.join(columns)} |\n|---|--:|--:|{'--:|' * len(columns)}\n"
        for (arm, epoch), of_arm in means.items():
            cells = " | ".join(f"{of_arm[name][column]:.3f}" for column in columns)
            text += f"| {NAMES[arm]} | {epoch} | {len(seeds[arm, epoch])} | {cells} |\n"
        text += "\n"
    return text


def figure_of(models: Sequence[dict[str, Any]]) -> Figure:
    """A panel for each measure: a line over the epochs for each arm, by its colour, and reading, by its dashes."""
    means = by_arm(models)
    colors = {arm: f"C{number}" for number, arm in enumerate(dict.fromkeys(arm for arm, _ in means))}
    figure = Figure(figsize=(12, 4), layout="constrained")
    for ax, (name, title) in zip(figure.subplots(1, len(MEASURES)), MEASURES.items(), strict=True):
        entries = dict(zip(next(iter(means.values()))[name], ("-", "--", ":"), strict=False))
        for arm, color in colors.items():
            epochs = {epoch: of_arm[name] for (of, epoch), of_arm in means.items() if of == arm}
            for entry, style in entries.items():
                values = [of_epoch[entry] for of_epoch in epochs.values()]
                ax.plot(list(epochs), values, style, marker="o", ms=3, color=color)
        ax.set_title(title, size=10)
        ax.set_xlabel("epoch")
        ax.spines[["top", "right"]].set_visible(False)
        handles = [Line2D([], [], color="black", ls=style, label=entry) for entry, style in entries.items()]
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.18), "ncols": len(entries)}
        ax.legend(handles=handles, fontsize=8, frameon=False, **below)
    handles = [Line2D([], [], color=color, lw=3, label=NAMES[arm]) for arm, color in colors.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    return figure


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of train.py or compare.py")
    parser.add_argument("--data", nargs="+", required=True, metavar="FOLDER:SPLIT", help="images to look at")
    parser.add_argument("--json", type=Path, help="write what is told of each model there")
    parser.add_argument("--figure", type=picture, help="draw it over the epochs, a PNG or SVG")
    parser.add_argument("--batch", type=positive, default=16, help="images at a time")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    args = parser.parse_args(arguments)
    checkpoints = [checkpoint for run in args.runs for checkpoint in checkpoints_of(run)]
    check_alike(args.runs)
    models = []
    with join_world(args.device) as world:
        for epoch, path in checkpoints:
            model, classes, config = load_model(path, world.device)
            records, _ = read_splits(args.data, classes)
            check_scorable(records, args.data)
            about = {"run": path.parent.name, "arm": config["assigner"], "seed": config["seed"], "epoch": epoch}
            models.append(about | measure(model, records, args.batch, world.device, config))
            print(path, *(f"{name} {models[-1][name]}" for name in MEASURES), sep="\n  ", file=sys.stderr)
    if args.json:
        write_json(args.json, {"data": args.data, "models": models})
    if args.figure:
        write_figure(args.figure, figure_of(models))
    print(markdown(models), end="")
    return 0


if __name__ == "__main__":
    sys.exit(command(main))
