"""SimOTA and dynamic soft labels: by hand, against the reference, odd input, and what must hold for any scene."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from agreement import check_nobody
from dynamic_k_agreement import unexplained
from mgassign import DynamicKAssignment, PointGrid, SimOTA, SoftLabel, reference, sim_ota_assign, soft_label_assign
from mgassign.reference.dynamic_k import sim_ota_costs, soft_label_costs
from scenes import GRIDS, STRIDES, Scene, equal, random_boxes, scene, scene_of, scenes

inf, nan = torch.inf, torch.nan

PRESETS = {
    "YOLOX": SimOTA.YOLOX,
    "YOLOX_0_3": SimOTA.YOLOX_0_3,
    "SimOTA.MMDET": SimOTA.MMDET,
    "SoftLabel.MMDET": SoftLabel.MMDET,
}
SETTINGS = {
    **PRESETS,
    "overlap alone": SimOTA(best_overlaps=20, center_radius=1.3, class_weight=0.0, epsilon=0.01),
    "no penalty": SimOTA(inside=True, penalty=0.0, class_weight=2.0),
    "small penalty": SimOTA(inside=True, penalty=2.0, overlap_weight=0.5),
    "wide": SoftLabel(best_overlaps=40, center_radius=9.0),
    "narrow": SoftLabel(best_overlaps=5, center_radius=0.5, overlap_weight=0.1, epsilon=0.1),
    "overlaps below nothing": SoftLabel(best_overlaps=8, center_radius=0.5, overlap_weight=1.0, epsilon=0.5),
}
ANY = pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
EACH = pytest.mark.parametrize("settings", PRESETS.values(), ids=PRESETS.keys())


def assign(of: Scene, settings: SimOTA | SoftLabel, **more) -> DynamicKAssignment:
    function = sim_ota_assign if isinstance(settings, SimOTA) else soft_label_assign
    return function(of.grid, of.pred_boxes, of.pred_logits, of.gt_boxes, of.gt_labels, settings, **more)


def costs_of(
    grid: PointGrid, pred_boxes: Tensor, logits: Tensor, gt_boxes: Tensor, gt_labels: Tensor,
    settings: SimOTA | SoftLabel, objectness: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Costs and overlaps [P, T] with the objects of an image that take part, and the pool [P]."""
    part = reference.valid_boxes(gt_boxes) & (gt_labels >= 0)
    boxes, labels = gt_boxes[part], gt_labels[part]
    u = reference.box_iou(pred_boxes, boxes)
    if isinstance(settings, SoftLabel):
        return *soft_label_costs(grid, pred_boxes, logits.float(), boxes, labels, settings), u
    p = logits.float().sigmoid().nan_to_num(0)
    p = p if objectness is None else (p * objectness.float().sigmoid()[:, None]).sqrt()
    return *sim_ota_costs(grid, pred_boxes, p, boxes, labels, settings), u


def check(of: Scene, settings: SimOTA | SoftLabel, objectness: Tensor | None = None, **more) -> int:
    """Asserts that the operator and the reference agree; returns how many owners differ, by rounding."""
    function = getattr(reference, "sim_ota_assign" if isinstance(settings, SimOTA) else "soft_label_assign")
    if objectness is not None:
        more["pred_objectness"] = objectness
    found = assign(of, settings, **more)
    differing = 0
    for b, objects in enumerate(zip(of.pred_boxes, of.pred_logits, of.gt_boxes, of.gt_labels, strict=True)):
        of_image = {**more, **({} if objectness is None else {"pred_objectness": objectness[b]})}
        owner, iou = function(of.grid, *objects, settings, **of_image)
        check_nobody(found.owner[b], owner)
        same = found.owner[b] == owner
        assert torch.equal(found.iou[b][same], iou[same])
        if same.all():
            continue
        costs, pool, u = costs_of(of.grid, *objects, settings, None if objectness is None else objectness[b])
        k = more.get("num_points")
        assert not unexplained(found.owner[b], owner, costs, pool, u, settings.best_overlaps, k)
        differing += int((~same).sum())
    return differing


def test_by_hand():
    # Points 4, 12, 20, 28 along each axis. Within 1.5 strides of the centre (16, 16): all but the border's corners are
    # 12 away, no less: the four in the middle. Three predictions are the object itself, so three are chosen: of those
    # with the most certain class, and equal ones: the lower points.
    grid = PointGrid.for_image((32, 32), strides=(8,))
    box = torch.tensor([8.0, 8, 24, 24])
    boxes = torch.tensor([900.0, 900, 901, 901]).repeat(1, 16, 1)
    boxes[0, [6, 9, 10]] = box
    logits = torch.full((1, 16, 2), -2.0)
    found = sim_ota_assign(grid, boxes, logits, [box[None]], [torch.tensor([1])])
    assert (found.owner[0] == 0).nonzero().flatten().tolist() == [6, 9, 10]
    assert found.iou[0].sum() == 3
    boxes[0, 5] = torch.tensor([8.0, 8, 24, 16])  # sums: 3.5, still three
    logits[0, 5, 1] = 9.0
    logits[0, 9, 0] = 9.0  # sure of the other class
    found = sim_ota_assign(grid, boxes, logits, [box[None]], [torch.tensor([1])])
    assert (found.owner[0] == 0).nonzero().flatten().tolist() == [5, 6, 10]
    found = sim_ota_assign(grid, boxes, logits, [box[None]], [torch.tensor([1])], num_points=1)
    assert (found.owner[0] == 0).nonzero().flatten().tolist() == [5]


def test_the_reach_is_the_product_rounded_once():
    # As in test_fcos_assign.py, for strides that float32 does not hold.
    seen, box = set(), torch.tensor([[-100.0, -100, 100, 100]])
    for radius, stride in itertools.product((1.5, 2.5, 0.7), (8.1, 7.3, 12.6, 33.3)):
        reach, otherwise = np.float32(radius * stride), np.float32(radius * float(np.float32(stride)))
        if reach == otherwise:
            continue
        seen.add(reach > otherwise)
        settings = replace(SimOTA.YOLOX, center_radius=radius)
        for x, y in ((reach, 0), (otherwise, 0), (0, -reach), (-otherwise, 0)):
            grid = PointGrid.from_features([(1, 1)], strides=(stride,), offset=[(float(y), float(x))])
            of = Scene(grid, box[None], torch.zeros(1, 1, 2), [box], [torch.tensor([0])])
            expected = 0 if max(abs(x), abs(y)) < reach else -1
            assert assign(of, settings).owner.tolist() == [[expected]]
            assert check(of, settings) == 0
    assert seen == {True, False}


@EACH
def test_labels_are_looked_at_where_there_are_no_points(settings):
    grid = PointGrid.from_features([(0, 4)], strides=(8,))
    of = Scene(grid, torch.empty(1, 0, 4), torch.empty(1, 0, 2), [torch.rand(1, 4)], [torch.tensor([2])])
    with pytest.raises(ValueError, match="gt_labels: expected"):
        assign(of, settings)


@ANY
def test_agrees_with_the_reference(settings):
    differing = 0
    for seed, grid in enumerate(GRIDS):
        generator = torch.Generator().manual_seed(seed)
        boxes = [random_boxes(count, (96, 128), generator) for count in (0, 1, 7, 40)]
        differing += check(scene_of(grid, boxes, (4, 80, 1)[seed % 3], generator), settings)
    differing += check(scene(objects=(0, 1, 7, 60), seed=9), settings)
    differing += check(scene((256, 192), objects=(30, 2), seed=10), settings, num_points=15)
    assert differing <= 10


def test_objectness():
    of = scene(objects=(3, 0, 40), seed=1, num_classes=33)
    objectness = torch.randn(of.pred_logits.shape[:2], generator=torch.Generator().manual_seed(2))
    for settings in (SimOTA.YOLOX, SimOTA.YOLOX_0_3):
        assert check(of, settings, objectness) <= 3
        assert not equal(assign(of, settings), assign(of, settings, pred_objectness=objectness))
        # Of any strides and dtype, and as probabilities.
        halves = objectness.half()
        expected = assign(of, settings, pred_objectness=halves.float())
        assert equal(assign(of, settings, pred_objectness=halves.T.contiguous().T), expected)
        probable = replace(of, pred_logits=of.pred_logits.sigmoid())
        found = assign(probable, settings, pred_objectness=objectness.sigmoid(), activation="none")
        assert (found.owner != assign(of, settings, pred_objectness=objectness).owner).sum() <= 3


FOUR = PointGrid.for_image((16, 16), strides=(8,))
WIDE = [0.0, 0, 16, 16]
HALF = [0.0, 0, 16, 8]
FAR = [50.0, 50, 60, 60]
# Objects, labels, predicted boxes of the four points, and each point's owner for SimOTA (0.3.0) and for soft labels.
CASES = {
    "no object": ([], [], [WIDE] * 4, [-1] * 4, [-1] * 4),
    "four overlaps of 1: four points": ([WIDE], [0], [WIDE] * 4, [0] * 4, [0] * 4),
    "a sum of overlaps at a whole number": ([WIDE], [0], [HALF] * 4, [0, 0, -1, -1], [0, 0, -1, -1]),
    "all overlaps 0: one point": ([WIDE], [0], [FAR] * 4, [0, -1, -1, -1], [0, -1, -1, -1]),
    "equal objects: the lower index": ([WIDE, WIDE], [0, 0], [WIDE] * 4, [0] * 4, [0] * 4),
    "an object off the grid, alone": ([[100.0, 100, 120, 120]], [0], [WIDE] * 4, [-1] * 4, [-1] * 4),
    "one beside it: of its points one, the first of equals or the nearest": (
        [[100.0, 100, 120, 120], WIDE], [0, 0], [WIDE, WIDE, WIDE, FAR], [1, 1, 1, -1], [1, 1, 1, 0],
    ),
    "a pool of two, where three would be chosen": (
        [[0.0, 0, 16, 5]], [0], [[0.0, 0, 16, 5]] * 4, None, [0, 0, -1, -1],
    ),
    "a box without area": ([[4.0, 0, 4, 16]], [0], [WIDE] * 4, [-1] * 4, [-1] * 4),
    "an inverted box": ([[16.0, 16, 0, 0]], [0], [WIDE] * 4, [-1] * 4, [-1] * 4),
    "a box that is NaN": ([[nan, 0, 16, 16], WIDE], [0, 0], [WIDE] * 4, [1] * 4, [1] * 4),
    "a box that is infinite": ([[-inf, 0, 16, 16], WIDE], [0, 0], [WIDE] * 4, [1] * 4, [1] * 4),
    "padding": ([WIDE, WIDE], [-1, 0], [HALF] * 4, [1, 1, -1, -1], [1, 1, -1, -1]),
    "a region": ([WIDE, WIDE], [-2, 0], [HALF] * 4, [1, 1, -2, -2], [1, 1, -2, -2]),
    "a region alone": ([[0.0, 0, 16, 8]], [-2], [WIDE] * 4, [-2, -2, -1, -1], [-2, -2, -1, -1]),
    "predictions NaN": ([WIDE], [0], [[nan, 0, 16, 16], [0, 0, inf, 16], WIDE, WIDE], [-1, -1, 0, 0], [-1, -1, 0, 0]),
    "predictions that are none": ([WIDE], [0], [[16.0, 16, 0, 0], [0, 0, 0, 16], WIDE, WIDE], [-1, -1, 0, 0], [-1, -1, 0, 0]),
    "all predictions NaN: one point": ([WIDE], [0], [[nan] * 4] * 4, [0, -1, -1, -1], [0, -1, -1, -1]),
    "an object whose area is 0 in float32": ([[0.0, 0, 1e-25, 1e-25]], [0], [[nan] * 4] * 4, [0, -1, -1, -1], [-1] * 4),
    "huge objects": ([[-3e38, -3e38, 3e38, 3e38]], [0], [WIDE] * 4, None, None),
    "tiny objects": ([[3.9999, 3.9999, 4.0001, 4.0001]], [0], [[3.9999, 3.9999, 4.0001, 4.0001]] * 4, None, [0, -1, -1, -1]),
}  # fmt: skip


@pytest.mark.parametrize(("objects", "labels", "boxes", "sim_ota", "soft"), CASES.values(), ids=CASES.keys())
def test_case(objects, labels, boxes, sim_ota, soft):
    gt_boxes, gt_labels = torch.tensor(objects).reshape(-1, 4), torch.tensor(labels, dtype=torch.int64)
    of = Scene(FOUR, torch.tensor(boxes)[None], torch.zeros(1, 4, 2), [gt_boxes], [gt_labels])
    for settings, expected in ((SimOTA.YOLOX_0_3, sim_ota), (SoftLabel.MMDET, soft)):
        owner = assign(of, settings).owner[0].tolist()
        assert expected is None or owner == expected
    for settings in SETTINGS.values():
        assert check(of, settings) == 0


SIDES = (
    2.0**-66,
    2.0**-70,
    2.0**-73,
)  # of squares whose areas are normal, and subnormal: roundings are as large as they are


def square_and_equal_boxes(side: float) -> Scene:
    grid = PointGrid.from_features([(8, 8)], strides=(side / 8,))
    square = torch.tensor([[0.0, 0, side, side]])
    return Scene(grid, square.expand(1, 64, 4), torch.zeros(1, 64, 2), [square], [torch.tensor([1])])


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("settings", [SimOTA(center_radius=4.5), SoftLabel(center_radius=4.5)], ids=["SimOTA", "soft"])
def test_areas_that_are_subnormal(settings, side):
    of = square_and_equal_boxes(side)
    assert (assign(of, settings).owner == 0).sum() == settings.best_overlaps
    assert check(of, settings) == 0


@EACH
@pytest.mark.parametrize(("logit", "meant"), [(nan, -inf), (-inf, -1e9), (inf, 1e9), (200.0, 201.0)], ids=str)
def test_logits_that_are_extreme(settings, logit, meant):
    def found(value):
        logits = torch.zeros(1, 4, 2)
        logits[0, 2, 1] = value
        return assign(
            Scene(FOUR, torch.tensor([[HALF] * 4]), logits, [torch.tensor([WIDE])], [torch.tensor([1])]), settings
        )

    assert equal(found(logit), found(meant))
    assert (found(logit).owner == 0).sum() == 2  # whatever they are, costs are finite


@EACH
def test_probabilities_mean_their_logits(settings):
    of = scene(objects=(5, 20), seed=3)
    found = assign(replace(of, pred_logits=of.pred_logits.sigmoid()), settings, activation="none")
    assert (found.owner != assign(of, settings).owner).sum() <= 3


@EACH
@pytest.mark.parametrize(("value", "held"), [(nan, 0.0), (-3.0, 0.0), (-inf, 0.0), (4.0, 1.0), (inf, 1.0)], ids=str)
def test_probability_out_of_range_is_held_to_it(settings, value, held):
    of = scene((128, 128), objects=(3, 9), seed=9)
    special = torch.rand(of.pred_logits.shape, generator=torch.Generator().manual_seed(0)) < 0.3
    spoiled, limited = (
        replace(of, pred_logits=of.pred_logits.sigmoid().masked_fill(special, v)) for v in (value, held)
    )
    found = assign(spoiled, settings, activation="none")
    assert equal(found, assign(limited, settings, activation="none"))
    # Beside the reference: an owner may differ where costs differ by rounding.
    function = reference.sim_ota_assign if isinstance(settings, SimOTA) else reference.soft_label_assign
    for b, image in enumerate(zip(of.pred_boxes, spoiled.pred_logits, of.gt_boxes, of.gt_labels, strict=True)):
        owner, _ = function(of.grid, *image, settings, activation="none")
        assert (owner >= 0).any()
        assert (found.owner[b] != owner).sum() <= 3


@ANY
@pytest.mark.parametrize("exponent", [17, 18, 20, 22])
def test_far_from_the_origin(settings, exponent):
    """Coordinates of few digits: what is left out for being too far may be so by no rounding."""
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        grid = PointGrid.from_features([(9, 33)], strides=(1,), offset=2.0**exponent)
        corner = 2.0**exponent + 9 * torch.rand(5, 2, generator=generator)
        boxes = torch.cat([corner, corner + torch.rand(5, 2, generator=generator) * torch.tensor([20.0, 6]) + 1], 1)
        check(scene_of(grid, [boxes], 3, generator), settings)


@EACH
def test_constant_predictions(settings):
    of = scene(objects=(12, 3), seed=5)
    constant = replace(
        of, pred_boxes=of.grid.decode(torch.full((2, of.grid.num_points, 4), 20.0)), pred_logits=of.pred_logits * 0
    )
    assert check(constant, settings) <= 12


@EACH
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_mean_the_same_values(settings, dtype):
    of = scene(objects=(5, 20), seed=4).to(dtype)
    assert equal(assign(of, settings), assign(of.to(torch.float32), settings))


@EACH
def test_strides_do_not_matter(settings):
    of = scene(objects=(5, 20), seed=5, num_classes=37)
    turned = replace(
        of,
        pred_boxes=of.pred_boxes.permute(2, 1, 0).contiguous().permute(2, 1, 0),
        pred_logits=of.pred_logits.transpose(1, 2).contiguous().transpose(1, 2),
    )
    assert equal(assign(turned, settings), assign(of, settings))


@EACH
def test_the_three_forms_of_objects(settings):
    of = scene(objects=(4, 0, 9), seed=6)
    expected = assign(of, settings)
    for form in ("padded", "jagged"):
        assert equal(assign(of.in_form(form), settings), expected)


@EACH
def test_numbers_of_points(settings):
    of = scene(objects=(4, 9), seed=7)
    counts = torch.tensor([0, 3, -5, 2, *[1] * 8, 40])
    found = assign(of, settings, num_points=counts)
    assert equal(found, assign(of, settings, num_points=list(counts.split([4, 9]))))
    assert equal(found, assign(of, settings, num_points=counts.clamp(max=settings.best_overlaps)))
    assert not torch.isin(found.owner[0], torch.tensor([0, 2])).any()
    assert check(of, settings, num_points=128) <= 3
    assert (assign(of, settings, num_points=0).owner == -1).all()


def test_any_number_of_threads_gives_the_same():
    of, before = scene((512, 512), objects=(70, 3, 200), seed=11), torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            results.append([result for settings in SETTINGS.values() for result in assign(of, settings)])
    finally:
        torch.set_num_threads(before)
    for others in results[1:]:
        assert equal(results[0], others)


@pytest.mark.parametrize("settings", [SimOTA.YOLOX, SoftLabel.MMDET], ids=["SimOTA", "SoftLabel"])
@pytest.mark.usefixtures("fresh_compiler")
def test_compiles_without_graph_breaks_and_exports(settings):
    of = scene((64, 96), STRIDES[:2], objects=(3, 3), seed=12)

    class Model(torch.nn.Module):
        def forward(self, pred_boxes, pred_logits, gt_boxes, gt_labels):
            function = sim_ota_assign if isinstance(settings, SimOTA) else soft_label_assign
            return function(of.grid, pred_boxes, pred_logits, gt_boxes, gt_labels, settings)

    boxes, labels = torch.stack(of.gt_boxes), torch.stack(of.gt_labels)
    compiled = torch.compile(Model(), fullgraph=True, backend="eager")
    assert equal(compiled(of.pred_boxes, of.pred_logits, boxes, labels), assign(of, settings))
    objects = torch.export.Dim("objects", min=2, max=1000)
    exported = torch.export.export(
        Model(), (of.pred_boxes, of.pred_logits, boxes, labels), dynamic_shapes=(None, None, {1: objects}, {1: objects})
    )
    more = scene((64, 96), STRIDES[:2], objects=(9, 9), seed=13)
    arguments = more.pred_boxes, more.pred_logits, torch.stack(more.gt_boxes), torch.stack(more.gt_labels)
    assert equal(exported.module()(*arguments), assign(more, settings))


@EACH
def test_gradients_autocast_and_inference_change_nothing(settings):
    of = scene(objects=(5, 3), seed=14)
    expected = assign(of, settings)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        assert equal(assign(of, settings), expected)
    of = replace(of, pred_boxes=of.pred_boxes.requires_grad_(), pred_logits=of.pred_logits.requires_grad_())
    found = assign(of, settings)
    assert equal(found, expected)
    assert not any(result.requires_grad for result in found)


GOOD = {
    "grid": FOUR,
    "pred_boxes": torch.rand(1, 4, 4),
    "pred_logits": torch.rand(1, 4, 2),
    "gt_boxes": [torch.tensor([WIDE])],
    "gt_labels": [torch.tensor([0])],
}
ERRORS = {
    "no grid": ({"grid": 8}, TypeError, "grid: expected a PointGrid, got int"),
    "too few points": ({"pred_boxes": torch.rand(1, 3, 4)}, ValueError, "pred_boxes: expected shape [1, 4, 4] (images of gt_boxes, points of the grid), got [1, 3, 4]"),
    "logits of other images": (
        {"pred_logits": torch.rand(2, 4, 2)}, ValueError, "pred_logits: expected shape [1, 4, C] (images of gt_boxes, points of the grid), got [2, 4, 2]",
    ),
    "a label of no class": (
        {"gt_labels": [torch.tensor([2])]}, ValueError, "gt_labels: expected a label in [0, 2), -1 (padding) or -2",
    ),
    "number below 0": ({"num_points": -1}, ValueError, "num_points: expected 0 to 128, got -1"),
    "too many": ({"num_points": 129}, ValueError, "num_points: expected 0 to 128, got 129"),
    "unknown activation": ({"activation": "softmax"}, ValueError, "activation: expected one of 'none', 'sigmoid', got 'softmax'"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "error", "message"), ERRORS.values(), ids=ERRORS.keys())
@pytest.mark.parametrize("function", [sim_ota_assign, soft_label_assign])
def test_errors(function, change, error, message):
    with pytest.raises(error) as raised:
        function(**{**GOOD, **change})
    assert str(raised.value).startswith(message)
    function(**GOOD)  # and the next good call is none the worse


def test_errors_of_their_own():
    with pytest.raises(TypeError, match="settings: expected SimOTA, got SoftLabel"):
        sim_ota_assign(**GOOD, settings=SoftLabel.MMDET)
    with pytest.raises(TypeError, match="settings: expected SoftLabel, got SimOTA"):
        soft_label_assign(**GOOD, settings=SimOTA.MMDET)
    with pytest.raises(ValueError, match=r"pred_objectness: expected shape \[1, 4\], got \[1, 4, 1\]"):
        sim_ota_assign(**GOOD, pred_objectness=torch.rand(1, 4, 1))


@pytest.mark.parametrize(
    ("settings", "change", "error", "message"),
    [
        (SimOTA, {"best_overlaps": 0}, ValueError, "best_overlaps: expected 1 to 128, got 0"),
        (SoftLabel, {"best_overlaps": 2.0}, TypeError, "best_overlaps: expected an int, got float"),
        (SimOTA, {"inside": 1}, TypeError, "inside: expected a bool, got int"),
        (SimOTA, {"penalty": -1}, ValueError, "penalty: expected a finite number of at least 0, got -1"),
        (SimOTA, {"epsilon": 0}, ValueError, "epsilon: expected a finite number above 0, got 0"),
        (
            SoftLabel,
            {"center_radius": nan},
            ValueError,
            "center_radius: expected a finite number of at least 0, got nan",
        ),
    ],
    ids=str,
)
def test_settings_that_are_none(settings, change, error, message):
    with pytest.raises(error) as raised:
        settings(**change)
    assert str(raised.value) == message


@ANY
def test_predictions_that_fit_nearly_exactly(settings):
    """What a point far from the centre costs for its place, a great overlap may give back."""
    for seed in range(6):
        of = scene((64, 96), STRIDES[:2], objects=(3, 1), num_classes=3, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        for pred_boxes, boxes in zip(of.pred_boxes, of.gt_boxes, strict=True):
            whose = torch.randint(len(boxes), (len(pred_boxes),), generator=generator)
            pred_boxes.copy_(boxes[whose] + 0.1 * torch.randn(pred_boxes.shape, generator=generator))
        check(of, settings)
        check(of, settings, num_points=1)


OVERLAPS_ABOVE_ALL = (
    SimOTA(inside=True, center_radius=1.5, penalty=1e-8, epsilon=0.1),
    *(SoftLabel(overlap_weight=10.0**exponent, epsilon=0.1) for exponent in (6, 8, 9, 10, 30, 37)),
    # Costs of -infinity.
    SimOTA(inside=True, center_radius=1.5, penalty=1.0, overlap_weight=3e38, epsilon=1e38),
    SoftLabel(overlap_weight=3e38, epsilon=1e38),
)


def certain_everywhere() -> Scene:
    """Points in a row, all of which predict the object and its class: they differ in their places alone."""
    grid, box = PointGrid.from_features([(1, 9)], strides=(8,)), torch.tensor([[0.0, 0, 72, 8]])
    return Scene(grid, box.expand(1, 9, 4), torch.full((1, 9, 1), inf), [box], [torch.tensor([0])])


@pytest.mark.parametrize("settings", OVERLAPS_ABOVE_ALL, ids=str)
def test_costs_that_round_to_the_same(settings):
    """Where the overlap's cost is so far below 0 that sums lose the place's, the lowest points are chosen."""
    assert check(certain_everywhere(), settings, num_points=2) == 0


SOME = st.sampled_from([*SETTINGS.values()])


@given(scenes(), SOME, st.sampled_from([{}, {}, {"num_points": 3}, {"num_points": 30}]))
def test_any_scene_agrees_with_the_reference(scene, settings, counts):
    check(scene, settings, **counts)


@given(scenes(max_images=3), SOME)
def test_a_batch_is_its_images_one_by_one(scene, settings):
    found = assign(scene, settings)
    for b in range(len(scene.gt_boxes)):
        one = slice(b, b + 1)
        alone = replace(
            scene, pred_boxes=scene.pred_boxes[one], pred_logits=scene.pred_logits[one],
            gt_boxes=scene.gt_boxes[one], gt_labels=scene.gt_labels[one],
        )  # fmt: skip
        assert equal([result[one] for result in found], assign(alone, settings))
