"""mmdet's SimOTAAssigner, with the settings of its YOLOX."""

from __future__ import annotations

from peers.mmdet_common import ImageByImage, point_priors  # first: it makes mmdet importable
from scenarios import Inputs

from mmdet.models.task_modules.assigners import SimOTAAssigner  # isort: skip


class Assigner(ImageByImage):
    def __init__(self, inputs: Inputs) -> None:
        predictions = {"bboxes": inputs.pred_boxes, "scores": inputs.pred_logits.sigmoid()}
        super().__init__(inputs, SimOTAAssigner(center_radius=2.5), point_priors(inputs), predictions)
