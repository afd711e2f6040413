"""The heads of examples/detectors in their projects. A project that is not installed is skipped by name."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

import mgassign
from heads import (
    EXACT,
    HEADS,
    NUM_CLASSES,
    Head,
    MmdetDDOD,
    MmdetFCOSPlain,
    MmdetRTMDet,
    MmdetRTMDetSoftLabel,
    Objects,
    TorchvisionFCOS,
    TorchvisionRetinaNet,
    UltralyticsYOLO,
    UltralyticsYOLO26,
    YOLOXSimOTA,
)
from mgassign import IGNORE, fcos_assign, mutual_guidance_assign
from scenes import random_boxes, scene

ROOT = Path(__file__).parents[1]
SIZES = ((256, 320), (300, 200), (417, 333))


def needs(package: str) -> None:
    pytest.importorskip(package, reason=f"{package} is not installed: see benchmarks/peers/requirements.txt")


def made(head: type[Head], ours: bool, sets: tuple[str, str] | None = None, seed: int = 0) -> Head:
    needs(head.package)
    torch.manual_seed(seed)
    return head(ours, sets)


def drawn(size: tuple[int, int], counts: tuple[int, ...], seed: int = 0) -> Objects:
    generator = torch.Generator().manual_seed(seed)
    return [
        (random_boxes(count, size, generator), torch.randint(NUM_CLASSES, (count,), generator=generator))
        for count in counts
    ]


def losses(head: Head, size: tuple[int, int], objects: Objects, seed: int = 1) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return head.loss(head.predict(size, len(objects)), objects)


@pytest.mark.parametrize("head", EXACT)
@pytest.mark.parametrize("size", SIZES)
def test_with_the_original_sets_losses_are_the_stock_heads(head, size):
    for seed, counts in enumerate([(7, 0, 3), (30, 1), (0, 0)]):
        objects = drawn(size, counts, seed)
        stock, ours = made(head, False), made(head, True, ("original", "original"))
        expected, found = losses(stock, size, objects), losses(ours, size, objects)
        assert {name: value.item() for name, value in found.items()} == {
            name: value.item() for name, value in expected.items()
        }


def mmdet_losses(of: Head, size: tuple[int, int], ignored: list | None) -> dict[str, Tensor]:
    from mmengine.structures import InstanceData

    torch.manual_seed(1)
    maps, metas = of.predict(size, 2)
    objects = [InstanceData(bboxes=boxes, labels=labels) for boxes, labels in drawn(size, (3, 2))]
    return {name: sum(values) for name, values in of.module.loss_by_feat(*maps, objects, metas, ignored).items()}


def test_soft_labels_do_not_look_at_boxes_to_ignore_as_mmdet_does_not():
    stock, ours = (made(MmdetRTMDetSoftLabel, of) for of in (False, True))
    from mmengine.structures import InstanceData

    everywhere = InstanceData(bboxes=torch.tensor([[-1e4, -1e4, 1e4, 1e4]]))
    for ignored in ([everywhere, None], [InstanceData(), everywhere], [None, None]):
        expected, found = (mmdet_losses(of, SIZES[0], ignored) for of in (stock, ours))
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("head", [MmdetRTMDet, MmdetDDOD])
def test_mmdet_may_say_nothing_of_boxes_to_ignore(head):
    needs("mmdet")
    from mmengine.structures import InstanceData

    def found(ignored: list | None) -> dict[str, Tensor]:
        return mmdet_losses(made(head, True), SIZES[0], ignored)  # a new one each time: DDOD's counts what it has seen

    expected = found(None)
    for nothing in (None, InstanceData()):
        assert found([nothing, nothing]) == expected


# Without centre sampling an object's candidates are its positives already: the sets are one.
@pytest.mark.parametrize("head", [head for head in EXACT if head is not MmdetFCOSPlain])
def test_each_term_is_of_its_own_set(head):
    size, objects = SIZES[0], drawn(SIZES[0], (7, 0, 3))
    found = {
        sets: losses(made(head, True, sets), size, objects)
        for sets in (("cls", "cls"), ("loc", "loc"), ("original", "original"), ("cls", "loc"))
    }
    for name, value in found["cls", "loc"].items():
        own = "cls" if name in ("classification", "loss_cls", "loss_fcos_cls") else "loc"
        if head.package != "detectron2":  # whose normalizer another set has moved
            assert value.item() == found[own, own][name].item()
        assert value.item() != found["original", "original"][name].item()


@pytest.mark.parametrize("head", HEADS)
def test_three_steps(head):
    of = made(head, True)
    optimizer = torch.optim.SGD(of.module.parameters(), 1e-4)
    learnt = set()
    for step, counts in enumerate([(7, 0, 3), (40, 1, 0), (0, 0, 0)]):
        terms = losses(of, SIZES[0], drawn(SIZES[0], counts, step), seed=step)
        optimizer.zero_grad()
        sum(terms.values()).backward()
        gradients = {name: x.grad for name, x in of.module.named_parameters() if x.grad is not None}
        assert all(x.isfinite() for x in terms.values())
        assert all(x.isfinite().all() for x in gradients.values())
        learnt |= {name for name, x in gradients.items() if x.any()}
        optimizer.step()
    names = {name for name, x in of.module.named_parameters() if x.requires_grad}
    assert all(".scale" in name for name in names - learnt)  # of levels too coarse for these objects


@pytest.mark.parametrize("head", [YOLOXSimOTA, MmdetRTMDetSoftLabel])
def test_the_heads_own_assigner_is_replaced_without_a_change_of_losses(head):
    sides = [made(head, ours) for ours in (False, True)]
    optimizers = [torch.optim.SGD(of.module.parameters(), 1e-4) for of in sides]
    for step in range(20):
        objects = drawn(SIZES[0], (7, 1 + step % 3, 20), step)
        expected, found = (losses(of, SIZES[0], objects, seed=step) for of in sides)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)
        for terms, optimizer in zip((expected, found), optimizers, strict=True):
            optimizer.zero_grad()
            sum(terms.values()).backward()
            optimizer.step()


def test_retinanet_with_the_original_sets_has_the_stock_losses_where_no_match_is_forced():
    needs("torchvision")
    stock = made(TorchvisionRetinaNet, False)
    ours = made(TorchvisionRetinaNet, True, ("original", "original"))
    size, differing = SIZES[0], 0
    anchors = stock.predict(size, 1)[1][0]
    inside = anchors[((anchors[:, :2] >= 0) & (anchors[:, 2:] <= min(size))).all(1)]
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        picked = inside[torch.randperm(len(inside), generator=generator)[:7]]
        boxes = picked + 0.05 * torch.randn(picked.shape, generator=generator) * (picked[:, 2:] - picked[:, :2]).repeat(
            1, 2
        )
        objects = [(boxes, torch.arange(7)), (boxes[:0], torch.arange(0))]
        expected, found = losses(stock, size, objects), losses(ours, size, objects)
        matched = mgassign.max_iou_assign(anchors, [boxes]).owner[0]
        predictions = torch.zeros(1, len(anchors), 4), torch.zeros(1, len(anchors), NUM_CLASSES)
        guided = mgassign.anchor_mutual_guidance_assign(anchors, *predictions, [boxes], [torch.arange(7)]).original[0]
        differing += int((matched != guided).sum())
        for name, value in expected.items():
            assert (found[name] == value) == torch.equal(matched, guided), name
    assert differing < 20  # forced: every one of equal overlaps there, the first here


def test_retinanet_s_forced_matches_are_all_that_differs():
    """Objects so small that no anchor reaches 0.5: stock takes all anchors of an object's highest overlap, here the first."""
    needs("torchvision")
    stock = made(TorchvisionRetinaNet, False)
    ours = made(TorchvisionRetinaNet, True, ("original", "original"))
    size = SIZES[0]
    anchors = stock.predict(size, 1)[1][0]
    corner = torch.tensor([[40.0, 40], [104, 72]])
    boxes, labels = torch.cat([corner, corner + 8], 1), torch.arange(2)
    matched, first = (
        mgassign.max_iou_assign(anchors, [boxes], low_quality=low_quality).owner[0] for low_quality in ("own", "first")
    )
    predictions = torch.zeros(1, len(anchors), 4), torch.zeros(1, len(anchors), NUM_CLASSES)
    guided = mgassign.anchor_mutual_guidance_assign(anchors, *predictions, [boxes], [labels]).original[0]
    assert torch.equal(guided, first)
    assert (first >= 0).sum() == 2 < (matched >= 0).sum()
    expected, found = (losses(head, size, [(boxes, labels), (boxes[:0], labels[:0])]) for head in (stock, ours))
    assert all(found[name] != value for name, value in expected.items())


def test_retinanet_has_the_bounds_of_its_matcher():
    needs("torchvision")
    from torchvision.models.detection._utils import Matcher

    stock, ours = (made(TorchvisionRetinaNet, *of) for of in ((False,), (True, ("original", "original"))))
    size, (boxes, labels) = SIZES[0], drawn(SIZES[0], (7,))[0]
    anchors = stock.predict(size, 1)[1][0]
    boxes = anchors[torch.arange(7) * 1001 + 5000]  # each of which one anchor overlaps most
    objects = [(boxes, labels), (boxes[:0], labels[:0])]
    found = []
    for high, low in ((0.5, 0.4), (0.7, 0.3)):
        for of in (stock, ours):
            of.module.proposal_matcher = Matcher(high, low, allow_low_quality_matches=True)
        expected, value = (losses(of, size, objects) for of in (stock, ours))
        assert value == expected
        found.append(value)
    assert found[0] != found[1]


@pytest.mark.parametrize("head", [TorchvisionFCOS, TorchvisionRetinaNet])
def test_torchvision_boxes_are_decoded_in_float32(head, monkeypatch):
    """Also under autocast, where a head's answer has eight bits of mantissa, and points would too."""
    of, size = made(head, True), SIZES[2]
    name = "mutual_guidance_assign" if head is TorchvisionFCOS else "anchor_mutual_guidance_assign"
    module, taken = sys.modules[type(of.module).__module__], []

    def assign(places, boxes, *args, **kwargs):
        taken.append(boxes)
        return getattr(mgassign, name)(places, boxes, *args, **kwargs)

    monkeypatch.setattr(module, name, assign)
    with torch.autocast("cpu", torch.bfloat16):
        predicted = of.predict(size, 1)
        of.loss(predicted, drawn(size, (7,)))
    outputs, (anchors,), *_ = predicted
    (regression,) = outputs["bbox_regression"]
    assert regression.dtype == torch.bfloat16
    decode = of.module.box_coder.decode if head is TorchvisionFCOS else of.module.box_coder.decode_single
    assert torch.equal(taken[0][0], decode(regression.float(), anchors))


@pytest.mark.parametrize("head", [UltralyticsYOLO, UltralyticsYOLO26])
def test_yolo_with_its_own_assignment_trains_as_with_the_stock_assigner(head):
    """Twenty steps on drawn images: the same labels at each, and the same losses but for the last digits.

    Two trainings that differ in the last digits drift apart, the faster the larger their steps: left alone these are 1e-5
    apart at a learning rate of 1e-5 already. So both take each step from the weights that the stock one has reached.
    """
    needs("ultralytics")
    from ultralytics_yolo import assign_task_aligned, criteria_of

    stock, ours = made(head, False), made(head, False)
    stock_assigners = [criterion.assigner for criterion in criteria_of(SimpleNamespace(model=ours.module))]
    assign_task_aligned(SimpleNamespace(model=ours.module))
    count = Counter()
    for name, criterion in enumerate(criteria_of(SimpleNamespace(model=ours.module))):

        def compare(module, arguments, found, name=name):
            expected = stock_assigners[name](*arguments)
            assert [x.shape for x in found] == [x.shape for x in expected]
            if arguments[4].shape[1] > 0:
                assert [x.dtype for x in found] == [x.dtype for x in expected]
                # The stock assigner fills up with points of score 0, from which nothing is learnt.
                teaches = found[3] | (expected[2].amax(-1) > 0)
                assert torch.equal(found[3], expected[3] & teaches)
                for i in (0, 1, 4):
                    assert torch.equal(found[i][teaches], expected[i][teaches])
                count[f"filled up, {name}"] += int((expected[3] & ~teaches).sum())
            torch.testing.assert_close(found[2], expected[2], rtol=0, atol=1e-6)
            count[name] += int(found[3].sum())

        criterion.assigner.register_forward_hook(compare)

    size, optimizers = (128, 160), [torch.optim.SGD(of.module.parameters(), 1e-3) for of in (stock, ours)]
    for step in range(20):
        images, objects = drawn_images(size, (0, 0, 0, 0) if step % 5 == 4 else (3, 0, 6, 1), seed=step)
        terms = []
        ours.module.load_state_dict(stock.module.state_dict())
        for of, optimizer in zip((stock, ours), optimizers, strict=True):
            found = of.loss(of.module(images), objects)
            optimizer.zero_grad()
            sum(found.values()).backward()
            optimizer.step()
            terms.append(torch.stack(list(found.values())).detach())
        torch.testing.assert_close(terms[1], terms[0], rtol=1e-5, atol=0)
    print(dict(count))
    assert len(stock_assigners) == len(criteria_of(SimpleNamespace(model=ours.module)))
    assert all(count[name] > 50 for name in range(len(stock_assigners)))


def drawn_images(size: tuple[int, int], counts: tuple[int, ...], seed: int) -> tuple[Tensor, Objects]:
    """Grey noise with a bright rectangle for each object, its class told by the colour."""
    objects = drawn(size, counts, seed)
    images = torch.rand(len(counts), 3, *size, generator=torch.Generator().manual_seed(seed)) * 0.25
    for image, (boxes, labels) in zip(images, objects, strict=True):
        for (x1, y1, x2, y2), label in zip(boxes.round().int().tolist(), labels.tolist(), strict=True):
            image[label % 3, max(y1, 0) : y2, max(x1, 0) : x2] = (label + 1) / NUM_CLASSES
    return images, objects


def test_torchvision_model_from_images_to_detections():
    """Images of two sizes through torchvision's own transform, and the model copied as trainers do."""
    needs("torchvision")
    from torchvision.models.detection.fcos import FCOS

    from torchvision_fcos import MutualFCOS

    class Backbone(nn.Module):
        out_channels = 32

        def __init__(self) -> None:
            super().__init__()
            self.first, self.next = nn.Conv2d(3, 32, 8, 8), nn.Conv2d(32, 32, 3, 2, 1)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            levels = [self.first(x)]
            for _ in range(4):
                levels.append(self.next(levels[-1]))
            return {str(i): level for i, level in enumerate(levels)}

    torch.manual_seed(0)
    settings = {"num_classes": NUM_CLASSES, "min_size": 200, "max_size": 350}
    ours, stock = MutualFCOS(Backbone(), **settings), FCOS(Backbone(), **settings)
    stock.load_state_dict(ours.state_dict())
    ours = copy.deepcopy(ours)
    ours.sets = ("original", "original")
    images = [torch.rand(3, 240, 330), torch.rand(3, 301, 199)]
    targets = [
        {"boxes": random_boxes(5, image.shape[-2:], torch.Generator().manual_seed(i)), "labels": torch.arange(5)}
        for i, image in enumerate(images)
    ]
    for _ in range(2):
        expected, found = stock(images, copy.deepcopy(targets)), ours(images, copy.deepcopy(targets))
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert len(ours.eval()(images)) == 2


def test_torchvision_grid_of_maps_that_divide_the_image_unevenly():
    of = made(TorchvisionFCOS, True)
    of.predict((320, 256), 1)
    assert of.module.grid.spacings[3:] == ((64.0, 64.0), (106.0, 128.0))


# The points themselves, beside torchvision's matching.

STRIDES = (8, 16, 32, 64, 128)


class Matching:
    """torchvision's matching of a padded image's points, and ours."""

    def __init__(self, size: tuple[int, int]) -> None:
        from torchvision.models.detection.anchor_utils import AnchorGenerator
        from torchvision.models.detection.fcos import FCOS
        from torchvision.models.detection.image_list import ImageList

        from torchvision_fcos import grid_of

        class Matches(nn.Module):
            def compute_loss(self, targets, outputs, anchors, matched):
                return matched

        self.model = FCOS.__new__(FCOS)
        nn.Module.__init__(self.model)
        self.model.center_sampling_radius, self.model.head = 1.5, Matches()
        maps = [(-(-size[0] // s), -(-size[1] // s)) for s in STRIDES]
        self.grid = grid_of(size, maps, STRIDES)
        self.anchors = AnchorGenerator(tuple((s,) for s in STRIDES), ((1.0,),) * 5)(
            ImageList(torch.empty(1, 0, *size), [size]), [torch.empty(1, 0, *cells) for cells in maps]
        )

    def compare(self, boxes: Tensor) -> Counter[str]:
        """How many points differ, and why; the areas and the edges below are where float32 has torchvision's way."""
        theirs = self.model.compute_loss([{"boxes": boxes}], {}, self.anchors, self.grid.points_per_level)[0]
        ours = fcos_assign(self.grid, [boxes]).original[0]
        count = Counter(points=len(ours), positives=int((theirs >= 0).sum()))
        areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        centers = (boxes[:, :2] + boxes[:, 2:]) / 2
        points, reach = self.grid.points(), 1.5 * self.grid.point_strides()
        for j in (theirs != ours).nonzero()[:, 0].tolist():
            t, o = int(theirs[j]), int(ours[j])
            if t >= 0 and o >= 0 and areas[o] < areas[t] and 1e8 - areas[o] == 1e8 - areas[t] and t < o:
                count["areas"] += 1  # told apart by 1e8 - area, of which float32 keeps multiples of 8
            elif t >= 0 and bool(((points[j] == centers[t] - reach[j]) | (points[j] == centers[t] + reach[j])).any()):
                count["edges"] += 1  # the central box's edge, rounded, is the point; the distance to the centre is less
            else:
                count["unexplained"] += 1
        return count


#: The ten shapes most of COCO comes to in torchvision (shorter side 800, padded to 32), and five odd ones.
SHAPES = ((800, 1088), (800, 1216), (1088, 800), (1216, 800), (800, 800), (768, 1344), (800, 1120), (800, 1184), (800, 1024), (800, 1152))  # fmt: skip
ODD_SHAPES = ((608, 608), (320, 256), (427, 640), (333, 517), (736, 1312))


@pytest.mark.parametrize("size", [*SHAPES, *ODD_SHAPES])
def test_points_are_torchvisions(size):
    needs("torchvision")
    matching, count = Matching(size), Counter()
    generator = torch.Generator().manual_seed(0)
    for objects in (1, 5, 20, 60):
        boxes = random_boxes(objects, size, generator)
        for of_image in (boxes, boxes.round()):
            count += matching.compare(of_image)
    assert count["positives"] > 300
    assert count["unexplained"] == 0
    assert count["areas"] + count["edges"] < 0.005 * count["positives"]


@pytest.mark.parametrize("kind", ["real-valued", "whole-pixel"])
@pytest.mark.parametrize("size", [*SHAPES, *ODD_SHAPES])
def test_points_are_torchvisions_on_real_boxes(size, kind, coco_boxes_file, deep, record_property):
    needs("torchvision")
    with np.load(coco_boxes_file) as data:
        starts, extents, all_boxes = data["box_start"], data["image_wh"].astype(float), data["boxes_xyxy"]
    fits = -np.abs(extents[:, 0] / extents[:, 1] - size[1] / size[0])
    images = np.argsort(fits, kind="stable")[::-1]  # those of the most similar shape first
    matching, count = Matching(size), Counter()
    for image in images:
        if count["points"] >= (1_000_000 if deep else 50_000):
            break
        scale = torch.tensor([size[1], size[0]] * 2) / torch.tensor([*extents[image]] * 2)
        boxes = (torch.from_numpy(all_boxes[starts[image] : starts[image + 1]]) * scale).float()
        boxes = boxes.round() if kind == "whole-pixel" else boxes
        boxes = boxes[(boxes[:, 2:] > boxes[:, :2]).all(1)]
        if len(boxes):
            count += matching.compare(boxes)
    record_property("count", dict(count))
    assert count["unexplained"] == 0
    assert count["areas"] + count["edges"] < 0.005 * count["positives"]


# Regions.


@pytest.mark.parametrize("loss", ["binary cross entropy", "focal"])
def test_the_recipe_for_regions_teaches_nothing_there(loss):
    """The README's line for heads that have no channel for points to be ignored."""
    of = scene((128, 128), objects=(4,), num_classes=3)
    labels = [torch.cat([of.gt_labels[0], torch.tensor([IGNORE])])]
    boxes = [torch.cat([of.gt_boxes[0], torch.tensor([[0.0, 0, 128, 128]])])]
    logits = of.pred_logits.requires_grad_()
    found = mutual_guidance_assign(of.grid, of.pred_boxes, logits, boxes, labels)
    ignored = found.cls == IGNORE
    masked = logits.masked_fill((found.cls == IGNORE)[..., None], -100.0)
    if loss == "focal":
        needs("torchvision")
        from torchvision.ops import sigmoid_focal_loss as function
    else:
        function = binary_cross_entropy_with_logits
    terms = function(masked, torch.zeros_like(masked), reduction="none")
    terms.sum().backward()
    assert 0 < ignored.sum() < ignored.numel()
    assert terms[ignored].sum() == 0
    assert logits.grad[ignored].abs().sum() == 0
    assert (logits.grad[~ignored] != 0).all()


@pytest.mark.parametrize("head", [MmdetRTMDet, MmdetDDOD])
def test_boxes_that_mmdet_ignores_are_regions(head):
    of, size = made(head, True), SIZES[0]
    from mmengine.structures import InstanceData

    torch.manual_seed(1)
    maps, metas = of.predict(size, 2)
    scores = [x.detach().requires_grad_() for x in maps[0]]
    whole = torch.tensor([[-1e4, -1e4, 1e4, 1e4]])
    objects = [InstanceData(bboxes=boxes, labels=labels) for boxes, labels in drawn(size, (3, 2))]
    ignored = [InstanceData(bboxes=boxes) for boxes in (whole, whole[:0])]
    terms = of.module.loss_by_feat(scores, *maps[1:], objects, metas, ignored)
    sum(sum(term) for term in terms.values()).backward()
    taught = torch.cat([x.grad.flatten(2).abs().sum(1) for x in scores], 1) > 0  # [B, P]
    assert taught[1].all()
    assert 0 < taught[0].sum() < 0.2 * taught.shape[1]


@pytest.mark.parametrize(
    ("model", "assigner"),
    [
        ("yolo11n-obb.yaml", "RotatedTaskAlignedAssigner"),
        ("yolo26n-seg.yaml", "SegTaskAlignedAssigner"),
        ("yolo26n-pose.yaml", "PoseTaskAlignedAssigner"),
    ],
)
def test_yolo_heads_that_assign_otherwise_are_refused(model, assigner):
    needs("ultralytics")
    from ultralytics import YOLO
    from ultralytics.cfg import get_cfg

    from ultralytics_yolo import assign_by_mutual_guidance, assign_task_aligned

    module = YOLO(model).model.train()
    module.args = get_cfg()
    for callback in (assign_task_aligned, assign_by_mutual_guidance):
        with pytest.raises(TypeError, match=f"expected a head whose assigner is a TaskAlignedAssigner, got {assigner}"):
            callback(SimpleNamespace(model=module))
        with pytest.raises(TypeError, match="expected a head whose assigner is a TaskAlignedAssigner, got NoneType"):
            callback(SimpleNamespace(model=SimpleNamespace(criterion=nn.CrossEntropyLoss())))


# A whole training.

TRAINING = """
import sys
from pathlib import Path
from ultralytics import YOLO
import ultralytics_yolo

folder, model, assigner, callback = Path(sys.argv[1]), YOLO(sys.argv[2]), *sys.argv[3:]
model.add_callback("on_train_start", getattr(ultralytics_yolo, callback))
model.train(data=folder / "data.yaml", epochs=2, imgsz=96, batch=4, device="cpu", workers=0, plots=False, project=folder,
            name="run", amp=False, verbose=False)
for criterion in ultralytics_yolo.criteria_of(model.trainer):
    assert isinstance(criterion.assigner, getattr(ultralytics_yolo, assigner))
"""
LOADING = """
import sys
sys.modules["mgassign"] = sys.modules["ultralytics_yolo"] = None
from ultralytics import YOLO
for name in ("last", "best"):
    YOLO(f"{sys.argv[1]}/run/weights/{name}.pt")(f"{sys.argv[1]}/images/0.png", imgsz=96, verbose=False)
"""


@pytest.mark.parametrize("model", ["yolov8n.yaml", "yolo26n.yaml"])
@pytest.mark.parametrize(
    "ours", [("MutualAssigner", "assign_by_mutual_guidance"), ("AlignedAssigner", "assign_task_aligned")]
)
def test_ultralytics_trains_and_its_checkpoints_load_without_mgassign(model, ours, tmp_path):
    needs("ultralytics")
    from PIL import Image

    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    generator = np.random.default_rng(0)
    for i in range(8):
        picture = generator.integers(0, 60, (96, 96, 3), dtype=np.uint8)
        rows = []
        for label, (x, y) in enumerate(generator.integers(0, 48, (i % 3, 2))):  # some images are empty
            picture[y : y + 40, x : x + 32, label % 3] = 255
            rows.append(f"{label} {(x + 16) / 96} {(y + 20) / 96} {32 / 96} {40 / 96}")
        Image.fromarray(picture).save(tmp_path / f"images/{i}.png")
        (tmp_path / f"labels/{i}.txt").write_text("\n".join(rows))
    (tmp_path / "data.yaml").write_text(f"path: {tmp_path}\ntrain: images\nval: images\nnames: [a, b]\n")
    paths = os.pathsep.join(map(str, (Path(mgassign.__file__).parents[1], ROOT / "examples/detectors")))
    environment = {**os.environ, "YOLO_CONFIG_DIR": str(tmp_path), "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    for script in (TRAINING, LOADING):
        done = subprocess.run(
            [sys.executable, "-c", script, tmp_path, model, *ours],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
