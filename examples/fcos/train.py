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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from augment import apply_changes
from data import Batch, TrainingSet, check_images, load_images, read_splits
from drawn import default_set
from evaluate import as_percent, detect, truths_of
from losses import ASSIGNERS, LOSSES, Criterion
from metrics import voc_ap
from model import BACKBONES, FCOS, IMAGENET_MEAN
from runs import HelpFormatter, RunFolder, UserError, World, command, join_world, load_checkpoint, positive, write_json

MODEL_SETTINGS = ("backbone", "size", "width", "head_convs", "norm")
#: What may change from a start to the next: it says how to compute, not what.
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
    group.add_argument("--workers", type=int, default=0, metavar="N", help="processes that prepare batches; 0: none")

    group = parser.add_argument_group("what is trained")
    group.add_argument("--assigner", choices=list(ASSIGNERS), default="mutual", help="who learns what: FCOS's original "
                       "strategy, Localize to Classify or Classify to Localize alone, or both")  # fmt: skip
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
    if args.lr <= 0:
        parser.error(f"argument --lr: expected more than 0, got {args.lr}")
    for name in ("workers", "min_points"):
        if getattr(args, name) < 0:
            parser.error(f"argument --{name.replace('_', '-')}: expected at least 0, got {getattr(args, name)}")
    return args


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Warm-up over a tenth of the steps, at most 500; then half a cosine."""
    warm_up = max(1, min(500, steps // 10))
    return peak * min((step + 1) / warm_up, (1 + math.cos(math.pi * step / steps)) / 2)


class Trainer:
    """Everything a step changes, and how it goes into a checkpoint."""

    def __init__(self, args: argparse.Namespace, classes: Sequence[str], steps: int, world: World) -> None:
        self.args, self.classes, self.steps, self.world = args, list(classes), steps, world
        self.model_settings = {name: getattr(args, name) for name in MODEL_SETTINGS}
        torch.manual_seed(args.seed)
        self.model = FCOS(len(classes), pretrained=args.pretrained and not args.resume, **self.model_settings)
        self.model.to(world.device, memory_format=torch.channels_last if args.channels_last else torch.preserve_format)
        self.network: nn.Module = self.model
        if world.size > 1:
            if world.device.type == "cuda":
                self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
            elif args.norm == "batch" and world.rank == 0:
                print("Batch statistics are each process's own on CPU; --norm group does without them", file=sys.stderr)
            self.network = DistributedDataParallel(self.model)
        self.run_network: Callable[..., Any] = torch.compile(self.network) if args.compile else self.network
        decayed = [p for p in self.model.parameters() if p.dim() > 1]
        others = [p for p in self.model.parameters() if p.dim() <= 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed}, {"params": others, "weight_decay": 0.0}], args.lr, weight_decay=args.weight_decay
        )
        self.criterion = Criterion(
            self.model.grid, args.assigner, min_points=args.min_points, level_gate=args.level_gate
        )
        self.fill = torch.tensor(IMAGENET_MEAN, device=world.device)[:, None, None]
        self.step, self.best = 0, -1.0

    def train_step(self, batch: Batch, cached: Tensor | None) -> dict[str, Tensor]:
        """One step on this process's images; the losses it returns are those of all processes."""
        device, args = self.world.device, self.args
        pixels = cached[batch.indices.to(cached.device)] if cached is not None else batch.images
        assert pixels is not None
        pixels, windows, colors, boxes, labels = (
            part.to(device, non_blocking=True) for part in (pixels, *batch[2:])
        )
        images = apply_changes(pixels, windows, colors, self.fill)
        if args.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.steps, args.lr)
        with torch.autocast(device.type, torch.bfloat16, enabled=args.amp == "bf16"):
            predictions = self.run_network(images)
        sums, counts = self.criterion(predictions, boxes, labels)
        counts = self.world.sum(counts).clamp(min=1)
        # Averaged over processes by DistributedDataParallel, hence the factor.
        loss = (sums / counts).sum() * self.world.size
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 10.0)
        self.optimizer.step()
        self.step += 1
        losses = dict(zip(LOSSES, sums.detach() / counts, strict=True))
        return losses | {"positives": counts[0], "box_positives": counts[2]}

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "best": self.best,
            "classes": self.classes,
            "model_settings": self.model_settings,
            "config": config_of(self.args),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.best = state["step"], state["best"]


def config_of(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that decide what comes out."""
    return {name: value for name, value in vars(args).items() if name not in FREE_SETTINGS}


@contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Gives a function that says whether SIGTERM or Ctrl-C came. A second one ends the process at once."""
    came = []

    def note(number: int, _: object) -> None:
        came.append(number)
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


def train(args: argparse.Namespace, world: World) -> int:
    if args.train is None:
        if world.size > 1 and not Path("runs/drawn").exists():
            raise UserError("the drawn set is not there yet: python examples/fcos/drawn.py runs/drawn")
        drawn = default_set()
        args.train, args.val = [f"{drawn}:train"], args.val or [f"{drawn}:val"]
    if args.batch % world.size:
        raise UserError(f"--batch {args.batch}: expected a multiple of the {world.size} processes")
    records, classes = read_splits(args.train)
    val_records, _ = read_splits(args.val or (), classes)
    if len(records) < args.batch:
        raise UserError(f"--batch {args.batch}: there are only {len(records)} images to train on")
    if args.check_data:
        check_images([*records, *val_records])
    folder, state = open_run(args, world)
    steps_of_epoch = len(records) // args.batch
    trainer = Trainer(args, classes, steps_of_epoch * args.epochs, world)
    if state:
        trainer.restore(state)
    if trainer.step == trainer.steps:
        print(f"{args.run}: finished already")
        return 0
    where = {"none": None, "ram": "cpu", "gpu": world.device}[args.cache]
    cached = load_images(records, args.size, where) if where else None
    cached_val = load_images(val_records, args.size, where) if where and world.rank == 0 else None
    dataset = TrainingSet(records, args.size, decode=cached is None)

    leader = world.rank == 0
    writer = SummaryWriter(str(args.run), purge_step=trainer.step + 1) if leader else None
    bar = tqdm(total=trainer.steps, initial=trainer.step, disable=None if leader else True, unit="step")
    clock, last_step = perf_counter(), trainer.step
    with stop_signals() as stopped:
        for epoch in range(trainer.step // steps_of_epoch, args.epochs):
            batches = dataset.epoch(
                epoch, seed=args.seed, batch=args.batch, first_step=trainer.step % steps_of_epoch, rank=world.rank,
                world=world.size, workers=args.workers, pin_memory=world.device.type == "cuda",
            )  # fmt: skip
            for batch in batches:
                losses = trainer.train_step(batch, cached)
                bar.update()
                step, stop = trainer.step, stopped() and world.size == 1
                if step % args.log_every == 0 or step == trainer.steps:
                    values = {name: float(world.sum(losses[name])) for name in LOSSES}
                    if not all(map(math.isfinite, values.values())):
                        raise UserError(f"step {step}: the loss is no number any more ({values}); try a lower --lr")
                    # Processes stop together, so they have to agree, and do so where they wait for each other anyway.
                    stop = bool(world.sum(torch.tensor([float(stopped())], device=world.device)))
                    speed = (step - last_step) * args.batch / (perf_counter() - clock)
                    clock, last_step = perf_counter(), step
                    if writer:
                        values = {"loss": sum(values.values())} | values | {"lr": learning_rate(step - 1, trainer.steps, args.lr)}
                        values |= {name: float(losses[name]) for name in ("positives", "box_positives")}
                        folder.add_metrics(step=step, epoch=epoch, **values, images_per_s=round(speed, 1))
                        for name, value in values.items():
                            writer.add_scalar(f"train/{name}", value, step)
                        bar.set_postfix(loss=f"{values['loss']:.3f}", refresh=False)
                # An epoch's last step is followed by its score, so that going on does not skip that.
                if stop and step % steps_of_epoch:
                    break
            finished_epoch = trainer.step % steps_of_epoch == 0
            if leader:
                if finished_epoch and val_records and ((epoch + 1) % args.eval_every == 0 or epoch + 1 == args.epochs):
                    found = detect(trainer.model, val_records, args.batch, world.device, cached_val)
                    scores = as_percent(voc_ap(truths_of(val_records), found, len(classes)))
                    folder.add_metrics(step=trainer.step, epoch=epoch, val=scores)
                    for name, value in scores.items():
                        writer.add_scalar(f"val/{name}", value, trainer.step)
                    if scores["AP"] > trainer.best:
                        trainer.best = scores["AP"]
                        folder.save(folder.best, trainer.state())
                    bar.write(f"epoch {epoch + 1}/{args.epochs}: " + ", ".join(f"{k} {v:.1f}" for k, v in scores.items()))
                folder.save(folder.last, trainer.state())
            trainer.model.train()
            if not finished_epoch or (world.size == 1 and stopped()):
                bar.write(f"stopped after step {trainer.step} of {trainer.steps}; --resume goes on")
                return INTERRUPTED
            clock, last_step = perf_counter(), trainer.step
    return 0


def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)
    with join_world(args.device) as world:
        return train(args, world)


if __name__ == "__main__":
    sys.exit(command(main))
