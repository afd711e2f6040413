"""The operators as citizens of torch: opcheck, autocast, threads, memory."""

from __future__ import annotations

import dataclasses
import inspect
import io
import os
import re

import numpy as np
import pytest
import torch

import mgassign
from agreement import check_agreement
from mgassign import (
    PointGrid,
    _library,
    box_iou,
    topk_per_object,
)
from scenes import GRID_NAMES, STRIDES, equal, scene, scene_of
from test_packaging import ROOT, python

OPS = torch.ops.mgassign


def calls(requires_grad: bool, size: tuple[int, int] = (64, 96)):
    """A call of each operator's schema: name, positional and keyword arguments."""
    of = scene(size, STRIDES[:2], objects=(3, 2), seed=1)
    generator = torch.Generator().manual_seed(1)
    pred_boxes, pred_logits = of.pred_boxes.requires_grad_(requires_grad), of.pred_logits.requires_grad_(requires_grad)
    boxes, labels = torch.cat(of.gt_boxes), torch.cat(of.gt_labels)
    grid = dict(zip(GRID_NAMES, of.grid.arguments, strict=True))
    settings = {"wanted": None, "center_radius": 1.5, "sigma": 2.0, "level_gate": True, "min_points": 0,
                "max_points": 2**31 - 1, "inside": False, "ignore_share": 0.5, "activation": 1}  # fmt: skip
    offsets = torch.tensor([0, 3, 5])
    scores = torch.rand(of.grid.num_points, 5, generator=generator).requires_grad_(requires_grad)
    yield "fcos_assign", (boxes, None, [3, 2]), {**grid, "center_radius": 1.5}
    yield "fcos_assign", (boxes, offsets, None), {**grid, "center_radius": 0.0}
    yield "mutual_guidance_assign", (pred_boxes, pred_logits, boxes, labels, None, [3, 2]), {**grid, **settings}
    yield "mutual_guidance_assign", (pred_boxes, pred_logits, boxes, labels, offsets, None), {**grid, **settings}
    padded = boxes[[0, 1, 3, 4]].reshape(2, 2, 4), labels[[0, 1, 3, 4]].reshape(2, 2)
    yield "mutual_guidance_assign", (pred_boxes, pred_logits, *padded, None, None), {**grid, **settings}
    alignment = dict(zip(("wanted", "min_points", "max_points", "keep", "alpha", "beta", "overlap", "candidates", "margin",
        "raise_below", "least_side", "contest", "epsilon", "activation"),
        (None, 0, 10, 0, 0.5, 6.0, 1, 0, 1e-9, 16.0, 16.0, 0, 1e-9, 1), strict=True))  # fmt: skip
    yield "task_aligned_assign", (pred_boxes, pred_logits, boxes, labels, None, [3, 2]), {**grid, **alignment}
    yield "task_aligned_assign", (pred_boxes, pred_logits, *padded, None, None), {**grid, **alignment}
    dynamic = {"wanted": None, "min_points": 1, "max_points": 10, "best_overlaps": 10, "center_radius": 2.5,
               "overlap_weight": 3.0, "epsilon": 1e-7, "activation": 1}  # fmt: skip
    sim_ota = {"pred_objectness": scores[None, :, 0].expand(2, -1), "inside": True, "penalty": 1e5, "class_weight": 1.0}
    yield "sim_ota_assign", (pred_boxes, pred_logits, boxes, labels, None, [3, 2]), {**grid, **dynamic, **sim_ota}
    yield "sim_ota_assign", (pred_boxes, pred_logits, boxes, labels, offsets, None), {**grid, **dynamic, **sim_ota}
    yield "soft_label_assign", (pred_boxes, pred_logits, boxes, labels, offsets, None), {**grid, **dynamic}
    yield "soft_label_assign", (pred_boxes, pred_logits, *padded, None, None), {**grid, **dynamic}
    of_grid = {**grid, "anchor_scale": 8.0, "topk": 9}
    yield "atss_assign", (boxes, None, None, [3, 2]), of_grid
    yield "atss_assign", (boxes, labels, offsets, None), of_grid
    yield "atss_assign", (*padded, None, None), of_grid
    anchors = pred_boxes[0].detach().requires_grad_(requires_grad)
    matching = {"high": 0.5, "low": 0.4, "low_quality": 1, "min_iou": 0.0, "ignore_share": 0.5}
    guidance = {"wanted": None, "sigma": 2.0, "high": 0.5, "low": 0.4, "min_points": 1, "max_points": 2**31 - 1,
                "ignore_share": 0.5, "activation": 1}  # fmt: skip
    yield "max_iou_assign", (anchors, boxes, None, offsets, None), matching
    yield "max_iou_assign", (anchors, *padded, None, None), matching
    predicted = (anchors, pred_boxes, pred_logits)
    yield "anchor_mutual_guidance_assign", (*predicted, boxes, labels, None, [3, 2]), guidance
    yield "anchor_mutual_guidance_assign", (*predicted, *padded, None, None), guidance
    yield "box_iou", (pred_boxes[0].detach().requires_grad_(requires_grad), boxes), {}
    yield "amplified_centerness", (boxes, scores), {**grid, "sigma": 2.0, "level_gate": True}
    yield "topk_per_object", (scores, torch.tensor([1, 2, 3, 4, 5]), torch.rand(5, generator=generator)), {}


@pytest.mark.parametrize("requires_grad", [False, True], ids=["no grad", "grad"])
def test_opcheck(requires_grad):
    seen = set()
    for name, args, kwargs in calls(requires_grad):
        torch.library.opcheck(getattr(OPS, name).default, args, kwargs)
        seen.add(name)
    assert seen == set(_library.OPERATORS)


@pytest.mark.parametrize("name", _library.OPERATORS)
def test_every_operator_has_its_kernels(name):
    for key in ("CPU", "CUDA", "Meta", "Autograd"):  # under CUDA at least the one that says why there is none
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"mgassign::{name}", key), key


@pytest.mark.skipif(
    os.environ.get("MGASSIGN_CUDA") != "1" or torch.version.cuda is None,
    reason="CUDA kernels are not asked for (MGASSIGN_CUDA=1), or not of this torch",
)
def test_cuda_kernels_are_there_when_asked_for():
    assert _library.cuda_library is not None, _library.no_cuda_reason
    registered = torch._C._dispatch_get_registrations_for_dispatch_key("CUDA")
    assert {f"mgassign::{name}" for name in _library.OPERATORS} <= set(registered)


def test_nothing_requires_grad():
    for name, args, kwargs in calls(requires_grad=True):
        found = getattr(OPS, name)(*args, **kwargs)
        results = found if isinstance(found, tuple) else (found,)
        assert not any(result.requires_grad for result in results), name


def test_autocast_inference_and_no_grad_change_nothing():
    of = scene(seed=2)
    expected = of.assign()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert equal(of.assign(), expected)
    with torch.inference_mode():
        assert equal(of.assign(), expected)
    with torch.no_grad():
        assert equal(of.assign(), expected)


def test_results_do_not_depend_on_the_number_of_threads():
    before = torch.get_num_threads()
    batches = [
        scene((800, 1024), STRIDES, objects=(200,), seed=4),
        scene((320, 320), STRIDES, objects=(9,) * 5, seed=5),
    ]
    generator = torch.Generator().manual_seed(0)
    scores, k = torch.rand(5000, 40, generator=generator).round(decimals=1), torch.full((40,), 9)
    areas = torch.rand(40, generator=generator)
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(
                [*(result for of in batches for result in of.assign()), topk_per_object(scores, k, areas),
                 box_iou(batches[0].pred_boxes[0], batches[0].gt_boxes[0])]
            )  # fmt: skip
    finally:
        torch.set_num_threads(before)
    assert equal(results[0], results[1])
    assert equal(results[0], results[2])


@pytest.mark.parametrize("size", [(64, 96), (56, 8), (56, 40), (56, 104), (24, 320), (8, 8)], ids=str)
@pytest.mark.parametrize("beyond", [torch.nan, torch.inf], ids=str)
def test_nothing_is_written_or_read_beyond_the_ends(size, beyond):
    # NaN stands around what is a number (a box's), or infinity (a score that wins all), impossible labels, counts and
    # offsets around the rest: whoever reads beyond is found out; the inputs must come back as they were.
    def same(one: torch.Tensor, other: torch.Tensor) -> bool:
        return one.dtype == other.dtype and torch.equal(one.nan_to_num(-5), other.nan_to_num(-5))

    def guarded(value):
        if not isinstance(value, torch.Tensor):
            return value
        guard = beyond if value.is_floating_point() else -7
        whole = torch.full((value.numel() + 128,), guard, dtype=value.dtype)
        inner = whole[64:-64].view(value.shape)
        inner.copy_(value)
        wholes.append((whole, whole.clone()))
        return inner

    for name, args, kwargs in calls(requires_grad=False, size=size):
        wholes = []
        expected = getattr(OPS, name)(*args, **kwargs)
        found = getattr(OPS, name)(*map(guarded, args), **{key: guarded(value) for key, value in kwargs.items()})
        pairs = zip(found, expected, strict=True) if isinstance(found, tuple) else [(found, expected)]
        assert all(same(*pair) for pair in pairs), name
        assert wholes
        assert all(same(*pair) for pair in wholes), name


def test_results_are_new_tensors_that_fill_their_storage():
    of = scene(objects=(3, 2), seed=6)
    for result in of.assign():
        assert result.is_contiguous()
        assert result.untyped_storage().nbytes() == result.element_size() * result.numel()


def test_real_boxes(coco_boxes_file):
    with np.load(coco_boxes_file) as data:
        starts, all_boxes, sizes = data["box_start"], torch.from_numpy(data["boxes_xyxy"]).float(), data["image_wh"]
        labels = torch.from_numpy(data["cls"]).long()
    grid = PointGrid.for_image((800, 1024), STRIDES)
    differing = positives = 0
    for image in range(0, len(sizes), 250):
        rows = slice(starts[image], starts[image + 1])
        scale = torch.tensor([1024, 800] * 2) / torch.from_numpy(sizes[image].astype(np.float32)).repeat(2)
        of = scene_of(grid, [all_boxes[rows] * scale], 80, torch.Generator().manual_seed(image))
        of = dataclasses.replace(of, gt_labels=[labels[rows]])
        found = of.assign()
        differing += check_agreement(found, of)
        positives += int((found.loc >= 0).sum())
    print(f"{positives} positives compared, {differing} differ by rounding")
    assert positives > 500
    assert differing <= 0.001 * positives


RESULTS = [kind for kind in vars(mgassign).values() if isinstance(kind, type) and issubclass(kind, tuple)]


@pytest.mark.parametrize("kind", [kind for kind in RESULTS if kind is not mgassign.Unassigned])
def test_checkpoints_hold_assignments(kind):
    saved, file = kind(*(torch.tensor([[i, -1]]) for i in range(len(kind._fields)))), io.BytesIO()
    torch.save(saved, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert type(loaded) is kind
    assert equal(loaded, saved)


def test_checkpoints_hold_what_is_unassigned():
    saved, file = mgassign.Unassigned(0, 1, (8.0, 8, 9, 9), "too thin", "a hint"), io.BytesIO()
    torch.save([saved], file)
    file.seek(0)
    assert torch.load(file, weights_only=True) == [saved]


def test_public_names():
    documented = re.findall(r"^::: mgassign\.(\w+)$", (ROOT / "docs/api.md").read_text(), re.MULTILINE)
    assert set(mgassign.__all__) <= set(documented)
    for name in mgassign.__all__:
        # Constants have only their type's, classes of fields one made of their fields.
        if callable(thing := getattr(mgassign, name)):
            doc = inspect.getdoc(thing)
            assert doc, f"{name} has no docstring"
            assert not doc.startswith(f"{name}("), f"{name} has no docstring of its own"


def test_pictures_come_with_the_package():
    # In a process of its own: here another test may have imported the module.
    assert python("-c", "import mgassign; print(mgassign.draw.__name__)").stdout == "mgassign.draw\n"
