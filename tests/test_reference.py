"""The reference takes what the operators take; that both give the same is in each assigner's own tests."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import mgassign
from mgassign import PointGrid, reference
from scenes import scene

# Each assigner's arguments of one image, and whether it starts with a grid.
USES = {
    "mutual_guidance_assign": ("grid", "boxes", "logits", "gt_boxes", "gt_labels"),
    "task_aligned_assign": ("grid", "boxes", "logits", "gt_boxes", "gt_labels"),
    "sim_ota_assign": ("grid", "boxes", "logits", "gt_boxes", "gt_labels"),
    "soft_label_assign": ("grid", "boxes", "logits", "gt_boxes", "gt_labels"),
    "atss_assign": ("grid", "gt_boxes", "labels="),
    "max_iou_assign": ("anchors", "gt_boxes", "labels="),
    "anchor_mutual_guidance_assign": ("anchors", "boxes", "logits", "gt_boxes", "gt_labels"),
}
EACH = pytest.mark.parametrize("name", USES)


def image(**changed: Tensor) -> dict[str, Tensor | PointGrid]:
    of = scene((160, 128), (8, 16), objects=(4,), num_classes=3, seed=28)
    labels = torch.tensor([0, 2, 1, 1])
    given = {"boxes": of.pred_boxes[0], "logits": of.pred_logits[0], "gt_boxes": of.gt_boxes[0], "gt_labels": labels}
    return {"grid": of.grid, "anchors": of.pred_boxes[0].clone(), **given, **changed}


def operator(name: str, of: dict) -> tuple[Tensor, ...]:
    parts = {"boxes": of["boxes"][None], "logits": of["logits"][None], "gt_boxes": [of["gt_boxes"]],
             "gt_labels": [of["gt_labels"]]}  # fmt: skip
    found = call(getattr(mgassign, name), name, of | parts)
    return tuple(result[0] if result.shape[0] == 1 else result for result in found)


def call(function, name: str, of: dict):
    places = [of[use] for use in USES[name] if use != "labels="]
    return function(*places, **({"gt_labels": of["gt_labels"]} if "labels=" in USES[name] else {}))


def check(name: str, of: dict) -> tuple[Tensor, ...]:
    found = call(getattr(reference, name), name, of)
    for ours, theirs in zip(operator(name, of), found, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)
    return found


@EACH
def test_predictions_of_a_network_that_learns(name):
    of = image()
    found = check(name, image(boxes=of["boxes"].requires_grad_(), logits=of["logits"].requires_grad_()))
    assert not any(result.requires_grad for result in found)
    assert (found[0] >= 0).any()


@EACH
@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.int8, torch.uint8])
def test_labels_of_other_dtypes(name, dtype):
    expected = check(name, image())
    found = check(name, image(gt_labels=image()["gt_labels"].to(dtype)))
    assert all(map(torch.equal, expected, found))


@EACH
def test_regions_that_float32_does_not_hold_are_none(name):
    huge = torch.tensor([[0.0, 0, 1e39, 1e39]], dtype=torch.float64)
    found = check(name, image(gt_boxes=torch.cat([image()["gt_boxes"][:3].double(), huge]),
                              gt_labels=torch.tensor([0, 2, 1, -2])))  # fmt: skip
    if "anchor" not in name and name != "max_iou_assign":  # there -2 means in between, too
        assert not (found[0] == -2).any()


@EACH
def test_no_classes(name):
    check(name, image(logits=torch.empty(len(image()["boxes"]), 0), gt_labels=torch.full((4,), -1)))


@EACH
def test_another_default_dtype(name):
    expected = check(name, image())
    of = image()
    torch.set_default_dtype(torch.float64)
    try:
        found = check(name, of)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(map(torch.equal, expected, found))
