"""Where features come from: a classifier's blocks, of which the first may be frozen, and the outputs the pyramid takes."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import torch
import torchvision
from torch import Tensor, nn

import efficientnet
from runs import UserError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Source(NamedTuple):
    """How a backbone is taken from a classifier."""

    taps: dict[int, int]
    """The blocks whose outputs the pyramid starts from, with their channels: strides 8, 16 and, where there is one, 32."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    linear: bool = False
    """Whether outputs are no activations: each layer has a scale of its own then, and gets a norm before the pyramid."""


BACKBONES = {
    "resnet18": Source({3: 128, 5: 256, 7: 512}),
    "vgg16": Source({3: 512, 4: 512}),  # conv4_3 and conv5_3 of vgg16_bn, after their ReLU
    "lite0": Source({4: 40, 10: 112, 15: 320}, efficientnet.MEAN, efficientnet.STD, linear=True),
}


class Backbone(nn.Module):
    """A classifier without its end.

    Args:
        name: Of ``BACKBONES``.
        norm: ``"batch"``; ``"frozen"``: the blocks' by the statistics they were pretrained with, in training too; or ``"group"``,
            in which no batch has a say.
        pretrained: Whether to start from ImageNet weights: torchvision's, which are downloaded, or an installed package's.
        tune_from: The first block that is trained. Those before it stay as they are, batch norms included.

    Raises:
        UserError: if the weights cannot be had.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, norm: str = "batch", pretrained: bool = False, tune_from: int = 0) -> None:
        super().__init__()
        source = BACKBONES[name]
        self.blocks = nn.ModuleList(_blocks(name, pretrained)[: max(source.taps) + 1])
        if not 0 <= tune_from <= len(self.blocks):
            raise UserError(f"--tune-from: {name} has blocks 0 to {len(self.blocks) - 1}, got {tune_from}")
        self.taps, self.tune_from = source.taps, tune_from
        self.num_settled = len(self.blocks) if norm == "frozen" else tune_from
        self.norms = nn.ModuleList(nn.BatchNorm2d(n) if source.linear else nn.Identity() for n in source.taps.values())
        if norm == "group":
            to_group_norm(self)
        self.blocks[:tune_from].requires_grad_(False)
        self.register_buffer("mean", torch.tensor(source.mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(source.std)[:, None, None], persistent=False)
        self.train()

    def train(self, mode: bool = True) -> Backbone:
        super().train(mode)
        for block in self.blocks[: self.num_settled]:  # their batch norms keep their statistics
            block.eval()
        return self

    def freeze(self, images: Tensor) -> list[Tensor]:
        """What the frozen blocks make of images, float [B, 3, height, width] in [0, 1]: all that :meth:`forward` needs."""
        x = (images - self.mean) / self.std
        kept = []
        for i, block in enumerate(self.blocks[: self.tune_from], 1):
            x = block(x)
            if i - 1 in self.taps or i == self.tune_from:
                kept.append(x)
        return kept or [x]

    def forward(self, kept: list[Tensor]) -> list[Tensor]:
        """From what :meth:`freeze` gives to the features of each tap, fine to coarse."""
        features = [x for x, tap in zip(kept, self.taps, strict=False) if tap < self.tune_from]
        x = kept[-1]
        for i, block in enumerate(self.blocks[self.tune_from :], self.tune_from):
            x = block(x)
            if i in self.taps:
                features.append(x)
        return [norm(x) for norm, x in zip(self.norms, features, strict=True)]


def _blocks(name: str, pretrained: bool) -> list[nn.Module]:
    """A classifier's blocks; what precedes the first one is part of it."""
    if name == "lite0":
        lite0 = efficientnet.EfficientNetLite0()
        if pretrained:
            efficientnet.load_weights(lite0)
        return [nn.Sequential(lite0.stem(), lite0.blocks[0]), *lite0.blocks[1:]]
    build = {"resnet18": torchvision.models.resnet18, "vgg16": torchvision.models.vgg16_bn}[name]
    try:
        network = build(weights="DEFAULT" if pretrained else None)
    except OSError as error:
        raise UserError(f"--pretrained: cannot have torchvision's weights: {error}") from error
    if name == "resnet18":
        stem = [network.conv1, network.bn1, network.relu, network.maxpool]
        first, *others = [block for i in range(1, 5) for block in getattr(network, f"layer{i}")]
        return [nn.Sequential(*stem, first), *others]
    layers = list(network.features)
    starts = [0, *(i for i, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)), len(layers)]
    return [nn.Sequential(*layers[start:end]) for start, end in itertools.pairwise(starts)]


def to_group_norm(module: nn.Module) -> None:
    """Puts GroupNorm in the place of every BatchNorm."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, nn.GroupNorm(math.gcd(32, child.num_features), child.num_features))
        else:
            to_group_norm(child)
