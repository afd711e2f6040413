"""mmdet's TaskAlignedAssigner, with the settings of its TOOD."""

from __future__ import annotations

import torch
from torch import Tensor

from peers.mmdet_common import ImageByImage, anchor_priors  # first: it makes mmdet importable
from scenarios import Inputs

from mmdet.models.task_modules.assigners import TaskAlignedAssigner  # isort: skip


class Assigner(ImageByImage):
    def __init__(self, inputs: Inputs) -> None:
        predictions = {"bboxes": inputs.pred_boxes, "scores": inputs.pred_logits.sigmoid()}
        super().__init__(inputs, TaskAlignedAssigner(topk=13), anchor_priors(inputs), predictions)

    def targets(self, results: list[Tensor]) -> Tensor:
        """What each point is to learn for its object's class, [B, P]: scaled object by object, as its TOOD head does."""
        targets = torch.stack(results[1::3]) * 0
        for target, owner, overlap, (predictions, objects) in zip(
            targets, results[::3], results[1::3], self.images, strict=True
        ):
            for g, label in enumerate(objects.labels.tolist()):
                own = owner == g + 1
                if own.any():
                    metric = predictions.scores[own, label] * overlap[own] ** 6
                    target[own] = metric / (metric.max() + 10e-8) * overlap[own].max()
        return targets
