"""FCOS's own strategy: worked by hand, against the reference, and against torchvision's matching."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from mgassign import PointGrid, fcos_assign, mutual_guidance_assign, reference
from scenes import GRIDS, STRIDES, in_form, random_boxes
from test_building_blocks import NO_BOXES


def test_by_hand():
    # Stride 8, points at 4, 12, 20, ...; radius 1.5: the open square of half side 12 around (32, 32).
    grid = PointGrid.for_image((64, 64), strides=(8,))
    original, num_points = fcos_assign(grid, [torch.tensor([[8.0, 8.0, 56.0, 56.0]])])
    rows, columns = torch.nonzero(original[0].reshape(8, 8) == 0).unbind(1)
    assert num_points.tolist() == [4]
    assert sorted(zip(rows.tolist(), columns.tolist(), strict=True)) == [(3, 3), (3, 4), (4, 3), (4, 4)]


@pytest.mark.parametrize(("hi", "owner"), [(3e38, 0), (1.9e38, -1)])
def test_an_object_whose_sides_are_beyond_float(hi, owner):
    grid = PointGrid.from_features([(1, 1)], strides=(8,), offset=0, ranges=[(-1, hi)])
    box = torch.tensor([[-2e38, -2e38, 2e38, 2e38]])  # each side 2e38 from the point
    assert fcos_assign(grid, [box], center_radius=0).original.tolist() == [[owner]]
    assert reference.fcos_assign(grid, box, center_radius=0)[0].tolist() == [owner]
    boxes, logits = torch.tensor([[[-1.0, -1, 1, 1]]]), torch.zeros(1, 1, 1)
    labels = torch.tensor([0])
    found = mutual_guidance_assign(grid, boxes, logits, [box], [labels], center_radius=0, min_points=1)
    sets = reference.mutual_guidance_assign(grid, boxes[0], logits[0], box, labels, center_radius=0, min_points=1)[:3]
    assert [getattr(found, name)[0].tolist() for name in ("cls", "loc", "original")] == [of.tolist() for of in sets]


def test_level_range_holds_at_both_ends():
    # The centre point (32, 32) of stride 16, offset 0, sees distances of exactly 32.
    box = [torch.tensor([[0.0, 0.0, 64.0, 64.0]])]
    for lo, hi, expected in [(32, 99, 1), (0, 32, 1), (32.01, 99, 0), (0, 31.99, 0)]:
        grid = PointGrid.for_image((64, 64), strides=(16,), ranges=[(lo, hi)], offset=0)
        assert int(fcos_assign(grid, box, center_radius=0.5).num_points) == expected


def test_points_on_the_border_are_outside():
    grid = PointGrid.for_image((64, 64), strides=(8,))
    assert int(fcos_assign(grid, [torch.tensor([[4.0, 4.0, 12.0, 12.0]])]).num_points) == 0
    assert int(fcos_assign(grid, [torch.tensor([[3.9, 3.9, 12.1, 12.1]])]).num_points) == 4


def test_the_reach_is_the_product_rounded_once():
    # radius * stride in double precision, then float32; of factors rounded before, the product is its neighbour, to
    # either side. The only point lies on the bound, or where the neighbour would be.
    seen = set()
    for radius, stride in itertools.product((0.7, 0.9, 1.1, 1.3, 1.7, 2.3), (7.3, 10.0, 12.5, 20.0, 24.0)):
        reach, otherwise = np.float32(radius * stride), np.float32(radius) * np.float32(stride)
        if reach == otherwise:
            continue
        seen.add(reach > otherwise)
        for x, y in ((reach, 0), (otherwise, 0), (0, reach), (0, otherwise), (-reach, 0), (0, -otherwise)):
            grid = PointGrid.from_features(
                [(1, 1)], strides=(stride,), offset=[(float(y), float(x))], ranges=[(-1, np.inf)]
            )
            box = torch.tensor([[-100.0, -100, 100, 100]])
            expected = int(max(abs(x), abs(y)) < reach)
            assert fcos_assign(grid, [box], radius).num_points.tolist() == [expected]
            assert reference.fcos_assign(grid, box, radius)[1].tolist() == [expected]
    assert seen == {True, False}


@pytest.mark.parametrize("center_radius", [0.0, 1.5])
@pytest.mark.parametrize("none", NO_BOXES, ids=str)
def test_a_box_that_is_none_gets_no_point(none, center_radius):
    grid = PointGrid.for_image((64, 64), strides=(4, 8))  # whose last level takes distances without end
    boxes = torch.tensor([none, [0.0, 0, 64, 64]])
    found = fcos_assign(grid, [boxes], center_radius)
    alone = fcos_assign(grid, [boxes[1:]], center_radius)
    assert found.num_points.tolist() == [0, int(alone.num_points)]
    assert torch.equal(found.original == 1, alone.original == 0)


def test_areas_a_unit_of_the_last_place_apart():
    grid = PointGrid.for_image((64, 64), strides=(8,))
    # Heights with 32 and its neighbours among float32: of these pairs one differs in the last bit alone.
    less, more = 32 - 2.0**-19, 32 + 2.0**-18
    for heights, expected in (((32, less), 1), ((less, 32), 0), ((more, 32), 1), ((32, more), 0), ((32, 32), 0)):
        boxes = [[8.0, 0.0, 40.0, height] for height in heights]
        found = fcos_assign(grid, [torch.tensor(boxes)], 0)
        assert found.original[found.original >= 0].unique().tolist() == [expected]


@pytest.mark.parametrize("grid", GRIDS, ids=["three levels", "five levels", "own ranges", "fine", "spaced"])
@pytest.mark.parametrize("center_radius", [0.0, 0.5, 1.5, 4.0])
def test_agrees_with_the_reference(grid, center_radius):
    generator = torch.Generator().manual_seed(0)
    images = [random_boxes(count, (100, 100), generator) for count in (0, 1, 5, 60)]
    original, num_points = fcos_assign(grid, images, center_radius)
    for b, boxes in enumerate(images):
        expected = reference.fcos_assign(grid, boxes, center_radius)
        assert torch.equal(original[b], expected[0])
        assert torch.equal(num_points.split([len(boxes) for boxes in images])[b], expected[1])


def test_padded_and_jagged_objects():
    images = [torch.tensor([[8.0, 8, 40, 40]]), torch.empty(0, 4), torch.tensor([[0.0, 0, 30, 30], [20, 20, 60, 60]])]
    grid = PointGrid.for_image((64, 64), strides=(8, 16))
    expected = fcos_assign(grid, images)
    jagged = fcos_assign(grid, in_form("jagged", images))
    padded = fcos_assign(grid, in_form("padded", images))
    assert torch.equal(jagged.original, expected.original)
    assert torch.equal(jagged.num_points, expected.num_points)
    assert torch.equal(padded.original, expected.original)
    assert padded.num_points.reshape(3, 2)[:, 0].tolist() == [expected.num_points[0], 0, expected.num_points[1]]


def torchvision_matching(grid: PointGrid, boxes: torch.Tensor, center_radius: float) -> torch.Tensor:
    """What torchvision's FCOS matches, computed by torchvision itself; its points lie at offset 0."""
    from torchvision.models.detection.fcos import FCOS

    points = grid.points()
    half = grid.point_strides()[:, None] / 2
    anchors = torch.cat([points - half, points + half], 1)
    matched = {}

    class Head(torch.nn.Module):
        def compute_loss(self, targets, head_outputs, anchors, matched_idxs):
            matched["indices"] = matched_idxs
            return {}

    detector = FCOS.__new__(FCOS)
    torch.nn.Module.__init__(detector)
    detector.center_sampling_radius, detector.head = center_radius, Head()
    detector.compute_loss([{"boxes": boxes}], {}, [anchors], list(grid.points_per_level))
    return matched["indices"][0]


def compare_with_torchvision(images: list[torch.Tensor], size: tuple[int, int]) -> dict[str, int]:
    """How many points were compared, how many differ, and which of torchvision's two habits explains them."""
    grid = PointGrid.for_image(size, STRIDES, offset=0)  # torchvision's points; its ranges are these, too
    bounds = torch.tensor(grid.ranges).repeat_interleave(torch.tensor(grid.points_per_level), dim=0)
    count = {"compared": 0, "differ": 0, "float32 areas": 0, "open ranges": 0}
    for boxes in images:
        ours = fcos_assign(grid, [boxes]).original[0]
        theirs = torchvision_matching(grid, boxes, 1.5)
        differing = torch.nonzero(ours != theirs).flatten()
        count["compared"] += len(ours)
        count["differ"] += len(differing)
        areas = reference.box_areas(boxes.double())
        longest = torch.stack(reference.distances(grid, boxes)).amax(0)
        for j in differing.tolist():
            a, b = int(ours[j]), int(theirs[j])
            # It ranks areas as 1e8 - area in float32, whose steps are 8 square pixels; within a step it sees a tie.
            if a >= 0 and b >= 0 and 0 < float(areas[b] - areas[a]) <= 8:
                count["float32 areas"] += 1
            # Its ranges leave out their ends; FCOS's hold them.
            elif a >= 0 and longest[j, a] in bounds[j]:
                count["open ranges"] += 1
    print(count)
    return count


def test_matches_torchvision():
    pytest.importorskip("torchvision")
    generator = torch.Generator().manual_seed(0)
    count = compare_with_torchvision(
        [random_boxes(n, (800, 1024), generator) for n in (1, 5, 20, 100, 300)], (800, 1024)
    )
    assert count["compared"] == 5 * 17_064
    assert count["differ"] == count["float32 areas"]


def test_torchvision_takes_the_larger_of_two_boxes_of_nearly_equal_area():
    pytest.importorskip("torchvision")
    nested = torch.tensor([[30.0, 30, 90, 90], [30, 30, 90, 89.957]])  # 2.6 square pixels apart
    grid = PointGrid.for_image((128, 128), STRIDES, offset=0)
    theirs = torchvision_matching(grid, nested, 1.5)
    ours = fcos_assign(grid, [nested]).original[0]
    assert set(ours[ours >= 0].tolist()) == {1}
    assert 0 in theirs, "torchvision has mended this: drop the allowance above"


def test_matches_torchvision_on_real_boxes(coco_boxes_file):
    pytest.importorskip("torchvision")
    with np.load(coco_boxes_file) as data:
        starts, all_boxes = data["box_start"], torch.from_numpy(data["boxes_xyxy"]).float()
    images = [all_boxes[a:b] for a, b in zip(starts[:-1:40], starts[1::40], strict=True) if a < b]
    count = compare_with_torchvision(images, (640, 640))
    assert count["compared"] > 1_000_000
    assert count["differ"] == count["float32 areas"] + count["open ranges"]
    assert count["differ"] < 1e-3 * count["compared"]
