"""ultralytics' YOLO (v8, 11, 12, 26) with labels by mgassign: its own ones, sooner and in less memory, or Mutual Guidance.

    model = YOLO("yolo11n.yaml")
    model.add_callback("on_train_start", assign_task_aligned)  # or assign_by_mutual_guidance
    model.train(data="coco8.yaml")

Changes the training model's loss object and nothing else: no class, and nothing that gets into a checkpoint, which loads
without mgassign. Not the model that validation averages, whose losses remain the stock ones. On several GPUs ultralytics has to hand callbacks
on to its processes, which 8.4.190 does and 8.4.139 does not.

``assign_task_aligned`` trains as before: the same labels, and targets that differ in the last digits. The settings are those
of the assigner it replaces (8.4.139 and newer), one-to-one heads included. Detection, and YOLO11's masks and poses, whose
points it chooses alike; YOLO26's and rotated boxes have assigners of their own, and are refused.

``assign_by_mutual_guidance``: the class learns the overlap of predicted box and object as its score, as YOLO's own assigner
has it; the points of the box weigh alike. A one-to-one head gets one point an object.
"""

import torch
from torch import nn

from mgassign import PointGrid, TaskAligned, dense_scores, mutual_guidance_assign, take, task_aligned_assign


class AlignedAssigner(nn.Module):
    """Does a TaskAlignedAssigner's work with its settings, and returns its five tensors; ``grid`` is set before each call."""

    def __init__(self, stock):
        super().__init__()
        self.settings = TaskAligned(
            k=stock.topk, keep=stock.topk2 if stock.topk2 != stock.topk else None, alpha=stock.alpha, beta=stock.beta,
            least_side=stock.stride_val, epsilon=stock.eps,
        )  # fmt: skip

    @torch.no_grad()
    def forward(self, scores, boxes, points, gt_labels, gt_boxes, gt_mask):
        labels = torch.where(gt_mask.bool(), gt_labels, -1).long().squeeze(-1)
        found = task_aligned_assign(self.grid, boxes, scores, gt_boxes, labels, self.settings)
        class_targets = dense_scores(found.owner, found.target, labels, scores.shape[-1])
        # Points without an object have the first one's label and box, as in the stock assigner: they learn neither.
        first = found.owner.clamp(min=0)
        owner = first if gt_boxes.shape[1] else found.owner
        labels = take(owner, gt_labels.long().squeeze(-1)).clamp(min=0)
        return labels, take(owner, gt_boxes), class_targets, found.owner >= 0, first


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


def assign_task_aligned(trainer):
    for criterion in criteria_of(trainer):
        assign_by(AlignedAssigner, criterion)


def assign_by_mutual_guidance(trainer):
    many, *one = criteria_of(trainer)
    assign_by(lambda stock: MutualAssigner(), many)
    for criterion in one:
        assign_by(lambda stock: MutualAssigner(num_points=1, inside=True), criterion)
    for criterion in (many, *one):
        criterion.bbox_loss = EvenBoxLoss(criterion.bbox_loss)


def criteria_of(trainer):
    """The loss object of each head: one, or that of many points an object and that of one."""
    model = getattr(trainer.model, "module", trainer.model)
    model.criterion = getattr(model, "criterion", None) or model.init_criterion()
    if not hasattr(model.criterion, "one2one"):
        return [model.criterion]
    return [model.criterion.one2many, model.criterion.one2one]


def assign_by(make, criterion):
    """Changes this one loss object; ``make`` is given its assigner."""
    stock = getattr(criterion, "assigner", None)
    if type(stock).__name__ != "TaskAlignedAssigner":
        raise TypeError(f"expected a head whose assigner is a TaskAlignedAssigner, got {type(stock).__name__}")
    assigner = make(stock)
    strides, inner = criterion.stride.tolist(), criterion.get_assigned_targets_and_loss

    def note_grid(preds, batch, **kwargs):
        assigner.grid = PointGrid.from_features([f.shape[-2:] for f in preds["feats"]], strides)
        return inner(preds, batch, **kwargs)

    criterion.assigner, criterion.get_assigned_targets_and_loss = assigner, note_grid
