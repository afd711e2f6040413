"""ATSS beside MMDetection's ATSSAssigner: the same labels, but where its topk chooses among equally near anchors."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from torch import Tensor

from mgassign import PointGrid, atss_assign
from scenes import STRIDES, random_boxes

SIZES = [((320, 320), (8, 16, 32)), ((640, 640), (8, 16, 32, 64, 128)), ((256, 384), (8, 16, 32, 64)), ((480, 640), (8, 16, 32))]  # fmt: skip


@pytest.fixture(scope="module")
def mmdet_atss():
    pytest.importorskip("mmdet", reason="mmdet is not installed: see benchmarks/peers/requirements.txt")
    from peers.mmdet_common import InstanceData  # first: it makes mmdet importable

    from mmdet.models.task_modules.assigners import ATSSAssigner  # isort: skip

    def assign(grid: PointGrid, boxes: Tensor, topk: int, scale: float) -> tuple[Tensor, Tensor]:
        points, half = grid.points(), scale / 2 * grid.point_strides()[:, None]
        objects = InstanceData(bboxes=boxes, labels=torch.zeros(len(boxes), dtype=torch.int64))
        priors = InstanceData(priors=torch.cat([points - half, points + half], 1))
        found = ATSSAssigner(topk=topk).assign(priors, list(grid.points_per_level), objects)
        return found.gt_inds - 1, found.max_overlaps

    return assign


def tied_objects(grid: PointGrid, boxes: Tensor, topk: int) -> Tensor:
    """Whose last candidate of some level is as near as the next point: which of the two it is, is left open. bool [G]"""
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    apart = grid.points()[:, None] - centers
    distance = (apart[..., 0] * apart[..., 0] + apart[..., 1] * apart[..., 1]).sqrt()
    tied = torch.zeros(len(boxes), dtype=torch.bool)
    for of_level in distance.split(list(grid.points_per_level)):
        if len(of_level) > topk:
            nearest = of_level.sort(0).values
            tied |= nearest[topk - 1] == nearest[topk]
    return tied


def compare(assign, grid: PointGrid, boxes: Tensor, count: Counter, topk: int = 9, scale: float = 8.0) -> None:
    owner, iou = atss_assign(grid, [boxes], topk=topk, anchor_scale=scale)
    expected, overlaps = assign(grid, boxes, topk, scale)
    differ = owner[0] != expected
    tied = torch.cat([tied_objects(grid, boxes, topk), torch.zeros(1, dtype=torch.bool)])  # entry -1: of nobody
    explained = differ & (tied[owner[0]] | tied[expected])
    count["scenes"] += 1
    count["positives"] += int((expected >= 0).sum())
    count["equally near"] += int(explained.sum())
    count["unexplained"] += int((differ & ~explained).sum())
    same = ~differ & (expected >= 0)
    assert torch.equal(iou[0, same], overlaps[same])


def scene_boxes(seed: int, size: tuple[int, int]) -> Tensor:
    """Up to 150 objects; of four scenes one has them on half pixels, one some of them twice."""
    generator = torch.Generator().manual_seed(seed)
    boxes = random_boxes(int(torch.randint(1, 150, (1,), generator=generator)), size, generator)
    if seed % 4 == 1:
        boxes = (boxes * 2).round() / 2
    return torch.cat([boxes, boxes[:3]]) if seed % 4 == 2 else boxes


def test_random_scenes(mmdet_atss, deep, record_property):
    count: Counter = Counter()
    for seed in range(400 if deep else 60):
        size, strides = SIZES[seed % 5 % 4]
        settings = ({}, {}, {"topk": 5, "scale": 4.0})[seed % 3]
        compare(mmdet_atss, PointGrid.for_image(size, strides), scene_boxes(seed, size), count, **settings)
    print(dict(count))
    record_property("counts", dict(count))
    assert count["unexplained"] == 0
    assert count["equally near"] < 0.02 * count["positives"]


def test_points_of_its_own_anchors(mmdet_atss):
    """Its ATSS and TOOD lay them from the corner of the image on: `offset=0`."""
    from mmdet.models.task_modules.prior_generators import AnchorGenerator

    grid = PointGrid.for_image((256, 320), STRIDES, offset=0)
    generator = AnchorGenerator(strides=list(STRIDES), ratios=[1.0], octave_base_scale=8, scales_per_octave=1)
    sizes = list(zip(grid.heights, grid.widths, strict=True))
    anchors = torch.cat(generator.grid_priors(sizes, device="cpu"))
    points, half = grid.points(), 4 * grid.point_strides()[:, None]
    assert torch.equal(anchors, torch.cat([points - half, points + half], 1))


def test_real_boxes(mmdet_atss, coco_boxes_file, deep, record_property):
    with np.load(coco_boxes_file) as data:
        starts, boxes, sizes = data["box_start"], torch.from_numpy(data["boxes_xyxy"]).float(), data["image_wh"]
    grid, count = PointGrid.for_image((640, 640), STRIDES), Counter()
    for image in range(0, len(sizes), 5 if deep else 50):
        own = boxes[starts[image] : starts[image + 1]] * (640 / float(max(sizes[image])))
        if len(own):
            compare(mmdet_atss, grid, own, count)
    print(dict(count))
    record_property("counts", dict(count))
    assert count["unexplained"] == 0
    assert count["equally near"] < 0.02 * count["positives"]
