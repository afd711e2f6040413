"""torchvision's ``box_iou`` and ``Matcher`` as its RetinaNet uses them: anchors by their overlap with the objects.

One square anchor of four strides at each point, where RetinaNet has nine.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.retinanet import RetinaNet

from peers import Adapter
from peers.torchvision_fcos import GivesMatches, square_anchors
from scenarios import Inputs


class Assigner(Adapter):
    def __init__(self, inputs: Inputs) -> None:
        # Without its backbone: only what compute_loss reads.
        self.detector = RetinaNet.__new__(RetinaNet)
        nn.Module.__init__(self.detector)
        self.detector.proposal_matcher = Matcher(0.5, 0.4, allow_low_quality_matches=True)
        self.detector.head = GivesMatches()
        self.targets = [{"boxes": boxes} for boxes in inputs.gt_boxes]
        self.anchors = [square_anchors(inputs.grid, 4)] * len(self.targets)

    def __call__(self) -> list[Tensor]:
        return self.detector.compute_loss(self.targets, {}, self.anchors)

    def owners(self, results: list[Tensor]) -> Tensor:
        return torch.stack(results).clamp(min=-1)  # -2: neither object nor background
