"""The CUDA kernels give the CPU's results, bit for bit: as PTX where nvcc is, and on a GPU where there is one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import CHECKED, SMALL_SHAPES, Run, check_parity, ending, needs_gpu, on_gpu, operands
from mgassign import PointGrid
from scenes import GRIDS, Scene, scene, scene_of, scenes
from test_building_blocks import TOPK_CASES
from test_mutual_guidance_assign import BAD_BOXES, OBJECT_CASES

pytestmark = pytest.mark.slow  # compiling the kernels is

inf, nan = torch.inf, torch.nan


SETTINGS_OF_THE_OPERATOR = {
    "wanted": None, "center_radius": 1.5, "sigma": 2.0, "level_gate": True, "min_points": 0, "max_points": 2**31 - 1,
    "inside": False, "ignore_share": 0.5, "activation": 1,
}  # fmt: skip


def arguments_of(of: Scene, form: str = "list", **changed: Any) -> list[Any]:
    values = SETTINGS_OF_THE_OPERATOR | changed
    return [*operands(of, form), *of.grid.arguments, *values.values()]


SETTINGS = [
    {},
    {"center_radius": 0.0, "sigma": 1.25},
    {"level_gate": False, "min_points": 7},
    {"min_points": 2**31 - 1, "activation": 0},
    {"inside": True, "min_points": 3, "max_points": 3},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("shape", SMALL_SHAPES.values(), ids=SMALL_SHAPES.keys())
def test_mutual_guidance(run, shape, settings):
    found = check_parity(run, "mutual_guidance_assign", *arguments_of(scene(seed=1, **shape), **settings))
    assert (found[2] >= 0).any()


@pytest.mark.parametrize("shape", ["three levels", "eight warps share a tile"])
def test_regions_padding_and_counts_of_their_own(run, shape):
    of = scene(seed=14, **SMALL_SHAPES[shape])
    arguments = arguments_of(of, wanted=torch.arange(sum(map(len, of.gt_labels))) % 4 - 1, min_points=1)
    kind = torch.arange(len(arguments[3])) % 3  # an object, a region, padding
    arguments[3] = torch.where(kind == 0, arguments[3], -1 - kind % 2)
    _, loc, original, *_ = check_parity(run, "mutual_guidance_assign", *arguments)
    for owner in (loc, original):
        assert (owner >= 0).any()
        assert (owner == -2).any() or shape != "three levels"  # where many share a tile, no point is left over


@pytest.mark.parametrize("boxes_dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_dtypes_and_strides(run, boxes_dtype):
    of = scene((48, 64), (8, 16), objects=(6, 2), seed=2)
    logits_dtype = {torch.float64: torch.bfloat16, torch.float16: torch.float64, torch.bfloat16: torch.float16}
    arguments = arguments_of(of)
    arguments[0] = of.pred_boxes.to(boxes_dtype).permute(2, 1, 0).contiguous().permute(2, 1, 0)
    arguments[1] = of.pred_logits.to(logits_dtype[boxes_dtype]).transpose(1, 2).contiguous().transpose(1, 2)
    check_parity(run, "mutual_guidance_assign", *arguments)


def test_views_that_are_not_aligned(run):
    of = scene((48, 64), (8, 16), objects=(6, 2), seed=3)
    arguments = arguments_of(of)
    for i in (0, 1, 2):
        buffer = torch.zeros(arguments[i].numel() + 1)
        buffer[1:] = arguments[i].flatten()
        arguments[i] = buffer[1:].view(arguments[i].shape)
    check_parity(run, "mutual_guidance_assign", *arguments)


@pytest.mark.parametrize("form", ["list", "padded", "jagged"])
def test_forms_of_objects(run, form):
    of = scene((64, 64), (8, 16), objects=(4, 0, 7), seed=4)
    check_parity(run, "mutual_guidance_assign", *arguments_of(of, form, min_points=2))
    _, _, boxes, _, *rows = operands(of, form)
    check_parity(run, "fcos_assign", boxes, *rows, *of.grid.arguments, 1.5)


def test_more_images_than_one_launch_takes(run):
    grid = PointGrid.for_image((16, 16), strides=(8,))
    boxes = [torch.tensor([[0.0, 0, 9 + b % 7, 16]] * (b % 3)).reshape(-1, 4) for b in range(258)]
    of = scene_of(grid, boxes, 2, torch.Generator().manual_seed(5))
    check_parity(run, "mutual_guidance_assign", *arguments_of(of))
    for form in ("list", "jagged"):
        _, _, packed, _, *rows = operands(of, form)
        check_parity(run, "fcos_assign", packed, *rows, *grid.arguments, 0.0)


@pytest.mark.parametrize("objects", OBJECT_CASES.values(), ids=OBJECT_CASES.keys())
def test_special_objects(run, objects):
    boxes = torch.tensor(objects, dtype=torch.float32).reshape(-1, 4)
    like = scene((128, 128), (16, 32), objects=(4,), seed=6)
    of = Scene(like.grid, like.pred_boxes, like.pred_logits, [boxes], [torch.arange(len(boxes)) % 6])
    check_parity(run, "mutual_guidance_assign", *arguments_of(of, min_points=2))
    check_parity(run, "fcos_assign", boxes, None, [len(boxes)], *of.grid.arguments, 1.5)


def test_special_predictions(run):
    of = scene((64, 64), (8,), objects=(6,), seed=7)
    of.pred_boxes[0, : len(BAD_BOXES)] = torch.tensor(BAD_BOXES)
    special = torch.randint(8, of.pred_logits.shape, generator=torch.Generator().manual_seed(0))
    for value, which in ((nan, 0), (inf, 1), (-inf, 2)):
        of.pred_logits[special == which] = value
    for activation in (0, 1):
        check_parity(run, "mutual_guidance_assign", *arguments_of(of, activation=activation))


def compete_for_classes(run: Run, predictions: torch.Tensor, objects: torch.Tensor) -> torch.Tensor:
    """Each prediction's object, which the CPU agrees with."""
    count = len(objects)
    grid = PointGrid.from_features([(1, len(predictions))], strides=(8,))
    generator = torch.Generator().manual_seed(15)
    of = scene_of(grid, [objects], 3, generator)
    of = Scene(grid, predictions[None], of.pred_logits, [objects], [torch.arange(count) % 3])
    return check_parity(run, "mutual_guidance_assign", *arguments_of(of, min_points=len(predictions)))[0][0]


@pytest.mark.parametrize("exponents", [(-70, 63), (-40, 8), (-2, 40)], ids=str)
def test_boxes_of_any_size(run, exponents):
    # So small and so large that products of their areas are no numbers any more; the same box twice; the same ratio twice.
    generator = torch.Generator().manual_seed(14)

    def boxes(count: int) -> torch.Tensor:
        low, high = exponents
        scale = 2.0 ** (low + (high - low) * torch.rand(count, 1, generator=generator, dtype=torch.float64))
        corner = torch.rand(count, 2, generator=generator)
        return (torch.cat([corner, corner + torch.rand(count, 2, generator=generator)], 1) * scale).float()

    objects = boxes(36)
    objects = torch.cat([objects, objects[:2], objects[2:4] * 2])
    predictions = boxes(100)
    predictions[::5] = objects[torch.arange(20)]
    assert len(compete_for_classes(run, predictions, objects).unique()) > 10


@pytest.mark.parametrize("scale", [1.0, 2.0**-36], ids=["pixels", "products without all digits"])
def test_boxes_that_differ_in_the_last_bit(run, scale):
    # The quotients are equal or neighbours, so that the smaller area decides, or one rounding.
    generator = torch.Generator().manual_seed(16)
    bits = (
        torch.tensor([[1.1, 2.3, 13.7, 9.9]]).view(torch.int32) + torch.randint(3, (40, 4), generator=generator).int()
    )
    predictions = torch.rand(300, 4, generator=generator) * torch.tensor([4.0, 4, 6, 6]) + torch.tensor([0.0, 0, 7, 5])
    assert len(compete_for_classes(run, predictions * scale, bits.view(torch.float32) * scale).unique()) > 5


SIDE = 1.2 * 2.0**63  # of a box whose area float32 just holds
HUGE_OBJECTS = {
    # The products tell the two apart, the quotients are the same: the smaller area wins.
    "quotients without all digits": (
        [0, 0, 2.0**-5, 2.0**-5], [[-SIDE / 2, -SIDE / 2, SIDE * (0.5 + 2.0**-18), SIDE / 2], [2.0**-20, -1, SIDE, SIDE]], 1
    ),
    "a quotient of 0": ([0, 0, 2.0**-12, 2.0**-12], [[-SIDE / 2, -SIDE / 2, SIDE / 2, SIDE / 2]], -1),
    # The same warp meets the 257th object after the first one.
    "long before the others": (
        [0, 0, 1024, 1024],
        [[1024 - 2.0**-6, 1024 - 2.0**-6, SIDE, SIDE], *[[0.0, 0, 0, 0]] * 255, [0, 0, 2.0**-60, 1421.9 * 2.0**-69]],
        256,
    ),
    "a prediction": ([-SIDE, -SIDE, 0, 0], [[-(2.0**-5), -(2.0**-5), 0, 0], [2.0**-20 - 2.0**-5, -(2.0**-5), 0, 0]], 1),
}  # fmt: skip


@pytest.mark.parametrize(("prediction", "objects", "expected"), HUGE_OBJECTS.values(), ids=HUGE_OBJECTS.keys())
def test_huge_boxes(run, prediction, objects, expected):
    assert compete_for_classes(run, torch.tensor([prediction]).float(), torch.tensor(objects)).tolist() == [expected]


def test_a_label_of_no_class_counts_as_probability_0(run):
    of = scene((64, 64), (8, 16), objects=(9,), num_classes=4, seed=8)
    impossible = Scene(of.grid, of.pred_boxes, torch.cat([of.pred_logits, torch.full((1, 80, 1), -inf)], 2),
                       of.gt_boxes, [of.gt_labels[0].masked_fill(torch.arange(9) % 2 == 0, 4)])  # fmt: skip
    expected = torch.ops.mgassign.mutual_guidance_assign(*arguments_of(impossible))
    for label in (-3, 4, 2**40, -(2**63)):
        labels = of.gt_labels[0].masked_fill(torch.arange(9) % 2 == 0, label)
        arguments = arguments_of(Scene(of.grid, of.pred_boxes, of.pred_logits, of.gt_boxes, [labels]))
        found = run("mutual_guidance_assign", *arguments)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)), label


@pytest.mark.parametrize(
    "offsets", [[0, 9, 2, 9], [3, 1, 5, 4], [-5, 4, 2**60, 9], [9, 9, 9, 9], [0, 0, 0, 99]], ids=str
)
def test_offsets_that_are_none_break_nothing(run, offsets):
    # In device memory they cannot be checked without waiting for it. What comes out is of no use, that is all.
    of = scene((64, 64), (8,), objects=(3, 3, 3), seed=9)
    arguments = arguments_of(of, "jagged")
    arguments[4] = torch.tensor(offsets)
    *owners, num_points, _ = run("mutual_guidance_assign", *arguments, repeatable=False)
    assert all(((owner >= -1) & (owner < 9)).all() for owner in owners)
    assert num_points.shape == (9,)
    assert ((num_points >= 0) & (num_points <= of.grid.num_points)).all()
    run("fcos_assign", arguments[2], arguments[4], None, *of.grid.arguments, 1.5)


def test_places_that_no_point_takes_end(run):
    # Two images that share their object, which all points of one of them want: the other one's places stay empty.
    grid = PointGrid.for_image((128, 128), strides=(8,))
    box, elsewhere = [40.0, 40, 80, 80], [300.0, 300, 400, 400]
    predictions = torch.tensor([elsewhere, box, box])[:, None].expand(3, grid.num_points, 4)
    of = Scene(grid, predictions, torch.zeros(3, grid.num_points, 2), [torch.tensor([box])], [torch.tensor([0])])
    arguments = arguments_of(of, "jagged")
    arguments[4] = torch.tensor([0, 1, 0, 1])
    with ending():
        *owners, num_points, _ = run("mutual_guidance_assign", *arguments, repeatable=False)
    assert all(((owner >= -1) & (owner < 1)).all() for owner in owners)
    assert 0 <= num_points.item() <= grid.num_points


@pytest.mark.parametrize("images", [0, 2])
def test_nothing_to_assign(run, images):
    empty = scene_of(PointGrid.for_image((16, 24), (8,)), [torch.empty(0, 4)] * images, 3, torch.Generator())
    arguments = arguments_of(empty, "padded") if images else [torch.empty(0, 6, 4), torch.empty(0, 6, 3),
        torch.empty(0, 4), torch.empty(0).long(), None, [], *empty.grid.arguments, *SETTINGS_OF_THE_OPERATOR.values()]  # fmt: skip
    check_parity(run, "mutual_guidance_assign", *arguments)
    check_parity(run, "fcos_assign", torch.empty(0, 4), None, [0] * images, *empty.grid.arguments, 1.5)


def test_no_points(run):
    grid = PointGrid.from_features([(0, 4), (3, 0)], strides=(8, 16))
    boxes, labels = torch.tensor([[0.0, 0, 40, 40], [0, 0, 0, 9]]), torch.tensor([0, 1])
    of = Scene(grid, torch.empty(1, 0, 4), torch.empty(1, 0, 2), [boxes], [labels])
    found = check_parity(run, "mutual_guidance_assign", *arguments_of(of, min_points=3))
    assert found[3].tolist() == [0, 0]
    check_parity(run, "fcos_assign", boxes, None, [2], *grid.arguments, 1.5)


def test_levels_without_points(run):
    # Also the last ones, beneath which warps without a tile would look for it.
    grid = PointGrid.from_features([(0, 3), (5, 9), (4, 0), (2, 3), (0, 2), (0, 0)], strides=(4, 8, 12, 16, 32, 64))
    boxes = torch.tensor([[0.0, 0, 60, 33], [9, 3, 41, 30], [20, 10, 70, 40]])
    of = scene_of(grid, [boxes, boxes[:1] / 2], 3, torch.Generator().manual_seed(15))
    assert (check_parity(run, "mutual_guidance_assign", *arguments_of(of, min_points=3))[0] >= 0).any()
    check_parity(run, "fcos_assign", boxes, None, [3], *grid.arguments, 1.5)


@pytest.mark.parametrize("center_radius", [0.0, 1.5])
@pytest.mark.parametrize("grid", GRIDS, ids=["three levels", "five levels", "own ranges", "fine", "spaced"])
def test_fcos(run, grid, center_radius):
    boxes = scene(objects=(40,), size=(96, 96), strides=(8,), seed=10).gt_boxes[0]
    check_parity(run, "fcos_assign", boxes, None, [40], *grid.arguments, center_radius)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_building_blocks(run, dtype):
    grid = GRIDS[0]
    generator = torch.Generator().manual_seed(11)
    boxes = (torch.rand(9, 4, generator=generator).cumsum(1) * 40).to(dtype)
    preds = (torch.rand(4, 70, generator=generator).cumsum(0) * 40).to(dtype).T
    check_parity(run, "box_iou", preds, boxes)
    probs = (torch.rand(grid.num_points, 9, generator=generator) * 1.2 - 0.1).to(dtype)
    for gate in (True, False):
        check_parity(run, "amplified_centerness", boxes.float(), probs, *grid.arguments, 2.0, gate)
    assert (check_parity(run, "amplified_centerness", boxes.float(), probs, *grid.arguments, 3.0, False) > 0).any()


@pytest.mark.parametrize(("points", "objects"), [(0, 0), (0, 2), (5, 0), (1, 1), (100, 7), (700, 3), (40, 70)])
def test_topk(run, points, objects):
    # Few distinct scores, so that ties are everywhere and the point index decides, in several of its digits.
    generator = torch.Generator().manual_seed(12)
    scores = (torch.rand(points, objects, generator=generator) * 5).round() / 4
    k = torch.randint(-1, max(points // 2, 2), (objects,), generator=generator)
    areas = torch.randint(1, 4, (objects,), generator=generator).float()
    check_parity(run, "topk_per_object", scores, k, areas)
    check_parity(run, "topk_per_object", scores.T.contiguous().T.half(), k, areas)


def test_topk_of_more_objects_than_the_blocks_of_one_launch(run):
    generator = torch.Generator().manual_seed(13)
    scores = torch.rand(12, 128 * 32 + 40, generator=generator)
    scores[torch.arange(12), 4095 + torch.arange(12)] = 2.0
    k = torch.ones(scores.shape[1], dtype=torch.int64)
    found = check_parity(run, "topk_per_object", scores, k, torch.rand(scores.shape[1], generator=generator))
    assert found.tolist() == list(range(4095, 4107))


@pytest.mark.parametrize(("scores", "k", "areas", "expected"), TOPK_CASES.values(), ids=TOPK_CASES.keys())
def test_topk_case(run, scores, k, areas, expected):
    arguments = torch.tensor(scores), torch.tensor(k), torch.tensor(areas, dtype=torch.float32)
    assert run("topk_per_object", *arguments).tolist() == expected


@pytest.mark.ptx
@settings(max_examples=25)
@given(scenes(), st.sampled_from([0.0, 0.5, 1.5]), st.booleans(), st.sampled_from([0, 3]))
def test_any_scene(on_ptx, scene, center_radius, level_gate, min_points):
    changed = {"center_radius": center_radius, "level_gate": level_gate, "min_points": min_points, "inside": level_gate}
    check_parity(on_ptx, "mutual_guidance_assign", *arguments_of(scene, **changed))


@needs_gpu
@given(scenes(), st.sampled_from([0.0, 0.5, 1.5]), st.booleans(), st.sampled_from([0, 3]))
def test_any_scene_on_a_gpu(scene, center_radius, level_gate, min_points):
    changed = {"center_radius": center_radius, "level_gate": level_gate, "min_points": min_points, "inside": level_gate}
    check_parity(on_gpu, "mutual_guidance_assign", *arguments_of(scene, **changed))


def test_too_many_levels(run):
    grid = PointGrid.for_image((16, 16), strides=range(1, 18), ranges=((0, 9),) * 17)
    with pytest.raises(CHECKED, match="grid: expected at most 16 levels on CUDA, got 17"):
        run("fcos_assign", torch.rand(1, 4), None, [1], *grid.arguments, 1.5)
