"""The fused operator: agreement with the reference, every form of input, values that are not ordinary."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from agreement import check_agreement
from mgassign import (
    IGNORE,
    PointGrid,
    amplified_centerness,
    box_iou,
    fcos_assign,
    mutual_guidance_assign,
    reference,
    topk_per_object,
)
from scenes import STRIDES, Scene, equal, in_form, scene
from test_building_blocks import NO_BOXES

nan, inf = math.nan, math.inf

SHAPES = [
    {"size": (320, 320), "strides": STRIDES[:4], "objects": (5, 0, 1)},
    {"size": (250, 333), "strides": STRIDES, "objects": (40, 12)},
    {"size": (640, 640), "strides": STRIDES[:3], "objects": (20,)},
    {"size": (800, 1024), "strides": STRIDES, "objects": (60,)},
    {"size": (64, 1000), "strides": (8, 16), "objects": (7, 7), "ranges": ((0, 40), (30, 200))},
    {"size": (33, 31), "strides": (8,), "objects": (3,), "offset": 0},
    {"size": (7, 5), "strides": (8, 16), "objects": (2, 2)},
]
SETTINGS = [
    {},
    {"center_radius": 0.0},
    {"center_radius": 2.5, "sigma": 1.25},
    {"level_gate": False, "sigma": 7.0},
    {"min_points": 25},
    {"min_points": 10**9},
    {"num_points": 1},
    {"num_points": 4, "min_points": 6, "inside": True},
    {"inside": True, "center_radius": 0.0},
    {"center_radius": 0.0, "level_gate": False, "activation": "none"},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_agrees_with_the_reference(settings):
    differing = positives = 0
    for seed, shape in enumerate(SHAPES):
        of_shape = scene(seed=seed, **shape)
        if settings.get("activation") == "none":
            of_shape = dataclasses.replace(of_shape, pred_logits=of_shape.pred_logits.sigmoid())
        found = of_shape.assign(**settings)
        differing += check_agreement(found, of_shape, **settings)
        positives += int((found.loc >= 0).sum())
    assert positives >= 100
    assert differing <= 0.001 * positives, f"{differing} of {positives} points differ by rounding"


@pytest.mark.parametrize("boxes_dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("logits_dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_other_dtypes_are_read_as_float32(boxes_dtype, logits_dtype):
    narrow = scene(seed=1)
    narrow = dataclasses.replace(
        narrow, pred_boxes=narrow.pred_boxes.to(boxes_dtype), pred_logits=narrow.pred_logits.to(logits_dtype)
    )
    assert equal(narrow.assign(), narrow.to(torch.float32).assign())


def test_any_strides_and_gradients():
    dense = scene(seed=2)
    expected = dense.assign()
    channels_first = dataclasses.replace(
        dense,
        pred_boxes=dense.pred_boxes.transpose(1, 2).contiguous().transpose(1, 2).requires_grad_(),
        pred_logits=dense.pred_logits.permute(2, 1, 0).contiguous().permute(2, 1, 0).requires_grad_(),
        gt_boxes=[torch.cat([b, b], 1)[:, :4].double() for b in dense.gt_boxes],
        gt_labels=[labels.to(torch.int32) for labels in dense.gt_labels],
    )
    assert not channels_first.pred_boxes.is_contiguous()
    found = channels_first.assign()
    assert equal(found, expected)
    assert not any(result.requires_grad for result in found)
    one = dataclasses.replace(dense, pred_logits=dense.pred_logits[:1, :1].expand_as(dense.pred_logits))
    same = dataclasses.replace(dense, pred_logits=one.pred_logits.contiguous())
    assert equal(one.assign(), same.assign())


def test_three_forms_of_objects_agree():
    ragged = scene(objects=(4, 0, 7), seed=3)
    expected = ragged.assign(min_points=2)
    assert equal(ragged.in_form("jagged").assign(min_points=2), expected)
    padded = ragged.in_form("padded")
    found = padded.assign(min_points=2)
    assert equal(found[:3], expected[:3])
    assert torch.equal(found.num_points[padded.gt_labels.flatten() >= 0], expected.num_points)
    assert (found.num_points[padded.gt_labels.flatten() < 0] == 0).all()


def test_jagged_tensors_with_holes():
    boxes = torch.tensor([[[8.0, 8, 40, 40], [0, 0, 0, 0]], [[10, 20, 90, 80], [30, 30, 60, 99]]])
    labels = torch.tensor([[1, 9], [0, 2]])
    lengths = torch.tensor([1, 2])
    jagged_boxes, jagged_labels = (
        torch.nested.narrow(t, 1, torch.tensor([0, 0]), lengths, layout=torch.jagged) for t in (boxes, labels)
    )
    of_lists = scene(objects=(1, 2), seed=4)
    of_lists = dataclasses.replace(of_lists, gt_boxes=[boxes[0, :1], boxes[1]], gt_labels=[labels[0, :1], labels[1]])
    with_holes = dataclasses.replace(of_lists, gt_boxes=jagged_boxes, gt_labels=jagged_labels)
    assert equal(with_holes.assign(), of_lists.assign())


def test_batch_is_the_images_one_by_one():
    batch = scene(objects=(4, 9, 0), seed=5)
    found = batch.assign()
    alone = [
        mutual_guidance_assign(batch.grid, boxes[None], logits[None], [objects], [labels])
        for boxes, logits, objects, labels in zip(
            batch.pred_boxes, batch.pred_logits, batch.gt_boxes, batch.gt_labels, strict=True
        )
    ]
    assert equal(found, [torch.cat(parts) for parts in zip(*alone, strict=True)])


@pytest.mark.parametrize("settings", SETTINGS[:4], ids=str)
def test_building_blocks_composed_equal_the_fused_op(settings):
    for seed, shape in enumerate(SHAPES):
        shape = {**shape, "objects": shape["objects"][:1]}
        one = scene(seed=seed, **shape)
        found = one.assign(**settings)
        boxes, labels = one.gt_boxes[0], one.gt_labels[0]
        areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        original, num_points = fcos_assign(one.grid, [boxes], settings.get("center_radius", 1.5))
        assert torch.equal(original, found.original)
        assert torch.equal(num_points, found.num_points)
        cls = topk_per_object(box_iou(one.pred_boxes[0], boxes), num_points, areas)
        assert torch.equal(cls, found.cls[0])
        # The operators' own sigmoid is what the fused op uses; torch.sigmoid may differ in the last bit, so p is given.
        probs = one.pred_logits[0].sigmoid()
        given = dataclasses.replace(one, pred_logits=probs[None]).assign(**settings, activation="none")
        gate = {name: settings[name] for name in ("sigma", "level_gate") if name in settings}
        loc = topk_per_object(amplified_centerness(one.grid, boxes, probs[:, labels], **gate), num_points, areas)
        assert torch.equal(loc, given.loc[0])


def labelled(of: Scene, seed: int) -> Scene:
    """The scene with some of its objects made padding, some regions."""
    generator = torch.Generator().manual_seed(seed)
    kinds = [torch.randint(4, (len(labels),), generator=generator) for labels in of.gt_labels]
    labels = [torch.where(kind < 2, labels, kind - 4) for kind, labels in zip(kinds, of.gt_labels, strict=True)]
    return dataclasses.replace(of, gt_labels=labels)


@pytest.mark.parametrize("settings", [{}, {"ignore_share": 1.0, "inside": True}, {"ignore_share": 0.01}], ids=str)
def test_regions_and_padding_agree_with_the_reference(settings):
    ignored = torch.zeros(3)
    for seed, shape in enumerate(SHAPES):
        of_shape = labelled(scene(seed=seed, **shape), seed)
        found = of_shape.assign(**settings)
        check_agreement(found, of_shape, **settings)
        ignored += torch.tensor([(owner == IGNORE).sum() for owner in found[:3]])
        for b, labels in enumerate(of_shape.gt_labels):
            for owner in found[:3]:
                assert (labels[owner[b][owner[b] >= 0]] >= 0).all(), "a region or padding got a point"
    assert (ignored > 50).all()


def test_a_region_is_ignored_exactly():
    # Predictions 10 px wide that lie in the region [0, 40] x [0, 128] by 1, .5 and .4 of their area, and others.
    pred = torch.full((1, P, 4), 60.0)
    pred[0, :5] = torch.tensor([[20.0, 0, 30, 9], [35, 0, 45, 9], [36, 0, 46, 9], [nan, 0, 30, 9], [35, 0, 35, 9]])
    boxes = [torch.tensor([[0.0, 0, 40, 128], [30, 40, 70, 80]])]
    found = mutual_guidance_assign(GRID, pred, torch.zeros(1, P, 1), boxes, [torch.tensor([IGNORE, 0])])
    assert found.cls[0, :5].tolist() == [-2, -2, -1, -1, -1]
    assert found.num_points.tolist() == [0, int((found.original == 1).sum())]
    x = GRID.points()[:, 0]
    for owner in (found.loc[0], found.original[0]):
        assert torch.equal(owner == -2, (x < 40) & (owner != 1))
        assert (owner == 1).any()
    # Two regions together do not make one: each has its share alone.
    halves = [torch.tensor([[0.0, 0, 25, 128], [25, 0, 40, 128]])]
    found = mutual_guidance_assign(GRID, pred, torch.zeros(1, P, 1), halves, [torch.tensor([-2, -2])], ignore_share=0.6)
    assert found.cls[0, :5].tolist() == [-1, -1, -1, -1, -1]


def test_padding_and_regions_in_every_form():
    ragged = labelled(scene(objects=(9, 0, 14), seed=3), 5)
    expected = ragged.assign(min_points=1)
    assert equal(ragged.in_form("jagged").assign(min_points=1), expected)
    padded = ragged.in_form("padded").assign(min_points=1)
    assert equal(padded[:3], expected[:3])
    assert torch.equal(padded.iou, expected.iou)


def test_counts_of_points_per_object():
    of = scene(objects=(4, 0, 3), seed=11)
    wanted = [torch.tensor([3, 0, -2, 10**6]), torch.empty(0, dtype=torch.int64), torch.tensor([1, 1, 1])]
    found = of.assign(num_points=wanted)
    assert found.num_points.tolist() == [3, 0, 0, of.grid.num_points, 1, 1, 1]
    assert equal(of.assign(num_points=torch.cat(wanted)), found)
    assert equal(of.assign(num_points=[w.to(torch.int32) for w in wanted]), found)
    for b, image in enumerate(wanted):
        alone = reference.mutual_guidance_assign(
            of.grid, of.pred_boxes[b], of.pred_logits[b], of.gt_boxes[b], of.gt_labels[b], num_points=image
        )
        assert torch.equal(found.cls[b], alone[0])
    assert equal(of.in_form("jagged").assign(num_points=in_form("jagged", wanted)), found)
    assert equal(of.assign(num_points=2, min_points=5), of.assign(num_points=[torch.full((n,), 5) for n in (4, 0, 3)]))
    of_padded = of.in_form("padded").assign(num_points=in_form("padded", wanted, 7))
    assert of_padded.num_points.tolist() == [3, 0, 0, of.grid.num_points, 0, 0, 0, 0, 1, 1, 1, 0]
    assert equal(of_padded[:3], found[:3])


def test_inside_keeps_classification_within_its_object():
    of = scene(objects=(20,), seed=12)
    anywhere, found = of.assign(), of.assign(inside=True)
    inside = reference.strictly_inside(of.grid, of.gt_boxes[0])
    chosen = found.cls[0] >= 0
    assert inside[chosen, found.cls[0][chosen]].all()
    chosen = anywhere.cls[0] >= 0
    assert not inside[chosen, anywhere.cls[0][chosen]].all()
    assert equal(found[1:3], anywhere[1:3])


GRID = PointGrid.for_image((128, 128), strides=(8, 16, 32))
P = GRID.num_points
WHOLE, SMALL = [16.0, 16.0, 112.0, 112.0], [40.0, 40.0, 72.0, 72.0]

# Each: the objects, and what is wrong with them or special about them.
OBJECT_CASES = {
    "no objects": [],
    "identical boxes": [SMALL, SMALL, SMALL],
    "equal areas, crossing": [[16, 48, 112, 80], [48, 16, 80, 112]],
    "nested boxes": [WHOLE, SMALL, [44, 44, 68, 68]],
    "zero area": [[40, 40, 40, 72], SMALL],
    "inverted": [[72, 72, 40, 40], SMALL],
    "NaN coordinate": [[nan, 40, 72, 72], SMALL],
    "infinite box": [[-inf, -inf, inf, inf], SMALL],
    "outside the grid": [[-90, -90, -10, -10], [500, 500, 600, 600], SMALL],
    "no point inside": [[41, 41, 43, 43], SMALL],
    "points on the border only": [[4, 4, 12, 12], [12, 12, 20, 20]],
    "larger than the image": [[-500, -500, 700, 700]],
    "a side of 15,000 px": [[-7000, 40, 8000, 72], SMALL],
    "areas overflow float32": [[-3e38, -3e38, 3e38, 3e38], [-2e38, -2e38, 2e38, 2e38], SMALL],
    "areas 2.6 square pixels apart": [[30, 30, 90, 90], [30, 30, 90, 89.957]],
    "many objects": [[8.0 * i, 8.0 * i, 8.0 * i + 30, 8.0 * i + 30] for i in range(12)] * 10,
}


@pytest.mark.parametrize("settings", [{}, {"min_points": 5}, {"level_gate": False, "center_radius": 0.0}], ids=str)
@pytest.mark.parametrize("objects", OBJECT_CASES.values(), ids=OBJECT_CASES.keys())
def test_special_objects(objects, settings):
    boxes = torch.tensor(objects, dtype=torch.float32).reshape(-1, 4)
    like = scene((128, 128), STRIDES[:3], objects=(4,), seed=6)
    one = Scene(like.grid, like.pred_boxes, like.pred_logits, [boxes], [torch.arange(len(boxes)) % 6])
    found = one.assign(**settings)
    assert check_agreement(found, one, **settings) == 0
    valid = boxes.isfinite().all(1) & (boxes[:, 2:] > boxes[:, :2]).all(1)
    assert (found.num_points[~valid] == 0).all()
    for g in torch.nonzero(~valid).flatten():
        assert not any((owner == g).any() for owner in found[:3])


@pytest.mark.parametrize("level_gate", [True, False])
def test_each_coordinate_alone_makes_an_object_none(level_gate):
    like = scene((128, 128), STRIDES[:3], objects=(4,), seed=6)
    boxes = torch.tensor([*NO_BOXES, SMALL])
    labels = torch.arange(len(boxes)) % 6
    one = Scene(like.grid, like.pred_boxes, like.pred_logits, [boxes], [labels])
    settings = {"min_points": 3, "center_radius": 0.0, "level_gate": level_gate}
    found = one.assign(**settings)
    assert (found.num_points[:-1] == 0).all()
    assert all((owner != -1).any() and ((owner == -1) | (owner == len(NO_BOXES))).all() for owner in found[:3])
    # Nor is it a region.
    regions = dataclasses.replace(
        one, gt_labels=[torch.where(torch.arange(len(boxes)) < len(NO_BOXES), IGNORE, labels)]
    )
    again = regions.assign(**settings, ignore_share=0.01)
    assert equal(again[:3], found[:3])


def test_objects_of_areas_a_unit_of_the_last_place_apart():
    # All predictions fit both alike: 32 is halved, and what the smaller one lacks is lost in rounding.
    less = 32 - 2.0**-19
    large, small = [40.0, 0.0, 72.0, 32.0], [40.0, 0.0, 72.0, less]
    pred = torch.tensor([40.0, 0, 72, 16]).expand(1, P, 4)
    for boxes, expected in (([large, small], 1), ([small, large], 0)):
        overlaps = box_iou(pred[0, :1], torch.tensor(boxes))
        found = mutual_guidance_assign(
            GRID,
            pred,
            torch.zeros(1, P, 1),
            [torch.tensor(boxes)],
            [torch.tensor([0, 0])],
            center_radius=0.0,
            num_points=5,
        )
        assert overlaps[0, 0] == overlaps[0, 1]
        assert found.cls[found.cls >= 0].unique().tolist() == [expected]
        assert found.original[found.original >= 0].unique().tolist() == [expected]


@pytest.mark.parametrize("side", range(4))
@pytest.mark.parametrize("by", [0.75, 0.25, 2.0**-10])
def test_an_object_that_reaches_into_one_prediction_by_less_than_a_pixel(side, by):
    # Every prediction in turn, of a grid of many tiles: its neighbours' do not touch the object.
    grid = PointGrid.for_image((88, 88), strides=(8,))
    pred = (grid.points().repeat(1, 2) + torch.tensor([-4.0, -4, 4, 4]))[None]
    for j in range(0, grid.num_points, 3):
        box = pred[0, j].clone() + torch.tensor([1.0, 1, -1, -1])
        if side < 2:  # the object ends within the prediction
            box[side], box[side + 2] = pred[0, j, side] - 4000, pred[0, j, side] + by
        else:  # it begins there
            box[side], box[side - 2] = pred[0, j, side] + 4000, pred[0, j, side] - by
        pred_alone = torch.full_like(pred, 9000.0)
        pred_alone[0, j] = pred[0, j]
        found = mutual_guidance_assign(
            grid, pred_alone, torch.zeros(1, grid.num_points, 1), [box[None]], [torch.tensor([0])], num_points=1
        )
        assert torch.nonzero(found.cls[0] >= 0).flatten().tolist() == [j]
        assert found.iou[0, j] == box_iou(pred[0, j : j + 1], box[None])


@pytest.mark.parametrize("axis", ["x", "y"])
def test_an_object_around_a_single_row_or_column_of_points(axis):
    # Thinner than a pixel. Enough rows for several strips and bands: each of their first and last ones is met.
    for size in ((560, 24), (24, 560)):
        grid = PointGrid.for_image(size, strides=(8,))
        points = grid.points()
        logits = torch.zeros(1, grid.num_points, 1)
        pred = points.repeat(1, 2)[None] + torch.tensor([-1.0, -1, 1, 1])
        for at in points[:, 0 if axis == "x" else 1].unique():
            box = [at - 0.25, -999.0, at + 0.25, 999.0] if axis == "x" else [-999.0, at - 0.25, 999.0, at + 0.25]
            found = mutual_guidance_assign(
                grid, pred, logits, [torch.tensor([box])], [torch.tensor([0])], level_gate=False, center_radius=0.0,
                num_points=grid.num_points,
            )  # fmt: skip
            met = points[:, 0 if axis == "x" else 1] == at
            assert torch.equal(found.loc[0] == 0, met)
            assert torch.equal(found.cls[0] == 0, met)
            assert torch.equal(found.original[0] == 0, met)


BAD_BOXES = [*NO_BOXES, [5.0, 5, 5, 9]]


@pytest.mark.parametrize("bad", BAD_BOXES, ids=str)
def test_predicted_box_that_is_none_concerns_its_own_point_only(bad):
    clean = scene((128, 128), STRIDES[:3], objects=(3,), seed=7)
    hit = int(torch.nonzero(clean.assign().cls[0] >= 0)[0])
    spoiled = dataclasses.replace(clean, pred_boxes=clean.pred_boxes.clone())
    spoiled.pred_boxes[0, hit] = torch.tensor(bad)
    far_away = dataclasses.replace(clean, pred_boxes=clean.pred_boxes.clone())
    far_away.pred_boxes[0, hit] = torch.tensor([9000.0, 9000, 9001, 9001])
    assert equal(spoiled.assign(), far_away.assign())
    assert check_agreement(spoiled.assign(), spoiled) == 0


@pytest.mark.parametrize(("logit", "probability"), [(nan, 0.0), (inf, 1.0), (-inf, 0.0)])
def test_logit_that_is_no_number(logit, probability):
    clean = scene((128, 128), STRIDES[:3], objects=(3,), seed=8)
    special = torch.rand(clean.pred_logits.shape, generator=torch.Generator().manual_seed(0)) < 0.3
    by_logit = dataclasses.replace(clean, pred_logits=clean.pred_logits.masked_fill(special, logit))
    saturated = 200.0 if probability else -200.0
    by_limit = dataclasses.replace(clean, pred_logits=clean.pred_logits.masked_fill(special, saturated))
    assert equal(by_logit.assign(), by_limit.assign())
    assert check_agreement(by_logit.assign(), by_logit) == 0


@pytest.mark.parametrize("value", [nan, -3.0, 4.0, inf, -inf])
def test_probability_out_of_range_is_held_to_it(value):
    clean = scene((128, 128), STRIDES[:3], objects=(3,), seed=9)
    clean = dataclasses.replace(clean, pred_logits=clean.pred_logits.sigmoid())
    special = torch.rand(clean.pred_logits.shape, generator=torch.Generator().manual_seed(0)) < 0.3
    held = 1.0 if value > 1 else 0.0
    spoiled, limited = (
        dataclasses.replace(clean, pred_logits=clean.pred_logits.masked_fill(special, v)).assign(activation="none")
        for v in (value, held)
    )
    assert equal(spoiled, limited)


@pytest.mark.parametrize("batch", [0, 3])
def test_nothing_to_assign(batch):
    grid = PointGrid.for_image((64, 64), strides=(8,))
    found = mutual_guidance_assign(
        grid,
        torch.rand(batch, 64, 4),
        torch.rand(batch, 64, 2),
        [torch.empty(0, 4)] * batch,
        [torch.empty(0).long()] * batch,
    )
    assert all(owner.shape == (batch, 64) and (owner == -1).all() for owner in found[:3])
    assert found.num_points.shape == (0,)


def test_no_points():
    grid = PointGrid.from_features([(0, 4), (3, 0)], strides=(8, 16))
    boxes, labels = [torch.tensor([[0.0, 0, 40, 40]])], [torch.tensor([0])]
    found = mutual_guidance_assign(grid, torch.empty(1, 0, 4), torch.empty(1, 0, 2), boxes, labels, min_points=3)
    assert found.cls.shape == found.loc.shape == found.original.shape == (1, 0)
    assert found.num_points.tolist() == [0]  # N_g never exceeds P


def test_ties_go_to_the_smaller_area_then_the_lower_index_then_the_lower_point():
    # All predictions equal one box, all scores equal: every choice is a tie.
    pred = torch.tensor([40.0, 40, 72, 72]).expand(1, P, 4)
    logits = torch.zeros(1, P, 1)
    boxes = torch.tensor([WHOLE, SMALL, SMALL])
    found = mutual_guidance_assign(GRID, pred, logits, [boxes], [torch.zeros(3, dtype=torch.int64)])
    assert found.num_points[2] == 0  # the lower of two equal objects takes every contested point
    n = int(found.num_points[1])
    assert found.cls[0].tolist() == [1] * n + [-1] * (P - n)


def test_whole_plane_is_covered_exactly_once_at_any_width():
    # One object whose box every prediction equals, allowed all points: each must come out, whatever the tiling.
    for width in [1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 33, 700]:
        for height in [1, 2, 3, 4, 5, 11]:
            grid = PointGrid.from_features([(height, width)], strides=(8,))
            box = torch.tensor([-8.0, -8.0, 8.0 * width + 8, 8.0 * height + 8])
            pred = box.expand(1, grid.num_points, 4)
            found = mutual_guidance_assign(
                grid, pred, torch.zeros(1, grid.num_points, 1), [box[None]], [torch.tensor([0])], center_radius=0.0
            )
            assert all((owner == 0).all() for owner in found[:3])
