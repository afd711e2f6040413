"""mmdet's TaskAlignedAssigner, with the settings of its TOOD."""

from __future__ import annotations

from peers.mmdet_common import ImageByImage, anchor_priors  # first: it makes mmdet importable
from scenarios import Inputs

from mmdet.models.task_modules.assigners import TaskAlignedAssigner  # isort: skip


class Assigner(ImageByImage):
    def __init__(self, inputs: Inputs) -> None:
        predictions = {"bboxes": inputs.pred_boxes, "scores": inputs.pred_logits.sigmoid()}
        super().__init__(inputs, TaskAlignedAssigner(topk=13), anchor_priors(inputs), predictions)
