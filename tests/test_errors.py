"""Bad input: the argument's name, what was expected, what came. Nothing is written, nothing crashes."""

from __future__ import annotations

import math

import pytest
import torch

from mgassign import (
    PointGrid,
    _library,
    amplified_centerness,
    box_iou,
    fcos_assign,
    mutual_guidance_assign,
    topk_per_object,
)
from scenes import GRID_NAMES, scene

GRID = PointGrid.for_image((64, 64), strides=(8,))
GOOD = {
    "grid": GRID,
    "pred_boxes": torch.rand(2, 64, 4),
    "pred_logits": torch.rand(2, 64, 3),
    "gt_boxes": [torch.rand(2, 4), torch.rand(1, 4)],
    "gt_labels": [torch.tensor([0, 2]), torch.tensor([1])],
}
BOXES, LABELS = GOOD["gt_boxes"], GOOD["gt_labels"]


def strided_nested(tensors):
    return torch.nested.nested_tensor(tensors, layout=torch.strided)


# Each: what is changed in a good call, the error, what its message says.
ASSIGN_ERRORS = {
    "no grid": ({"grid": (8, 16)}, TypeError, "grid: expected a PointGrid, got tuple"),
    "predictions are a list": ({"pred_boxes": [[0.0] * 4]}, TypeError, "pred_boxes: expected a tensor, got list"),
    "integer predictions": (
        {"pred_boxes": torch.zeros(2, 64, 4, dtype=torch.int64)}, TypeError,
        "pred_boxes: expected a floating-point tensor, got torch.int64",
    ),
    "complex logits": (
        {"pred_logits": torch.zeros(2, 64, 3, dtype=torch.complex64)}, TypeError,
        "pred_logits: expected a floating-point tensor, got torch.complex64",
    ),
    "too few points": (
        {"pred_boxes": torch.rand(2, 63, 4)}, ValueError, "pred_boxes: expected shape [2, 64, 4], got [2, 63, 4]",
    ),
    "another batch size": (
        {"pred_logits": torch.rand(3, 64, 3)}, ValueError, "pred_logits: expected shape [2, 64, C], got [3, 64, 3]",
    ),
    "no batch dimension": (
        {"pred_logits": torch.rand(64, 3)}, ValueError, "pred_logits: expected shape [2, 64, C], got [64, 3]",
    ),
    "another device": (
        {"pred_logits": torch.rand(2, 64, 3, device="meta")}, ValueError,
        "pred_logits: expected device cpu like the other tensors, got meta",
    ),
    "boxes of another device": (
        {"gt_boxes": [BOXES[0], BOXES[1].to("meta")]}, ValueError, "gt_boxes[1]: expected device cpu",
    ),
    "boxes are numbers": ({"gt_boxes": 3.0}, TypeError, "gt_boxes: expected a list of tensors or a tensor, got float"),
    "a box list holds a list": (
        {"gt_boxes": [BOXES[0], [[0, 0, 1, 1]]]}, TypeError, "gt_boxes[1]: expected a tensor, got list",
    ),
    "boxes of five columns": (
        {"gt_boxes": [torch.rand(2, 5), BOXES[1]]}, ValueError, "gt_boxes[0]: expected shape [G, 4], got [2, 5]",
    ),
    "integer boxes": (
        {"gt_boxes": [BOXES[0].long(), BOXES[1]]}, TypeError, "gt_boxes[0]: expected a floating-point tensor, got torch.int64",
    ),
    "padded boxes without a batch": ({"gt_boxes": BOXES[0]}, ValueError, "gt_boxes: expected shape [B, G, 4], got [2, 4]"),
    "float labels": (
        {"gt_labels": [LABELS[0].float(), LABELS[1]]}, TypeError, "gt_labels[0]: expected an integer tensor, got torch.float32",
    ),
    "a label too few": (
        {"gt_labels": [LABELS[0][:1], LABELS[1]]}, ValueError,
        "gt_labels: expected as many as boxes in each image, [2, 1], got [1, 1]",
    ),
    "an image of labels too few": (
        {"gt_labels": LABELS[:1]}, ValueError, "gt_labels: expected as many as boxes in each image, [2, 1], got [2]",
    ),
    "labels of another form": (
        {"gt_labels": torch.zeros(2, 2, dtype=torch.int64)}, ValueError, "gt_labels: expected the form of gt_boxes",
    ),
    "labels padded otherwise": (
        {"gt_boxes": torch.rand(2, 3, 4), "gt_labels": torch.zeros(2, 2, dtype=torch.int64)}, ValueError,
        "gt_labels: expected one per box, shape [2, 3], got [2, 2]",
    ),
    "an image too few": (
        {"gt_boxes": BOXES[:1], "gt_labels": LABELS[:1]}, ValueError, "pred_boxes: expected shape [1, 64, 4], got [2, 64, 4]",
    ),
    "nested, but not jagged": (
        {"gt_boxes": strided_nested(BOXES)}, ValueError, "gt_boxes: expected a nested tensor of layout torch.jagged",
    ),
    "label too large": (
        {"gt_labels": [LABELS[0], torch.tensor([3])]}, ValueError,
        "gt_labels: expected a label in [0, 3) for object 0 of image 1, got 3",
    ),
    "negative label": (
        {"gt_labels": [torch.tensor([0, -1]), LABELS[1]]}, ValueError,
        "gt_labels: expected a label in [0, 3) for object 1 of image 0, got -1",
    ),
    "padded label below -1": (
        {"gt_boxes": torch.rand(2, 1, 4), "gt_labels": torch.tensor([[-1], [-2]])}, ValueError,
        "gt_labels: expected a label in [0, 3) for object 0 of image 1, got -2",
    ),
    "sigma of 1": ({"sigma": 1.0}, ValueError, "sigma: expected a finite number above 1, got 1.0"),
    "sigma that rounds to 1": ({"sigma": 1 + 1e-12}, ValueError, "sigma: expected a finite number above 1"),
    "sigma NaN": ({"sigma": math.nan}, ValueError, "sigma: expected a finite number above 1, got nan"),
    "sigma a string": ({"sigma": "2"}, TypeError, "sigma: expected a number, got str"),
    "negative radius": ({"center_radius": -1.5}, ValueError, "center_radius: expected a finite number of at least 0, got -1.5"),
    "infinite radius": ({"center_radius": math.inf}, ValueError, "center_radius: expected a finite number of at least 0"),
    "level_gate a number": ({"level_gate": 1}, TypeError, "level_gate: expected a bool, got int"),
    "negative min_points": ({"min_points": -1}, ValueError, "min_points: expected at least 0, got -1"),
    "min_points a float": ({"min_points": 1.0}, TypeError, "min_points: expected an int, got float"),
    "unknown activation": (
        {"activation": "softmax"}, ValueError, "activation: expected one of 'sigmoid', 'none', got 'softmax'",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("change", "error", "message"), ASSIGN_ERRORS.values(), ids=ASSIGN_ERRORS.keys())
def test_mutual_guidance_assign(change, error, message):
    with pytest.raises(error) as raised:
        mutual_guidance_assign(**{**GOOD, **change})
    assert str(raised.value).startswith(message) or message in str(raised.value)
    mutual_guidance_assign(**GOOD)  # and the next good call is none the worse


OTHER_ERRORS = {
    "box_iou, shape": (lambda: box_iou(torch.rand(3, 5), torch.rand(2, 4)), ValueError, "boxes: expected shape [P, 4], got [3, 5]"),
    "box_iou, type": (lambda: box_iou(torch.rand(3, 4), None), TypeError, "gt_boxes: expected a tensor, got NoneType"),
    "amplified_centerness, shape": (
        lambda: amplified_centerness(GRID, torch.rand(2, 4), torch.rand(64, 3)), ValueError,
        "probs: expected shape [64, 2], got [64, 3]",
    ),
    "amplified_centerness, sigma": (
        lambda: amplified_centerness(GRID, torch.rand(2, 4), torch.rand(64, 2), sigma=0.5), ValueError,
        "sigma: expected a finite number above 1, got 0.5",
    ),
    "topk, k": (
        lambda: topk_per_object(torch.rand(5, 2), torch.tensor([1]), torch.rand(2)), ValueError, "k: expected shape [2], got [1]",
    ),
    "topk, dtype of k": (
        lambda: topk_per_object(torch.rand(5, 2), torch.rand(2), torch.rand(2)), TypeError, "k: expected an integer tensor",
    ),
    "topk, areas": (
        lambda: topk_per_object(torch.rand(5, 2), torch.tensor([1, 1]), torch.rand(3)), ValueError,
        "areas: expected shape [2], got [3]",
    ),
    "fcos_assign, radius": (
        lambda: fcos_assign(GRID, [torch.rand(1, 4)], -1), ValueError, "center_radius: expected a finite number of at least 0, got -1",
    ),
    "fcos_assign, boxes": (
        lambda: fcos_assign(GRID, [torch.rand(4)]), ValueError, "gt_boxes[0]: expected shape [G, 4], got [4]",
    ),
    "grid, strides": (lambda: PointGrid.for_image((64, 64), strides=(8, 0)), ValueError, "strides: expected at least one"),
    "grid, no strides": (lambda: PointGrid.for_image((64, 64), strides=()), ValueError, "strides: expected at least one"),
    "grid, sizes": (lambda: PointGrid.from_features([(4, 4)], strides=(8, 16)), ValueError, "sizes: expected one (height, width) per stride (2)"),
    "grid, negative size": (lambda: PointGrid.from_features([(4, -4)], strides=(8,)), ValueError, "sizes: expected (height, width) pairs of at least 0"),
    "grid, size": (lambda: PointGrid.for_image(64), TypeError, "size: expected (height, width), got 64"),
    "grid, six levels": (lambda: PointGrid.for_image((64, 64), strides=(4, 8, 16, 32, 64, 128)), ValueError, "ranges: expected to be given for 6 levels"),
    "grid, ranges": (lambda: PointGrid.for_image((64, 64), strides=(8,), ranges=[(9, 2)]), ValueError, "ranges: expected 1 pairs (lo, hi) with lo <= hi"),
    "grid, offset": (lambda: PointGrid.for_image((64, 64), strides=(8,), offset=math.nan), ValueError, "offset: expected a finite number"),
    "decode": (lambda: GRID.decode(torch.rand(2, 63, 4)), ValueError, "ltrb: expected shape [..., 64, 4], got [2, 63, 4]"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), OTHER_ERRORS.values(), ids=OTHER_ERRORS.keys())
def test_other_functions(call, error, message):
    with pytest.raises(error) as raised:
        call()
    assert str(raised.value).startswith(message)


def raw_arguments():
    of = scene((64, 96), (8, 16), objects=(3, 2), seed=1)
    settings = {"center_radius": 1.5, "sigma": 2.0, "level_gate": True, "min_points": 0, "activation": 1}
    tensors = [of.pred_boxes, of.pred_logits, torch.cat(of.gt_boxes), torch.cat(of.gt_labels), None, [3, 2]]
    return tensors, {**dict(zip(GRID_NAMES, of.grid.arguments, strict=True)), **settings}


# Callers of torch.ops.mgassign come past the Python checks: each argument's place, a bad value, what is said.
RAW_ERRORS = {
    "decreasing offsets": ((4, torch.tensor([0, 4, 2, 5])), (5, None), "gt_offsets: expected them not to decrease"),
    "offsets of another end": (
        (4, torch.tensor([0, 3, 9])),
        (5, None),
        "gt_boxes: expected 9 rows, one per object, got 5",
    ),
    "offsets of another start": ((4, torch.tensor([1, 3, 5])), (5, None), "gt_offsets: expected the first to be 0"),
    "offsets and counts": ((4, torch.tensor([0, 3, 5])), (5, [3, 2]), "gt_offsets, gt_counts: expected at most one"),
    "negative counts": ((5, [7, -2]), (5, [7, -2]), "gt_offsets: expected them not to decrease"),
    "float64 objects": ((2, torch.rand(5, 4).double()), (4, None), "gt_boxes: expected a contiguous float32 tensor"),
    "strided objects": ((2, torch.rand(4, 5).T), (4, None), "gt_boxes: expected a contiguous float32 tensor"),
    "narrow labels": (
        (3, torch.zeros(5, dtype=torch.int32)),
        (4, None),
        "gt_labels: expected a contiguous int64 tensor",
    ),
    "too few labels": (
        (3, torch.zeros(4, dtype=torch.int64)),
        (4, None),
        "gt_labels: expected one label per object (5)",
    ),
    "integer predictions": ((0, torch.zeros(2, 120, 4).long()), (4, None), "pred_boxes: expected"),
}


@pytest.mark.parametrize(("change", "also", "message"), RAW_ERRORS.values(), ids=RAW_ERRORS.keys())
def test_the_operator_itself_checks(change, also, message):
    tensors, settings = raw_arguments()
    for place, value in (change, also):
        tensors[place] = value
    with pytest.raises(ValueError, match="expected") as raised:
        torch.ops.mgassign.mutual_guidance_assign(*tensors, **settings)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strides": [8]}, "grid: expected lists of one length"),
        ({"strides": [8, 0]}, "grid: level 1 is"),
        ({"heights": [-1, 4]}, "grid: level 0 is"),
        ({"sigma": 0.5}, "sigma: expected"),
        ({"center_radius": -1.0}, "center_radius: expected"),
        ({"min_points": -1}, "min_points: expected"),
        ({"activation": 2}, "activation: expected"),
        ({"heights": [2**20, 4], "widths": [2**20, 6]}, "fewer than 2^31 points"),
        ({"heights": [2**62, 4], "widths": [2**62, 6]}, "fewer than 2^31 points"),
    ],
    ids=lambda value: "" if isinstance(value, str) else str(value),
)
def test_the_operator_checks_its_settings(change, message):
    tensors, settings = raw_arguments()
    with pytest.raises(ValueError, match="expected") as raised:
        torch.ops.mgassign.mutual_guidance_assign(*tensors, **{**settings, **change})
    assert message in str(raised.value)


@pytest.mark.skipif(_library.cuda_library is not None, reason="CUDA kernels are there")
def test_cuda_without_kernels_says_why():
    with pytest.raises(RuntimeError, match="mgassign: no CUDA kernels: "):
        _library._refuse_cuda()
