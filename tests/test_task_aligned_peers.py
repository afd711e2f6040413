"""Task-aligned assignment beside the packages its presets are named after: the same labels, the same targets.

Each test says which versions it met; one whose package is not installed is skipped (benchmarks/peers/requirements.txt
says how to install them). A point that gets another owner is counted as explained only where the peer's target for it is
0 or where rounding decides; see task_aligned_agreement.py. `--deep` compares more.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from mgassign import PointGrid, TaskAligned, task_aligned_assign
from peers import PEERS
from scenarios import Inputs
from scenes import random_boxes, scene_of
from task_aligned_agreement import doubtful, unexplained

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

ULTRALYTICS = {
    "ULTRALYTICS": (TaskAligned.ULTRALYTICS, {"topk": 10}),
    "YOLO26": (TaskAligned.YOLO26, {"topk": 7, "topk2": 1}),
    "YOLOV10": (TaskAligned.YOLOV10, {"topk": 1}),
}


def adapter_of(name: str):
    if PEERS[name].versions is None:
        pytest.skip(f"{PEERS[name].about}: {', '.join(PEERS[name].packages)} not installed")
    print(", ".join(f"{package} {version}" for package, version in PEERS[name].versions.items()))
    return PEERS[name].load()


def random_inputs(seed: int, dtype: torch.dtype = torch.float32) -> Inputs:
    """A batch of up to 150 objects an image, some of them tiny, equal or on half pixels; predictions early or late."""
    generator = torch.Generator().manual_seed(seed)
    size, strides = [((320, 320), (8, 16, 32)), ((256, 384), (8, 16, 32, 64)), ((480, 640), (8, 16, 32))][seed % 3]
    grid, images = PointGrid.for_image(size, strides), []
    for image in range(3):
        count = int(torch.rand((), generator=generator) * (12, 60, 150)[image])
        boxes = random_boxes(count, size, generator)
        if seed % 2:
            centers, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) * 0.4
            boxes = torch.cat([centers - sides / 2, centers + sides / 2], 1)
        if seed % 5 == 0 and count > 3:
            boxes[1], boxes[2] = boxes[0], boxes[0] + 0.25
        if seed % 5 == 1:
            boxes = (boxes * 2).round() / 2
        images.append(boxes if image or seed % 7 else boxes[:0])
    of = scene_of(grid, images, (80, 3, 20)[seed % 3], generator)
    pred_boxes, logits = of.pred_boxes, of.pred_logits
    if seed % 4 == 3:  # late in training: sure of itself, and every object well fitted somewhere
        logits = logits * 2 + 1
        for b, boxes in enumerate(images):
            if len(boxes):
                points = torch.randint(grid.num_points, (8 * len(boxes),), generator=generator)
                noise = torch.randn(len(points), 4, generator=generator)
                pred_boxes[b, points] = boxes.repeat(8, 1) + noise
    # Both sides get the same values; what rounding to a narrow dtype makes equal stays equal.
    return Inputs(grid, pred_boxes.to(dtype).float(), logits.to(dtype).float(), of.gt_boxes, of.gt_labels)


def coco_inputs(file, first: int, count: int, size: tuple[int, int]) -> Inputs:
    with np.load(file) as data:
        starts, all_boxes, sizes = data["box_start"], torch.from_numpy(data["boxes_xyxy"]).float(), data["image_wh"]
        labels = torch.from_numpy(data["cls"]).long()
    boxes, classes = [], []
    for image in range(first, first + count):
        own = slice(int(starts[image]), int(starts[image + 1]))
        scale = float(min(size[1] / sizes[image][0], size[0] / sizes[image][1]))
        boxes.append(all_boxes[own] * scale)
        classes.append(labels[own])
    of = scene_of(PointGrid.for_image(size, (8, 16, 32)), boxes, 80, torch.Generator().manual_seed(first))
    raised = of.pred_logits - torch.randn(of.pred_logits.shape, generator=torch.Generator().manual_seed(first))
    return Inputs(of.grid, of.pred_boxes, raised, boxes, classes)


def compare(name: str, inputs: Inputs, settings: TaskAligned, count: Counter, **peer_settings) -> None:
    adapter = PEERS[name].load()(inputs, **peer_settings)
    results = adapter()
    theirs, targets = adapter.owners(results), adapter.targets(results)
    probabilities = inputs.pred_logits.sigmoid()
    ours = task_aligned_assign(
        inputs.grid, inputs.pred_boxes, probabilities, inputs.gt_boxes, inputs.gt_labels, settings
    )
    for b, (boxes, labels) in enumerate(zip(inputs.gt_boxes, inputs.gt_labels, strict=True)):
        count["points"] += theirs.shape[1]
        count["positives"] += int((theirs[b] >= 0).sum())
        different = ours.owner[b] != theirs[b]
        # A pick of score 0 that the peer fills up with teaches nothing, but may turn a point into a contested one.
        of_nothing = different & (theirs[b] >= 0) & (targets[b] == 0) & (ours.owner[b] < 0)
        count["of target 0"] += int(of_nothing.sum())
        same = ~different
        if same.any():
            error = (ours.target[b] - targets[b])[same].abs().max()
            count["largest target error, 1e-9"] = max(count["largest target error, 1e-9"], int(error * 1e9))
        different &= ~of_nothing
        if different.any():
            doubts = doubtful(inputs.grid, inputs.pred_boxes[b], probabilities[b], boxes, labels, settings)
            wrong = unexplained(torch.where(different, ours.owner[b], theirs[b]), theirs[b], *doubts)
            count["by rounding"] += int(different.sum()) - len(wrong)
            count["unexplained"] += len(wrong)


def verdict(count: Counter) -> None:
    print(dict(count))
    assert count["unexplained"] == 0
    assert count["of target 0"] + count["by rounding"] <= 1e-3 * count["positives"]
    assert count["largest target error, 1e-9"] <= 1000  # 1e-6


DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("preset", ULTRALYTICS)
def test_ultralytics(preset, dtype, deep):
    adapter_of("ultralytics-tal")
    settings, peer_settings = ULTRALYTICS[preset]
    count: Counter = Counter()
    for seed in range(200 if deep else 12):
        inputs = random_inputs(seed, dtype)
        of_level = replace(settings, least_side=inputs.grid.strides[1])
        compare("ultralytics-tal", inputs, of_level, count, **peer_settings)
    verdict(count)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_mmdet(dtype, deep):
    adapter_of("mmdet-tal")
    count: Counter = Counter()
    for seed in range(200 if deep else 12):
        compare("mmdet-tal", random_inputs(seed, dtype), TaskAligned.TOOD, count)
    verdict(count)


@pytest.mark.parametrize("name", ["ultralytics-tal", "mmdet-tal"])
def test_real_boxes(name, coco_boxes_file, deep):
    adapter_of(name)
    count: Counter = Counter()
    for first in range(0, 5000, 16 if deep else 1000):
        inputs = coco_inputs(coco_boxes_file, first, min(16, 5000 - first), (640, 640))
        compare(name, inputs, TaskAligned.TOOD if name == "mmdet-tal" else TaskAligned.ULTRALYTICS, count)
    verdict(count)


def by_peer(name: str, inputs: Inputs) -> Tensor:
    adapter = PEERS[name].load()(inputs)
    return adapter.owners(adapter())


@pytest.mark.parametrize("name", ["ultralytics-tal", "mmdet-tal"])
def test_nan_in_a_score_spreads_over_the_peers_image(name):
    # Ours concerns its own point alone; see the edge cases of test_task_aligned.py.
    adapter_of(name)
    inputs = random_inputs(2)
    settings = TaskAligned.TOOD if name == "mmdet-tal" else TaskAligned.ULTRALYTICS
    before = by_peer(name, inputs)
    point = int((before[2] >= 0).nonzero()[0])
    inputs.pred_boxes[2, point] = torch.nan
    found = task_aligned_assign(*inputs[:2], inputs.pred_logits.sigmoid(), *inputs[3:], settings)
    poor = inputs.pred_boxes.clone()
    poor[2, point] = torch.tensor([9000.0, 9000, 9001, 9001])
    expected = task_aligned_assign(inputs.grid, poor, inputs.pred_logits.sigmoid(), *inputs[3:], settings)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert not torch.equal(by_peer(name, inputs), by_peer(name, inputs._replace(pred_boxes=poor)))
