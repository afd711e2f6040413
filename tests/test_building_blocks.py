"""box_iou, amplified_centerness and topk_per_object: worked by hand and against the reference."""

from __future__ import annotations

import math

import pytest
import torch

from agreement import RELATIVE_ERROR
from mgassign import PointGrid, amplified_centerness, box_iou, reference, topk_per_object
from scenes import GRIDS, random_boxes

nan, inf = math.nan, math.inf
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# box_iou


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "columns"), [(0, 0), (0, 3), (3, 0), (1, 1), (257, 65), (1000, 7)])
def test_box_iou_equals_the_reference(rows, columns, dtype):
    boxes = random_boxes(rows, (300, 400), generator(1)).to(dtype)
    gt_boxes = random_boxes(columns, (300, 400), generator(2)).to(dtype)
    assert torch.equal(box_iou(boxes, gt_boxes), reference.box_iou(boxes, gt_boxes))


# In turn each coordinate, and it alone, is no ordinary number; then sides that are none.
NO_BOXES = [[value if i == side else corner for i, corner in enumerate((0.0, 0.0, 9.0, 9.0))]
            for side in range(4) for value in (nan, inf, -inf)]  # fmt: skip
NO_BOXES += [
    [9.0, 0, 0, 9],
    [0.0, 0, 0, 9],
    [0.0, 0, 9, 0],
    [0.0, 9, 9, 0],
    [-inf, -inf, inf, inf],
    [-inf, 0, inf, 9],
    [0, -inf, 9, inf],
]


def test_box_iou_of_boxes_that_are_none():
    none = torch.tensor(NO_BOXES)
    some = torch.tensor([[0.0, 0, 9, 9], [-9, -9, 99, 99]])
    assert (box_iou(none, some) == 0).all()
    assert (box_iou(some, none) == 0).all()
    assert (box_iou(none, none) == 0).all()
    assert (box_iou(some, some).diagonal() == 1).all()


def test_box_iou_of_any_strides():
    boxes = random_boxes(50, (300, 400), generator(3))
    columns = boxes.T.contiguous().T
    assert torch.equal(box_iou(columns, columns[::2]), box_iou(boxes, boxes[::2].contiguous()))


# amplified_centerness


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("level_gate", [True, False])
@pytest.mark.parametrize("grid", GRIDS, ids=["three levels", "five levels", "own ranges", "fine", "spaced"])
def test_amplified_centerness_is_the_reference_s_but_for_rounding(grid, level_gate, dtype):
    boxes = torch.cat([random_boxes(9, (100, 100), generator(4)), torch.tensor([[9.0, 9, 9, 20], [0, nan, 9, 9]])])
    probs = torch.rand(grid.num_points, len(boxes), generator=generator(5)).to(dtype)
    found = amplified_centerness(grid, boxes, probs, 1.5, level_gate)
    expected = reference.amplified_centerness(grid, boxes, probs, 1.5, level_gate)
    assert torch.equal(found > 0, expected > 0)
    margin = RELATIVE_ERROR * (1 + expected.clamp(min=1e-30).log().abs())
    assert ((found - expected).abs() <= 2 * margin * expected).all()


def test_amplified_centerness_by_hand():
    grid = PointGrid.from_features([(1, 1)], strides=(8,), offset=4)
    box = torch.tensor([[0.0, 0.0, 20.0, 8.0]])  # l 4, r 16, t 4, b 4: centerness 1/2
    for p, sigma, expected in [(0.0, 2.0, 0.5), (1.0, 2.0, 0.5**0.5), (0.5, 2.0, 0.5**0.75), (1.0, 4.0, 0.5**0.75)]:
        assert amplified_centerness(grid, box, torch.tensor([[p]]), sigma).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("level_gate", [True, False])
def test_amplified_centerness_of_boxes_that_are_none(level_gate):
    none, grid = torch.tensor(NO_BOXES), PointGrid.for_image((16, 16), strides=(4, 8))
    for p in (0.0, 0.5, 1.0):
        probs = torch.full((grid.num_points, len(none)), p)
        assert (amplified_centerness(grid, none, probs, level_gate=level_gate) == 0).all()


def test_amplified_centerness_never_falls_with_the_score():
    grid = GRIDS[0]
    boxes = random_boxes(1, (96, 96), generator(6))
    p = torch.linspace(0, 1, 20_001)
    point = int(amplified_centerness(grid, boxes, torch.zeros(grid.num_points, 1))[:, 0].argmax())
    copies = PointGrid.from_features([(1, 1)], strides=(8,), offset=0, ranges=[(-1, inf)])
    here = boxes - grid.points()[point].repeat(2)
    scores = torch.stack([amplified_centerness(copies, here, q.reshape(1, 1), 1.01)[0, 0] for q in p[::50]])
    assert (scores.diff() >= 0).all()


# topk_per_object


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("points", "objects"), [(0, 0), (0, 2), (5, 0), (1, 1), (300, 7), (2000, 90)])
def test_topk_equals_the_reference(points, objects, dtype):
    # Few distinct values, so that ties are everywhere.
    scores = (torch.rand(points, objects, generator=generator(7)) * 9).round().to(dtype) / 8
    k = torch.randint(0, 9, (objects,), generator=generator(8))
    areas = torch.randint(1, 4, (objects,), generator=generator(9)).float()
    assert torch.equal(topk_per_object(scores, k, areas), reference.topk_per_object(scores, k, areas))


# Each: scores [P][G], k, areas, the owners expected.
TOPK_CASES = {
    "highest score wins the point": ([[0.2, 0.3]], [1, 1], [1, 1], [1]),
    "equal scores: the smaller area": ([[0.5, 0.5]], [1, 1], [2, 1], [1]),
    "equal scores and areas: the lower index": ([[0.5, 0.5]], [1, 1], [1, 1], [0]),
    "an area of NaN counts as the largest": ([[0.5, 0.5]], [1, 1], [nan, inf], [1]),
    "an infinite area is larger than any other": ([[0.5, 0.5]], [1, 1], [inf, 3.4028234663852886e38], [1]),
    "two areas of NaN: the lower index": ([[0.5, 0.5]], [1, 1], [nan, nan], [0]),
    "equal scores: the lower point": ([[0.5], [0.5], [0.5]], [2], [1], [0, 0, -1]),
    "the later point is better": ([[0.5], [0.6], [0.7]], [2], [1], [-1, 0, 0]),
    "k of 0, and below 0": ([[0.5, 0], [0, 0.5]], [0, -3], [1, 1], [-1, -1]),
    "k above the number of points": ([[0.5], [0.0], [0.1]], [2**62], [1], [0, -1, 0]),
    "scores of 0 and below are no scores": ([[0.0], [-1.0], [-inf]], [3], [1], [-1, -1, -1]),
    "NaN is no score": ([[nan, 0.1], [nan, nan]], [2, 2], [1, 1], [1, -1]),
    "infinity is the highest": ([[inf], [3e38]], [1], [1], [0, -1]),
    "who loses a point does not get another's": ([[0.9, 0.8], [0.1, 0.0]], [1, 1], [1, 1], [0, -1]),
    "a k below 0 before a k above": ([[0.5, 0.4], [0.1, 0.6], [0.0, 0.9], [0.0, 0.7]], [-3, 2], [1, 1], [-1, -1, 1, 1]),
    "a k below 0 between others": (
        [[0.9, 0.0, 0.0], [0.8, 0.0, 0.0], [0.7, 0.0, 0.0], [0.0, 0.0, 0.3], [0.0, 0.0, 0.4], [0.0, 0.5, 0.4]],
        [2, -2, 2],
        [1, 1, 1],
        [0, 0, -1, 2, 2, -1],
    ),
    "an area a unit of the last place smaller": ([[0.5, 0.5]], [1, 1], [1024.0, 1024.0 - 2.0**-14], [1]),
    "an area a unit of the last place larger": ([[0.5, 0.5]], [1, 1], [1.0, 1.0 + 2.0**-23], [0]),
    "an object that may keep none still wins its points": ([[0.9, 0.8]], [0, 1], [1, 1], [-1]),
}


@pytest.mark.parametrize(("scores", "k", "areas", "expected"), TOPK_CASES.values(), ids=TOPK_CASES.keys())
def test_topk_case(scores, k, areas, expected):
    arguments = torch.tensor(scores), torch.tensor(k), torch.tensor(areas, dtype=torch.float32)
    assert topk_per_object(*arguments).tolist() == expected
    assert reference.topk_per_object(*arguments).tolist() == expected


def test_topk_rounds_areas_to_float32():
    arguments = torch.tensor([[0.5, 0.5]]), torch.tensor([1, 1]), torch.tensor([1 + 1e-12, 1.0], dtype=torch.float64)
    assert topk_per_object(*arguments).tolist() == [0]
    assert reference.topk_per_object(*arguments).tolist() == [0]


@pytest.mark.parametrize("more", [-1, 0, 1, 2])
@pytest.mark.parametrize("points", [3, 5, 64, 257, 1001])
def test_topk_where_the_ks_sum_to_about_the_number_of_points(points, more):
    # The last object stands for as many points as it may have, the others for fewer: room is scarce at the very end.
    for last in (2, points // 2):
        k = torch.tensor([points + more - last - 1, 1, last])
        owner = torch.full((points,), 2)
        owner[: points - last] = 0
        scores = torch.zeros(points, 3).scatter_(
            1, owner[:, None], torch.rand(points, 1, generator=generator(points)) + 0.1
        )
        arguments = scores, k, torch.ones(3)
        for _ in range(20):  # what is written beyond the end is noticed when memory comes back
            assert torch.equal(topk_per_object(*arguments), reference.topk_per_object(*arguments))


@pytest.mark.parametrize("points", [40, 400, 4000])
def test_topk_of_scores_a_unit_of_the_last_place_apart(points):
    """At every eighth of an octave and beside it: on CPU scores are counted by their leading bits first."""
    eighths = ((torch.arange(8) / 8 + 1) * 2.0 ** torch.arange(-7, 2)[:, None]).flatten()
    scores = torch.cat([eighths, eighths.nextafter(torch.tensor(0.0)), eighths.nextafter(torch.tensor(inf))])
    for seed in range(20):
        drawn = generator(seed)
        arguments = (
            scores[torch.randint(0, len(scores), (points, 3), generator=drawn)],
            torch.randint(0, points // 3, (3,), generator=drawn),
            torch.ones(3),
        )
        assert torch.equal(topk_per_object(*arguments), reference.topk_per_object(*arguments))


def test_topk_of_any_strides():
    scores = torch.rand(6, 90, generator=generator(10))
    k, areas = torch.full((6,), 4), torch.rand(6, generator=generator(11))
    assert torch.equal(topk_per_object(scores.T, k, areas), topk_per_object(scores.T.contiguous(), k, areas))
