"""Mutual Guidance on anchors, in torchvision's RetinaNet.

    stock = retinanet_resnet50_fpn_v2(weights_backbone="DEFAULT", num_classes=21)
    model = MutualRetinaNet(stock.backbone, 21, anchor_generator=stock.anchor_generator, head=stock.head)

The main paper's method: as many positive and ignored anchors as by overlap with the anchors, chosen by the regressed
boxes for class and by the amplified overlap for the box. Checkpoints are RetinaNet's own.

With both ``sets`` "original" the losses are RetinaNet's but for its forced matches: there every anchor that shares an
object's highest overlap goes to the object it overlaps most itself, here the first of them to that object.
"""

import torch
from torchvision.models.detection.retinanet import RetinaNet

from mgassign import anchor_mutual_guidance_assign


class MutualRetinaNet(RetinaNet):
    sets = ("cls", "loc")  # of an Assignment: for the class, for the box

    def compute_loss(self, targets, head_outputs, anchors):
        shared = anchors[0]  # images of a batch are padded to one size
        with torch.no_grad():
            # In float32: the coder rounds anchors to what autocast makes of the regression.
            regression = head_outputs["bbox_regression"].float()
            predicted = torch.stack([self.box_coder.decode_single(of_image, shared) for of_image in regression])
        boxes, labels = ([target[name] for target in targets] for name in ("boxes", "labels"))
        bounds = {"high": self.proposal_matcher.high_threshold, "low": self.proposal_matcher.low_threshold}
        found = anchor_mutual_guidance_assign(shared, predicted, head_outputs["cls_logits"], boxes, labels, **bounds)
        of_class, of_box = (getattr(found, name).unbind() for name in self.sets)
        return {
            "classification": self.head.classification_head.compute_loss(targets, head_outputs, of_class),
            "bbox_regression": self.head.regression_head.compute_loss(targets, head_outputs, anchors, of_box),
        }
