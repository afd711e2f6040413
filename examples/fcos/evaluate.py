"""Scores a trained model: the paper's AP and, with --coco, COCO's; for each class and on the whole.

Twice: by class times what the third branch says of the box (centerness), and by class alone, as the authors' code does.

python examples/fcos/evaluate.py runs/mutual/last.pt --data VOC2007:test
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision.ops import batched_nms, clip_boxes_to_image
from tqdm import tqdm

from data import Record, check_scorable, load_image, read_splits
from features import Features
from metrics import Detections, Scores, Truth, coco_ap, voc_ap
from model import FCOS, Predictions
from runs import HelpFormatter, UserError, command, join_world, load_checkpoint, naming, positive, write_json

MAX_OVERLAP, MOST_BEFORE = 0.5, 1000


class Limits(NamedTuple):
    """What becomes of detections before they are scored."""

    min_score: float
    most: int
    """In an image, the best ones."""


LIMITS = {"authors": Limits(0.005, 300), "fcos": Limits(0.05, 100)}
# What a detection's score is; a model whose third branch learns nothing has but the second.
READINGS = ("class x quality", "class alone")


def readings_of(quality: str) -> tuple[str, ...]:
    """The readings of a model trained with ``--quality``, its own first."""
    return READINGS[1:] if quality == "none" else READINGS


def select(
    predictions: Predictions, size: int, reading: str = READINGS[0], limits: Limits = LIMITS["authors"]
) -> list[Detections]:
    """What is found in each image, NMS class by class; boxes in pixels of the input."""
    found = []
    for logits, boxes, quality in zip(*predictions, strict=True):
        scores = logits.sigmoid() * (quality.sigmoid()[:, None] if reading == READINGS[0] else 1)
        scores = scores.flatten()
        scores, order = scores.topk(min(MOST_BEFORE, len(scores)))
        order, scores = order[scores > limits.min_score], scores[scores > limits.min_score]
        labels = order % logits.shape[1]
        chosen = clip_boxes_to_image(boxes[order // logits.shape[1]], (size, size))
        kept = batched_nms(chosen, scores, labels, MAX_OVERLAP)[: limits.most]
        found.append(Detections(chosen[kept], scores[kept], labels[kept]))
    return found


@torch.inference_mode()
def detect(
    model: FCOS,
    records: Sequence[Record],
    batch: int,
    device: torch.device,
    inputs: Tensor | Features | None = None,
    readings: Sequence[str] = READINGS[:1],
    limits: Limits = LIMITS["authors"],
    amp: bool = False,
) -> dict[str, list[Detections]]:
    """Runs a model over a set; boxes in pixels of each image as its file has it.

    Args:
        inputs: All images, uint8 [N, 3, size, size], or their features, where they are at hand.
        amp: Whether to compute in bfloat16.

    Returns:
        The detections in each image, for each of ``readings``.
    """
    model.eval()
    found: dict[str, list[Detections]] = {reading: [] for reading in readings}
    for start in tqdm(range(0, len(records), batch), "detecting", disable=None, leave=False):
        part = records[start : start + batch]
        given: Tensor | list[Tensor]
        if isinstance(inputs, Features):
            given = [layer.to(device) for layer in inputs.of(torch.arange(start, start + len(part)))]
        elif inputs is None:
            given = torch.stack([load_image(record.image, model.size) for record in part]).to(device).float() / 255
        else:
            given = inputs[start : start + batch].to(device).float() / 255
        with torch.autocast(device.type, torch.bfloat16, enabled=amp):
            predictions = model(given)
        for reading in readings:
            selected = select(predictions, model.size, reading, limits)
            for record, (boxes, scores, labels) in zip(part, selected, strict=True):
                scale = (torch.tensor(record.size) / model.size).repeat(2)
                found[reading].append(Detections(boxes.cpu() * scale, scores.cpu(), labels.cpu()))
    return found


def truths_of(records: Sequence[Record]) -> list[Truth]:
    return [Truth(record.boxes, record.labels, record.difficult) for record in records]


def load_model(path: Path, device: torch.device) -> tuple[FCOS, list[str], dict[str, Any]]:
    """A trained model from a checkpoint, with its classes and the settings it was trained with.

    Raises:
        UserError: if it is none, or its weights are those of another network.
    """
    state = load_checkpoint(path)
    with naming(path, "its weights are not those of the network it names"):
        model = FCOS(len(state["classes"]), **state["model_settings"])
        model.load_state_dict(state["model"])
    return model.to(device).eval(), state["classes"], state["config"]


def as_percent(scores: Scores) -> dict[str, float]:
    """AP, AP50, AP75 as the tables give them."""
    return {name: round(100 * getattr(scores, name.lower()), 2) for name in ("AP", "AP50", "AP75")}


def table(scores: Scores, classes: Sequence[str], title: str) -> str:
    """A line for each class, then the mean."""
    of_class = 100 * scores.per_class[:, [0, 5]]
    rows = [
        (name, 100 * float(per.mean()), *of.tolist())
        for name, per, of in zip(classes, scores.per_class, of_class, strict=True)
    ]
    rows.append(("mean", *as_percent(scores).values()))
    width = max(len(title), *(len(row[0]) for row in rows))
    lines = [f"{title:{width}}     AP   AP50   AP75"]
    lines += [f"{name:{width}}  {ap:5.1f}  {ap50:5.1f}  {ap75:5.1f}" for name, ap, ap50, ap75 in rows]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="last.pt or best.pt of a run folder")
    parser.add_argument("--data", nargs="+", required=True, metavar="FOLDER:SPLIT", help="images to score it on")
    parser.add_argument("--coco", action="store_true", help="also COCO's AP; needs pycocotools")
    parser.add_argument("--limits", choices=list(LIMITS), default="authors", help="which detections are scored: authors: "
                        "scores above .005 and 300 an image, as in their code; fcos: above .05 and 100; with both only "
                        f"the {MOST_BEFORE:,} best scores of an image come to NMS, where the authors' code has no bound")  # fmt: skip
    parser.add_argument("--json", type=Path, help="write the scores there too")
    parser.add_argument("--batch", type=positive, default=16, help="images at a time")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    args = parser.parse_args(arguments)
    with join_world(args.device) as world:
        if world.size > 1:
            raise UserError("runs in one process; start it without torchrun")
        model, classes, config = load_model(args.checkpoint, world.device)
        records, _ = read_splits(args.data, classes)
        check_scorable(records, args.data)
        readings, limits = readings_of(config["quality"]), LIMITS[args.limits]
        found = detect(model, records, args.batch, world.device, None, readings, limits, config["amp"] == "bf16")
    metrics = {"voc": voc_ap} | ({"coco": coco_ap} if args.coco else {})
    results: dict[str, Any] = {"checkpoint": str(args.checkpoint), "data": args.data, "images": len(records)}
    results |= {"limits": limits._asdict(), "quality": config["quality"]}
    for reading in readings:
        results[reading] = {}
        for name, metric in metrics.items():
            scores = metric(truths_of(records), found[reading], len(classes))
            title = f"{reading}, {'IoU .50:.95 as VOC 2007' if name == 'voc' else 'COCO'}"
            print(table(scores, classes, title.replace("quality", config["quality"])))
            per_class = (100 * scores.per_class).round(decimals=2)
            results[reading][name] = as_percent(scores)
            results[reading][name]["per_class"] = dict(zip(classes, per_class.tolist(), strict=True))
    if args.json:
        write_json(args.json, results)
    return 0


if __name__ == "__main__":
    sys.exit(command(main))
