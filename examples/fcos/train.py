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
from contextlib import contextmanager, nullcontext
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from data import Record, TrainingSet, check_images, check_scorable, load_images, read_splits
from drawn import default_set
from evaluate import as_percent, detect, readings_of, truths_of
from features import Features, load_features
from metrics import voc_ap
from options import config_of, parse
from runs import (
    RunFolder,
    UserError,
    World,
    command,
    hold,
    join_world,
    load_checkpoint,
    naming,
    write_json,
    write_tensors,
)
from trainer import Trainer, learning_rate

INTERRUPTED = 128 + signal.SIGTERM
TENSORBOARD = "cannot write TensorBoard's events"


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


def open_run(args: argparse.Namespace) -> tuple[RunFolder, dict[str, Any] | None]:
    """The run's folder, and the checkpoint to go on from.

    Raises:
        UserError: if the folder is in use and --resume is missing, or the run was begun with other settings.
    """
    folder, state = RunFolder(args.run), None
    if folder.last.exists():
        if not args.resume:
            raise UserError(f"{args.run}: holds a run already; --resume goes on with it")
        state = load_checkpoint(folder.last, "optimizer", "step", "best")
        # A setting that there was not yet then was as it is by default.
        before, now = config_of(parse([str(args.run)])) | state["config"], config_of(args)
        for name, value in now.items():
            if before[name] != value:
                option = "--" + name.replace("_", "-")
                raise UserError(f"{args.run}: was begun with {option} {before[name]}, not {value}")
    return folder, state


class Journal:
    """What a run writes while it trains: metrics, curves, progress, checkpoints. Only the first process has one."""

    def __init__(
        self, folder: RunFolder, trainer: Trainer, val: list[Record], cached_val: Tensor | Features | None
    ) -> None:
        self.folder, self.trainer, self.val, self.cached_val = folder, trainer, val, cached_val
        with naming(folder.path, TENSORBOARD):
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
        """Scores the model on --val, and keeps it if it is the best so far by its own reading."""
        trainer, args = self.trainer, self.trainer.args
        readings = readings_of(args.quality)
        found = detect(
            trainer.model, self.val, args.batch, trainer.world.device, self.cached_val, readings, amp=args.amp == "bf16"
        )
        of_reading = {
            reading: as_percent(voc_ap(truths_of(self.val), found[reading], len(trainer.classes)))
            for reading in readings
        }
        scores = of_reading[readings[0]]
        self.folder.add_metrics(step=trainer.step, epoch=epoch, val=scores, readings=of_reading)
        self._add_curves("val", scores)
        if scores["AP"] > trainer.best:
            trainer.best = scores["AP"]
            self.keep(self.folder.best)
        named = ", ".join(f"{name} {value:.1f}" for name, value in scores.items())
        self.bar.write(f"epoch {epoch + 1}/{args.epochs}: {named}")

    def _add_curves(self, kind: str, values: dict[str, float]) -> None:
        with naming(self.folder.path, TENSORBOARD):
            for name, value in values.items():
                self.writer.add_scalar(f"{kind}/{name}", value, self.trainer.step)

    def state(self) -> dict[str, Any]:
        return self.trainer.state() | {"config": config_of(self.trainer.args)}

    def keep(self, path: Path) -> None:
        """Keeps the model as it is; training cannot go on from there."""
        write_tensors(path, {k: v for k, v in self.state().items() if k != "optimizer"})

    def save(self) -> None:
        write_tensors(self.folder.last, self.state())

    def close(self) -> None:
        self.bar.close()
        with naming(self.folder.path, TENSORBOARD):
            self.writer.close()


def _cache(
    records: list[Record], args: argparse.Namespace, trainer: Trainer, mirrored: bool
) -> Tensor | Features | None:
    """What --cache keeps of a set, with mirror images where they are wanted."""
    if args.cache == "none" or not records:
        return None
    if args.cache == "features":
        return load_features(
            args.run.parent / "features", trainer.model.backbone, records, args.size, mirrored=mirrored
        )
    return load_images(records, args.size, trainer.world.device if args.cache == "gpu" else "cpu")


def train(args: argparse.Namespace, world: World) -> int:
    """Reads the data, then trains; returns the exit code."""
    if args.train is None:
        if world.size > 1 and not Path("runs/drawn").exists():
            raise UserError("the drawn set is not there yet: python examples/fcos/drawn.py runs/drawn")
        drawn = default_set()
        args.train, args.val = [f"{drawn}:train"], args.val or [f"{drawn}:val"]
    if args.batch % world.size:
        raise UserError(f"--batch {args.batch}: expected a multiple of the {world.size} processes")
    records, classes = read_splits(args.train)
    if args.images:
        if len(records) < args.images:
            raise UserError(f"--images {args.images}: there are only {len(records)}")
        order = torch.randperm(len(records), generator=torch.Generator().manual_seed(args.images_seed))
        records = [records[i] for i in order[: args.images].sort().values]
    val, _ = read_splits(args.val or (), classes)
    if val:
        check_scorable(val, args.val)
    if len(records) < args.batch:
        raise UserError(f"--batch {args.batch}: there are only {len(records)} images to train on")
    if args.check_data:
        check_images([*records, *val])
    with hold(args.run) if world.rank == 0 else nullcontext():
        return run_epochs(args, world, records, val, classes)


def run_epochs(
    args: argparse.Namespace, world: World, records: list[Record], val: list[Record], classes: list[str]
) -> int:
    """From where the run was left to its end, or to a signal."""
    folder, state = open_run(args)
    steps_per_epoch = len(records) // args.batch
    trainer = Trainer(args, classes, steps_per_epoch * args.epochs, world, resumes=state is not None)
    if state:
        if state["classes"] != trainer.classes:
            raise UserError(f"{args.run}: was begun with classes {state['classes']}, not {trainer.classes}")
        if state.get("steps", trainer.steps) != trainer.steps:
            told = f"{state['steps']} steps in {args.epochs} epochs, not {trainer.steps}"
            raise UserError(f"{args.run}: was begun with {told}: --train has other images now")
        with naming(folder.last, "not a checkpoint of this training"):
            trainer.load(state)
    if world.rank == 0:
        folder.remove_unfinished()
        write_json(folder.config, {name: str(v) if isinstance(v, Path) else v for name, v in vars(args).items()})
        folder.forget_after(trainer.step)
    if trainer.step == trainer.steps:
        print(f"{args.run}: finished already")
        return 0
    cached = _cache(records, args, trainer, mirrored=True)
    cached_val = _cache(val, args, trainer, mirrored=False) if world.rank == 0 else None
    dataset = TrainingSet(records, args.size, cached is None, args.augment, args.difficult == "ignore")
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
                done, whole = epoch + 1, trainer.step % steps_per_epoch == 0
                if val and whole and (done % args.eval_every == 0 or done == args.epochs):
                    journal.add_scores(epoch)
                if args.keep_every and whole and done % args.keep_every == 0 and done < args.epochs:
                    journal.keep(folder.after(done))
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
    args = parse(arguments, __doc__)
    with join_world(args.device) as world:
        return train(args, world)


if __name__ == "__main__":
    sys.exit(command(main))
