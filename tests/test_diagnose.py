"""Which objects got no point, and why."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mgassign import PointGrid, fcos_assign, mutual_guidance_assign, unassigned
from scenes import in_form, random_boxes

GRID = PointGrid.for_image((128, 128), strides=(8, 16, 32))
CASES = [
    ("no box", [40.0, 40, 30, 60]),
    ("no box", [40.0, 40, float("nan"), 60]),
    ("outside", [200.0, 0, 260, 60]),
    ("outside", [-60.0, 0, 0, 60]),
    ("too thin", [17.0, 8, 19, 120]),
    ("too thin", [12.0, 8, 16, 120]),  # points lie on its sides
]


def reasons(grid, owner, boxes, **settings):
    return [(lost.image, lost.object, lost.reason) for lost in unassigned(grid, owner, boxes, **settings)]


@pytest.mark.parametrize(("reason", "box"), CASES)
def test_reasons_of_geometry(reason, box):
    boxes = [torch.tensor([[8.0, 8, 60, 60], box])]
    owner = fcos_assign(GRID, boxes).original
    (lost,) = unassigned(GRID, owner, boxes)
    assert (lost.image, lost.object, lost.reason) == (0, 1, reason)
    assert str(lost).startswith("image 0, object 1 (")


def test_normalised_boxes_are_told_whole():
    boxes = [torch.tensor([[0.1, 0.1, 0.5, 0.9]]), torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.2, 0.2, 0.1, 0.3]])]
    owner = fcos_assign(GRID, boxes).original
    assert reasons(GRID, owner, boxes) == [(0, 0, "normalised"), (1, 0, "normalised"), (1, 1, "no box")]
    boxes[1] = torch.tensor([[8.0, 8, 60, 60]])
    assert reasons(GRID, fcos_assign(GRID, boxes).original, boxes) == [(0, 0, "too thin")]


def test_off_level_and_off_center():
    # Ranges with a hole: nothing is made for sizes of 40 to 100.
    grid = PointGrid.for_image((256, 256), strides=(8, 16), ranges=((-1, 40), (100, 1000)))
    boxes = [torch.tensor([[100.0, 100, 190, 190]])]
    owner = fcos_assign(grid, boxes).original
    (lost,) = unassigned(grid, owner, boxes)
    assert lost.reason == "off level"
    assert "90 x 90 px" in lost.hint
    assert "0 to 40, 100 to 1000" in lost.hint
    assert reasons(grid, owner, boxes, level_gate=False)[0][2] == "not predicted"
    # Points lie inside of the box, and none within 0.2 strides of its centre.
    boxes = [torch.tensor([[16.0, 16, 48, 48]])]
    owner = fcos_assign(GRID, boxes, center_radius=0.2).original
    assert reasons(GRID, owner, boxes, center_radius=0.2) == [(0, 0, "off center")]


def test_taken_by_others():
    boxes = [torch.tensor([[8.0, 8, 40, 40], [8, 8, 40, 40]])]
    owner = fcos_assign(GRID, boxes).original
    assert reasons(GRID, owner, boxes) == [(0, 1, "taken")]


def test_predictions_that_overlap_nothing():
    boxes, labels = [torch.tensor([[8.0, 8, 40, 40]])], [torch.tensor([0])]
    nowhere = torch.zeros(1, GRID.num_points, 4)
    found = mutual_guidance_assign(GRID, nowhere, torch.zeros(1, GRID.num_points, 1), boxes, labels)
    assert reasons(GRID, found.cls, boxes, gt_labels=labels) == [(0, 0, "not predicted")]
    assert reasons(GRID, found.loc, boxes, gt_labels=labels) == []


def test_padding_and_regions_are_no_objects():
    boxes = torch.zeros(2, 3, 4)
    boxes[0, 1] = torch.tensor([17.0, 8, 19, 120])
    owner = torch.full((2, GRID.num_points), -1)
    assert reasons(GRID, owner, boxes) == [(0, 1, "too thin")]
    labels = torch.tensor([[-1, -2, 3], [-1, -1, -1]])
    assert reasons(GRID, owner, boxes, gt_labels=labels) == [(0, 2, "no box")]


def test_points_of_regions_are_nobodys():
    boxes = [torch.tensor([[8.0, 8, 60, 60], [17.0, 8, 19, 120]])]
    owner = torch.full((1, GRID.num_points), -2)
    assert reasons(GRID, owner, boxes) == [(0, 0, "not predicted"), (0, 1, "too thin")]


def test_every_one_of_many_is_told():
    boxes = torch.tensor([[40.0, 40, 30, 60]]).repeat(150, 1)
    owner = torch.full((1, GRID.num_points), -1)
    assert reasons(GRID, owner, [boxes]) == [(0, g, "no box") for g in range(150)]


def test_hints_tell_sizes_and_spacings_across_and_down():
    grid = PointGrid.from_features([(8, 8)], strides=(8,), spacing=((7.0, 9.0),))  # down, across
    (lost,) = unassigned(grid, torch.full((1, 64), -1), [torch.tensor([[19.0, 8, 21, 60]])])
    assert "2 x 52 px, finest spacing 9 x 7 px" in lost.hint


@given(st.integers(0, 1000))
def test_lost_are_those_without_points_in_every_form(seed):
    generator = torch.Generator().manual_seed(seed)
    boxes = [random_boxes(count, (128, 128), generator) for count in (0, 70, 3)]
    boxes = [box * torch.rand(len(box), 1, generator=generator) for box in boxes]  # many too small
    found = fcos_assign(GRID, boxes)
    lost = unassigned(GRID, found.original, boxes)
    counts = found.num_points.split([0, 70, 3])
    expected = [(b, g) for b, of_image in enumerate(counts) for g in torch.nonzero(of_image == 0).flatten().tolist()]
    assert [(of.image, of.object) for of in lost] == expected
    assert not {of.reason for of in lost} & {"no box", "not predicted", "outside"}
    for form in ("padded", "jagged"):
        assert unassigned(GRID, found.original, in_form(form, boxes)) == lost


def test_on_another_default_device():
    boxes = [torch.tensor([[8.0, 8, 60, 60]]), torch.tensor([[200.0, 0, 260, 60]])]
    owner = fcos_assign(GRID, boxes).original
    with torch.device("meta"):
        assert reasons(GRID, owner, boxes) == [(1, 0, "outside")]


def test_no_images_no_objects_no_points():
    assert unassigned(GRID, torch.empty(0, GRID.num_points, dtype=torch.int64), []) == []
    assert unassigned(GRID, torch.full((1, GRID.num_points), -1), [torch.empty(0, 4)]) == []
    empty = PointGrid.for_image((0, 0), strides=(8,))
    owner = torch.empty(1, 0, dtype=torch.int64)
    assert reasons(empty, owner, [torch.tensor([[1.0, 1, 3, 3]])])[0][2] == "outside"


@pytest.mark.parametrize(
    ("error", "name", "arguments"),
    [
        (TypeError, "grid", {"grid": None}),
        (TypeError, "owner", {"owner": torch.zeros(1, GRID.num_points)}),
        (ValueError, "owner", {"owner": torch.full((1, 3), -1)}),
        (ValueError, r"owner\[0\]", {"owner": torch.full((1, GRID.num_points), 1)}),
        (ValueError, "center_radius", {"center_radius": -1.0}),
        (TypeError, "level_gate", {"level_gate": 1}),
    ],
)
def test_errors(error, name, arguments):
    good = {"grid": GRID, "owner": torch.full((1, GRID.num_points), -1), "gt_boxes": [torch.tensor([[8.0, 8, 40, 40]])]}
    with pytest.raises(error, match=f"^{name}: expected"):
        unassigned(**good | arguments)
