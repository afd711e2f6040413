"""Mutual Guidance in YOLOX.

    model = YOLOX(backbone=YOLOPAFPN(), head=MutualYOLOXHead(num_classes=80))     # anything that YOLOXHead takes

The head has one set of positives: its loss runs once with each of ours and every term is taken from its own set,
objectness and class from ``cls``, the box from ``loc``. The score that counts is class times objectness, as in inference.
"""

import torch
from torchvision.ops import box_convert
from yolox.models.yolo_head import YOLOXHead

from mgassign import PointGrid, mutual_guidance_assign


class MutualYOLOXHead(YOLOXHead):
    def get_losses(self, imgs, x_shifts, y_shifts, expanded_strides, labels, outputs, *rest, **kwargs):
        grid = PointGrid.from_features([g.shape[2:4] for g in self.grids], self.strides)
        with torch.no_grad():
            boxes, scores = box_convert(outputs[..., :4].float(), "cxcywh", "xyxy"), outputs[..., 4:].sigmoid()
            gt_boxes = box_convert(labels[..., 1:5].float(), "cxcywh", "xyxy")
            gt_labels = torch.where(labels.sum(2) > 0, labels[..., 0], -1).long()  # their padding is a row of zeros
            scores = scores[..., 1:] * scores[..., :1]
            self.found = mutual_guidance_assign(grid, boxes, scores, gt_boxes, gt_labels, activation="none")
        losses = []
        for owner in (self.found.cls, self.found.loc):
            self.owner, shifts = owner, (x_shifts, y_shifts)
            losses.append(super().get_losses(imgs, *shifts, expanded_strides, labels, outputs, *rest, **kwargs))
        (_, _, objectness, of_class, _, positives), (_, of_box, _, _, l1, _) = losses
        return of_box + objectness + of_class + l1, of_box, objectness, of_class, l1, positives

    def get_assignments(self, image, num_gt, num_points, gt_boxes, gt_classes, *rest, **kwargs):
        positive = self.owner[image] >= 0
        matched = self.owner[image][positive]
        return gt_classes[matched], positive, self.found.iou[image][positive], matched, len(matched)
