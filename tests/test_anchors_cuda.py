"""The CUDA kernels for anchors give the CPU's results, bit for bit; see test_cuda_kernels.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kernels import check_parity, ending
from scenes import equal
from test_anchors import BAD_BOXES, OBJECT_CASES, AnchorScene, anchor_scene, lay_anchors, scene_around

pytestmark = pytest.mark.slow  # compiling the kernels is

SMALL = {"size": (48, 64), "strides": (16, 32)}
SCENES = {
    "as detectors have them": {"seed": 0, "objects": (7, 0, 3), **SMALL},
    "shuffled": {"seed": 1, "objects": (5,), "shuffle": True, **SMALL},
    "ties everywhere": {"seed": 2, "objects": (40, 9), "step": 4.0, **SMALL},
    "several rounds of objects": {"seed": 3, "objects": (100,), **SMALL},
    "one anchor in the last warp": {"seed": 4, "objects": (3, 2), "size": (8, 88), "strides": (8,)},
}


def objects_of(scene: AnchorScene, form: str) -> list[Any]:
    boxes, labels = scene.gt_boxes, scene.gt_labels
    if form == "padded":
        boxes = torch.nn.utils.rnn.pad_sequence(boxes, batch_first=True, padding_value=20.0)
        labels = torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-1)
        return [boxes, labels, None, None]
    counts = [len(of_image) for of_image in labels]
    offsets = torch.tensor([0, *counts]).cumsum(0) if form == "jagged" else None
    return [torch.cat(boxes), torch.cat(labels), offsets, None if form == "jagged" else counts]


def match(run, scene, form="list", high=0.5, low=0.4, low_quality=1, min_iou=0.0, labels=True) -> torch.Tensor:
    boxes, classes, *rows = objects_of(scene, form)
    settings = (high, low, low_quality, min_iou, 0.5)
    return check_parity(run, "max_iou_assign", scene.anchors, boxes, classes if labels else None, *rows, *settings)[0]


def guide(run, scene, form="list", wanted=None, sigma=2.0, high=0.5, low=0.4, least=1, most=2**31 - 1, activation=0):
    settings = (wanted, sigma, high, low, least, most, 0.5, activation)
    return check_parity(run, "anchor_mutual_guidance_assign", *scene[:3], *objects_of(scene, form), *settings)


@pytest.mark.parametrize("scene", SCENES.values(), ids=SCENES.keys())
def test_max_iou(run, scene):
    scene = anchor_scene(**scene)
    for low_quality in range(4):
        assert low_quality == 0 or (match(run, scene, low_quality=low_quality) >= 0).any()
        match(run, scene, low_quality=low_quality, high=0.7, low=0.3, min_iou=0.3, labels=False)


@pytest.mark.parametrize("scene", SCENES.values(), ids=SCENES.keys())
def test_mutual_guidance(run, scene):
    scene = anchor_scene(**scene)
    assert (guide(run, scene)[1] >= 0).any()
    guide(run, scene, sigma=1.25, least=0, activation=1)
    guide(run, scene, least=3, most=3)
    guide(run, scene, high=0.7, low=0.1)


def test_points_to_be_ignored(run):
    found = guide(run, anchor_scene(10, objects=(12,), **SMALL), high=0.7, low=0.1)
    assert all((owner == -2).any() for owner in (found[0], found[2]))


@pytest.mark.parametrize("form", ["list", "padded", "jagged"])
def test_forms_of_objects_and_counts_of_their_own(run, form):
    scene = anchor_scene(5, objects=(4, 0, 7), **SMALL)
    match(run, scene, form)
    wanted = torch.arange(21).reshape(3, 7) - 3 if form == "padded" else torch.tensor([3, 0, -2, 9] + [1] * 7)
    guide(run, scene, form, wanted=wanted)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_dtypes_and_strides(run, dtype):
    scene = anchor_scene(6, objects=(6, 2), **SMALL)
    columns = [t.to(dtype).transpose(-1, -2).contiguous().transpose(-1, -2) for t in scene[:3]]
    scene = AnchorScene(*columns, *scene[3:])
    match(run, scene)
    guide(run, scene)


@pytest.mark.parametrize("objects", OBJECT_CASES.values(), ids=OBJECT_CASES.keys())
def test_special_objects(run, objects):
    boxes = torch.tensor(objects, dtype=torch.float32).reshape(-1, 4)
    scene = scene_around(lay_anchors((128, 128), (32,)), [boxes], torch.Generator().manual_seed(7), least_label=0)
    for low_quality in (1, 3):
        match(run, scene, low_quality=low_quality)
    guide(run, scene)


def test_special_anchors_predictions_and_scores(run):
    scene = anchor_scene(8, objects=(9,), least_label=0, **SMALL)
    scene.anchors[: len(BAD_BOXES)] = scene.pred_boxes[0, 40 : 40 + len(BAD_BOXES)] = torch.tensor(BAD_BOXES)
    for i, value in enumerate((torch.nan, torch.inf, -torch.inf, -1.0, 2.0)):
        scene.probs[0, i::7] = value
    match(run, scene)
    guide(run, scene)
    guide(run, scene, activation=1)


def test_more_images_than_one_launch_takes(run):
    anchors = lay_anchors((16, 16), (8,))
    boxes = [torch.tensor([[0.0, 0, 9 + b % 7, 16]] * (b % 3)).reshape(-1, 4) for b in range(258)]
    scene = scene_around(anchors, boxes, torch.Generator().manual_seed(9), least_label=0)
    for form in ("list", "jagged"):
        match(run, scene, form)
        guide(run, scene, form)


def test_an_overlap_that_is_subnormal(run):
    # 9e-8 of 1e38: rounded up to the least number there is, above what the areas allow.
    anchor, huge = torch.tensor([[0.0, 0, 3e-4, 3e-4]]), torch.tensor([[0.0, 0, 1e19, 1e19]])
    scene = AnchorScene(anchor, anchor[None], torch.zeros(1, 1, 2), [huge], [torch.tensor([0])])
    for low_quality in range(1, 4):
        assert match(run, scene, low_quality=low_quality).tolist() == [[0]]


def test_a_label_of_no_class_counts_as_probability_0(run):
    scene = anchor_scene(12, objects=(9,), least_label=0, **SMALL)
    odd = torch.arange(9) % 2 == 1
    rows, settings = (None, [9]), (None, 2.0, 0.5, 0.4, 1, 2**31 - 1, 0.5)
    for activation, nothing in ((1, -torch.inf), (0, 0.0)):
        classes = scene.probs.shape[2]
        more = torch.nn.functional.pad(scene.probs, (0, 80), value=nothing)
        boxes, labels = scene.gt_boxes[0], scene.gt_labels[0]
        expected = torch.ops.mgassign.anchor_mutual_guidance_assign(
            scene.anchors, scene.pred_boxes, more, boxes, labels.masked_fill(odd, classes), *rows, *settings, activation
        )
        for label in (classes, -3, 2**40, -(2**63)):
            of = boxes, labels.masked_fill(odd, label)
            found = run("anchor_mutual_guidance_assign", *scene[:3], *of, *rows, *settings, activation)
            assert equal(found, expected), label


@pytest.mark.parametrize("offsets", [[0, 9, 2, 9], [3, 1, 5, 4], [-5, 4, 2**60, 9], [0, 0, 0, 99]], ids=str)
def test_offsets_that_are_none_break_nothing(run, offsets):
    scene = anchor_scene(11, objects=(3, 3, 3), least_label=0, **SMALL)
    boxes, labels, *_ = objects_of(scene, "jagged")
    rows = boxes, labels, torch.tensor(offsets), None
    with ending():
        owner, _ = run("max_iou_assign", scene.anchors, *rows, 0.5, 0.4, 1, 0.0, 0.5, repeatable=False)
        settings = (None, 2.0, 0.5, 0.4, 1, 2**31 - 1, 0.5, 1)
        *owners, num_points, _ = run("anchor_mutual_guidance_assign", *scene[:3], *rows, *settings, repeatable=False)
    assert all(((of >= -2) & (of < 9)).all() for of in (owner, *owners))
    assert ((num_points >= 0) & (num_points <= len(scene.anchors))).all()


def test_places_that_no_anchor_takes_end(run):
    # As in test_cuda_kernels.py: two images share their object.
    anchors = lay_anchors((64, 64), (8,))
    box, elsewhere = [20.0, 20, 40, 40], [300.0, 300, 400, 400]
    predictions = torch.tensor([elsewhere, box, box])[:, None].expand(3, len(anchors), 4)
    rows = torch.tensor([box]), torch.tensor([0]), torch.tensor([0, 1, 0, 1]), None
    settings = (None, 2.0, 0.5, 0.4, 20, 2**31 - 1, 0.5, 1)
    logits = torch.zeros(3, len(anchors), 2)
    with ending():
        *owners, _, _ = run(
            "anchor_mutual_guidance_assign", anchors, predictions, logits, *rows, *settings, repeatable=False
        )
    assert all(((of >= -2) & (of < 1)).all() for of in owners)


@pytest.mark.parametrize("empty", ["no images", "no anchors", "no objects"])
def test_nothing_to_assign(run, empty):
    images, anchors, objects = (
        0 if empty == name else n for name, n in (("no images", 2), ("no anchors", 7), ("no objects", 3))
    )
    boxes, labels = [torch.ones(objects, 4).cumsum(1)] * images, [torch.zeros(objects, dtype=torch.int64)] * images
    if not images:
        boxes, labels = [torch.empty(0, 4)], [torch.empty(0, dtype=torch.int64)]
    tensors = torch.ones(anchors, 4).cumsum(1), torch.ones(images, anchors, 4), torch.ones(images, anchors, 2)
    rows = (torch.cat(boxes), torch.cat(labels), None, [objects] * images)
    check_parity(run, "max_iou_assign", tensors[0], *rows, 0.5, 0.4, 1, 0.0, 0.5)
    check_parity(run, "anchor_mutual_guidance_assign", *tensors, *rows, None, 2.0, 0.5, 0.4, 1, 2**31 - 1, 0.5, 1)
