"""Settings under torch.compile: what a compiled function works out, and what changes from call to call."""

from __future__ import annotations

import dataclasses
import inspect

import pytest
import torch

import mgassign
from mgassign import (
    PointGrid,
    SimOTA,
    SoftLabel,
    TaskAligned,
    amplified_centerness,
    anchor_mutual_guidance_assign,
    atss_assign,
    dense_scores,
    fcos_assign,
    max_iou_assign,
    mutual_guidance_assign,
    sim_ota_assign,
    soft_label_assign,
    take,
    task_aligned_assign,
)
from scenes import equal
from test_compile import ANCHORS, GRID, Counter


def region_beside_two_objects():
    boxes = torch.tensor([[[10.0, 10, 50, 60], [30, 20, 90, 60], [0, 0, 40, 64]]])
    generator = torch.Generator().manual_seed(0)
    pred_boxes = GRID.decode(torch.rand(1, GRID.num_points, 4, generator=generator) * 30)
    return pred_boxes, torch.randn(1, GRID.num_points, 2, generator=generator), boxes, torch.tensor([[1, 0, -2]])


SCENE = region_beside_two_objects()


def guided(**settings):
    return mutual_guidance_assign(GRID, *SCENE, **settings)


def aligned(num_points=None, min_points=0, **settings):
    settings = TaskAligned(**settings)
    return task_aligned_assign(
        GRID, *SCENE, settings, num_points=num_points, min_points=min_points, activation="sigmoid"
    )


def by_cost(num_points=None, **settings):
    return sim_ota_assign(GRID, *SCENE, SimOTA(**settings), num_points=num_points)


def by_soft_label(num_points=None, **settings):
    return soft_label_assign(GRID, *SCENE, SoftLabel(**settings), num_points=num_points)


def matched(**settings):
    return max_iou_assign(ANCHORS, SCENE[2], gt_labels=SCENE[3], **settings)


def guided_anchors(**settings):
    return anchor_mutual_guidance_assign(ANCHORS, *SCENE, **settings)


def on_grid(*strides, ranges=None, **settings):
    grid = PointGrid.from_features([(8, 12), (4, 6)], strides or (8, 16), ranges=ranges, **settings)
    return fcos_assign(grid, SCENE[2])


# A function of a number that a compiled function works out, for every setting of every function that is no string.
DERIVED = {
    "mutual_guidance_assign, sigma": lambda s: guided(sigma=s + 1.01, num_points=9),
    "mutual_guidance_assign, center_radius": lambda s: guided(center_radius=s * 0.7),
    "mutual_guidance_assign, ignore_share": lambda s: guided(ignore_share=s / 8),
    "mutual_guidance_assign, min_points": lambda s: guided(min_points=int(s * 3)),
    "mutual_guidance_assign, num_points": lambda s: guided(num_points=int(s * 3) + 1),
    "mutual_guidance_assign, level_gate": lambda s: guided(level_gate=s > 1),
    "mutual_guidance_assign, inside": lambda s: guided(inside=s > 1),
    "fcos_assign, center_radius": lambda s: fcos_assign(GRID, SCENE[2], s * 0.5 + 0.1),
    "amplified_centerness, sigma": lambda s: (
        amplified_centerness(GRID, SCENE[2][0, :2], SCENE[1][0].sigmoid(), sigma=s + 1.01),
    ),
    "amplified_centerness, level_gate": lambda s: (
        amplified_centerness(GRID, SCENE[2][0, :2], SCENE[1][0].sigmoid(), level_gate=s > 1),
    ),
    "task_aligned_assign, alpha": lambda s: aligned(alpha=s),
    "task_aligned_assign, beta": lambda s: aligned(beta=s),
    "task_aligned_assign, margin": lambda s: aligned(margin=s * 4),
    "task_aligned_assign, least_side": lambda s: aligned(least_side=s * 20),
    "task_aligned_assign, raise_below": lambda s: aligned(least_side=80.0, raise_below=s * 20),
    "task_aligned_assign, epsilon": lambda s: aligned(epsilon=s),
    "task_aligned_assign, k": lambda s: aligned(k=1 + int(s * 2)),
    "task_aligned_assign, keep": lambda s: aligned(keep=1 + int(s * 2)),
    "task_aligned_assign, num_points": lambda s: aligned(num_points=int(s * 2)),
    "task_aligned_assign, min_points": lambda s: aligned(k=1, min_points=int(s * 2)),
    "sim_ota_assign, best_overlaps": lambda s: by_cost(best_overlaps=1 + int(s * 9)),
    "sim_ota_assign, center_radius": lambda s: by_cost(center_radius=s + 0.5),
    "sim_ota_assign, inside": lambda s: by_cost(inside=s > 1),
    "sim_ota_assign, penalty": lambda s: by_cost(inside=True, center_radius=0.7, penalty=s * 4, num_points=9),
    "sim_ota_assign, overlap_weight": lambda s: by_cost(overlap_weight=s, num_points=9),
    "sim_ota_assign, class_weight": lambda s: by_cost(class_weight=s * 4, num_points=9),
    "sim_ota_assign, epsilon": lambda s: by_cost(epsilon=s, num_points=9),
    "sim_ota_assign, num_points": lambda s: by_cost(num_points=int(s * 3)),
    "soft_label_assign, best_overlaps": lambda s: by_soft_label(best_overlaps=1 + int(s * 9)),
    "soft_label_assign, center_radius": lambda s: by_soft_label(center_radius=s, num_points=9),
    "soft_label_assign, overlap_weight": lambda s: by_soft_label(overlap_weight=s, num_points=9),
    "soft_label_assign, epsilon": lambda s: by_soft_label(epsilon=s, num_points=9),
    "soft_label_assign, num_points": lambda s: by_soft_label(num_points=int(s * 3)),
    "atss_assign, anchor_scale": lambda s: atss_assign(GRID, SCENE[2], anchor_scale=s * 2),
    "atss_assign, topk": lambda s: atss_assign(GRID, SCENE[2], topk=1 + int(s * 3)),
    "max_iou_assign, high": lambda s: matched(high=s / 40 + 0.1, low=0.05, low_quality="none"),
    "max_iou_assign, low": lambda s: matched(low=s / 16 + 0.01, low_quality="none"),
    "max_iou_assign, min_iou": lambda s: matched(high=1.0, low=0.9, min_iou=s / 8),
    "max_iou_assign, ignore_share": lambda s: matched(low_quality="none", ignore_share=s / 4),
    "anchor_mutual_guidance_assign, sigma": lambda s: guided_anchors(sigma=s + 1.01, num_points=9),
    "anchor_mutual_guidance_assign, high": lambda s: guided_anchors(high=s / 8 + 0.1, low=0.05),
    "anchor_mutual_guidance_assign, low": lambda s: guided_anchors(low=s / 8),
    "anchor_mutual_guidance_assign, ignore_share": lambda s: guided_anchors(ignore_share=s / 4),
    "anchor_mutual_guidance_assign, min_points": lambda s: guided_anchors(min_points=int(s * 3)),
    "anchor_mutual_guidance_assign, num_points": lambda s: guided_anchors(num_points=int(s * 3) + 1),
    "take, fill": lambda s: (take(matched().owner, SCENE[2], fill=s),),
    "dense_scores, num_classes": lambda s: (dense_scores(*matched(), SCENE[3], 2 + int(s)),),
    "PointGrid, offset": lambda s: on_grid(offset=s + 0.1),
    "PointGrid, spacing": lambda s: on_grid(spacing=s + 5.0),
    "PointGrid, strides": lambda s: on_grid(s * 7, s * 16),
    "PointGrid, ranges": lambda s: on_grid(ranges=((0, s * 20), (s * 15, 1e9))),
}


def test_every_setting_is_derived():
    no_numbers = {"activation", "low_quality", "overlap", "candidates", "contest"}
    tensors = {"grid", "anchors", "areas", "boxes", "gt_boxes", "gt_labels", "k", "ltrb", "objects", "owner", "pred_boxes",
               "pred_logits", "pred_objectness", "pred_scores", "probs", "scores", "target"}  # fmt: skip
    expected = {f"PointGrid, {name}" for name in ("offset", "ranges", "spacing", "strides")}
    for function in (getattr(mgassign, name) for name in mgassign.__all__ if name.islower() and name != "unassigned"):
        parameters = dict(inspect.signature(function).parameters)
        settings = parameters.pop("settings", None)
        fields = [field.name for field in dataclasses.fields(settings.default)] if settings else []
        names = {*(set(parameters) - tensors), *fields} - no_numbers
        expected |= {f"{function.__name__}, {name}" for name in names}
    assert set(DERIVED) == expected


@pytest.mark.parametrize("function", DERIVED.values(), ids=DERIVED.keys())
@pytest.mark.usefixtures("fresh_compiler")
def test_a_setting_that_the_compiled_function_derives_is_never_stale(function):
    compiled = torch.compile(lambda x, s: (x * s, *function(s)), fullgraph=True, backend="aot_eager")
    distinct = []
    for s in (0.1, 0.5, 1.5, 4.0):
        _, *found = compiled(torch.ones(1), s)
        expected = function(s)
        assert equal(found, expected), s
        distinct.append(torch.cat([result.flatten().double() for result in expected]))
    assert len({tuple(result.tolist()) for result in distinct}) > 1, "the setting changes nothing here"


@pytest.mark.usefixtures("fresh_compiler")
def test_whole_numbers_that_change_at_every_step_compile_twice():
    counter = Counter()

    @torch.compile(fullgraph=True, backend=counter)
    def assign(min_points, num_points):
        least = mutual_guidance_assign(GRID, *SCENE, min_points=min_points)
        return *least, *mutual_guidance_assign(GRID, *SCENE, num_points=num_points)

    for n in range(2, 22):
        expected = inspect.unwrap(assign)(n, 2 * n)
        assert equal(assign(n, 2 * n), expected)
    assert counter.compilations <= 2


@pytest.mark.usefixtures("fresh_compiler")
def test_a_float_that_changes_at_every_step_compiles_anew_and_is_refused_at_the_ninth():
    counter = Counter()
    compiled = torch.compile(lambda sigma: guided(sigma=sigma, num_points=9), fullgraph=True, backend=counter)
    for n in range(8):
        assert equal(compiled(1.5 + n), guided(sigma=1.5 + n, num_points=9))
        assert counter.compilations == n + 1
    with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
        compiled(9.5)
