"""The heads of examples/detectors beside the stock ones: built small, run in two halves, predictions and loss."""

from __future__ import annotations

import copy
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from peers.compiled import stand_in

CHANNELS, NUM_CLASSES = 32, 20
Objects = list[tuple[Tensor, Tensor]]  # of each image boxes [G, 4], xyxy in pixels, and labels [G]


class Head:
    """A head of a project, stock or with Mutual Guidance."""

    package: str
    strides = (8, 16, 32, 64, 128)

    module: nn.Module

    def features(self, size: tuple[int, int], batch: int) -> list[Tensor]:
        """What a backbone would give: maps of as many cells as it takes to cover the image."""
        return [torch.randn(batch, CHANNELS, -(-size[0] // s), -(-size[1] // s)) for s in self.strides]

    def predict(self, size: tuple[int, int], batch: int) -> Any:
        """What the loss takes beside the objects: dicts, lists and tuples of tensors, and other things."""
        raise NotImplementedError

    def loss(self, predictions: Any, objects: Objects) -> dict[str, Tensor]:
        """The terms that are summed up."""
        raise NotImplementedError


class TorchvisionFCOS(Head):
    package = "torchvision"

    def __init__(self, ours: bool, sets: tuple[str, str] | None = None) -> None:
        from torchvision.models.detection.fcos import FCOS

        from torchvision_fcos import MutualFCOS

        backbone = nn.Identity()
        backbone.out_channels = CHANNELS
        self.module = (MutualFCOS if ours else FCOS)(backbone, NUM_CLASSES).train()
        if ours and sets:
            self.module.sets = sets

    def predict(self, size, batch):
        from torchvision.models.detection.image_list import ImageList

        features = self.features(size, batch)
        # The size of the images is all that is looked at.
        anchors = self.module.anchor_generator(ImageList(torch.empty(batch, 0, *size), [size] * batch), features)
        return self.module.head(features), anchors, [f.shape[-2] * f.shape[-1] for f in features]

    def loss(self, predictions, objects):
        targets = [{"boxes": boxes, "labels": labels} for boxes, labels in objects]
        return self.module.compute_loss(targets, *predictions)


class TorchvisionRetinaNet(Head):
    package = "torchvision"

    def __init__(self, ours: bool, sets: tuple[str, str] | None = None) -> None:
        from torchvision.models.detection import retinanet

        from torchvision_retinanet import MutualRetinaNet

        backbone = nn.Identity()
        backbone.out_channels = CHANNELS
        anchors = retinanet._default_anchorgen()
        self.module = (MutualRetinaNet if ours else retinanet.RetinaNet)(
            backbone, NUM_CLASSES, anchor_generator=anchors
        )
        if ours and sets:
            self.module.sets = sets

    def predict(self, size, batch):
        from torchvision.models.detection.image_list import ImageList

        features = self.features(size, batch)
        anchors = self.module.anchor_generator(ImageList(torch.empty(batch, 0, *size), [size] * batch), features)
        return self.module.head(features), anchors

    def loss(self, predictions, objects):
        targets = [{"boxes": boxes, "labels": labels} for boxes, labels in objects]
        return self.module.compute_loss(targets, *predictions)


class UltralyticsYOLO(Head):
    package = "ultralytics"
    strides = (8, 16, 32)
    model = "yolov8n.yaml"

    def __init__(self, ours: bool, sets: tuple[str, str] | None = None) -> None:
        from ultralytics.cfg import get_cfg
        from ultralytics.nn.tasks import DetectionModel

        from ultralytics_yolo import assign_by_mutual_guidance

        self.module = DetectionModel(self.model, nc=NUM_CLASSES, verbose=False).train()
        self.module.args = get_cfg()
        self.module.criterion = self.module.init_criterion()
        if ours:
            assign_by_mutual_guidance(SimpleNamespace(model=self.module))

    def predict(self, size, batch):
        return self.module(torch.rand(batch, 3, *size))

    def loss(self, predictions, objects):
        maps = predictions.get("one2many", predictions)["feats"]
        height, width = (side * self.strides[0] for side in maps[0].shape[-2:])
        boxes = torch.cat([boxes for boxes, _ in objects]) / torch.tensor([width, height] * 2)
        batch = {
            "batch_idx": torch.cat([torch.full((len(of), ), float(b)) for b, (of, _) in enumerate(objects)]),
            "cls": torch.cat([labels for _, labels in objects]).float(),
            "bboxes": torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], 1),
        }  # fmt: skip
        total, _ = self.module.criterion(predictions, batch)
        return dict(zip(("box", "cls", "dfl"), total, strict=True))


class UltralyticsYOLO26(UltralyticsYOLO):
    model = "yolo26n.yaml"


class MmdetHead(Head):
    package = "mmdet"
    types: tuple[str, str]  # stock and ours
    settings: dict[str, Any]

    def __init__(self, ours: bool, sets: tuple[str, str] | None = None) -> None:
        stand_in("mmcv._ext")
        import mmdet.models  # noqa: F401  (registers the heads)
        from mmdet.registry import MODELS

        self.register()
        common = {"num_classes": NUM_CLASSES, "in_channels": CHANNELS, "feat_channels": CHANNELS, "stacked_convs": 1}
        settings = common | copy.deepcopy(self.settings_of(ours))
        self.module = MODELS.build({"type": self.types[ours], **settings}).train()
        self.module.init_weights()
        if ours and sets:
            self.module.sets = sets

    def register(self) -> None:
        raise NotImplementedError

    def settings_of(self, ours: bool) -> dict[str, Any]:
        return self.settings

    def predict(self, size, batch):
        meta = {"img_shape": size, "pad_shape": size, "scale_factor": 1.0}
        return self.module(self.features(size, batch)), [meta] * batch

    def loss(self, predictions, objects):
        from mmengine.structures import InstanceData

        maps, metas = predictions
        instances = [InstanceData(bboxes=boxes, labels=labels) for boxes, labels in objects]
        terms = self.module.loss_by_feat(*maps, instances, metas)
        return {name: sum(value) if isinstance(value, (list, tuple)) else value for name, value in terms.items()}


class MmdetFCOS(MmdetHead):
    types = ("FCOSHead", "MutualFCOSHead")
    settings: ClassVar[dict[str, Any]] = {
        "norm_on_bbox": True,
        "center_sampling": True,
        "loss_bbox": {"type": "GIoULoss", "loss_weight": 1.0},
    }

    def register(self):
        import mmdet_fcos  # noqa: F401


class MmdetFCOSPlain(MmdetFCOS):
    """As in the first FCOS: no centre sampling, distances in pixels."""

    settings: ClassVar[dict[str, Any]] = {}


class MmdetRTMDet(MmdetHead):
    types = ("RTMDetHead", "MutualRTMDetHead")
    strides = (8, 16, 32)
    settings: ClassVar[dict[str, Any]] = {
        "anchor_generator": {"type": "MlvlPointGenerator", "offset": 0, "strides": [8, 16, 32]},
        "bbox_coder": {"type": "DistancePointBBoxCoder"},
        "loss_cls": {"type": "QualityFocalLoss", "use_sigmoid": True, "beta": 2.0, "loss_weight": 1.0},
        "loss_bbox": {"type": "GIoULoss", "loss_weight": 2.0},
        "with_objectness": False,
        "train_cfg": {
            "assigner": {"type": "DynamicSoftLabelAssigner", "topk": 13},
            "allowed_border": -1,
            "pos_weight": -1,
        },
    }

    def register(self):
        import mmdet_rtmdet  # noqa: F401


class MmdetRTMDetSoftLabel(MmdetRTMDet):
    types = ("RTMDetHead", "SoftLabelRTMDetHead")


class MmdetDDOD(MmdetHead):
    types = ("DDODHead", "DDODHead")

    def register(self):
        import mmdet_ddod  # noqa: F401

    def settings_of(self, ours):
        stock = {"type": "ATSSAssigner", "topk": 9}
        mine = {"type": "MutualGuidanceAssigner"}
        return {
            "anchor_generator": {
                "type": "AnchorGenerator",
                "ratios": [1.0],
                "octave_base_scale": 8,
                "scales_per_octave": 1,
                "strides": list(self.strides),
            },
            "bbox_coder": {"type": "DeltaXYWHBBoxCoder", "target_stds": [0.1, 0.1, 0.2, 0.2]},
            "loss_bbox": {"type": "GIoULoss", "loss_weight": 2.0},
            "use_dcn": False,
            "train_cfg": {
                "assigner": {**mine, "set": "cls"} if ours else {**stock, "alpha": 0.8},
                "reg_assigner": {**mine, "set": "loc"} if ours else {**stock, "alpha": 0.5},
                "allowed_border": -1,
                "pos_weight": -1,
            },
        }


class YOLOX(Head):
    package = "yolox"
    strides = (8, 16, 32)

    def __init__(self, ours: bool, sets: tuple[str, str] | None = None) -> None:
        from yolox.models.yolo_head import YOLOXHead

        from yolox_head import MutualYOLOXHead

        self.module = (MutualYOLOXHead if ours else YOLOXHead)(NUM_CLASSES, width=0.125, in_channels=[CHANNELS * 8] * 3)
        self.module.train().initialize_biases(1e-2)

    def predict(self, size, batch):
        taken = []
        self.module.get_losses = lambda *args, **kwargs: taken.append((args, kwargs))
        self.module(self.features(size, batch), imgs=torch.empty(batch, 0, *size))
        del self.module.get_losses
        (imgs, x_shifts, y_shifts, strides, _, outputs, origin_preds), kwargs = taken[0]
        return imgs, x_shifts, y_shifts, strides, outputs, origin_preds, kwargs["dtype"]

    def loss(self, predictions, objects):
        *grid, outputs, origin_preds, dtype = predictions
        rows = [
            torch.cat([labels[:, None], (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], 1)
            for boxes, labels in objects
        ]
        labels = pad_sequence(rows, batch_first=True)
        _, *terms, _ = self.module.get_losses(*grid, labels, outputs, origin_preds, dtype=dtype)
        return dict(zip(("iou", "obj", "cls", "l1"), map(torch.as_tensor, terms), strict=True))


class YOLOXSimOTA(YOLOX):
    def __init__(self, ours: bool, sets: tuple[str, str] | None = None) -> None:
        super().__init__(False)
        if ours:
            from yolox_head import SimOTAYOLOXHead

            self.module.__class__ = SimOTAYOLOXHead


class Detectron2FCOS(Head):
    package = "detectron2"

    def __init__(self, ours: bool, sets: tuple[str, str] | None = None) -> None:
        stand_in("detectron2._C")
        from detectron2.layers import ShapeSpec
        from detectron2.modeling.backbone import Backbone
        from detectron2.modeling.meta_arch.fcos import FCOS, FCOSHead

        from detectron2_fcos import MutualFCOS

        names = [f"p{i}" for i in range(3, 8)]
        shapes = {name: ShapeSpec(channels=CHANNELS, stride=s) for name, s in zip(names, self.strides, strict=True)}

        class Nothing(Backbone):
            def output_shape(self):
                return shapes

            def forward(self, x):
                raise NotImplementedError

        head = FCOSHead(input_shape=list(shapes.values()), num_classes=NUM_CLASSES, conv_dims=[CHANNELS])
        self.module = (MutualFCOS if ours else FCOS)(
            backbone=Nothing(),
            head=head,
            head_in_features=names,
            num_classes=NUM_CLASSES,
            pixel_mean=[0.0] * 3,
            pixel_std=[1.0] * 3,
        ).train()
        if ours and sets:
            self.module.sets = sets

    def predict(self, size, batch):
        features = self.features(size, batch)
        return features, self.module.head(features), size

    def loss(self, predictions, objects):
        from detectron2.structures import Boxes, Instances
        from detectron2.utils.events import EventStorage

        features, maps, size = predictions
        instances = [Instances(size, gt_boxes=Boxes(boxes), gt_classes=labels) for boxes, labels in objects]
        with EventStorage():
            return self.module.forward_training(None, features, maps, instances)


HEADS = (
    TorchvisionFCOS,
    TorchvisionRetinaNet,
    UltralyticsYOLO,
    UltralyticsYOLO26,
    MmdetFCOS,
    MmdetFCOSPlain,
    MmdetRTMDet,
    MmdetDDOD,
    YOLOX,
    Detectron2FCOS,
)
#: Whose losses with both sets `original` are the stock head's, bit for bit.
EXACT = (TorchvisionFCOS, MmdetFCOS, MmdetFCOSPlain, Detectron2FCOS)


def installed(head: type[Head]) -> bool:
    return find_spec(head.package) is not None
