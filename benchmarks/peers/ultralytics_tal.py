"""ultralytics' TaskAlignedAssigner, set up as its YOLOv8 detection loss does."""

from __future__ import annotations

from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from ultralytics.utils.tal import TaskAlignedAssigner

from peers import Adapter
from scenarios import Inputs


class Assigner(Adapter):
    def __init__(self, inputs: Inputs, **settings: Any) -> None:
        known = signature(TaskAlignedAssigner).parameters
        settings = {"topk": 10, "stride": list(inputs.grid.strides), **settings}
        settings = {name: value for name, value in settings.items() if name in known}  # older versions know no stride
        self.assigner = TaskAlignedAssigner(num_classes=inputs.pred_logits.shape[-1], alpha=0.5, beta=6.0, **settings)
        boxes = pad_sequence(inputs.gt_boxes, batch_first=True)
        labels = pad_sequence(inputs.gt_labels, batch_first=True)[..., None]
        # Their padding is all zeros, and a box counts as one where the sum of its coordinates is above 0.
        is_object = boxes.sum(-1, keepdim=True).gt_(0.0)
        scores = inputs.pred_logits.sigmoid()
        self.arguments = scores, inputs.pred_boxes, inputs.grid.points(), labels, boxes, is_object

    def __call__(self) -> tuple[Tensor, ...]:
        return self.assigner(*self.arguments)

    def owners(self, results: tuple[Tensor, ...]) -> Tensor:
        *_, positive, owner = results
        return torch.where(positive.bool(), owner, -1).long()

    def targets(self, results: tuple[Tensor, ...]) -> Tensor:
        """What each point is to learn for its object's class, [B, P]."""
        return results[2].amax(-1)
