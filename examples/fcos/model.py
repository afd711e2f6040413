"""FCOS: a backbone, a feature pyramid, one head for all levels. The pyramid is torchvision's.

Tian, Shen, Chen, He: *FCOS: Fully Convolutional One-Stage Object Detection* (ICCV 2019), with the later
improvements of its authors: distances in units of the stride, the quality branch (centerness) beside the boxes.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, FeaturePyramidNetwork

from backbone import BACKBONES, Backbone
from mgassign import PointGrid

STRIDES = (8, 16, 32, 64)
PRIOR = 0.01  # the class probability to start from: RetinaNet, section 4.1


class Predictions(NamedTuple):
    """What the network says at each of the P points, float32."""

    logits: Tensor
    """[B, P, C], raw class scores."""
    boxes: Tensor
    """[B, P, 4], xyxy in pixels of the input."""
    quality: Tensor
    """[B, P], raw: how good the box is, by what ``--quality`` makes the branch learn."""


class FCOS(nn.Module):
    """FCOS for square images.

    Args:
        num_classes: C.
        backbone: A name of ``BACKBONES``.
        size: Height and width of the input in pixels, a multiple of 32.
        width: Channels of the pyramid and the head, a multiple of 32.
        head_convs: Convolutions before the last one, in each branch of the head.
        norm, pretrained, tune_from: As in :class:`Backbone`.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: str = "resnet18",
        size: int = 320,
        width: int = 256,
        head_convs: int = 4,
        norm: str = "batch",
        pretrained: bool = False,
        tune_from: int = 0,
    ) -> None:
        super().__init__()
        self.size = size
        self.grid = PointGrid.for_image((size, size), STRIDES)
        self.backbone = Backbone(backbone, norm, pretrained, tune_from)
        channels = list(BACKBONES[backbone].taps.values())
        extra = ExtraLevels(len(STRIDES) - len(channels), width)
        self.pyramid = FeaturePyramidNetwork(channels, width, extra_blocks=extra)

        self.class_tower, self.box_tower = _tower(width, head_convs), _tower(width, head_convs)
        self.logits = nn.Conv2d(width, num_classes, 3, padding=1)
        self.distances = nn.Conv2d(width, 4, 3, padding=1)
        self.quality = nn.Conv2d(width, 1, 3, padding=1)
        for part in (self.class_tower, self.box_tower, self.logits, self.distances, self.quality):
            for module in part.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.normal_(module.weight, std=0.01)
                    nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        nn.init.constant_(self.logits.bias, -math.log((1 - PRIOR) / PRIOR))  # type: ignore[arg-type]
        self.scales = nn.Parameter(torch.ones(len(STRIDES)))

    def forward(self, inputs: Tensor | list[Tensor]) -> Predictions:
        """Of images float [B, 3, size, size], RGB in [0, 1], or of what ``backbone.freeze`` makes of them."""
        kept = self.backbone.freeze(inputs) if isinstance(inputs, Tensor) else inputs
        features = self.pyramid(OrderedDict((str(i), x) for i, x in enumerate(self.backbone(kept))))
        logits, distances, quality = [], [], []
        for scale, level in zip(self.scales, features.values(), strict=True):
            of_class, of_box = self.class_tower(level), self.box_tower(level)
            logits.append(_by_point(self.logits(of_class)))
            distances.append(_by_point(self.distances(of_box)) * scale)
            quality.append(_by_point(self.quality(of_box)))
        # e^6 strides is beyond any image: a bound for the first, wild steps.
        strides = self.grid.point_strides(self.scales.device)[:, None]
        ltrb = torch.cat(distances, 1).float().clamp(max=6).exp() * strides
        return Predictions(
            torch.cat(logits, 1).float(), self.grid.decode(ltrb), torch.cat(quality, 1).float().squeeze(-1)
        )


class ExtraLevels(ExtraFPNBlock):  # type: ignore[misc]
    """Coarser levels than the backbone has: each halves the one before with a convolution."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, stride=2, padding=1) for _ in range(count))
        for conv in self.convs:
            nn.init.kaiming_uniform_(conv.weight, a=1)  # type: ignore[arg-type]
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]

    def forward(self, results: list[Tensor], x: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:
        for i, conv in enumerate(self.convs):
            results.append(conv(torch.relu(results[-1])))
            names.append(f"extra{i}")
        return results, names


def _tower(width: int, count: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(count):
        layers += [
            nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(min(32, width // 2), width),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


def _by_point(x: Tensor) -> Tensor:
    """[B, channels, height, width] -> [B, points, channels], row by row as PointGrid numbers them."""
    return x.flatten(2).transpose(1, 2)
