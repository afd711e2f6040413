"""The same bits everywhere: hashes of what is assigned, and of the scalar math, kept for good.

They hold for every torch, Python, compiler, instruction set and number of threads. A changed hash is a changed result:
a line under "Results" in the changelog, and a minor version. ``python tests/test_golden.py`` prints today's.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.random import RandomState  # its numbers never change, unlike torch's and default_rng's
from torch import Tensor

from agreement import check_agreement
from mgassign import (
    PointGrid,
    SimOTA,
    SoftLabel,
    TaskAligned,
    amplified_centerness,
    anchor_mutual_guidance_assign,
    atss_assign,
    box_iou,
    fcos_assign,
    max_iou_assign,
    mutual_guidance_assign,
    sim_ota_assign,
    soft_label_assign,
    task_aligned_assign,
    topk_per_object,
)
from scenes import Scene

HERE = Path(__file__).parent
GOLDEN = json.loads((HERE / "golden.json").read_text())


def float32(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))


def golden_scene(
    size: tuple[int, int], strides: tuple[int, ...], objects: tuple[int, ...], num_classes: int = 5, step: float = 0.0
) -> Scene:
    """A batch from exactly rounded arithmetic alone: no function whose last bit depends on a library.

    With a step all coordinates and scores are its multiples, so that ties are frequent.
    """
    random = RandomState(sum(objects) + len(strides))
    grid = PointGrid.for_image(size, strides)

    def rounded(values: np.ndarray) -> np.ndarray:
        return np.round(values / step) * step if step else values

    points = grid.points().numpy().astype(np.float64)
    reach = grid.point_strides().numpy().astype(np.float64)[:, None]
    extent = np.array([size[1], size[0]], dtype=np.float64)
    pred_boxes, pred_logits, gt_boxes, gt_labels = [], [], [], []
    for count in objects:
        sides = 4 + random.random_sample((count, 2)) ** 4 * (0.9 * extent - 4)  # most are small
        corner = random.random_sample((count, 2)) * (extent - sides)
        boxes = rounded(np.concatenate([corner, corner + sides], axis=1))
        labels = random.randint(num_classes, size=count)
        distances = random.random_sample((len(points), 4)) * 3 * reach
        predicted = np.concatenate([points - distances[:, :2], points + distances[:, 2:]], axis=1)
        logits = random.random_sample((len(points), num_classes)) * 8 - 6
        if count:
            picked = random.randint(count, size=len(points))
            near = random.random_sample(len(points)) < 0.4
            shift = (random.random_sample((len(points), 4)) - 0.5) * reach
            predicted = np.where(near[:, None], boxes[picked] + shift, predicted)
            logits[near, labels[picked[near]]] += 4
        pred_boxes.append(float32(rounded(predicted)))
        pred_logits.append(float32(rounded(logits)))
        gt_boxes.append(float32(boxes))
        gt_labels.append(torch.from_numpy(labels.astype(np.int64)))
    return Scene(grid, torch.stack(pred_boxes), torch.stack(pred_logits), gt_boxes, gt_labels)


def mixed() -> Scene:
    return golden_scene((320, 416), (8, 16, 32, 64, 128), (12, 0, 1, 40))


def crowded() -> Scene:
    return golden_scene((256, 320), (8, 16, 32), (300,))


def tied() -> Scene:
    return golden_scene((192, 192), (8, 16, 32), (30, 30), step=4.0)


def odd() -> Scene:
    """With what is no number and what is no box."""
    scene = mixed()
    random = RandomState(7)
    for values, share in ((scene.pred_boxes, 0.02), (scene.pred_logits, 0.02), (scene.gt_boxes[3], 0.05)):
        for odd_value in (np.nan, np.inf, -np.inf, 3e38):
            values[torch.from_numpy(random.random_sample(tuple(values.shape)) < share)] = odd_value
    return scene


def regions() -> Scene:
    """Some of the objects are padding, some are regions."""
    scene = mixed()
    for labels in scene.gt_labels:
        labels[::3] = -2
        labels[::5] = -1
    return scene


def spaced() -> Scene:
    """Points that lie apart otherwise than by the stride, differently per axis."""
    scene = mixed()
    spacings = tuple((s - 0.5, s * 0.875) for s in scene.grid.strides)
    return replace(scene, grid=replace(scene.grid, spacings=spacings, offsets=((0.0, 1.0),) * 5))


def blocks(scene: Scene) -> tuple[Tensor, ...]:
    """What the building blocks give for the last image: R and A, bit for bit, and who is chosen by them."""
    boxes, labels = scene.gt_boxes[-1], scene.gt_labels[-1]
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    k = 1 + labels % 9
    iou = box_iou(scene.pred_boxes[-1], boxes)
    amplified = amplified_centerness(scene.grid, boxes, scene.pred_logits[-1][:, labels].clamp(0, 1).nan_to_num(0))
    return iou, amplified, topk_per_object(iou, k, areas), topk_per_object(amplified, k, areas)


def aligned(scene: Scene, settings: TaskAligned, **more) -> tuple[Tensor, ...]:
    return task_aligned_assign(*vars(scene).values(), settings, activation="sigmoid", **more)


def dynamic(scene: Scene, settings: SimOTA | SoftLabel, **more) -> tuple[Tensor, ...]:
    assign = sim_ota_assign if isinstance(settings, SimOTA) else soft_label_assign
    return assign(*vars(scene).values(), settings, **more)


def anchors(scene: Scene) -> Tensor:
    """Two shapes at each point, four strides wide: a multiple of the points, in their order."""
    reach = 2 * scene.grid.point_strides()[:, None]
    shapes = (reach * torch.tensor([1.0, 0.5]), reach * torch.tensor([0.75, 1.0]))
    points = scene.grid.points()
    return torch.stack([torch.cat([points - half, points + half], 1) for half in shapes], 1).flatten(0, 1)


def guided(scene: Scene, **settings) -> tuple[Tensor, ...]:
    predicted = (values.repeat_interleave(2, dim=1) for values in (scene.pred_boxes, scene.pred_logits))
    return anchor_mutual_guidance_assign(anchors(scene), *predicted, scene.gt_boxes, scene.gt_labels, **settings)


def matched(scene: Scene, **settings) -> tuple[Tensor, ...]:
    return max_iou_assign(anchors(scene), scene.gt_boxes, gt_labels=scene.gt_labels, **settings)


def atss(scene: Scene, with_labels: bool = False, **settings) -> tuple[Tensor, ...]:
    labels = scene.gt_labels if with_labels else None
    return atss_assign(scene.grid, scene.gt_boxes, gt_labels=labels, **settings)


CALLS: dict[str, Callable[[], tuple[Tensor, ...]]] = {
    "mutual guidance": lambda: mixed().assign(),
    "mutual guidance, crowded": lambda: crowded().assign(),
    "mutual guidance, tied": lambda: tied().assign(),
    "mutual guidance, odd values": lambda: odd().assign(),
    "mutual guidance, float16": lambda: mixed().to(torch.float16).assign(),
    "mutual guidance, bfloat16": lambda: mixed().to(torch.bfloat16).assign(),
    "mutual guidance, every level": lambda: crowded().assign(level_gate=False, sigma=1.25, min_points=7),
    "mutual guidance, whole boxes": lambda: mixed().assign(center_radius=0, sigma=3.5),
    "mutual guidance, inside": lambda: crowded().assign(inside=True, num_points=3),
    "mutual guidance, regions": lambda: regions().assign(),
    "mutual guidance, spacing": lambda: spaced().assign(),
    "fcos": lambda: fcos_assign(mixed().grid, mixed().gt_boxes),
    "fcos, tied": lambda: fcos_assign(tied().grid, tied().gt_boxes, 2.5),
    "task-aligned": lambda: aligned(mixed(), TaskAligned.ULTRALYTICS),
    "task-aligned, crowded": lambda: aligned(crowded(), TaskAligned.YOLO26),
    "task-aligned, tied": lambda: aligned(tied(), TaskAligned.TOOD),
    "task-aligned, odd values": lambda: aligned(odd(), TaskAligned.YOLOV10),
    "task-aligned, regions": lambda: aligned(regions(), TaskAligned(contest="chosen"), num_points=20),
    "task-aligned, other powers": lambda: aligned(crowded(), TaskAligned(alpha=0.75, beta=2.5), min_points=12),
    "SimOTA": lambda: dynamic(mixed(), SimOTA.YOLOX),
    "SimOTA, crowded": lambda: dynamic(crowded(), SimOTA.YOLOX_0_3),
    "SimOTA, tied": lambda: dynamic(tied(), SimOTA.MMDET),
    "SimOTA, odd values": lambda: dynamic(odd(), SimOTA.YOLOX_0_3, num_points=12),
    "SimOTA, objectness": lambda: dynamic(mixed(), SimOTA.YOLOX, pred_objectness=mixed().pred_logits[..., 0]),
    "soft labels": lambda: dynamic(mixed(), SoftLabel.MMDET),
    "soft labels, crowded": lambda: dynamic(crowded(), SoftLabel.MMDET),
    "soft labels, tied": lambda: dynamic(tied(), SoftLabel(center_radius=1.0, epsilon=0.5)),
    "soft labels, odd values": lambda: dynamic(odd(), SoftLabel.MMDET),
    "max-IoU": lambda: matched(mixed()),
    "max-IoU, crowded": lambda: matched(crowded(), low_quality="object"),
    "max-IoU, tied": lambda: matched(tied(), low_quality="first", min_iou=0.125),
    "max-IoU, odd values": lambda: matched(odd(), low_quality="none", high=0.7, low=0.3),
    "max-IoU, regions": lambda: matched(regions(), ignore_share=0.25),
    "anchors": lambda: guided(mixed()),
    "anchors, crowded": lambda: guided(crowded(), sigma=1.25, num_points=20),
    "anchors, tied": lambda: guided(tied(), min_points=7),
    "anchors, odd values": lambda: guided(odd(), high=0.7, low=0.2),
    "anchors, regions": lambda: guided(regions(), ignore_share=0.25),
    "atss": lambda: atss(mixed()),
    "atss, crowded": lambda: atss(crowded(), topk=25, anchor_scale=5),
    "atss, tied": lambda: atss(tied()),
    "atss, odd values": lambda: atss(odd()),
    "atss, regions": lambda: atss(regions(), with_labels=True),
    "atss, spacing": lambda: atss(spaced()),
    "building blocks": lambda: blocks(mixed()),
    "building blocks, tied": lambda: blocks(tied()),
    "building blocks, odd values": lambda: blocks(odd()),
}


def bits() -> dict[str, list[str]]:
    """R and A themselves, of a point and an object each, so that it shows which value is another: hexadecimal float32."""
    random = RandomState(1)
    eighths = random.randint(1, 160, size=(320, 6)) / 8.0
    corner, sides, shift = np.split(eighths, 3, axis=1)
    boxes = float32(np.concatenate([corner, corner + sides], axis=1))
    predicted = float32(np.concatenate([corner + shift - 8, corner + sides + shift[:, ::-1] - 4], axis=1))
    one = PointGrid.from_features([(1, 1)], strides=(8,), offset=[(12.0, 12.5)], ranges=[(-1, np.inf)])
    probs = float32(random.randint(0, 9, size=(1, 320)) / 8.0)
    around = float32(np.array([12, 12.5, 12, 12.5]) + eighths[:, :4] * [-1, -1, 1, 1])
    found = {
        "iou": box_iou(predicted, boxes).diagonal(),
        "amplified": torch.cat([amplified_centerness(one, around, probs, sigma)[0, :160] for sigma in (1.25, 2.0)]),
    }
    words = {name: [f"{word:08x}" for word in values.numpy().view(np.uint32)] for name, values in found.items()}
    return {name: [" ".join(of[i : i + 16]) for i in range(0, len(of), 16)] for name, of in words.items()}


def digest(results: tuple[Tensor, ...]) -> str:
    hashed = sha256()
    for result in results:
        assert not (result.is_floating_point() and result.isnan().any()), "the bits of NaN differ between processors"
        hashed.update(f"{result.dtype} {tuple(result.shape)}".encode())
        hashed.update(result.numpy().tobytes())
    return hashed.hexdigest()[:16]


def test_the_scenes_are_assigned_as_the_reference_does():
    for scene in (mixed(), tied()):
        assert check_agreement(scene.assign(), scene) <= 0.01 * int((scene.assign().loc >= 0).sum())


@pytest.mark.parametrize("name", CALLS)
def test_assignments(name):
    assert digest(CALLS[name]()) == GOLDEN["assignments"][name]


@pytest.mark.parametrize("name", ["iou", "amplified"])
def test_bits(name):
    found = bits()[name]
    assert found == GOLDEN["bits"][name]
    assert sum(word != "00000000" for line in found for word in line.split()) > 100


def test_assignments_for_any_number_of_threads():
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            assert digest(mutual_guidance_assign(*vars(mixed()).values())) == GOLDEN["assignments"]["mutual guidance"]
    finally:
        torch.set_num_threads(before)


@pytest.fixture
def flushed():
    """The calling thread takes subnormal numbers for 0, as some training scripts ask it to; the one that helps does not."""
    if not torch.set_flush_denormal(False):
        pytest.skip("this processor does not flush")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.ones(1_000_000).mul_(2)  # so that it is there already
    torch.set_flush_denormal(True)
    yield
    torch.set_flush_denormal(False)
    torch.set_num_threads(before)


@pytest.mark.usefixtures("flushed")
@pytest.mark.parametrize("name", CALLS)
def test_assignments_where_small_numbers_are_flushed(name):
    assert digest(CALLS[name]()) == GOLDEN["assignments"][name]


SQUARE = torch.tensor([[0.0, 0, 2.0**-66, 2.0**-66]])
# Of as many boxes as give each thread work, with areas between all and none of the square's.
SQUARES = SQUARE * torch.logspace(0, -4, 40_000, base=2.0)[:, None]
SUBNORMAL = {
    "box_iou": lambda: [box_iou(SQUARES, SQUARE)],
    "max_iou": lambda: max_iou_assign(SQUARES, [SQUARE], low_quality="first"),
    "anchors": lambda: anchor_mutual_guidance_assign(
        SQUARES, SQUARES[None], torch.zeros(1, 40_000, 1), [SQUARE], [torch.tensor([0])]
    ),
}


@pytest.mark.parametrize("name", SUBNORMAL)
def test_subnormal_areas_where_they_are_flushed(name, request):
    expected = SUBNORMAL[name]()
    request.getfixturevalue("flushed")
    assert all(map(torch.equal, SUBNORMAL[name](), expected))
    assert not torch.full((4,), 2.0**-130).mul(1).any(), "the calling thread does not flush any more"
    torch.set_flush_denormal(False)
    assert all(map(torch.equal, SUBNORMAL[name](), expected))
    assert any(value.any() for value in expected)


# The math alone, with every compiler at hand; for aarch64 run by an emulator.
COMPILERS = {
    "c++": [],
    "g++-11": [],
    "g++-12": [],
    "clang++-14": [],
    "clang++-19": [],
    "aarch64-linux-gnu-g++": ["qemu-aarch64", "-L", "/usr/aarch64-linux-gnu"],
}


def math_digests(compiler: str, optimization: str, folder: Path) -> dict[str, str]:
    program = folder / "golden_math"
    flags = [
        "-std=c++17",
        optimization,
        "-ffp-contract=off",
        "-fno-math-errno",
        "-fno-trapping-math",
        "-Wall",
        "-Werror",
    ]
    subprocess.run([compiler, *flags, str(HERE / "golden_math.cpp"), "-o", str(program)], check=True)
    told = subprocess.run([*COMPILERS[compiler], str(program)], check=True, capture_output=True, text=True).stdout
    return dict(line.split() for line in told.splitlines())


@pytest.mark.slow  # and without torch: of compilers, not of versions
@pytest.mark.parametrize("optimization", ["-O0", "-O3"])
@pytest.mark.parametrize("compiler", COMPILERS)
def test_math(compiler, optimization, tmp_path):
    for program in (compiler, *COMPILERS[compiler][:1]):
        if shutil.which(program) is None:
            pytest.skip(f"no {program}")
    assert math_digests(compiler, optimization, tmp_path) == GOLDEN["math"]


if __name__ == "__main__":
    today = {
        "assignments": {name: digest(call()) for name, call in CALLS.items()},
        "bits": bits(),
        "math": math_digests(os.environ.get("CXX", "c++"), "-O2", HERE.parent / "build"),
    }
    json.dump(today, sys.stdout, indent=2)
    print()
