"""Max-IoU beside torchvision's matchers and MMDetection's MaxIoUAssigner: the same labels and overlaps, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mgassign import max_iou_assign
from scenes import random_boxes
from test_anchors import lay_anchors

SIZE, STRIDES = (320, 384), (8, 16, 32, 64)


def torchvision_matcher(high: float, low: float, low_quality: str) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    ops = pytest.importorskip("torchvision.ops")
    utils = pytest.importorskip("torchvision.models.detection._utils")
    matcher = utils.SSDMatcher(high) if low_quality == "first" else utils.Matcher(high, low, low_quality == "own")

    def match(anchors: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        overlaps = ops.box_iou(boxes, anchors)
        return matcher(overlaps), overlaps.amax(0)

    return match


def mmdet_assigner(high: float, low: float, low_quality: str, min_iou: float) -> Callable[..., tuple[Tensor, Tensor]]:
    pytest.importorskip("mmdet", reason="mmdet is not installed: see benchmarks/peers/requirements.txt")
    from peers.mmdet_common import InstanceData  # first: it makes mmdet importable

    from mmdet.models.task_modules.assigners import MaxIoUAssigner  # isort: skip

    assigner = MaxIoUAssigner(high, low, min_pos_iou=min_iou, gt_max_assign_all=low_quality == "object")

    def match(anchors: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        objects = InstanceData(bboxes=boxes, labels=torch.zeros(len(boxes), dtype=torch.int64))
        found = assigner.assign(InstanceData(priors=anchors), objects)
        index = found.gt_inds  # 0: background, -1: to be ignored
        return torch.where(index > 0, index - 1, -1 - (index < 0).long()), found.max_overlaps

    return match


PEERS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "torchvision, RetinaNet": (torchvision_matcher, {"high": 0.5, "low": 0.4, "low_quality": "own"}),
    "torchvision, RPN": (torchvision_matcher, {"high": 0.7, "low": 0.3, "low_quality": "own"}),
    "torchvision, RoI heads": (torchvision_matcher, {"high": 0.5, "low": 0.5, "low_quality": "none"}),
    "torchvision, SSD": (torchvision_matcher, {"high": 0.5, "low": 0.5, "low_quality": "first"}),
    "mmdet, RetinaNet": (mmdet_assigner, {"high": 0.5, "low": 0.4, "low_quality": "object", "min_iou": 0.0}),
    "mmdet, RPN": (mmdet_assigner, {"high": 0.7, "low": 0.3, "low_quality": "object", "min_iou": 0.3}),
    "mmdet, SSD": (mmdet_assigner, {"high": 0.5, "low": 0.5, "low_quality": "first", "min_iou": 0.0}),
}


def scene_boxes(seed: int) -> Tensor:
    """Objects of a scene: real-valued, on half pixels, whole ones, with some twice; each meets some anchor."""
    generator = torch.Generator().manual_seed(seed)
    boxes = random_boxes(int(torch.randint(1, 60, (1,), generator=generator)), SIZE, generator)
    step = (0, 0.5, 0, 1.0)[seed % 4]
    boxes = (boxes / step).round() * step if step else boxes
    return torch.cat([boxes, boxes[:3]]) if seed % 3 == 2 else boxes


def compare(peer: str, scenes: list[Tensor], record: Callable[..., None]) -> int:
    make, settings = PEERS[peer]
    match, anchors = make(**settings), lay_anchors(SIZE, STRIDES)
    found = max_iou_assign(anchors, scenes, **settings)
    positives = differing = 0
    for b, boxes in enumerate(scenes):
        owner, iou = match(anchors, boxes)
        differing += int((found.owner[b] != owner).sum()) + int((found.iou[b] != iou).sum())
        positives += int((owner >= 0).sum())
    record("positives", positives)
    print(f"{peer}: {len(scenes)} scenes, {positives:,} positives, {differing} differ")
    assert differing == 0
    return positives


@pytest.mark.parametrize("peer", PEERS)
def test_random_scenes(peer, deep, record_property):
    count = 220 if deep else 40
    assert compare(peer, [scene_boxes(seed) for seed in range(count)], record_property) > 50 * count


@pytest.mark.parametrize("peer", PEERS)
def test_real_boxes(peer, coco_boxes_file, deep, record_property):
    with np.load(coco_boxes_file) as data:
        starts, boxes, sizes = data["box_start"], torch.from_numpy(data["boxes_xyxy"]).float(), data["image_wh"]
    scenes = []
    for image in range(0, len(sizes), 25 if deep else 125):
        scale = min(SIZE[1] / sizes[image][0], SIZE[0] / sizes[image][1])
        own = boxes[starts[image] : starts[image + 1]] * float(scale)
        if len(own):
            scenes.append(own)
    assert compare(peer, scenes, record_property) > 400  # of RPN, whose thresholds are high


def test_the_one_difference():
    # An object that nothing overlaps makes positives of all anchors without overlap in torchvision.
    match = torchvision_matcher(0.5, 0.4, "own")
    anchors = torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60]])
    boxes = torch.tensor([[0.0, 0, 10, 10], [90, 90, 99, 99]])
    assert match(anchors, boxes)[0].tolist() == [0, 0]
    assert max_iou_assign(anchors, [boxes]).owner[0].tolist() == [0, -1]
