"""Mutual Guidance in YOLOX, and YOLOX's own SimOTA without its waits.

    model = YOLOX(backbone=YOLOPAFPN(), head=MutualYOLOXHead(num_classes=80))     # anything that YOLOXHead takes

The head has one set of positives: its loss runs once with each of ours and every term is taken from its own set,
objectness and class from ``cls``, the box from ``loc``. The score that counts is class times objectness, as in inference.

``SimOTAYOLOXHead`` has the labels and losses of ``YOLOXHead``, for a batch in one call, of the version that is installed.
"""

import torch
from torchvision.ops import box_convert
from yolox.models.yolo_head import YOLOXHead

from mgassign import PointGrid, SimOTA, mutual_guidance_assign, sim_ota_assign


def objects_of(labels):
    gt_boxes = box_convert(labels[..., 1:5].float(), "cxcywh", "xyxy")
    return gt_boxes, torch.where(labels.sum(2) > 0, labels[..., 0], -1).long()  # their padding is a row of zeros


class AssignedYOLOXHead(YOLOXHead):
    def get_assignments(self, image, num_gt, *rest, **kwargs):
        # Version 0.3 tells how many points there are, then the objects; the main branch the objects.
        gt_classes = next(x for x in rest if isinstance(x, torch.Tensor) and x.dim() == 1)
        positive = self.owner[image] >= 0
        matched = self.owner[image][positive]
        return gt_classes[matched], positive, self.found.iou[image][positive], matched, len(matched)


class MutualYOLOXHead(AssignedYOLOXHead):
    def get_losses(self, imgs, x_shifts, y_shifts, expanded_strides, labels, outputs, *rest, **kwargs):
        grid = PointGrid.from_features([g.shape[2:4] for g in self.grids], self.strides)
        with torch.no_grad():
            boxes, scores = box_convert(outputs[..., :4].float(), "cxcywh", "xyxy"), outputs[..., 4:].sigmoid()
            scores = scores[..., 1:] * scores[..., :1]
            self.found = mutual_guidance_assign(grid, boxes, scores, *objects_of(labels), activation="none")
        losses = []
        for owner in (self.found.cls, self.found.loc):
            self.owner, shifts = owner, (x_shifts, y_shifts)
            losses.append(super().get_losses(imgs, *shifts, expanded_strides, labels, outputs, *rest, **kwargs))
        (_, _, objectness, of_class, _, positives), (_, of_box, _, _, l1, _) = losses
        return of_box + objectness + of_class + l1, of_box, objectness, of_class, l1, positives


class SimOTAYOLOXHead(AssignedYOLOXHead):
    # Of its main branch, or of the release, which has another rule.
    settings = SimOTA.YOLOX if hasattr(YOLOXHead, "get_geometry_constraint") else SimOTA.YOLOX_0_3

    def get_losses(self, imgs, x_shifts, y_shifts, expanded_strides, labels, outputs, *rest, **kwargs):
        grid = PointGrid.from_features([g.shape[2:4] for g in self.grids], self.strides)
        boxes = box_convert(outputs[..., :4].detach().float(), "cxcywh", "xyxy")
        objectness, logits = outputs[..., 4].detach(), outputs[..., 5:].detach()
        objects = objects_of(labels)
        self.found = sim_ota_assign(grid, boxes, logits, *objects, self.settings, pred_objectness=objectness)
        self.owner = self.found.owner
        return super().get_losses(imgs, x_shifts, y_shifts, expanded_strides, labels, outputs, *rest, **kwargs)
