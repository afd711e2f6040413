"""torchvision's FCOS: the matching is the first half of the detector's ``compute_loss``."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models.detection.fcos import FCOS

from mgassign import PointGrid
from peers import Adapter
from scenarios import Inputs


class GivesMatches(nn.Module):
    """In the place of the head, whose losses would be the second half."""

    def compute_loss(self, targets, head_outputs, anchors, matched_idxs: list[Tensor]) -> list[Tensor]:
        return matched_idxs


def square_anchors(grid: PointGrid, strides: float) -> Tensor:
    """A square around each point with sides of so many strides: xyxy in pixels, float32 [P, 4]."""
    points, half = grid.points(), grid.point_strides()[:, None] * strides / 2
    return torch.cat([points - half, points + half], dim=1)


class Assigner(Adapter):
    def __init__(self, inputs: Inputs) -> None:
        # Without its backbone: only what compute_loss reads.
        self.detector = FCOS.__new__(FCOS)
        nn.Module.__init__(self.detector)
        self.detector.center_sampling_radius = 1.5
        self.detector.head = GivesMatches()
        self.targets = [{"boxes": boxes} for boxes in inputs.gt_boxes]
        self.anchors = [square_anchors(inputs.grid, 1)] * len(self.targets)
        self.per_level = list(inputs.grid.points_per_level)

    def __call__(self) -> list[Tensor]:
        return self.detector.compute_loss(self.targets, {}, self.anchors, self.per_level)

    def owners(self, results: list[Tensor]) -> Tensor:
        return torch.stack(results)
