"""Anchors: max-IoU and Mutual Guidance against the reference, by worked cases, with values that are not ordinary."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mgassign import anchor_mutual_guidance_assign, max_iou_assign, reference
from mgassign.reference import anchors as reference_anchors
from scenes import boxes as any_box
from scenes import equal, objects_in_form, random_boxes
from test_mutual_guidance_assign import BAD_BOXES, OBJECT_CASES

nan, inf = math.nan, math.inf
SHAPES = [(scale * 2**shift, scale / 2**shift) for scale in (1.0, 1.25, 1.6) for shift in (-0.5, 0.0, 0.5)]


class AnchorScene(NamedTuple):
    """A batch: what anchor_mutual_guidance_assign takes, objects as lists, scores as probabilities."""

    anchors: Tensor
    pred_boxes: Tensor
    probs: Tensor
    gt_boxes: list[Tensor]
    gt_labels: list[Tensor]

    def guide(self, **settings):
        return anchor_mutual_guidance_assign(*self, activation="none", **settings)

    def match(self, with_labels: bool = True, **settings):
        return max_iou_assign(
            self.anchors, self.gt_boxes, gt_labels=self.gt_labels if with_labels else None, **settings
        )


def lay_anchors(size: tuple[int, int], strides: tuple[int, ...]) -> Tensor:
    """Nine shapes of four strides at each place, as RetinaNet has them: [A, 4]."""
    levels = []
    for stride in strides:
        y, x = (torch.arange(stride // 2, side, stride, dtype=torch.float32) for side in size)
        center = torch.cartesian_prod(y, x).flip(1)[:, None]
        half = 2 * stride * torch.tensor(SHAPES)
        levels.append(torch.cat([center - half, center + half], dim=2).flatten(0, 1))
    return torch.cat(levels)


def anchor_scene(
    seed: int, objects=(12, 0, 30), size=(160, 192), strides=(8, 16, 32), shuffle=False, step=0.0, least_label=-2
) -> AnchorScene:
    generator = torch.Generator().manual_seed(seed)
    anchors = lay_anchors(size, strides)
    if shuffle:
        anchors = anchors[torch.randperm(len(anchors), generator=generator)]
    return scene_around(anchors, [random_boxes(n, size, generator) for n in objects], generator, step, least_label)


def scene_around(anchors, gt_boxes, generator, step=0.0, least_label=-2) -> AnchorScene:
    """Predictions around the anchors; with a step everything is its multiple, so that ties are frequent."""

    def rounded(values: Tensor) -> Tensor:
        return (values / step).round() * step if step else values

    sides = (anchors[:, 2:] - anchors[:, :2]).repeat(1, 2)
    noise = torch.randn(len(gt_boxes), len(anchors), 4, generator=generator)
    probs = torch.rand(len(gt_boxes), len(anchors), 4, generator=generator)
    return AnchorScene(
        rounded(anchors),
        rounded(anchors + 0.15 * sides * noise),
        rounded(probs) if step else probs**3,
        [rounded(boxes) for boxes in gt_boxes],
        [torch.randint(least_label, 4, (len(boxes),), generator=generator) for boxes in gt_boxes],
    )


@pytest.fixture
def scalar_math(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "build" / "release")
    return pytest.importorskip("mgassign_math", reason="`make math` builds it, for the Python in .venv")


@pytest.fixture
def library_s_rounding(monkeypatch, scalar_math):
    """The reference with the library's own power, whose last bit differs from torch's."""

    def amplified_iou(overlaps: Tensor, probs: Tensor, sigma: float = 2.0) -> Tensor:
        p = probs.float().nan_to_num(nan=0.0).clamp(0, 1)
        power = torch.from_numpy(scalar_math.amplify(overlaps.numpy(), p.numpy(), np.float32(sigma)))
        return torch.where(overlaps > 0, power, 0.0)

    monkeypatch.setattr(reference_anchors, "amplified_iou", amplified_iou)


def check_matching(scene: AnchorScene, with_labels: bool = True, **settings) -> None:
    found = scene.match(with_labels, **settings)
    for b, (boxes, labels) in enumerate(zip(scene.gt_boxes, scene.gt_labels, strict=True)):
        labels = labels if with_labels else None
        owner, iou = reference.max_iou_assign(scene.anchors, boxes, gt_labels=labels, **settings)
        assert torch.equal(found.owner[b], owner)
        assert torch.equal(found.iou[b], iou)


def check_guidance(scene: AnchorScene, **settings) -> int:
    """Asserts that every result is the reference's; how many anchors are positive for localization."""
    found = scene.guide(**settings)
    num_points = found.num_points.split([len(labels) for labels in scene.gt_labels])
    for b, image in enumerate(zip(*scene[1:], strict=True)):
        expected = reference.anchor_mutual_guidance_assign(scene.anchors, *image, activation="none", **settings)
        for name, own, wanted in zip(
            found._fields, (found.cls[b], found.loc[b], found.original[b], num_points[b], found.iou[b]), expected,
            strict=True,
        ):  # fmt: skip
            assert torch.equal(own, wanted), f"{name}: {int((own != wanted).sum())} differ in image {b}"
    return int((found.loc >= 0).sum())


SCENES = {
    "as detectors have them": {"seed": 0},
    "shuffled": {"seed": 1, "shuffle": True},
    "ties everywhere": {"seed": 2, "step": 0.5},
    "ties, shuffled": {"seed": 3, "step": 4.0, "shuffle": True},
    "many objects": {"seed": 4, "objects": (200,)},
    "one anchor in the last tile": {"seed": 5, "size": (8, 88), "strides": (8,), "objects": (3, 2)},
}
MATCHING = [
    {"low_quality": low_quality, "high": high, "low": low, "min_iou": min_iou}
    for low_quality in ("own", "object", "first", "none")
    for high, low, min_iou in ((0.5, 0.4, 0.0), (0.7, 0.3, 0.3), (0.5, 0.5, 0.0))
]
GUIDANCE = [
    {},
    {"sigma": 1.25, "min_points": 0},
    {"num_points": 3, "ignore_share": 0.9},
    {"num_points": 100, "sigma": 6.0},  # more than reach `high` or even `low`
    {"high": 0.7, "low": 0.2, "min_points": 7},
]


@pytest.mark.parametrize("settings", MATCHING, ids=str)
@pytest.mark.parametrize("scene", SCENES.values(), ids=SCENES.keys())
def test_max_iou_equals_the_reference(scene, settings):
    for with_labels in (False, True):
        check_matching(anchor_scene(**scene), with_labels, **settings)


@pytest.mark.usefixtures("library_s_rounding")
@pytest.mark.parametrize("settings", GUIDANCE, ids=str)
@pytest.mark.parametrize("scene", SCENES.values(), ids=SCENES.keys())
def test_mutual_guidance_equals_the_reference(scene, settings):
    check_guidance(anchor_scene(**scene), **settings)


def test_the_reference_s_own_power_differs_by_rounding_alone():
    scene = anchor_scene(6, objects=(40, 40), least_label=0)
    found, positives, differing = scene.guide(), 0, 0
    for b, image in enumerate(zip(*scene[1:], strict=True)):
        loc = reference.anchor_mutual_guidance_assign(scene.anchors, *image, activation="none")[1]
        positives, differing = positives + int((loc >= 0).sum()), differing + int((loc != found.loc[b]).sum())
    assert positives > 500
    assert differing <= 0.001 * positives


@pytest.mark.usefixtures("library_s_rounding")
@given(st.data())
def test_any_anchors_and_objects(data):
    anchors = torch.tensor(data.draw(st.lists(any_box(), min_size=1, max_size=40)))
    objects = [torch.tensor(data.draw(st.lists(any_box(), max_size=6))).reshape(-1, 4) for _ in range(2)]
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**32 - 1)))
    scene = scene_around(anchors, objects, generator, step=0.125)
    check_matching(scene, **data.draw(st.sampled_from(MATCHING)))
    check_guidance(scene, **data.draw(st.sampled_from(GUIDANCE)))


TEN = [0.0, 0, 10, 10]
CASES = {  # anchors, objects, settings, owners
    "above, between, below": ([TEN, [0, 0, 10, 4.5], [0, 0, 10, 3]], [TEN], {}, [0, -2, -1]),
    "exactly high and low": ([[0, 0, 10, 5], [0, 0, 10, 4]], [TEN], {"low_quality": "none"}, [0, -2]),
    "the best, however low": ([[0, 0, 10, 1], [0, 0, 10, 0.5]], [TEN], {}, [0, -1]),
    "all of equal best": ([[0, 0, 10, 1], [0, 9, 10, 10]], [TEN], {}, [0, 0]),
    "the first of equal best": ([[0, 0, 10, 1], [0, 9, 10, 10]], [TEN], {"low_quality": "first"}, [0, -1]),
    "none of the best": ([[0, 0, 10, 1]], [TEN], {"low_quality": "none"}, [-1]),
    "not from min_iou down": ([[0, 0, 10, 1]], [TEN], {"min_iou": 0.25}, [-1]),
    "an object that nothing overlaps": ([TEN, [50, 50, 60, 60]], [TEN, [20, 20, 30, 30]], {}, [0, -1]),
    "best of one, more of another": ([TEN], [TEN, [0, 0, 10, 1]], {}, [0]),
    "the same, to the object": ([TEN], [TEN, [0, 0, 10, 1]], {"low_quality": "object"}, [1]),
    "wanted by two": ([TEN], [[0, 0, 10, 1], [0, 9, 10, 10]], {"low_quality": "object"}, [1]),
    "wanted by two, its own": ([TEN], [[0, 0, 10, 1], [0, 9, 10, 10]], {}, [0]),
    "equal overlaps": ([TEN], [[0, 0, 10, 8], [0, 2, 10, 10]], {"low_quality": "none"}, [0]),
    "no objects": ([TEN], [], {}, [-1]),
}


@pytest.mark.parametrize(("anchors", "objects", "settings", "expected"), CASES.values(), ids=CASES.keys())
def test_max_iou_case(anchors, objects, settings, expected):
    anchors, objects = (torch.tensor(t, dtype=torch.float32).reshape(-1, 4) for t in (anchors, objects))
    assert max_iou_assign(anchors, [objects], **settings).owner[0].tolist() == expected
    assert reference.max_iou_assign(anchors, objects, **settings)[0].tolist() == expected


@pytest.mark.usefixtures("library_s_rounding")
@pytest.mark.parametrize("objects", OBJECT_CASES.values(), ids=OBJECT_CASES.keys())
def test_special_objects(objects):
    boxes = torch.tensor(objects, dtype=torch.float32).reshape(-1, 4)
    scene = scene_around(lay_anchors((128, 128), (8, 16)), [boxes], torch.Generator().manual_seed(7), least_label=0)
    for settings in MATCHING:
        check_matching(scene, with_labels=False, **settings)
    for settings in GUIDANCE:
        check_guidance(scene, **settings)


@pytest.mark.usefixtures("library_s_rounding")
@pytest.mark.parametrize("above", [1.2e-7, 2.4e-7, 1e-6, 1e-5, 1e-4, 1e-3])
def test_sigma_hardly_above_1(above):
    """A certain class lifts nearly every overlap to 1: roundings decide, and the lower anchor has the point."""
    whole = torch.tensor([0.0, 0, 100, 100])
    for height in (30.0, 95.0, 98.0, 98.5, 98.9, 99.99):
        anchors = torch.stack([torch.tensor([0.0, 0, 100, height]), whole])
        for probs in ([1.0, 1.0], [1.0, 0.5], [0.9999, 1.0]):
            scene = AnchorScene(
                anchors, anchors[None], torch.tensor(probs)[None, :, None], [whole[None]], [torch.tensor([0])]
            )
            check_guidance(scene, sigma=1 + above, high=1.0, low=1.0)


@pytest.mark.usefixtures("library_s_rounding")
def test_special_anchors_predictions_and_scores():
    scene = anchor_scene(8, objects=(9,), least_label=0)
    places = torch.randperm(len(scene.anchors), generator=torch.Generator().manual_seed(0))[: len(BAD_BOXES)]
    scene.anchors[places] = torch.tensor(BAD_BOXES)
    scene.pred_boxes[0, places + 1 - 2 * (places + 1 == len(scene.anchors))] = torch.tensor(BAD_BOXES)
    for i, value in enumerate((nan, inf, -inf, -1.0, 2.0)):
        scene.probs[0, i::7] = value
    assert (scene.match().owner[0, places] < 0).all()
    check_matching(scene)
    assert check_guidance(scene)


def test_forms_dtypes_and_strides(scalar_math):
    scene = anchor_scene(9, objects=(5, 0, 8))
    found, matched = scene.guide(), scene.match()
    for form in ("padded", "jagged"):
        boxes, labels = objects_in_form(form, scene.gt_boxes, scene.gt_labels)
        again = anchor_mutual_guidance_assign(*scene[:3], boxes, labels, activation="none")
        assert equal(again[:3], found[:3])
        assert torch.equal(max_iou_assign(scene.anchors, boxes, gt_labels=labels).owner, matched.owner)

    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        narrow = [t.to(dtype) for t in scene[:3]]
        widened = AnchorScene(*(t.float() for t in narrow), *scene[3:])
        columns = [t.transpose(-1, -2).contiguous().transpose(-1, -2).requires_grad_() for t in narrow]
        again = anchor_mutual_guidance_assign(*columns, *scene[3:], activation="none")
        assert equal(again, widened.guide())
        assert not any(result.requires_grad for result in again)
        assert torch.equal(max_iou_assign(columns[0], scene.gt_boxes).owner, widened.match(False).owner)

    logits = scene.probs.logit()
    through_sigmoid = anchor_mutual_guidance_assign(*scene[:2], logits, *scene[3:])
    probs = torch.from_numpy(scalar_math.sigmoid(logits.numpy()))
    assert torch.equal(through_sigmoid.loc, AnchorScene(*scene[:2], probs, *scene[3:]).guide().loc)


def test_images_one_by_one_and_any_number_of_threads():
    scene, before, results = anchor_scene(10, objects=(20, 3, 60), size=(256, 256)), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append((*scene.guide(num_points=20), *scene.match()))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert equal(results[0], other)
    for b in range(3):
        alone = AnchorScene(scene.anchors, *(t[b : b + 1] for t in scene[1:])).guide(num_points=20)
        assert torch.equal(alone.cls[0], results[0][0][b])
        assert torch.equal(alone.loc[0], results[0][1][b])


def test_the_order_of_anchors_changes_nothing_but_ties():
    scene = anchor_scene(11, objects=(15,))
    order = torch.randperm(len(scene.anchors), generator=torch.Generator().manual_seed(1))
    shuffled = AnchorScene(scene.anchors[order], scene.pred_boxes[:, order], scene.probs[:, order], *scene[3:])
    assert torch.equal(shuffled.match().owner, scene.match().owner[:, order])  # of equal anchors, all count
    assert torch.equal(shuffled.match().iou, scene.match().iou[:, order])


def test_counts_of_their_own():
    scene = anchor_scene(12, objects=(4, 3), least_label=0)
    wanted = [torch.tensor([2, 0, -5, 9]), torch.tensor([1, 1, 1])]
    found = scene.guide(num_points=wanted, min_points=0)
    assert found.num_points.tolist() == [2, 0, 0, 9, 1, 1, 1]
    for g, most in enumerate((2, 0, 0, 9)):
        assert max((found.loc[0] == g).sum(), (found.cls[0] == g).sum()) <= most
    assert torch.equal(found.original, scene.guide().original)


@pytest.mark.parametrize("empty", ["no images", "no anchors", "no objects"])
def test_nothing_to_assign(empty):
    images, anchors, objects = (
        0 if empty == name else n for name, n in (("no images", 2), ("no anchors", 7), ("no objects", 3))
    )
    boxes, labels = [torch.ones(objects, 4).cumsum(1)] * images, [torch.zeros(objects, dtype=torch.int64)] * images
    found = anchor_mutual_guidance_assign(
        torch.ones(anchors, 4).cumsum(1), torch.ones(images, anchors, 4), torch.ones(images, anchors, 2), boxes, labels
    )
    matched = max_iou_assign(torch.ones(anchors, 4).cumsum(1), boxes)
    assert found.cls.shape == found.iou.shape == matched.owner.shape == matched.iou.shape == (images, anchors)
    assert found.num_points.shape == (images * objects,)
    assert empty != "no objects" or (matched.owner == -1).all()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"anchors": torch.zeros(5, 3)}, r"anchors: expected shape \[A, 4\]"),
        ({"anchors": torch.zeros(5, 4, dtype=torch.int64)}, "anchors: expected a floating-point tensor"),
        ({"high": 0.3}, "low: expected a finite number above 0, at most 0.3, got 0.4"),
        ({"high": 1.5}, "high: expected a finite number above 0, at most 1"),
        ({"low": 0.0}, "low: expected a finite number above 0"),
        ({"low_quality": "all"}, "low_quality: expected one of"),
        ({"min_iou": -1.0}, "min_iou: expected"),
        ({"ignore_share": 0.0}, "ignore_share: expected"),
        ({"gt_labels": [torch.zeros(2, dtype=torch.int64)]}, "gt_labels: expected as many"),
        (
            {"gt_labels": [torch.tensor([0, 7, -3])]},
            r"gt_labels: expected a label of at least 0, -1 \(padding\) or -2 .* for object 2 of image 0, got -3",
        ),
    ],
    ids=str,
)
def test_errors(changed, message):
    arguments = {"anchors": torch.rand(5, 4), "gt_boxes": [torch.rand(3, 4)], **changed}
    with pytest.raises((TypeError, ValueError), match=message):
        max_iou_assign(arguments.pop("anchors"), arguments.pop("gt_boxes"), **arguments)


@pytest.mark.parametrize(
    ("place", "value", "settings", "message"),
    [
        (1, torch.zeros(1, 4, 4), {}, r"pred_boxes: expected shape \[1, 5, 4\] \(images of gt_boxes, anchors\), got"),
        (2, torch.zeros(1, 4, 2), {}, r"pred_logits: expected shape \[1, 5, C\] \(images of gt_boxes, anchors\), got"),
        (4, [torch.tensor([0, 1, 2])], {}, r"gt_labels: expected a label in \[0, 2\).* for object 2 of image 0, got 2"),
        (0, None, {}, "anchors: expected a tensor"),
        (1, torch.zeros(1, 5, 4), {"sigma": 1.0}, "sigma: expected a finite number above 1"),
        (1, torch.zeros(1, 5, 4), {"low": 0.6}, "low: expected a finite number above 0, at most 0.5, got 0.6"),
        (1, torch.zeros(1, 5, 4), {"min_points": -1}, "min_points: expected at least 0"),
        (1, torch.zeros(1, 5, 4), {"num_points": [torch.ones(2, dtype=torch.int64)]}, "num_points: expected as many"),
    ],
    ids=str,
)
def test_errors_of_mutual_guidance(place, value, settings, message):
    arguments = [
        torch.rand(5, 4),
        torch.rand(1, 5, 4),
        torch.rand(1, 5, 2),
        [torch.rand(3, 4)],
        [torch.tensor([0, 1, 1])],
    ]
    arguments[place] = value
    with pytest.raises((TypeError, ValueError), match=message):
        anchor_mutual_guidance_assign(*arguments, **settings)
