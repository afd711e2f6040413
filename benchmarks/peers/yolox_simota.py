"""YOLOX's SimOTA: ``YOLOXHead.get_assignments``, image by image as its ``get_losses`` calls it."""

from __future__ import annotations

import torch
from torch import Tensor
from yolox.models.yolo_head import YOLOXHead

from peers import Adapter
from scenarios import Inputs


def centre_and_size(boxes: Tensor) -> Tensor:
    """From xyxy; [..., 4] both."""
    return torch.cat([(boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]], dim=-1)


class Assigner(Adapter):
    def __init__(self, inputs: Inputs, objectness: Tensor | None = None) -> None:
        levels = len(inputs.grid.strides)
        # One channel wide: the assignment uses none of the head's weights.
        self.head = YOLOXHead(
            inputs.pred_logits.shape[-1], width=1 / 256, strides=list(inputs.grid.strides), in_channels=[256] * levels
        )
        self.objects = [
            (centre_and_size(boxes), labels) for boxes, labels in zip(inputs.gt_boxes, inputs.gt_labels, strict=True)
        ]
        self.boxes = centre_and_size(inputs.pred_boxes)
        self.logits = inputs.pred_logits
        # The inputs have none: one for all.
        self.objectness = torch.zeros(*inputs.pred_logits.shape[:2], 1) if objectness is None else objectness[..., None]
        self.strides = inputs.grid.point_strides()[None]
        # Rows and columns, from which the head makes points in the middle of their cells, as the grid's are.
        self.columns, self.rows = ((inputs.grid.points() - self.strides.T / 2) / self.strides.T).T[:, None]

    def __call__(self) -> list[Tensor]:
        results = []
        for image, (boxes, labels) in enumerate(self.objects):
            if len(boxes) == 0:  # the head does not ask then
                none = boxes.new_empty(0)
                results += [labels, boxes.new_zeros(self.boxes.shape[1], dtype=torch.bool), none, labels]
                continue
            # 0.3.0 takes more: how many points there are, all boxes, and labels and images, which it does not look at.
            main = hasattr(self.head, "get_geometry_constraint")
            count, all_boxes, unused = ((), (), ()) if main else ((self.boxes.shape[1],), (self.boxes,), (None, None))
            matched_classes, positive, ious, matched, _ = self.head.get_assignments(
                image, len(boxes), *count, boxes, labels, self.boxes[image],
                self.strides, self.columns, self.rows, self.logits, *all_boxes, self.objectness, *unused,
            )  # fmt: skip
            results += [matched_classes, positive, ious, matched]
        return results

    def owners(self, results: list[Tensor]) -> Tensor:
        owners = torch.full(self.boxes.shape[:2], -1)
        for image, (positive, matched) in enumerate(zip(results[1::4], results[3::4], strict=True)):
            owners[image, positive] = matched
        return owners
