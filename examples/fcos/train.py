"""Trains FCOS with the label assignment of your choice.

    python examples/fcos/train.py runs/mutual --assigner mutual
    python examples/fcos/train.py runs/voc --train VOC2007:trainval VOC2012:trainval --val VOC2007:test --pretrained
    torchrun --nproc-per-node 2 examples/fcos/train.py runs/two

Without --train it draws itself a small set of ellipses, rectangles and triangles in runs/drawn. The run folder gets
config.json, metrics.jsonl (a line of JSON each), TensorBoard's events, last.pt, and best.pt: the best on --val.

SIGTERM and Ctrl-C save and leave; the same command with --resume then goes on exactly as if nothing had happened.
"""

from __future__ import annotations

import argparse
import math
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from data import Record, TrainingSet, check_images, load_images, read_splits
from drawn import default_set
from evaluate import as_percent, detect, truths_of
from losses import ASSIGNERS
from metrics import voc_ap
from model import BACKBONES
from runs import HelpFormatter, RunFolder, UserError, World, command, join_world, load_checkpoint, positive, write_json
from trainer import Trainer, learning_rate

# What may change from a start to the next: it says how to compute, not what.
FREE_SETTINGS = ("run", "resume", "check_data", "cache", "workers", "device", "compile", "channels_last", "log_every")
INTERRUPTED = 128 + signal.SIGTERM


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("run", type=Path, help="the run folder, say runs/mutual")
    parser.add_argument("--resume", action="store_true", help="go on where this run was left, if it was begun")

    group = parser.add_argument_group("data, folders in PASCAL VOC's layout")
    splits: dict[str, Any] = {"nargs": "+", "metavar": "FOLDER:SPLIT"}
    group.add_argument("--train", **splits, help="images to learn; default: the drawn set")
    group.add_argument("--val", **splits, help="images to score on while training; default: the drawn set's, or none")
    group.add_argument("--check-data", action="store_true", help="decode every image first, and stop if one is broken")
    group.add_argument(
        "--cache", choices=["none", "ram", "gpu"], default="none", help="decode once; gpu: keep it where training runs"
    )
    group.add_argument("--augment", choices=["full", "flip"], default="full", help="full: mirror, zoom out, crop, distort "
                       "colours, as SSD does; flip: mirror only, for short trainings")  # fmt: skip
    group.add_argument("--workers", type=int, default=0, metavar="N", help="processes that prepare batches; 0: none")

    group = parser.add_argument_group("what is trained")
    group.add_argument("--assigner", choices=list(ASSIGNERS), default="mutual", help="who learns what: FCOS's original "
                       "strategy, Localize to Classify or Classify to Localize alone, or both")  # fmt: skip
    group.add_argument("--original-epochs", type=int, default=0, metavar="N",
                       help="begin with N epochs of the original strategy")  # fmt: skip
    group.add_argument("--box-weight", type=float, default=1.0, metavar="W", help="of the loss of boxes beside the other "
                       "two")  # fmt: skip
    group.add_argument("--min-points", type=int, default=0, metavar="N", help="Mutual Guidance: at least N points each")
    group.add_argument("--no-level-gate", dest="level_gate", action="store_false",
                       help="Mutual Guidance: localization may use any level")  # fmt: skip
    group.add_argument("--backbone", choices=list(BACKBONES), default="resnet18", help="where features come from")
    group.add_argument("--pretrained", action="store_true", help="start from ImageNet weights; downloads them")
    group.add_argument("--norm", choices=["batch", "group"], default="batch", help="the backbone's normalisation")
    group.add_argument("--size", type=positive, default=320, help="height and width of the input; a multiple of 32")
    group.add_argument("--width", type=positive, default=256, help="channels of pyramid and head; a multiple of 32")
    group.add_argument("--head-convs", type=positive, default=4, metavar="N", help="convolutions in each branch")

    group = parser.add_argument_group("how")
    group.add_argument("--epochs", type=positive, default=60, help="passes over the images")
    group.add_argument("--batch", type=positive, default=16, help="images of a step, of all processes together")
    group.add_argument("--lr", type=float, default=1e-3, help="AdamW's learning rate, after warm-up and before the "
                       "cosine to 0")  # fmt: skip
    group.add_argument("--weight-decay", type=float, default=0.05, help="AdamW's; not for biases and norms")
    group.add_argument("--seed", type=int, default=0, help="first weights, order and changes of images")
    group.add_argument("--amp", choices=["none", "bf16"], default="none", help="bf16: mixed precision")
    group.add_argument("--compile", action="store_true", help="torch.compile the network")
    group.add_argument("--channels-last", action="store_true", help="the memory layout GPUs and oneDNN prefer")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N; auto: a GPU if there is one")
    group.add_argument("--eval-every", type=positive, default=10, metavar="N", help="epochs between scores on --val")
    group.add_argument("--log-every", type=positive, default=10, metavar="N", help="steps between lines of metrics")
    args = parser.parse_args(arguments)
    for name in ("size", "width"):
        if getattr(args, name) % 32:
            parser.error(f"argument --{name}: expected a multiple of 32, got {getattr(args, name)}")
    for name in ("lr", "box_weight"):
        if not 0 < getattr(args, name) < math.inf:
            parser.error(f"argument --{name.replace('_', '-')}: expected more than 0, got {getattr(args, name)}")
    for name in ("workers", "min_points", "original_epochs"):
        if getattr(args, name) < 0:
            parser.error(f"argument --{name.replace('_', '-')}: expected at least 0, got {getattr(args, name)}")
    return args


def config_of(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that decide what comes out."""
    return {name: value for name, value in vars(args).items() if name not in FREE_SETTINGS}


@contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Gives a function that says whether SIGTERM or Ctrl-C came. A second Ctrl-C ends the process at once.

    A second SIGTERM does not: where a launcher passes it on to a group that has had it already, it comes twice.
    """
    came = []

    def note(number: int, _: object) -> None:
        came.append(number)
        if number == signal.SIGINT:
            signal.signal(number, before[number])

    before: dict[int, Any] = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def open_run(args: argparse.Namespace, world: World) -> tuple[RunFolder, dict[str, Any] | None]:
    """The run's folder, and the checkpoint to go on from.

    Raises:
        UserError: if the folder is in use and --resume is missing, or the run was begun with other settings.
    """
    folder, state = RunFolder(args.run), None
    if folder.last.exists():
        if not args.resume:
            raise UserError(f"{args.run}: holds a run already; --resume goes on with it")
        state = load_checkpoint(folder.last)
        before, now = state["config"], config_of(args)
        for name, value in now.items():
            if before.get(name) != value:
                option = "--" + name.replace("_", "-")
                raise UserError(f"{args.run}: was begun with {option} {before.get(name)}, not {value}")
    if world.rank == 0:
        write_json(folder.config, {name: str(v) if isinstance(v, Path) else v for name, v in vars(args).items()})
        folder.forget_after(state["step"] if state else 0)
    return folder, state


class Journal:
    """What a run writes while it trains: metrics, curves, progress, checkpoints. Only the first process has one."""

    def __init__(self, folder: RunFolder, trainer: Trainer, val: list[Record], cached_val: Tensor | None) -> None:
        self.folder, self.trainer, self.val, self.cached_val = folder, trainer, val, cached_val
        self.writer: Any = SummaryWriter(str(folder.path), purge_step=trainer.step + 1)
        self.bar = tqdm(total=trainer.steps, initial=trainer.step, disable=None, unit="step")
        self.restart_clock()

    def restart_clock(self) -> None:
        self.clock, self.clock_step = perf_counter(), self.trainer.step

    def add_losses(self, epoch: int, losses: dict[str, float]) -> None:
        trainer, step = self.trainer, self.trainer.step
        speed = (step - self.clock_step) * trainer.args.batch / (perf_counter() - self.clock)
        self.restart_clock()
        values = {**losses, "lr": learning_rate(step - 1, trainer.steps, trainer.args.lr)}
        self.folder.add_metrics(step=step, epoch=epoch, **values, images_per_s=round(speed, 1))
        self._add_curves("train", values)
        self.bar.set_postfix(loss=f"{losses['loss']:.3f}", refresh=False)

    def add_scores(self, epoch: int) -> None:
        """Scores the model on --val, and keeps it if it is the best so far."""
        trainer = self.trainer
        found = detect(trainer.model, self.val, trainer.args.batch, trainer.world.device, self.cached_val)
        scores = as_percent(voc_ap(truths_of(self.val), found, len(trainer.classes)))
        self.folder.add_metrics(step=trainer.step, epoch=epoch, val=scores)
        self._add_curves("val", scores)
        if scores["AP"] > trainer.best:
            trainer.best = scores["AP"]
            self.folder.save(self.folder.best, {k: v for k, v in self.state().items() if k != "optimizer"})
        named = ", ".join(f"{name} {value:.1f}" for name, value in scores.items())
        self.bar.write(f"epoch {epoch + 1}/{trainer.args.epochs}: {named}")

    def _add_curves(self, kind: str, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(f"{kind}/{name}", value, self.trainer.step)

    def state(self) -> dict[str, Any]:
        return self.trainer.state() | {"config": config_of(self.trainer.args)}

    def save(self) -> None:
        self.folder.save(self.folder.last, self.state())

    def close(self) -> None:
        self.bar.close()
        self.writer.close()


def train(args: argparse.Namespace, world: World) -> int:
    if args.train is None:
        if world.size > 1 and not Path("runs/drawn").exists():
            raise UserError("the drawn set is not there yet: python examples/fcos/drawn.py runs/drawn")
        drawn = default_set()
        args.train, args.val = [f"{drawn}:train"], args.val or [f"{drawn}:val"]
    if args.batch % world.size:
        raise UserError(f"--batch {args.batch}: expected a multiple of the {world.size} processes")
    records, classes = read_splits(args.train)
    val, _ = read_splits(args.val or (), classes)
    if len(records) < args.batch:
        raise UserError(f"--batch {args.batch}: there are only {len(records)} images to train on")
    if args.check_data:
        check_images([*records, *val])
    folder, state = open_run(args, world)
    steps_per_epoch = len(records) // args.batch
    trainer = Trainer(args, classes, steps_per_epoch * args.epochs, world, state)
    if trainer.step == trainer.steps:
        print(f"{args.run}: finished already")
        return 0
    where = {"none": None, "ram": "cpu", "gpu": world.device}[args.cache]
    cached = load_images(records, args.size, where) if where else None
    cached_val = load_images(val, args.size, where) if where and world.rank == 0 else None
    dataset = TrainingSet(records, args.size, cached is None, args.augment)
    journal = Journal(folder, trainer, val, cached_val) if world.rank == 0 else None

    with stop_signals() as told_to_stop:
        for epoch in range(trainer.step // steps_per_epoch, args.epochs):
            batches = dataset.epoch(
                epoch,
                seed=args.seed,
                batch=args.batch,
                first_step=trainer.step % steps_per_epoch,
                rank=world.rank,
                world=world.size,
                workers=args.workers,
                pin_memory=world.device.type == "cuda",
            )
            stop = False
            for batch in batches:
                losses = trainer.train_step(batch, cached)
                if journal:
                    journal.bar.update()
                if trainer.step % args.log_every == 0 or trainer.step == trainer.steps:
                    numbers = {name: float(value) for name, value in losses.items()}
                    if not all(map(math.isfinite, numbers.values())):
                        raise UserError(
                            f"step {trainer.step}: a loss is no number any more: {numbers}; try a lower --lr"
                        )
                    if journal:
                        journal.add_losses(epoch, numbers)
                    # Processes have to stop together, so they agree on it, here where they wait for the GPU anyway.
                    stop = bool(world.sum(torch.tensor([float(told_to_stop())], device=world.device)))
                stop |= world.size == 1 and told_to_stop()
                # After an epoch's last step its score comes first, since going on would skip that.
                if stop and trainer.step % steps_per_epoch:
                    break
            if journal:
                due = (epoch + 1) % args.eval_every == 0 or epoch + 1 == args.epochs
                if val and due and trainer.step % steps_per_epoch == 0:
                    journal.add_scores(epoch)
                journal.save()
                journal.restart_clock()
            trainer.model.train()
            stop |= world.size == 1 and told_to_stop()
            if stop and trainer.step < trainer.steps:
                if journal:
                    journal.close()
                    print(f"stopped after step {trainer.step} of {trainer.steps}; --resume goes on")
                return INTERRUPTED
    if journal:
        journal.close()
    return 0


def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)
    with join_world(args.device) as world:
        return train(args, world)


if __name__ == "__main__":
    sys.exit(command(main))
