"""What the adapters of mmdet share. Importing this makes mmdet importable beside mmcv-lite."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.structures import InstanceData
from torch import Tensor

from peers import Adapter
from peers.compiled import stand_in
from scenarios import Inputs

# mmdet imports mmcv's compiled operators, of which assignment uses none. mmcv-lite has their Python half.
stand_in("mmcv._ext")


class ImageByImage(Adapter):
    """mmdet's assigners take one image each; its heads call them in such a loop.

    Args:
        inputs: The batch.
        assigner: With a method ``assign(pred_instances, *between, gt_instances)``.
        priors: Points or anchors in the assigner's form [P, 4].
        predictions: Fields of ``pred_instances`` with images first: ``bboxes``, ``scores``.
        between: Arguments of ``assign`` after the predictions.
    """

    def __init__(
        self, inputs: Inputs, assigner: Any, priors: Tensor, predictions: dict[str, Tensor], between: tuple = ()
    ) -> None:
        self.assigner, self.between = assigner, between
        self.images = [
            (
                InstanceData(priors=priors, **{name: values[image] for name, values in predictions.items()}),
                InstanceData(bboxes=boxes, labels=labels),
            )
            for image, (boxes, labels) in enumerate(zip(inputs.gt_boxes, inputs.gt_labels, strict=True))
        ]

    def __call__(self) -> list[Tensor]:
        results = [self.assigner.assign(predictions, *self.between, objects) for predictions, objects in self.images]
        return [tensor for result in results for tensor in (result.gt_inds, result.max_overlaps, result.labels)]

    def owners(self, results: list[Tensor]) -> Tensor:
        return torch.stack(results[::3]) - 1  # 0: background


def point_priors(inputs: Inputs) -> Tensor:
    """Points as YOLOX and RTMDet have them in mmdet: x, y, stride, stride; [P, 4]."""
    strides = inputs.grid.point_strides()[:, None]
    return torch.cat([inputs.grid.points(), strides, strides], dim=1)


def anchor_priors(inputs: Inputs) -> Tensor:
    """Squares of eight strides around the points, as ATSS and TOOD have them; xyxy [P, 4]."""
    points, half = inputs.grid.points(), 4 * inputs.grid.point_strides()[:, None]
    return torch.cat([points - half, points + half], dim=1)
