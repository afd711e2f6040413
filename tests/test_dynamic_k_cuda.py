"""The CUDA kernels of SimOTA and dynamic soft labels give the CPU's results, bit for bit; see test_cuda_kernels.py."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels import SMALL_SHAPES, check_parity, needs_gpu, on_gpu, operands
from mgassign import PointGrid, SimOTA, SoftLabel
from scenes import GRIDS, Scene, equal, random_boxes, scene, scene_of, scenes
from test_dynamic_k import (
    ANY,
    CASES,
    EACH,
    FOUR,
    OVERLAPS_ABOVE_ALL,
    SETTINGS,
    SIDES,
    SOME,
    certain_everywhere,
    square_and_equal_boxes,
)
from test_mutual_guidance_assign import BAD_BOXES, OBJECT_CASES

pytestmark = pytest.mark.slow  # compiling the kernels is

inf, nan = torch.inf, torch.nan
CHOSEN = [SimOTA.YOLOX, SimOTA.MMDET, SoftLabel.MMDET]
SIM_OTA = [SimOTA.YOLOX, SimOTA.YOLOX_0_3]


def arguments_of(
    of: Scene, s: SimOTA | SoftLabel, form: str = "list", objectness=None, wanted=None, k=None, activation=1
) -> tuple[Any, ...]:
    """An operator's name and what it takes; k: how many points each object chooses, or at least and at most so many."""
    quota = (0, s.best_overlaps) if k is None else (k, k) if isinstance(k, int) else k
    shared = [*operands(of, form), *of.grid.arguments]
    if isinstance(s, SoftLabel):
        own = (s.best_overlaps, s.center_radius, s.overlap_weight, s.epsilon, activation)
        return "soft_label_assign", *shared, wanted, *quota, *own
    own = (
        s.best_overlaps,
        s.center_radius,
        s.inside,
        s.penalty,
        s.overlap_weight,
        s.class_weight,
        s.epsilon,
        activation,
    )
    return "sim_ota_assign", *shared, objectness, wanted, *quota, *own


def check(run, *arguments, **more) -> torch.Tensor:
    return check_parity(run, *arguments_of(*arguments, **more))[0]


@ANY
def test_settings(run, settings):
    for seed, name in enumerate(SMALL_SHAPES):
        if name != "eight warps share a tile":
            assert (check(run, scene(seed=seed, **SMALL_SHAPES[name]), settings) >= 0).any()


@EACH
def test_lists_are_shrunk_several_times(run, settings):
    # Predictions overlap objects by hundreds, and objects touch hundreds of tiles.
    of = scene((640, 640), (8, 16), objects=(20,), num_classes=3, seed=20)
    assert (check(run, of, settings) >= 0).sum() > 20


@EACH
def test_many_choose_many(run, settings):
    of = scene((160, 160), (8, 16), objects=(40,), seed=21)
    for k in (1, 128, (0, 128), (7, 9)):
        check(run, of, replace(settings, best_overlaps=5), k=k)
    check(run, of, replace(settings, best_overlaps=128), k=3)
    check(run, of, replace(settings, best_overlaps=1))


@EACH
def test_contests_of_many(run, settings):
    # The same two boxes over and over, every prediction like one of them: of all that choose a point one gets it.
    generator = torch.Generator().manual_seed(22)
    boxes = torch.tensor([[10.0, 10, 70, 70], [12, 8, 80, 66]]).repeat(60, 1)
    grid = PointGrid.for_image((96, 96), (8, 16))
    of = scene_of(grid, [boxes, boxes[:33]], 80, generator)
    owner = check(run, of, settings)
    assert len(owner.unique()) > 4
    check(run, replace(of, gt_labels=[torch.full_like(labels, 7) for labels in of.gt_labels]), settings)


@EACH
@pytest.mark.parametrize("num_classes", [1, 15, 16, 33, 64, 129])
def test_sums_over_classes(run, settings, num_classes):
    # Every point has the same scores in an order of its own, and the object's class last: they differ by the order in
    # which they are added, and the last bit decides.
    generator = torch.Generator().manual_seed(23)
    grid = PointGrid.for_image((48, 48), (8,))
    order = torch.rand(1, 36, num_classes - 1, generator=generator).argsort(-1)
    others = torch.randn(num_classes - 1, generator=generator)[order]
    for activation in (1, 0):
        logits = torch.cat([others, torch.ones(1, 36, 1)], -1)
        scores = logits if activation else logits.sigmoid()
        box = torch.tensor([[4.0, 4, 44, 44]])
        of = Scene(grid, box.expand(1, 36, 4), scores, [box], [torch.tensor([num_classes - 1])])
        for k in (2, 6, 14, 23):
            check(run, of, settings, k=k, activation=activation)


@pytest.mark.parametrize("settings", SIM_OTA, ids=["YOLOX", "YOLOX_0_3"])
def test_objectness(run, settings):
    of = scene((64, 64), (8, 16), objects=(5, 0, 20), num_classes=17, seed=24)
    objectness = torch.randn(of.pred_logits.shape[:2], generator=torch.Generator().manual_seed(25))
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        check(run, of, settings, objectness=objectness.to(dtype).T.contiguous().T)
    objectness[0, ::3], objectness[2, ::2], objectness[2, ::5] = nan, inf, -inf
    assert not torch.equal(check(run, of, settings, objectness=objectness), check(run, of, settings))
    check(run, of, settings, objectness=objectness, activation=0)


@EACH
@pytest.mark.parametrize("form", ["list", "padded", "jagged"])
def test_forms_of_objects(run, settings, form):
    of = scene((64, 64), (8, 16), objects=(4, 0, 7), seed=4)
    of.gt_labels[2][::3] = -2
    of.gt_labels[2][1] = -1
    assert (check(run, of, settings, form) == -2).any()
    wanted = torch.tensor([3, 0, -2, 9] + [1] * 7) if form != "padded" else torch.arange(21).reshape(3, 7) - 3
    check(run, of, settings, form, wanted=wanted)


@EACH
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_dtypes_and_strides(run, settings, dtype):
    of = scene((48, 64), (8, 16), objects=(6, 2), seed=2)
    boxes = of.pred_boxes.to(dtype).permute(2, 1, 0).contiguous().permute(2, 1, 0)
    check(run, replace(of, pred_boxes=boxes, pred_logits=of.pred_logits.to(dtype).mT.contiguous().mT), settings)


@pytest.mark.parametrize("settings", [SimOTA.YOLOX, SoftLabel.MMDET], ids=["SimOTA", "SoftLabel"])
def test_more_images_than_one_launch_takes(run, settings):
    grid = PointGrid.for_image((16, 16), strides=(8,))
    boxes = [torch.tensor([[0.0, 0, 9 + b % 7, 16]] * (b % 3)).reshape(-1, 4) for b in range(258)]
    of = scene_of(grid, boxes, 2, torch.Generator().manual_seed(5))
    for form in ("list", "jagged", "padded"):
        check(run, of, settings, form)


@pytest.mark.parametrize("objects", OBJECT_CASES.values(), ids=OBJECT_CASES.keys())
def test_special_objects(run, objects):
    boxes = torch.tensor(objects, dtype=torch.float32).reshape(-1, 4)
    like = scene((128, 128), (16, 32), objects=(4,), seed=6)
    of = Scene(like.grid, like.pred_boxes, like.pred_logits, [boxes], [torch.arange(len(boxes)) % 6])
    for settings in CHOSEN:
        check(run, of, settings)


@pytest.mark.parametrize(("objects", "labels", "boxes", "sim_ota", "soft"), CASES.values(), ids=CASES.keys())
def test_case(run, objects, labels, boxes, sim_ota, soft):
    of = Scene(FOUR, torch.tensor(boxes)[None], torch.zeros(1, 4, 2),
               [torch.tensor(objects).reshape(-1, 4)], [torch.tensor(labels, dtype=torch.int64)])  # fmt: skip
    for settings, expected in ((SimOTA.YOLOX_0_3, sim_ota), (SoftLabel.MMDET, soft)):
        owner = check(run, of, settings)[0].tolist()
        assert expected is None or owner == expected
    for settings in SETTINGS.values():
        check(run, of, settings)


@pytest.mark.parametrize("side", SIDES)
def test_areas_that_are_subnormal(run, side):
    of = square_and_equal_boxes(side)
    assert (check(run, of, SimOTA(center_radius=4.5)) == 0).sum() == 10
    check(run, of, SoftLabel(center_radius=4.5))
    # Logits so sure that an overlap beneath the best would cost too much.
    check(run, replace(of, pred_logits=of.pred_logits + 200), SimOTA(center_radius=4.5))


@EACH
def test_special_predictions(run, settings):
    of = scene((64, 64), (8,), objects=(6,), seed=7)
    of.pred_boxes[0, : len(BAD_BOXES)] = torch.tensor(BAD_BOXES)
    special = torch.randint(8, of.pred_logits.shape, generator=torch.Generator().manual_seed(0))
    for value, which in ((nan, 0), (inf, 1), (-inf, 2), (1e30, 3)):
        of.pred_logits[special == which] = value
    for activation in (0, 1):
        check(run, of, settings, activation=activation)


@EACH
def test_equal_costs_everywhere(run, settings):
    of = scene((96, 96), (8, 16), objects=(12, 3), num_classes=5, seed=26)
    boxes = of.grid.decode(torch.full((2, of.grid.num_points, 4), 20.0))
    check(run, replace(of, pred_boxes=boxes, pred_logits=of.pred_logits * 0), settings)
    check(run, replace(of, pred_boxes=boxes * 0 + 9, pred_logits=of.pred_logits * 0), settings, k=5)
    check(run, replace(of, pred_boxes=boxes, pred_logits=of.pred_logits * 0), settings, k=40)


@pytest.mark.parametrize("settings", OVERLAPS_ABOVE_ALL, ids=str)
def test_costs_that_round_to_the_same(run, settings):
    check(run, certain_everywhere(), settings, k=2)


@ANY
@pytest.mark.parametrize("shift", [0.0, 60.0, 5000.0])
def test_windows_widen(run, settings, shift):
    # Objects that hold no point, beside some that do, and predictions that overlap few or none: what is cheapest lies
    # far outside of where it is looked for at first.
    generator = torch.Generator().manual_seed(27)
    tiny = torch.rand(9, 2, generator=generator) * 120
    boxes = torch.cat([torch.cat([tiny, tiny + 2.5], 1), random_boxes(3, (128, 128), generator)])
    of = scene_of(PointGrid.for_image((128, 128), (8, 16, 32)), [boxes], 3, generator)
    for k in (None, 9, 64):
        check(run, replace(of, pred_boxes=of.pred_boxes + shift), settings, k=k)


@EACH
def test_a_label_of_no_class_counts_as_probability_0(run, settings):
    of = scene((64, 64), (8, 16), objects=(9,), num_classes=4, seed=8)
    for activation, nothing in ((1, -inf), (0, 0.0)):
        scores = of.pred_logits if activation else of.pred_logits.sigmoid()
        more = torch.cat([scores, torch.full((1, 80, 1), nothing)], 2)
        labels = [of.gt_labels[0].masked_fill(torch.arange(9) % 2 == 0, 4)]
        name, *arguments = arguments_of(
            replace(of, pred_logits=more, gt_labels=labels), settings, activation=activation
        )
        expected = getattr(torch.ops.mgassign, name)(*arguments)
        for label in (4, -3, 2**40, -(2**63)):
            labeled = [of.gt_labels[0].masked_fill(torch.arange(9) % 2 == 0, label)]
            found = run(
                *arguments_of(replace(of, pred_logits=scores, gt_labels=labeled), settings, activation=activation)
            )
            assert equal(found, expected), label


@pytest.mark.parametrize("settings", [SimOTA.YOLOX, SoftLabel.MMDET], ids=["SimOTA", "SoftLabel"])
@pytest.mark.parametrize(
    "offsets", [[0, 9, 2, 9], [3, 1, 5, 4], [-5, 4, 2**60, 9], [9, 9, 9, 9], [0, 0, 0, 99]], ids=str
)
def test_offsets_that_are_none_break_nothing(run, settings, offsets):
    # In device memory they cannot be checked without waiting for it. What comes out is of no use, that is all.
    of = scene((64, 64), (8,), objects=(3, 3, 3), seed=9)
    name, *arguments = arguments_of(of, settings, "jagged")
    arguments[4] = torch.tensor(offsets)
    owner, iou = run(name, *arguments)
    assert ((owner >= -2) & (owner < 9)).all()
    assert ((iou >= 0) & (iou <= 1)).all()


@pytest.mark.parametrize("settings", [SimOTA.YOLOX, SoftLabel.MMDET], ids=["SimOTA", "SoftLabel"])
@pytest.mark.parametrize("images", [0, 2])
def test_nothing_to_assign(run, settings, images):
    grid = PointGrid.for_image((16, 24), (8,))
    empty = scene_of(grid, [torch.empty(0, 4)] * images, 3, torch.Generator())
    no_points = PointGrid.from_features([(0, 4), (3, 0)], strides=(8, 16))
    boxes, labels = [torch.tensor([[0.0, 0, 40, 40]])] * images, [torch.tensor([0])] * images
    of = Scene(no_points, torch.empty(images, 0, 4), torch.empty(images, 0, 2), boxes, labels)
    if images:
        check(run, empty, settings, "padded")
        check(run, empty, settings)
        check(run, of, settings)
        check(run, scene((32, 32), (8,), objects=(3, 2)), settings, k=0)
    else:
        none = Scene(grid, torch.empty(0, 6, 4), torch.empty(0, 6, 3), [torch.empty(0, 4)], [torch.empty(0).long()])
        name, *arguments = arguments_of(none, settings)
        arguments[5] = []  # gt_counts
        check_parity(run, name, *arguments)


def test_grids(run):
    for seed, grid in enumerate(GRIDS):
        boxes = [torch.rand(9, 4, generator=torch.Generator().manual_seed(seed)).cumsum(1) * 30]
        for settings in CHOSEN:
            check(run, scene_of(grid, boxes, 3, torch.Generator().manual_seed(seed)), settings)


@hypothesis.settings(max_examples=30)
@pytest.mark.ptx
@given(scenes(), SOME, st.sampled_from([None, None, 3, 30]))
def test_any_scene(on_ptx, scene, of_settings, k):
    check(on_ptx, scene, of_settings, k=k)


@needs_gpu
@given(scenes(), SOME, st.sampled_from([None, None, 3, 30]))
def test_any_scene_on_a_gpu(scene, of_settings, k):
    check(on_gpu, scene, of_settings, k=k)
