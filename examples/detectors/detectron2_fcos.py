"""Mutual Guidance in detectron2's FCOS.

    model = MutualFCOS(backbone=..., head=..., num_classes=80, ...)     # anything that FCOS takes

``sets`` says which of an assignment's sets class and box learn from; with ``("original", "original")`` the losses are
FCOS's, bit for bit. detectron2 divides its losses by a running mean of the number of positives, which every loss
moves: with two sets it moves twice a step, once with each number, and so forgets twice as fast.
"""

import math

import torch
from detectron2.modeling.meta_arch.fcos import FCOS

from mgassign import PointGrid, mutual_guidance_assign, take


class MutualFCOS(FCOS):
    sets = ("cls", "loc")

    def grid_of(self, features):
        strides, infinity = self.anchor_generator.strides, torch.tensor(math.inf)
        # detectron2 is strict about the ends of a level's range, mgassign is not: one float32 inward.
        ranges = torch.tensor([[4.0 * s, 8.0 * s] for s in strides]).nextafter(torch.stack([infinity, -infinity]))
        ranges[0, 0], ranges[-1, 1] = 0.0, infinity
        offsets = [self.anchor_generator.offset * s for s in strides]
        return PointGrid.from_features([f.shape[-2:] for f in features], strides, offset=offsets, ranges=ranges)

    def forward_training(self, images, features, predictions, gt_instances):
        logits, deltas, centerness = self._transpose_dense_predictions(predictions, [self.num_classes, 4, 1])
        grid, anchors = self.grid_of(features), self.anchor_generator(features)
        boxes, labels = [x.gt_boxes.tensor for x in gt_instances], [x.gt_classes for x in gt_instances]
        distances = torch.cat(deltas, 1).relu() * grid.point_strides(logits[0].device)[:, None]
        radius = self.center_sampling_radius
        found = mutual_guidance_assign(
            grid, grid.decode(distances), torch.cat(logits, 1), boxes, labels, center_radius=radius
        )
        losses = {}
        for name in dict.fromkeys(self.sets):  # the model's loss once for each set
            owner = getattr(found, name)
            of_points = list(take(owner, labels, self.num_classes)), deltas, list(take(owner, boxes))
            losses[name] = self.losses(anchors, logits, *of_points, centerness)
        of_class, of_box = (losses[name] for name in self.sets)
        return {**of_box, "loss_fcos_cls": of_class["loss_fcos_cls"]}
