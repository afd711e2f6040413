"""FCOS's own strategy: worked by hand, against the reference, and against torchvision's matching."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mgassign import PointGrid, fcos_assign, reference
from scenes import GRIDS, STRIDES, random_boxes


def test_by_hand():
    # Stride 8, points at 4, 12, 20, ...; radius 1.5: the open square of half side 12 around (32, 32).
    grid = PointGrid.for_image((64, 64), strides=(8,))
    original, num_points = fcos_assign(grid, [torch.tensor([[8.0, 8.0, 56.0, 56.0]])])
    rows, columns = torch.nonzero(original[0].reshape(8, 8) == 0).unbind(1)
    assert num_points.tolist() == [4]
    assert sorted(zip(rows.tolist(), columns.tolist(), strict=True)) == [(3, 3), (3, 4), (4, 3), (4, 4)]


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


@pytest.mark.parametrize("grid", GRIDS, ids=["three levels", "five levels", "own ranges", "fine"])
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
    jagged = fcos_assign(grid, torch.nested.nested_tensor(images, layout=torch.jagged))
    padded = fcos_assign(grid, torch.nn.utils.rnn.pad_sequence(images, batch_first=True))
    assert torch.equal(jagged.original, expected.original)
    assert torch.equal(jagged.num_points, expected.num_points)
    assert torch.equal(padded.original, expected.original)
    assert padded.num_points.reshape(3, 2)[:, 0].tolist() == [expected.num_points[0], 0, expected.num_points[1]]


def torchvision_matching(grid: PointGrid, boxes: torch.Tensor, center_radius: float) -> torch.Tensor:
    """What torchvision's FCOS matches, computed by torchvision itself; its points lie at offset 0."""
    from torchvision.models.detection.fcos import FCOS, FCOSHead  # noqa: F401

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


def compare_with_torchvision(images: list[torch.Tensor], size: tuple[int, int]) -> tuple[int, int, int]:
    """Points compared, points that differ, and of these, those where float32 made torchvision misjudge areas."""
    # torchvision's own ranges: the first level from 0, the last open, (64, 128) in between and so on.
    grid = PointGrid.for_image(size, STRIDES, offset=0)
    compared = different = misjudged = 0
    for boxes in images:
        ours = fcos_assign(grid, [boxes]).original[0]
        theirs = torchvision_matching(grid, boxes, 1.5)
        compared += len(ours)
        areas = reference.box_areas(boxes.double())
        for j in torch.nonzero(ours != theirs).flatten().tolist():
            different += 1
            a, b = int(ours[j]), int(theirs[j])
            # torchvision ranks areas as 1e8 - area in float32, whose steps are 8 square pixels: within a step it sees
            # a tie and does not take the smaller box.
            misjudged += a >= 0 and b >= 0 and 0 <= float(areas[b] - areas[a]) <= 8
    return compared, different, misjudged


def test_matches_torchvision(record_property):
    pytest.importorskip("torchvision")
    generator = torch.Generator().manual_seed(0)
    images = [random_boxes(count, (800, 1024), generator) for count in (1, 5, 20, 100, 300)]
    compared, different, misjudged = compare_with_torchvision(images, (800, 1024))
    print(f"{compared} points compared, {different} differ, {misjudged} of them by torchvision's float32 area fault")
    record_property("torchvision", [compared, different, misjudged])
    assert different == misjudged
    assert different < 1e-3 * compared


def test_matches_torchvision_on_real_boxes(coco_boxes_file, record_property):
    pytest.importorskip("torchvision")
    with np.load(coco_boxes_file) as data:
        starts, all_boxes = data["box_start"], torch.from_numpy(data["boxes_xyxy"]).float()
    images = [all_boxes[a:b] for a, b in zip(starts[:-1:10], starts[1::10], strict=True)]
    compared, different, misjudged = compare_with_torchvision([b for b in images if len(b)], (640, 640))
    print(f"{compared} points compared, {different} differ, {misjudged} of them by torchvision's float32 area fault")
    record_property("torchvision", [compared, different, misjudged])
    assert compared > 1_000_000
    assert different == misjudged
