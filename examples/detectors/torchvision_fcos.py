"""Mutual Guidance in torchvision's FCOS.

    stock = fcos_resnet50_fpn(weights_backbone="DEFAULT", num_classes=21)
    model = MutualFCOS(stock.backbone, num_classes=21)     # anything that FCOS takes; then train it as before

Checkpoints are FCOS's own, either way. ``MutualFCOS.sets`` says which of an assignment's sets class and box learn from;
with ``("original", "original")`` the losses are FCOS's, bit for bit. A target whose label is ``mgassign.IGNORE`` is a region:
it gets no points.
"""

import math

import torch
from torchvision.models.detection.fcos import FCOS

from mgassign import PointGrid, mutual_guidance_assign


def grid_of(image_size, feature_sizes, anchor_sizes):
    """torchvision's points: ``image // map`` apart in each direction from the corner on, strict about a level's range."""
    (height, width), infinity = image_size, torch.tensor(math.inf)
    ranges = torch.tensor([[4.0 * s, 8.0 * s] for s in anchor_sizes]).nextafter(torch.stack([infinity, -infinity]))
    ranges[0, 0], ranges[-1, 1] = 0.0, infinity
    spacing = [(height // rows, width // columns) for rows, columns in feature_sizes]
    return PointGrid.from_features(feature_sizes, anchor_sizes, spacing=spacing, offset=0, ranges=ranges)


class MutualFCOS(FCOS):
    sets = ("cls", "loc")

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.anchor_generator.register_forward_hook(self.note_grid)  # compute_loss is not told the sizes of the maps

    def note_grid(self, anchor_generator, images_and_features, anchors):
        images, features = images_and_features
        sizes = [size for (size,) in anchor_generator.sizes]
        self.grid = grid_of(images.tensors.shape[-2:], [f.shape[-2:] for f in features], sizes)

    def compute_loss(self, targets, head_outputs, anchors, num_anchors_per_level):
        boxes, labels = ([target[name] for target in targets] for name in ("boxes", "labels"))
        # In float32: the coder rounds anchors to what autocast makes of the distances.
        decoded = self.box_coder.decode(head_outputs["bbox_regression"].float(), torch.stack(anchors))
        radius = self.center_sampling_radius
        found = mutual_guidance_assign(
            self.grid, decoded, head_outputs["cls_logits"], boxes, labels, center_radius=radius
        )
        of_class, of_box = (list(getattr(found, name)) for name in self.sets)
        losses = self.head.compute_loss(targets, head_outputs, anchors, of_class)
        if self.sets[0] != self.sets[1]:  # the head's loss once more, for one class alone: its term is not wanted
            one_class = {**head_outputs, "cls_logits": head_outputs["cls_logits"][..., :1]}
            targets = [{"boxes": b, "labels": torch.zeros_like(x)} for b, x in zip(boxes, labels, strict=True)]
            boxes_alone = self.head.compute_loss(targets, one_class, anchors, of_box)
            losses = {**boxes_alone, "classification": losses["classification"]}
        return losses
