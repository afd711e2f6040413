"""mmdet's ATSSAssigner, with the settings of its ATSS; predictions have no say in it."""

from __future__ import annotations

from peers.mmdet_common import ImageByImage, anchor_priors  # first: it makes mmdet importable
from scenarios import Inputs

from mmdet.models.task_modules.assigners import ATSSAssigner  # isort: skip


class Assigner(ImageByImage):
    def __init__(self, inputs: Inputs) -> None:
        per_level = list(inputs.grid.points_per_level)
        super().__init__(inputs, ATSSAssigner(topk=9), anchor_priors(inputs), {}, between=(per_level,))
