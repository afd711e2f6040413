"""Mutual Guidance in mmdet 3.3's RTMDet, and RTMDet's own dynamic soft labels without their waits.

In the configuration, after ``custom_imports = dict(imports=["mmdet_rtmdet"])``:

    model = dict(bbox_head=dict(type="MutualRTMDetHead"))     # or MutualRTMDetSepBNHead; the rest as before

The head has one set of positives: its loss runs once with each of ``sets`` and every term is taken from its own. Class
and box are weighed by the overlap of predicted box and object, as by RTMDet's own assigner. Boxes that the data
set says to ignore are regions: class learns nothing there.

``SoftLabelRTMDetHead`` and ``SoftLabelRTMDetSepBNHead`` have the labels and losses of the heads they are named after, for a
batch in one call; the ``assigner`` of their configuration is not asked. Like it they do not look at boxes to ignore.
"""

import torch
from mmdet.models.dense_heads import RTMDetHead, RTMDetSepBNHead
from mmdet.models.utils import images_to_levels
from mmdet.registry import MODELS
from mmdet.structures.bbox import bbox_overlaps

from mgassign import IGNORE, PointGrid, mutual_guidance_assign, soft_label_assign, take


class Assigned:
    sets = ("cls", "loc")
    regions = True
    assign = staticmethod(mutual_guidance_assign)

    def loss_by_feat(self, cls_scores, *rest, **kwargs):
        generator, sizes = self.prior_generator, [x.shape[-2:] for x in cls_scores]
        strides = [stride for stride, _ in generator.strides]
        self.grid = PointGrid.from_features(sizes, strides, offset=[generator.offset * s for s in strides])
        losses, self.found = {}, None
        for name in dict.fromkeys(self.sets):
            self.set = name
            losses[name] = super().loss_by_feat(cls_scores, *rest, **kwargs)
        of_class, of_box = (losses[name] for name in self.sets)
        return {**of_box, "loss_cls": of_class["loss_cls"]}

    def get_targets(self, logits, decoded, priors, valid, objects, metas, batch_gt_instances_ignore=None, **kwargs):
        logits, decoded = logits.detach(), decoded.detach()
        valid = torch.stack([torch.cat(flags) for flags in valid])  # [B, P]: not in the padding
        ignored = batch_gt_instances_ignore if self.regions and batch_gt_instances_ignore else [None] * len(objects)
        regions = [x.bboxes if x and "bboxes" in x else y.bboxes[:0] for x, y in zip(ignored, objects, strict=True)]
        pairs = list(zip(objects, regions, strict=True))
        boxes = [torch.cat([x.bboxes, ignored]) for x, ignored in pairs]
        labels = [torch.cat([x.labels, x.labels.new_full((len(ignored),), IGNORE)]) for x, ignored in pairs]
        if self.found is None:  # in the first of the two runs
            self.found = self.assign(self.grid, decoded, logits, boxes, labels)
        owner = torch.where(valid, getattr(self.found, self.set), IGNORE)
        targets = take(owner, boxes)
        quality = torch.where(owner >= 0, bbox_overlaps(decoded, targets, is_aligned=True), 0)
        of_points = take(owner, labels, self.num_classes), (owner != IGNORE).float(), targets, quality
        of_levels = [images_to_levels(list(x), list(self.grid.points_per_level)) for x in of_points]
        return (priors, *of_levels, None)


@MODELS.register_module()
class MutualRTMDetHead(Assigned, RTMDetHead):
    pass


@MODELS.register_module()
class MutualRTMDetSepBNHead(Assigned, RTMDetSepBNHead):
    pass


class SoftLabels(Assigned):
    sets = ("owner", "owner")
    regions = False  # mmdet's assigner does not look at them: what lies there is background
    assign = staticmethod(soft_label_assign)


@MODELS.register_module()
class SoftLabelRTMDetHead(SoftLabels, RTMDetHead):
    pass


@MODELS.register_module()
class SoftLabelRTMDetSepBNHead(SoftLabels, RTMDetSepBNHead):
    pass
