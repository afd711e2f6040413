"""Task-aligned assignment beside the packages its presets are named after: the same labels, the same targets.

Each test says which versions it met; one whose package is not installed is skipped (benchmarks/peers/requirements.txt
says how to install them), and so is a preset of another version than the one installed: an older one goes in front by
PYTHONPATH. A point that gets another owner is counted as explained only where the peer's target for it is 0, or where
rounding allows both answers; see task_aligned_agreement.py. `--deep` compares more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from mgassign import PointGrid, TaskAligned, TaskAlignedAssignment, task_aligned_assign
from peers import PEERS
from scenarios import Inputs
from scenes import equal, random_boxes, scene_of
from task_aligned_agreement import Answers, answers

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

# Preset, the peer's settings, and the versions it is for: from the first to before the second.
ULTRALYTICS = {
    "ULTRALYTICS": (TaskAligned.ULTRALYTICS, {"topk": 10}, (8, 4, 139), (9,)),
    "YOLO26": (TaskAligned.YOLO26, {"topk": 7, "topk2": 1}, (8, 4, 139), (9,)),
    "YOLOV10": (TaskAligned.YOLOV10, {"topk": 1}, (8, 4, 139), (9,)),
    "ULTRALYTICS_8_4_0": (TaskAligned.ULTRALYTICS_8_4_0, {"topk": 10}, (8, 4, 0), (8, 4, 101)),
    "ULTRALYTICS_8_3": (TaskAligned.ULTRALYTICS_8_3, {"topk": 10}, (8, 3), (8, 4)),
}


def need(name: str) -> None:
    if PEERS[name].versions is None:
        pytest.skip(f"{PEERS[name].about}: {', '.join(PEERS[name].packages)} not installed")
    print(", ".join(f"{package} {version}" for package, version in PEERS[name].versions.items()))


def ultralytics_version() -> tuple[int, ...]:
    need("ultralytics-tal")
    return tuple(int(part) for part in PEERS["ultralytics-tal"].versions["ultralytics"].split(".")[:3])


def preset_of_version() -> TaskAligned:
    """Of many points an object, the preset of the version installed."""
    version = ultralytics_version()
    for name in ("ULTRALYTICS", "ULTRALYTICS_8_4_0", "ULTRALYTICS_8_3"):
        settings, _, first, end = ULTRALYTICS[name]
        if first <= version < end:
            return settings
    pytest.skip(f"no preset for ultralytics {version}")


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
    probabilities = inputs.pred_logits.sigmoid()
    ours = task_aligned_assign(
        inputs.grid, inputs.pred_boxes, probabilities, inputs.gt_boxes, inputs.gt_labels, settings
    )
    allowed = answers_of(inputs, settings)
    hold(ours, adapter.owners(results), adapter.targets(results), allowed, count, name == "ultralytics-tal")


def answers_of(inputs: Inputs, settings: TaskAligned) -> Callable[[int, bool], Answers]:
    """What the points of an image may be given, found out once; an object may fill up."""
    probabilities = inputs.pred_logits.sigmoid()

    @cache
    def of_image(b: int, fills_up: bool) -> Answers:
        scene = inputs.pred_boxes[b], probabilities[b], inputs.gt_boxes[b], inputs.gt_labels[b]
        return answers(inputs.grid, *scene, settings, fills_up=fills_up)

    return of_image


def hold(
    ours: TaskAlignedAssignment, theirs: Tensor, targets: Tensor, allowed: Callable[[int, bool], Answers],
    count: Counter, fills_up: bool,
) -> None:  # fmt: skip
    """Counts where the two differ, and why."""
    for b in range(len(theirs)):
        count["points"] += theirs.shape[1]
        count["positives"] += int((theirs[b] >= 0).sum())
        different = ours.owner[b] != theirs[b]
        same = ~different
        if same.any():
            error = (ours.target[b] - targets[b])[same].abs().max()
            count["largest target error, 1e-9"] = max(count["largest target error, 1e-9"], int(error * 1e9))
        if not different.any():
            continue
        # A pick of score 0 that the peer fills up with teaches nothing, but may turn a point into a contested one.
        of_nothing = different & (theirs[b] >= 0) & (targets[b] == 0) & (ours.owner[b] < 0)
        right = allowed(b, False).allow(ours.owner[b])
        by_rounding = different & right & allowed(b, False).allow(theirs[b]) & ~of_nothing
        filled = different & right & allowed(b, fills_up).allow(theirs[b]) & ~of_nothing & ~by_rounding
        count["of target 0"] += int((of_nothing & right).sum())
        count["by rounding"] += int(by_rounding.sum())
        count["contested by a pick of score 0"] += int(filled.sum())
        count["unexplained"] += int((different & ~(of_nothing & right) & ~by_rounding & ~filled).sum())


def verdict(count: Counter) -> None:
    print(dict(count))
    assert count["unexplained"] == 0
    explained = count["of target 0"] + count["by rounding"] + count["contested by a pick of score 0"]
    assert explained <= 1e-3 * count["positives"]
    assert count["largest target error, 1e-9"] <= 1000  # 1e-6


DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("preset", ULTRALYTICS)
def test_ultralytics(preset, dtype, deep):
    version = ultralytics_version()
    settings, peer_settings, first, end = ULTRALYTICS[preset]
    if not first <= version < end:
        pytest.skip(f"{preset} is not of ultralytics {version}")
    count: Counter = Counter()
    for seed in range(200 if deep else 12):
        inputs = random_inputs(seed, dtype)
        compare("ultralytics-tal", inputs, of_levels(settings, inputs.grid), count, **peer_settings)
    verdict(count)


def of_levels(settings: TaskAligned, grid: PointGrid) -> TaskAligned:
    """The preset with the strides of a grid in place of 8 and 16."""
    own = {8.0: grid.strides[0], 16.0: grid.strides[1], 0.0: 0.0, None: None}
    return replace(settings, least_side=own[settings.least_side], raise_below=own[settings.raise_below])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_mmdet(dtype, deep):
    need("mmdet-tal")
    count: Counter = Counter()
    for seed in range(200 if deep else 12):
        compare("mmdet-tal", random_inputs(seed, dtype), TaskAligned.TOOD, count)
    verdict(count)


@pytest.mark.parametrize("name", ["ultralytics-tal", "mmdet-tal"])
def test_real_boxes(name, coco_boxes_file, deep):
    need(name)
    settings = TaskAligned.TOOD if name == "mmdet-tal" else preset_of_version()
    count: Counter = Counter()
    for first in range(0, 5000, 16 if deep else 1000):
        inputs = coco_inputs(coco_boxes_file, first, min(16, 5000 - first), (640, 640))
        compare(name, inputs, settings, count)
    verdict(count)


@pytest.mark.parametrize("settings", [TaskAligned.ULTRALYTICS, TaskAligned.YOLO26, TaskAligned.TOOD], ids=str)
def test_a_mistake_at_a_single_point_is_not_explained(settings):
    """What the comparisons above count as explained, held to one planted fault at a time in our own answer."""
    caught: Counter = Counter()
    for seed in range(3):
        inputs = random_inputs(seed)
        settings = of_levels(settings, inputs.grid) if seed % 3 != 1 else settings
        right = task_aligned_assign(
            inputs.grid, inputs.pred_boxes, inputs.pred_logits.sigmoid(), inputs.gt_boxes, inputs.gt_labels, settings
        )
        allowed = answers_of(inputs, settings)
        for b, boxes in enumerate(inputs.gt_boxes):
            positives = (right.owner[b] >= 0).nonzero().flatten()
            for j in positives[:: max(1, len(positives) // 12)].tolist():
                own = int(right.owner[b, j])
                near = {j - 1 if j else j + 1, j + 1 if j + 1 < right.owner.shape[1] else j - 1}
                faults = {"lost": {j: -1}, "to the next object": {j: (own + 1) % len(boxes)}}
                faults["moved"] = {j: -1, next((i for i in near if right.owner[b, i] < 0), j): own}
                for fault, changed in faults.items():
                    owner = right.owner.clone()
                    for point, to in changed.items():
                        owner[b, point] = to
                    if torch.equal(owner, right.owner):
                        continue
                    count: Counter = Counter()
                    hold(right._replace(owner=owner), right.owner, right.target, allowed, count, True)
                    caught[fault, count["unexplained"] > 0] += 1
    print(dict(caught))
    for fault in ("lost", "to the next object", "moved"):
        assert caught[fault, True] > 50
        assert caught[fault, False] <= 0.01 * caught[fault, True]  # among them points that rounding does leave open


def by_peer(name: str, inputs: Inputs, **more) -> Tensor:
    adapter = PEERS[name].load()(inputs, **more)
    return adapter.owners(adapter())


@pytest.mark.parametrize("what", ["score", "box"])
@pytest.mark.parametrize("name", ["ultralytics-tal", "mmdet-tal"])
def test_nan_concerns_its_own_point_alone_and_the_peers_whole_object(name, what):
    need(name)
    inputs = random_inputs(2)
    settings = TaskAligned.TOOD if name == "mmdet-tal" else preset_of_version()

    def changed(box: float, score: float) -> Inputs:
        boxes, logits = inputs.pred_boxes.clone(), inputs.pred_logits.clone()
        (boxes if what == "box" else logits)[2, point] = box if what == "box" else score
        return inputs._replace(pred_boxes=boxes, pred_logits=logits)

    def ours(of: Inputs) -> TaskAlignedAssignment:
        return task_aligned_assign(of.grid, of.pred_boxes, of.pred_logits.sigmoid(), *of[3:], settings)

    point = int((by_peer(name, inputs)[2] >= 0).nonzero()[0])
    broken, poor = changed(torch.nan, torch.nan), changed(0.0, -torch.inf)  # a box without area, a probability of 0
    assert equal(ours(broken), ours(poor))
    differ = (by_peer(name, broken) != by_peer(name, poor))[2]
    differ[point] = False
    assert differ.any()
