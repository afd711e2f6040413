"""Mutual Guidance in ultralytics' YOLO (v8, 11, 12, 26): detection by points, with or without a one-to-one head.

    model = YOLO("yolo11n.yaml")
    model.add_callback("on_train_start", assign_by_mutual_guidance)
    model.train(data="coco8.yaml")

Changes the training model's loss object and nothing else: no class, and nothing that gets into a checkpoint, which loads
without mgassign. Not the model that validation averages, whose losses remain the stock ones. The class learns the
overlap of predicted box and object as its score, as YOLO's own assigner has it; the points of the box weigh alike.
A one-to-one head gets one point an object.
"""

import torch
from torch import nn

from mgassign import PointGrid, mutual_guidance_assign, take


class MutualAssigner(nn.Module):
    """Takes the place of a TaskAlignedAssigner; ``grid`` is set before each call, ``settings`` are mgassign's."""

    def __init__(self, **settings):
        super().__init__()
        self.settings = settings

    @torch.no_grad()
    def forward(self, scores, boxes, points, gt_labels, gt_boxes, gt_mask):
        labels = torch.where(gt_mask.bool(), gt_labels, -1).long().squeeze(-1)
        found = mutual_guidance_assign(self.grid, boxes, scores, gt_boxes, labels, activation="none", **self.settings)
        quality = found.iou.to(scores.dtype)[..., None]  # 0 where a point is nobody's
        class_targets = torch.zeros_like(scores).scatter_(2, take(found.cls, labels)[..., None], quality)
        return take(found.loc, labels), take(found.loc, gt_boxes), class_targets, found.loc >= 0, found.loc.clamp(min=0)


class EvenBoxLoss(nn.Module):
    """YOLO's box loss weighs a point by its class targets, which here are other points'."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, distances, boxes, points, box_targets, class_targets, sum_of_targets, positive, *rest):
        even = positive[..., None].to(class_targets.dtype)
        return self.inner(distances, boxes, points, box_targets, even, even.sum().clamp(min=1), positive, *rest)


def assign_by_mutual_guidance(trainer):
    model = getattr(trainer.model, "module", trainer.model)
    model.criterion = getattr(model, "criterion", None) or model.init_criterion()
    with_mutual_guidance(getattr(model.criterion, "one2many", model.criterion))
    if hasattr(model.criterion, "one2one"):
        with_mutual_guidance(model.criterion.one2one, num_points=1, inside=True)


def with_mutual_guidance(criterion, **settings):
    """Changes this one loss object."""
    assigner, strides, inner = MutualAssigner(**settings), criterion.stride, criterion.get_assigned_targets_and_loss

    def note_grid(preds, batch, **kwargs):
        assigner.grid = PointGrid.from_features([f.shape[-2:] for f in preds["feats"]], strides)
        return inner(preds, batch, **kwargs)

    criterion.assigner, criterion.bbox_loss = assigner, EvenBoxLoss(criterion.bbox_loss)
    criterion.get_assigned_targets_and_loss = note_grid
    return criterion
