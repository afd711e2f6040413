"""mmdet's DynamicSoftLabelAssigner, with the settings of its RTMDet."""

from __future__ import annotations

from peers.mmdet_common import ImageByImage, point_priors  # first: it makes mmdet importable
from scenarios import Inputs

from mmdet.models.task_modules.assigners import DynamicSoftLabelAssigner  # isort: skip


class Assigner(ImageByImage):
    def __init__(self, inputs: Inputs) -> None:
        predictions = {"bboxes": inputs.pred_boxes, "scores": inputs.pred_logits}  # it takes the sigmoid itself
        super().__init__(inputs, DynamicSoftLabelAssigner(topk=13), point_priors(inputs), predictions)
