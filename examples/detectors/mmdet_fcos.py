"""Mutual Guidance in mmdet 3.3's FCOS.

In the configuration, after ``custom_imports = dict(imports=["mmdet_fcos"])``:

    model = dict(bbox_head=dict(type="MutualFCOSHead"))     # the rest as for FCOSHead

``sets`` says which of an assignment's sets class and box learn from; with ``("original", "original")`` the losses are
FCOSHead's, bit for bit.
"""

import torch
from mmdet.models.dense_heads import FCOSHead
from mmdet.registry import MODELS

from mgassign import PointGrid, mutual_guidance_assign, take


@MODELS.register_module()
class MutualFCOSHead(FCOSHead):
    sets = ("cls", "loc")

    def loss_by_feat(self, cls_scores, bbox_preds, centernesses, batch_gt_instances, *rest, **kwargs):
        logits, distances = (
            torch.cat([x.flatten(2).transpose(1, 2) for x in maps], 1) for maps in (cls_scores, bbox_preds)
        )
        offsets = [self.prior_generator.offset * stride for stride in self.strides]
        self.grid = grid = PointGrid.from_features(
            [x.shape[-2:] for x in cls_scores], self.strides, offset=offsets, ranges=self.regress_ranges
        )
        self.unit = grid.point_strides(logits.device)[:, None] if self.norm_on_bbox else 1.0
        self.boxes, self.labels = ([getattr(x, name) for x in batch_gt_instances] for name in ("bboxes", "labels"))
        radius = self.center_sample_radius if self.center_sampling else 0
        decoded = grid.decode(distances * self.unit)
        found = mutual_guidance_assign(grid, decoded, logits, self.boxes, self.labels, center_radius=radius)
        losses = {}
        for name in dict.fromkeys(self.sets):  # the head's loss once for each set
            self.owner = getattr(found, name)
            losses[name] = super().loss_by_feat(
                cls_scores, bbox_preds, centernesses, batch_gt_instances, *rest, **kwargs
            )
        of_class, of_box = (losses[name] for name in self.sets)
        return {**of_box, "loss_cls": of_class["loss_cls"]}

    def get_targets(self, points, batch_gt_instances):
        labels = take(self.owner, self.labels, self.num_classes).split(self.grid.points_per_level, 1)
        distances = self.grid.encode(take(self.owner, self.boxes)) / self.unit
        of_levels = distances.split(self.grid.points_per_level, 1)
        return [x.flatten() for x in labels], [x.flatten(0, 1) for x in of_levels]
