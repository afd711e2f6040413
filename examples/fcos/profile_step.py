"""What share of a training step assignment takes: for mgassign, and for the plain PyTorch reference in its place.

    python examples/fcos/profile_step.py --data VOC2007:trainval -- --batch 32

Measured by the torch profiler on whole steps: changes to the images, network, assignment, losses, gradients, optimizer.
On a GPU both are kernel times. The reference handles one image, so for a batch it runs image by image.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

from data import Batch, TrainingSet, load_images, read_splits
from drawn import default_set
from mgassign import Assignment, PointGrid, reference
from options import parse
from runs import HelpFormatter, UserError, command, join_world, positive, write_json
from trainer import Trainer

WARM_UP = 3


def assign_by_reference(
    grid: PointGrid, pred_boxes: Tensor, pred_logits: Tensor, boxes: Tensor, labels: Tensor, **settings: Any
) -> Assignment:
    """``mgassign.reference`` for padded objects: image by image, put together."""
    images = []
    for image in range(len(boxes)):
        real = labels[image] != -1
        objects = boxes[image][real], labels[image][real]
        images.append(
            reference.mutual_guidance_assign(
                grid, pred_boxes[image].detach(), pred_logits[image].detach(), *objects, **settings
            )
        )
    cls, loc, original, num_points, iou = zip(*images, strict=True)
    return Assignment(
        torch.stack(cls), torch.stack(loc), torch.stack(original), torch.cat(num_points), torch.stack(iou)
    )


def _batches(dataset: TrainingSet, settings: argparse.Namespace) -> Iterator[Batch]:
    for epoch in itertools.count():
        yield from dataset.epoch(epoch, seed=settings.seed, batch=settings.batch)


def _measure(trainer: Trainer, batch: Batch, cached: Tensor) -> tuple[float, float]:
    """One step's time and that of its assignment, in ms."""
    cuda = trainer.world.device.type == "cuda"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * cuda
    with profile(activities=activities) as profiler, record_function("step"):
        trainer.train_step(batch, cached)
        if cuda:
            torch.cuda.synchronize()
    spans = {event.key: event for event in profiler.key_averages()}
    step, assignment = (
        (spans[key].device_time_total if cuda else spans[key].cpu_time_total) / 1000 for key in ("step", "assignment")
    )
    return step, assignment


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=HelpFormatter, usage="%(prog)s [options] [-- OPTIONS OF train.py]"
    )
    parser.add_argument("--data", nargs="+", metavar="FOLDER:SPLIT", help="images to train on; default: the drawn set")
    parser.add_argument("--steps", type=positive, default=10, help=f"steps to measure, after {WARM_UP} to warm up")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    arguments = sys.argv[1:] if arguments is None else arguments
    split = arguments.index("--") if "--" in arguments else len(arguments)
    args, passed_on = parser.parse_args(arguments[:split]), arguments[split + 1 :]
    settings = parse(["profile", *passed_on])
    if settings.assigner == "task-aligned":
        parser.error(
            "argument --assigner: expected one of Mutual Guidance's, as whose reference plain PyTorch is timed"
        )
    results: dict[str, Any] = {}
    with join_world(settings.device) as world:
        records, classes = read_splits(args.data or [f"{default_set()}:train"])
        if len(records) < settings.batch:
            raise UserError(f"--batch {settings.batch}: there are only {len(records)} images to measure with")
        cached = load_images(records, settings.size, world.device)
        dataset = TrainingSet(records, settings.size, False, settings.augment, settings.difficult == "ignore")
        for name in ("mgassign", "reference"):
            trainer = Trainer(settings, classes, 1000, world)
            if name == "reference":
                trainer.criterion.assign = assign_by_reference
            measured = []
            for batch in itertools.islice(_batches(dataset, settings), WARM_UP + args.steps):
                if trainer.step < WARM_UP:
                    trainer.train_step(batch, cached)
                else:
                    measured.append(_measure(trainer, batch, cached))
            steps, assignments = zip(*measured, strict=True)
            shares = [100 * assignment / step for step, assignment in measured]
            results[name] = {
                "step_ms": round(statistics.median(steps), 2),
                "assignment_ms": round(statistics.median(assignments), 3),
                "share_percent": round(statistics.median(shares), 3),
            }
            print(
                f"{name}: assignment {results[name]['assignment_ms']} ms of a step of {results[name]['step_ms']} ms: "
                f"{results[name]['share_percent']} % (medians of {args.steps} steps)"
            )
    if args.json:
        setup = {"torch": torch.__version__, "threads": torch.get_num_threads(), "options": passed_on}
        write_json(args.json, setup | {"data": args.data} | results)
    return 0


if __name__ == "__main__":
    sys.exit(command(main))
