"""Mutual Guidance on anchors, in torchvision's RetinaNet.

    stock = retinanet_resnet50_fpn_v2(weights_backbone="DEFAULT", num_classes=21)
    model = MutualRetinaNet(stock.backbone, 21, anchor_generator=stock.anchor_generator, head=stock.head)

The main paper's method: as many positive and ignored anchors as by overlap with the anchors, chosen by the regressed
boxes for class and by the amplified overlap for the box. From the building blocks, an image at a time, at the price of
[A, G] matrices. Checkpoints are RetinaNet's own.
"""

import torch
from torchvision.models.detection.retinanet import RetinaNet

from mgassign import box_iou, topk_per_object


@torch.no_grad()
def mutual_guidance_anchors(anchors, boxes, logits, gt_boxes, gt_labels, sigma=2.0, positive=0.5, ignored=0.4):
    """Owners of A anchors, int64 [A] each, for class and for box: an object, -1 background, -2 to be ignored."""
    static, regressed = box_iou(anchors, gt_boxes), box_iou(boxes, gt_boxes)
    amplified = static ** ((sigma - logits[:, gt_labels].float().sigmoid()) / sigma)
    areas, objects = (gt_boxes[:, 2:] - gt_boxes[:, :2]).prod(1), torch.arange(len(gt_boxes), device=anchors.device)
    if len(gt_boxes):  # the best anchor of an object is its own, whatever the overlap
        for scores in (static, regressed, amplified):
            scores[scores.argmax(0), objects] = 1.0
    owner = topk_per_object(static, torch.full_like(objects, len(anchors)), areas)
    best = static.gather(1, owner.clamp(min=0)[:, None])[:, 0] if len(gt_boxes) else static.new_zeros(len(anchors))
    counts = [((owner == objects[:, None]) & (best >= least)).sum(1) for least in (positive, ignored)]
    cls, cls_or_ignored = (topk_per_object(regressed, k, areas) for k in counts)
    return torch.where((cls < 0) & (cls_or_ignored >= 0), -2, cls), topk_per_object(amplified, counts[0], areas)


class MutualRetinaNet(RetinaNet):
    def compute_loss(self, targets, head_outputs, anchors):
        owners = []
        for target, of_image, logits, deltas in zip(
            targets, anchors, head_outputs["cls_logits"], head_outputs["bbox_regression"], strict=True
        ):
            boxes = self.box_coder.decode_single(deltas.detach(), of_image)
            owners.append(mutual_guidance_anchors(of_image, boxes, logits, target["boxes"], target["labels"]))
        of_class, of_box = zip(*owners, strict=True)
        return {
            "classification": self.head.classification_head.compute_loss(targets, head_outputs, of_class),
            "bbox_regression": self.head.regression_head.compute_loss(targets, head_outputs, anchors, of_box),
        }
