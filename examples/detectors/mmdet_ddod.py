"""Mutual Guidance in mmdet 3.3's DDOD, which has an assigner for each task: by configuration alone.

After ``custom_imports = dict(imports=["mmdet_ddod"])``:

    model = dict(train_cfg=dict(
        assigner=dict(type="MutualGuidanceAssigner", set="cls"),
        reg_assigner=dict(type="MutualGuidanceAssigner", set="loc")))

For any head with one prior in a cell, ``scale`` strides wide. mmdet hands an assigner one image and no sizes of feature
maps: these are read off the priors, for which a GPU is waited for, and each set is a call. Boxes that the data set says
to ignore are regions.
"""

import torch
from mmdet.models.task_modules.assigners import AssignResult, BaseAssigner
from mmdet.registry import TASK_UTILS
from mmdet.structures.bbox import bbox_overlaps

from mgassign import IGNORE, PointGrid, mutual_guidance_assign, take


@TASK_UTILS.register_module()
class MutualGuidanceAssigner(BaseAssigner):
    def __init__(self, set, scale=8, **settings):
        self.set, self.scale, self.settings = set, scale, settings

    def grid_of(self, priors, num_level_priors):
        sizes, strides, offsets = [], [], []
        for level in priors.split(num_level_priors):
            (x1, y1, x2, y2), (last_x1, last_y1, _, _) = level[[0, -1]].tolist()
            strides.append((x2 - x1) / self.scale)
            sizes.append([round((last - first) / strides[-1]) + 1 for first, last in ((y1, last_y1), (x1, last_x1))])
            offsets.append(((y1 + y2) / 2, (x1 + x2) / 2))
        grid = PointGrid.from_features(sizes, strides, offset=offsets)
        if grid.points_per_level != tuple(num_level_priors):
            raise ValueError("priors: expected whole feature maps, got some without the priors outside of the image")
        return grid

    def assign(self, pred_instances, gt_instances, gt_instances_ignore=None, num_level_priors=None, **kwargs):
        predicted, boxes, labels = pred_instances.bboxes, gt_instances.bboxes, gt_instances.labels
        if gt_instances_ignore is not None and "bboxes" in gt_instances_ignore:
            boxes = torch.cat([boxes, gt_instances_ignore.bboxes])
            labels = torch.cat([labels, labels.new_full((len(gt_instances_ignore),), IGNORE)])
        grid = self.grid_of(pred_instances.priors, num_level_priors)
        found = mutual_guidance_assign(
            grid, predicted[None], pred_instances.scores[None], [boxes], [labels], **self.settings
        )
        owner = getattr(found, self.set)
        overlaps = bbox_overlaps(predicted, take(owner, [boxes])[0], is_aligned=True)
        # mmdet counts objects from 1; 0 is background, -1 ignored
        of_points = torch.where(owner[0] >= 0, overlaps, 0), take(owner, [labels], -1)[0]
        return AssignResult(len(gt_instances), owner[0] + 1, of_points[0], labels=of_points[1])
