"""ATSS against the reference: worked cases, values that are not ordinary, forms, compilation."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mgassign import AtssAssignment, PointGrid, atss_assign, reference
from scenes import GRIDS, STRIDES, equal, objects_in_form, random_boxes
from scenes import boxes as any_box
from test_mutual_guidance_assign import BAD_BOXES, OBJECT_CASES

SETTINGS = [{}, {"topk": 1}, {"topk": 4, "anchor_scale": 5}, {"topk": 128}, {"topk": 20, "anchor_scale": 0.5}]


def check(grid: PointGrid, boxes: list, labels: list | None = None, **settings) -> AtssAssignment:
    found = atss_assign(grid, boxes, gt_labels=labels, **settings)
    for b, of_image in enumerate(boxes):
        expected = reference.atss_assign(grid, of_image, gt_labels=None if labels is None else labels[b], **settings)
        for name, own, wanted in zip(found._fields, found, expected, strict=True):
            assert torch.equal(own[b], wanted), f"{name}: {int((own[b] != wanted).sum())} differ in image {b}"
    return found


def draw(objects: tuple[int, ...], size=(320, 320), seed=0, step=0.0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    boxes = [random_boxes(count, size, generator) for count in objects]
    return [(of_image / step).round() * step for of_image in boxes] if step else boxes


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("step", [0.0, 0.5, 8.0])
def test_equals_the_reference(settings, step):
    grid = PointGrid.for_image((320, 320), STRIDES)
    found = check(grid, draw((12, 0, 60), seed=1, step=step), **settings)
    assert (found.owner >= 0).sum() > 40 or settings.get("topk") == 1


def test_other_grids():
    for seed, grid in enumerate(GRIDS):
        for settings in SETTINGS:
            check(grid, draw((20, 3), (96, 96), seed), **settings)


def test_sides_of_anchors_are_the_product_rounded_once():
    for stride, anchor_scale in ((8.1, 3.0), (7.3, 5.0), (12.6, 7.0)):
        grid = PointGrid.from_features([(9, 12), (5, 6)], strides=(stride, 2 * stride))
        check(grid, draw((30,), (80, 100), seed=3), anchor_scale=anchor_scale)


FOUR = PointGrid.from_features([(2, 2)], strides=(8,), offset=4)
WHOLE, FIRST = [0.0, 0, 16, 16], [0.0, 0, 8, 8]
CASES = {  # objects, labels, settings, owners of FOUR's points, whose anchors are a stride wide
    "one overlaps more than most": ([FIRST], None, {}, [0, -1, -1, -1]),
    "all overlap alike": ([WHOLE], None, {}, [0, 0, 0, 0]),
    "of equally near ones the first": ([WHOLE], None, {"topk": 2}, [0, 0, -1, -1]),
    "one candidate has no deviation": ([FIRST], None, {"topk": 1}, [-1, -1, -1, -1]),
    "contested, to the higher overlap": ([WHOLE, FIRST], None, {}, [1, 0, 0, 0]),
    "contested, equal overlaps": ([WHOLE, WHOLE], None, {}, [0, 0, 0, 0]),
    "points on the border": ([[4.0, 0, 12, 8]], None, {"topk": 2}, [-1, -1, -1, -1]),
    "points inside by 1/256": ([[4 - 1 / 256, 0, 12 + 1 / 256, 8]], None, {"topk": 2}, [-1, -1, -1, -1]),
    "points inside by 1/64": ([[4 - 1 / 64, 0, 12 + 1 / 64, 8]], None, {"topk": 2}, [0, 0, -1, -1]),
    "the nearest lie outside": ([[-90.0, -90, -20, 30]], None, {}, [-1, -1, -1, -1]),
    "padding": ([WHOLE], [-1], {}, [-1, -1, -1, -1]),
    "a region": ([WHOLE, FIRST], [-2, 0], {}, [1, -2, -2, -2]),
    "no objects": ([], None, {}, [-1, -1, -1, -1]),
}


@pytest.mark.parametrize(("objects", "labels", "settings", "expected"), CASES.values(), ids=CASES.keys())
def test_case(objects, labels, settings, expected):
    boxes = torch.tensor(objects).reshape(-1, 4)
    labels = labels if labels is None else [torch.tensor(labels)]
    assert check(FOUR, [boxes], labels, anchor_scale=1, **settings).owner[0].tolist() == expected


@pytest.mark.parametrize("objects", [*OBJECT_CASES.values(), BAD_BOXES], ids=[*OBJECT_CASES, "no boxes"])
def test_special_objects(objects):
    boxes = torch.tensor(objects, dtype=torch.float32).reshape(-1, 4)
    for settings in SETTINGS:
        check(PointGrid.for_image((128, 128), (8, 16, 32)), [boxes], **settings)


@pytest.mark.parametrize("scale", [1e2, 1e4, 1e6, 1e12, 1e25])
def test_far_away_all_points_are_equally_near(scale):
    # Distances swallow digits: many are equal, in any row and column.
    generator = torch.Generator().manual_seed(0)
    center = (torch.rand(30, 2, generator=generator) - 0.5) * scale
    sides = 2 * center.abs() + 200 * torch.rand(30, 2, generator=generator)
    boxes = torch.cat([center - sides / 2, center + sides / 2], 1)
    grid = PointGrid.for_image((160, 96), (8, 16))
    check(grid, [boxes], topk=5)
    check(grid, [boxes.flip(1).contiguous()], topk=5)
    check(PointGrid.for_image((160, 96), (8, 16), offset=scale), [boxes + scale], topk=7)


@given(st.data())
def test_any_grid_and_objects(data):
    objects = [torch.tensor(data.draw(st.lists(any_box(), max_size=6))).reshape(-1, 4) for _ in range(2)]
    labels = [torch.tensor(data.draw(st.lists(st.integers(-2, 3), min_size=len(t), max_size=len(t)))).long()
              for t in objects]  # fmt: skip
    settings = {"topk": data.draw(st.integers(1, 40)), "anchor_scale": data.draw(st.sampled_from([0.5, 1, 4, 8.0]))}
    grid = data.draw(st.sampled_from([FOUR, *GRIDS]))
    check(grid, objects, data.draw(st.sampled_from([None, labels])), **settings)


def test_forms_and_dtypes():
    grid, boxes = PointGrid.for_image((160, 192), STRIDES[:3]), draw((5, 0, 8), (160, 192), 2)
    labels = [torch.tensor([0, -2, 1, -1, 2]), torch.empty(0, dtype=torch.int64), torch.arange(8) - 2]
    expected = check(grid, boxes, labels)
    assert (expected.owner == -2).any()
    for form in ("padded", "jagged"):
        of_form, its_labels = objects_in_form(form, boxes, labels)
        assert equal(atss_assign(grid, of_form, gt_labels=its_labels), expected)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        narrow = [of_image.to(dtype).requires_grad_() for of_image in boxes]
        again = atss_assign(grid, narrow)
        assert torch.equal(again.owner, atss_assign(grid, [of_image.detach().float() for of_image in narrow]).owner)
        assert not again.iou.requires_grad


def test_images_one_by_one_and_any_number_of_threads():
    grid, boxes = PointGrid.for_image((512, 512), STRIDES), draw((70, 3, 200), (512, 512), 3)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(atss_assign(grid, boxes))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert equal(results[0], other)
    for b, of_image in enumerate(boxes):
        assert torch.equal(atss_assign(grid, [of_image]).owner[0], results[0].owner[b])


def test_translation_by_the_coarsest_stride_moves_the_result_along():
    grid = PointGrid.from_features([(48, 48), (24, 24)], strides=(8, 16))
    box = torch.tensor([[100.0, 120, 171, 190], [140, 100, 200, 260]])
    before, after = (atss_assign(grid, [box + shift]).owner[0] for shift in (0, 32))
    first, moved = before[: 48 * 48].view(48, 48), after[: 48 * 48].view(48, 48)
    assert (first >= 0).any()
    assert torch.equal(first.roll((4, 4), (0, 1)), moved)


@pytest.mark.parametrize("images", [0, 2])
def test_nothing_to_assign(images):
    grid = PointGrid.for_image((16, 24), (8,))
    found = atss_assign(grid, torch.empty(images, 0, 4))
    assert found.owner.shape == found.iou.shape == (images, 6)
    assert (found.owner == -1).all()
    no_points = PointGrid.from_features([(0, 4), (3, 0)], strides=(8, 16))
    assert atss_assign(no_points, [torch.tensor([[0.0, 0, 40, 40]])] * images).owner.shape == (images, 0)


def test_exports():
    grid = PointGrid.for_image((64, 96), STRIDES[:2])

    class Model(torch.nn.Module):
        def forward(self, gt_boxes):
            return atss_assign(grid, gt_boxes, topk=5)

    objects = torch.export.Dim("objects", min=2, max=1000)
    boxes = torch.stack(draw((3, 3), (64, 96)))
    exported = torch.export.export(Model(), (boxes,), dynamic_shapes=({1: objects},))
    more = torch.stack(draw((9, 9), (64, 96), 1))
    found = exported.module()(more)
    assert equal(found, atss_assign(grid, more, topk=5))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"grid": 3}, "grid: expected a PointGrid, got int"),
        ({"gt_boxes": [torch.zeros(2, 3)]}, r"gt_boxes\[0\]: expected shape \[G, 4\]"),
        ({"gt_boxes": torch.zeros(2, 4)}, r"gt_boxes: expected shape \[B, G, 4\]"),
        ({"gt_labels": [torch.zeros(2, dtype=torch.int64)]}, "gt_labels: expected as many"),
        ({"gt_labels": [torch.tensor([0, -3, 1])]}, r"gt_labels: expected a label .* for object 1 of image 0, got -3"),
        ({"gt_labels": torch.zeros(1, 3, dtype=torch.int64)}, "gt_labels: expected the form of gt_boxes"),
        ({"anchor_scale": 0}, "anchor_scale: expected a finite number above 0"),
        ({"anchor_scale": math.inf}, "anchor_scale: expected a finite number"),
        ({"anchor_scale": "8"}, "anchor_scale: expected a number"),
        ({"topk": 0}, "topk: expected 1 to 128, got 0"),
        ({"topk": 129}, "topk: expected 1 to 128, got 129"),
        ({"topk": 9.0}, "topk: expected an int"),
    ],
    ids=str,
)
def test_errors(changed, message):
    arguments = {"grid": FOUR, "gt_boxes": [torch.rand(3, 4)], **changed}
    with pytest.raises((TypeError, ValueError), match=message):
        atss_assign(arguments.pop("grid"), arguments.pop("gt_boxes"), **arguments)
