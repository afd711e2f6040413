"""One step of training, and everything it changes."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from augment import apply_changes
from data import Batch
from features import Features
from losses import LOSSES, Criterion
from model import FCOS
from runs import World

MODEL_SETTINGS = ("backbone", "size", "width", "head_convs", "norm", "tune_from")
MAX_GRADIENT_NORM = 10.0


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Warm-up over a tenth of the steps, at most 500; then half a cosine."""
    warm_up = max(1, min(500, steps // 10))
    return peak * min((step + 1) / warm_up, (1 + math.cos(math.pi * step / steps)) / 2)


def parameter_groups(model: FCOS, args: argparse.Namespace) -> list[dict[str, Any]]:
    """What is trained: no decay of biases and norms, and a share of the learning rate for the backbone's blocks."""
    blocks = set(model.backbone.blocks.parameters())
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            share = args.backbone_lr if parameter in blocks else 1.0
            groups.setdefault((share, parameter.dim() > 1), []).append(parameter)
    return [
        {"params": parameters, "share": share, "weight_decay": args.weight_decay if decays else 0.0}
        for (share, decays), parameters in sorted(groups.items(), key=lambda item: item[0], reverse=True)
    ]


class Trainer:
    """A model in training: what a step changes.

    Args:
        args: Of train.py.
        steps: How many there will be, for the learning rate.
        resumes: Whether a checkpoint is loaded next, so that no pretrained weights are needed.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        classes: Sequence[str],
        steps: int,
        world: World,
        resumes: bool = False,
    ) -> None:
        self.args, self.classes, self.steps, self.world = args, list(classes), steps, world
        self.model_settings = {name: getattr(args, name) for name in MODEL_SETTINGS}
        torch.manual_seed(args.seed)
        self.model = FCOS(len(classes), pretrained=args.pretrained and not resumes, **self.model_settings)
        self.model.to(world.device)
        if args.channels_last:
            self.model.to(memory_format=torch.channels_last)
        network: nn.Module = self.model
        if world.size > 1:
            if world.device.type == "cuda":
                self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)  # type: ignore[no-untyped-call]
            elif any(isinstance(m, nn.BatchNorm2d) and m.training for m in self.model.modules()) and world.rank == 0:
                print("Batch statistics are each process's own on CPU; --norm group does without them", file=sys.stderr)
            network = DistributedDataParallel(self.model)
        self.network: Callable[..., Any] = torch.compile(network) if args.compile else network
        self.optimizer = torch.optim.AdamW(parameter_groups(self.model, args), args.lr)
        self.criterion = Criterion(
            self.model.grid, args.assigner, args.quality, min_points=args.min_points, level_gate=args.level_gate
        )
        self.weights = torch.tensor([1, args.box_weight, 1], device=world.device)
        self.fill = self.model.backbone.mean
        self.step, self.best = 0, -1.0

    def inputs_of(self, batch: Batch, cached: Tensor | Features | None) -> Tensor | list[Tensor]:
        """What the network is given of a batch: its images, changed, or what its frozen blocks make of them."""
        device = self.world.device
        if isinstance(cached, Features):
            mirrored = batch.windows[:, 2] < batch.windows[:, 0]  # the one change that --augment flip makes
            inputs = [layer.to(device) for layer in cached.of(batch.indices, mirrored)]
        else:
            pixels = cached[batch.indices.to(cached.device)] if cached is not None else batch.images
            assert pixels is not None
            pixels, windows, colors = (
                part.to(device, non_blocking=True) for part in (pixels, batch.windows, batch.colors)
            )
            inputs = [apply_changes(pixels, windows, colors, self.fill)]
        if self.args.channels_last:
            inputs = [x.contiguous(memory_format=torch.channels_last) for x in inputs]
        return inputs if isinstance(cached, Features) else inputs[0]

    def train_step(self, batch: Batch, cached: Tensor | Features | None) -> dict[str, Tensor]:
        """One step on this process's images; the losses it returns are those of all processes."""
        device, args = self.world.device, self.args
        inputs = self.inputs_of(batch, cached)
        boxes, labels = (part.to(device, non_blocking=True) for part in (batch.boxes, batch.labels))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.steps, args.lr * group.get("share", 1.0))
        with torch.autocast(device.type, torch.bfloat16, enabled=args.amp == "bf16"):
            predictions = self.network(inputs)
        begins = self.step * args.epochs < self.steps * args.original_epochs
        self.criterion.assigner = "original" if begins else args.assigner
        sums, counts = self.criterion(predictions, boxes, labels)
        counts = self.world.sum(counts).clamp(min=1)
        # Averaged over processes by DistributedDataParallel, hence the factor.
        loss = (self.weights * sums / counts).sum() * self.world.size
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRADIENT_NORM)
        self.optimizer.step()
        self.step += 1
        means = self.world.sum(sums) / counts
        losses = {"loss": (self.weights * means).sum(), **dict(zip(LOSSES, means, strict=True))}
        return losses | {"positives": counts[0], "quality_positives": counts[2]}

    def load(self, state: dict[str, Any]) -> None:
        """Goes on from a checkpoint, as :meth:`state` makes it."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.best = int(state["step"]), float(state["best"])

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "steps": self.steps,
            "best": self.best,
            "classes": self.classes,
            "model_settings": self.model_settings,
        }
