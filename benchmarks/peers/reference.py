"""mgassign.reference, image by image: Mutual Guidance as one writes it with PyTorch's own operators."""

from __future__ import annotations

import torch
from torch import Tensor

from mgassign import reference
from peers import Adapter
from scenarios import Inputs


class Assigner(Adapter):
    assign = staticmethod(reference.mutual_guidance_assign)

    def __init__(self, inputs: Inputs) -> None:
        self.grid, *batch = inputs
        self.images = list(zip(*batch, strict=True))

    def __call__(self) -> list[Tensor]:
        return [result for image in self.images for result in self.assign(self.grid, *image)]

    def owners(self, results: list[Tensor]) -> Tensor:
        return torch.stack(results[::5])  # cls, loc, original, num_points, iou of each image
