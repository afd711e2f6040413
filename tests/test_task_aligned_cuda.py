"""Task-aligned assignment's CUDA kernels give the CPU's results, bit for bit; see test_cuda_kernels.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import SMALL_SHAPES, check_parity, needs_gpu, on_gpu, operands
from mgassign import PointGrid, TaskAligned
from scenes import GRIDS, Scene, scene, scene_of, scenes
from test_mutual_guidance_assign import BAD_BOXES, OBJECT_CASES
from test_task_aligned import CASES, FOUR, SETTINGS, UNLIKELY

pytestmark = pytest.mark.slow  # compiling the kernels is

inf, nan = torch.inf, torch.nan


def arguments_of(
    of: Scene, of_settings: TaskAligned, form: str = "list", wanted=None, min_points=0, activation=1
) -> list[Any]:
    s = of_settings
    below = s.least_side if s.raise_below is None else s.raise_below
    return [
        *operands(of, form), *of.grid.arguments, wanted, min_points, max(s.k, min_points), s.keep or 0, s.alpha, s.beta,
        int(s.overlap == "ciou"), int(s.candidates == "anywhere"), s.margin, below, s.least_side,
        int(s.contest == "chosen"), s.epsilon, activation,
    ]  # fmt: skip


def check(run, *arguments, **more) -> torch.Tensor:
    return check_parity(run, "task_aligned_assign", *arguments_of(*arguments, **more))[0]


@pytest.mark.parametrize("of_settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_settings(run, of_settings):
    for seed, name in enumerate(("three levels", "narrow", "own ranges")):
        owner = check(run, scene(seed=seed, **SMALL_SHAPES[name]), of_settings)
        assert (owner >= 0).any() or name == "narrow"


def test_many_choose_many(run):
    # Lists are shrunk several times, points are contested by many.
    of = scene((160, 160), (8, 16), objects=(40,), seed=20)
    for k in (1, 128):
        check(run, of, TaskAligned(k=k, least_side=16.0), min_points=k)
    check(run, of, TaskAligned(k=128, keep=100))


@pytest.mark.parametrize("form", ["list", "padded", "jagged"])
def test_forms_of_objects(run, form):
    of = scene((64, 64), (8, 16), objects=(4, 0, 7), seed=4)
    of.gt_labels[2][::3] = -2
    of.gt_labels[2][1] = -1
    owner = check(run, of, TaskAligned.YOLO26, form)
    assert (owner == -2).any()
    wanted = torch.tensor([3, 0, -2, 9] + [1] * 7) if form != "padded" else torch.arange(21).reshape(3, 7) - 3
    check(run, of, TaskAligned.ULTRALYTICS, form, wanted=wanted, min_points=1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_dtypes_and_strides(run, dtype):
    of = scene((48, 64), (8, 16), objects=(6, 2), seed=2)
    arguments = arguments_of(of, TaskAligned.ULTRALYTICS)
    arguments[0] = of.pred_boxes.to(dtype).permute(2, 1, 0).contiguous().permute(2, 1, 0)
    arguments[1] = of.pred_logits.to(dtype).transpose(1, 2).contiguous().transpose(1, 2)
    check_parity(run, "task_aligned_assign", *arguments)


def test_more_images_than_one_launch_takes(run):
    grid = PointGrid.for_image((16, 16), strides=(8,))
    boxes = [torch.tensor([[0.0, 0, 9 + b % 7, 16]] * (b % 3)).reshape(-1, 4) for b in range(258)]
    of = scene_of(grid, boxes, 2, torch.Generator().manual_seed(5))
    for form in ("list", "jagged", "padded"):
        check(run, of, TaskAligned(k=2), form)


@pytest.mark.parametrize("objects", OBJECT_CASES.values(), ids=OBJECT_CASES.keys())
def test_special_objects(run, objects):
    boxes = torch.tensor(objects, dtype=torch.float32).reshape(-1, 4)
    like = scene((128, 128), (16, 32), objects=(4,), seed=6)
    of = Scene(like.grid, like.pred_boxes, like.pred_logits, [boxes], [torch.arange(len(boxes)) % 6])
    check(run, of, TaskAligned.ULTRALYTICS)
    check(run, of, TaskAligned.TOOD)


@pytest.mark.parametrize(("objects", "labels", "boxes", "changed", "expected"), CASES.values(), ids=CASES.keys())
def test_case(run, objects, labels, boxes, changed, expected):
    of = Scene(FOUR, torch.tensor(boxes)[None], torch.full((1, 4, 2), 0.5),
               [torch.tensor(objects).reshape(-1, 4)], [torch.tensor(labels, dtype=torch.int64)])  # fmt: skip
    assert check(run, of, UNLIKELY.__class__(**{**vars(UNLIKELY), **changed}), activation=0)[0].tolist() == expected


def test_special_predictions(run):
    of = scene((64, 64), (8,), objects=(6,), seed=7)
    of.pred_boxes[0, : len(BAD_BOXES)] = torch.tensor(BAD_BOXES)
    special = torch.randint(8, of.pred_logits.shape, generator=torch.Generator().manual_seed(0))
    for value, which in ((nan, 0), (inf, 1), (-inf, 2)):
        of.pred_logits[special == which] = value
    for activation in (0, 1):
        check(run, of, TaskAligned.ULTRALYTICS, activation=activation)


def test_a_label_of_no_class_counts_as_probability_0(run):
    of = scene((64, 64), (8, 16), objects=(9,), num_classes=4, seed=8)
    impossible = Scene(of.grid, of.pred_boxes, torch.cat([of.pred_logits, torch.full((1, 80, 1), -inf)], 2),
                       of.gt_boxes, [of.gt_labels[0].masked_fill(torch.arange(9) % 2 == 0, 4)])  # fmt: skip
    expected = torch.ops.mgassign.task_aligned_assign(*arguments_of(impossible, TaskAligned.ULTRALYTICS))
    for label in (4, -3, 2**40, -(2**63)):
        labels = of.gt_labels[0].masked_fill(torch.arange(9) % 2 == 0, label)
        labeled = Scene(of.grid, of.pred_boxes, of.pred_logits, of.gt_boxes, [labels])
        found = run("task_aligned_assign", *arguments_of(labeled, TaskAligned.ULTRALYTICS))
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)), label


@pytest.mark.parametrize(
    "offsets", [[0, 9, 2, 9], [3, 1, 5, 4], [-5, 4, 2**60, 9], [9, 9, 9, 9], [0, 0, 0, 99]], ids=str
)
def test_offsets_that_are_none_break_nothing(run, offsets):
    # In device memory they cannot be checked without waiting for it. What comes out is of no use, that is all.
    of = scene((64, 64), (8,), objects=(3, 3, 3), seed=9)
    arguments = arguments_of(of, TaskAligned.ULTRALYTICS, "jagged")
    arguments[4] = torch.tensor(offsets)
    owner, *_ = run("task_aligned_assign", *arguments)
    assert ((owner >= -2) & (owner < 9)).all()


@pytest.mark.parametrize("images", [0, 2])
def test_nothing_to_assign(run, images):
    grid = PointGrid.for_image((16, 24), (8,))
    if not images:
        none = Scene(grid, torch.empty(0, 6, 4), torch.empty(0, 6, 3), [torch.empty(0, 4)], [torch.empty(0).long()])
        arguments = arguments_of(none, TaskAligned.ULTRALYTICS)
        arguments[5] = []  # gt_counts
        check_parity(run, "task_aligned_assign", *arguments)
        return
    empty = scene_of(grid, [torch.empty(0, 4)] * images, 3, torch.Generator())
    check(run, empty, TaskAligned.ULTRALYTICS, "padded")
    check(run, empty, TaskAligned.ULTRALYTICS)
    no_points = PointGrid.from_features([(0, 4), (3, 0)], strides=(8, 16))
    boxes, labels = [torch.tensor([[0.0, 0, 40, 40]])] * images, [torch.tensor([0])] * images
    of = Scene(no_points, torch.empty(images, 0, 4), torch.empty(images, 0, 2), boxes, labels)
    check(run, of, TaskAligned.ULTRALYTICS)


@settings(max_examples=15)
@pytest.mark.ptx
@given(scenes(), st.sampled_from([*SETTINGS.values()]))
def test_any_scene(on_ptx, scene, of_settings):
    check(on_ptx, scene, of_settings)


@needs_gpu
@given(scenes(), st.sampled_from([*SETTINGS.values()]))
def test_any_scene_on_a_gpu(scene, of_settings):
    check(on_gpu, scene, of_settings)


def test_grids(run):
    for seed, grid in enumerate(GRIDS):
        boxes = [torch.rand(9, 4, generator=torch.Generator().manual_seed(seed)).cumsum(1) * 30]
        of = scene_of(grid, boxes, 3, torch.Generator().manual_seed(seed))
        assert (check(run, of, TaskAligned.ULTRALYTICS) >= 0).any()
