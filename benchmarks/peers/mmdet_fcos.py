"""mmdet's FCOS: ``FCOSHead.get_targets``, with centre sampling."""

from __future__ import annotations

import torch
from torch import Tensor

from peers import Adapter
from peers.mmdet_common import InstanceData  # first: it makes mmdet importable
from scenarios import Inputs

from mmdet.models.dense_heads import FCOSHead  # isort: skip


class Assigner(Adapter):
    def __init__(self, inputs: Inputs) -> None:
        # It returns labels, not objects: so each object of an image has a label of its own.
        most = max((len(boxes) for boxes in inputs.gt_boxes), default=0)
        self.head = FCOSHead(
            num_classes=max(most, 1), in_channels=1, feat_channels=1, stacked_convs=1, norm_cfg=None,
            strides=list(inputs.grid.strides), regress_ranges=inputs.grid.ranges,
            center_sampling=True, center_sample_radius=1.5,
        )  # fmt: skip
        self.points = list(inputs.grid.points().split(inputs.grid.points_per_level))
        self.objects = [InstanceData(bboxes=boxes, labels=torch.arange(len(boxes))) for boxes in inputs.gt_boxes]

    def __call__(self) -> list[Tensor]:
        labels, distances = self.head.get_targets(self.points, self.objects)
        return [*labels, *distances]

    def owners(self, results: list[Tensor]) -> Tensor:
        # Each level holds the points of all images, one image after the other.
        levels = [level.reshape(len(self.objects), -1) for level in results[: len(self.points)]]
        labels = torch.cat(levels, dim=1)
        return torch.where(labels < self.head.num_classes, labels, -1)
