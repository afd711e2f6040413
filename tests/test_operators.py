"""The operators by themselves, torch.ops.mgassign: what they refuse that never came past the Python checks."""

from __future__ import annotations

import math
import re

import pytest
import torch

from kernels import CHECKED
from scenes import GRID_NAMES, equal, scene
from test_library import calls

nan, inf = math.nan, math.inf


def raw_arguments():
    of = scene((64, 96), (8, 16), objects=(3, 2), seed=1)
    settings = {"wanted": None, "center_radius": 1.5, "sigma": 2.0, "level_gate": True, "min_points": 0,
                "max_points": 2**31 - 1, "inside": False, "ignore_share": 0.5, "activation": 1}  # fmt: skip
    tensors = [of.pred_boxes, of.pred_logits, torch.cat(of.gt_boxes), torch.cat(of.gt_labels), None, [3, 2]]
    return tensors, {**dict(zip(GRID_NAMES, of.grid.arguments, strict=True)), **settings}


# Each argument's place, a bad value, what is said.
RAW_ERRORS = {
    "decreasing offsets": ((4, torch.tensor([0, 7, 5])), (5, None), "gt_offsets: expected them not to decrease"),
    "offsets of another end": (
        (4, torch.tensor([0, 3, 9])),
        (5, None),
        "gt_boxes: expected 9 rows, one per object, got 5",
    ),
    "offsets of another start": ((4, torch.tensor([1, 3, 5])), (5, None), "gt_offsets: expected the first to be 0"),
    "offsets and counts": ((4, torch.tensor([0, 3, 5])), (5, [3, 2]), "gt_offsets, gt_counts: expected at most one"),
    "negative counts": ((5, [7, -2]), (5, [7, -2]), "gt_counts: expected at least 0 in each image, got -2 in image 1"),
    "counts of another sum": ((5, [3, 1]), (5, [3, 1]), "gt_boxes: expected 4 rows, one per object, got 5"),
    "float64 objects": (
        (2, torch.rand(5, 4).double()),
        (4, None),
        "gt_boxes: expected a contiguous float32 tensor, got a contiguous Double one",
    ),
    "strided objects": (
        (2, torch.rand(4, 5).T),
        (4, None),
        "gt_boxes: expected a contiguous float32 tensor, got a strided Float one",
    ),
    "narrow labels": (
        (3, torch.zeros(5, dtype=torch.int32)),
        (4, None),
        "gt_labels: expected a contiguous int64 tensor",
    ),
    "too few labels": (
        (3, torch.zeros(4, dtype=torch.int64)),
        (4, None),
        "gt_labels: expected one per object, like gt_boxes [5, 4] without its last dimension, got [4]",
    ),
    "integer predictions": ((0, torch.zeros(2, 120, 4).long()), (4, None), "float64 tensor, got Long"),
}


@pytest.mark.parametrize(("change", "also", "message"), RAW_ERRORS.values(), ids=RAW_ERRORS.keys())
def test_the_operator_itself_checks(change, also, message):
    tensors, settings = raw_arguments()
    for place, value in (change, also):
        tensors[place] = value
    with pytest.raises(CHECKED, match="expected") as raised:
        torch.ops.mgassign.mutual_guidance_assign(*tensors, **settings)
    assert message in str(raised.value)


def test_the_operator_checks_that_padded_labels_are_the_boxes():
    tensors, settings = raw_arguments()
    tensors[2:] = [torch.rand(2, 3, 4), torch.zeros(3, 2, dtype=torch.int64), None, None]
    with pytest.raises(CHECKED, match=r"gt_labels: expected one per object, like gt_boxes \[2, 3, 4\].*, got \[3, 2\]"):
        torch.ops.mgassign.mutual_guidance_assign(*tensors, **settings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strides": [8]}, "grid: expected lists of one length"),
        ({"strides": [8, 0]}, "grid: level 1 is"),
        ({"heights": [-1, 4]}, "grid: level 0 is"),
        ({"sigma": 0.5}, "sigma: expected"),
        ({"center_radius": -1.0}, "center_radius: expected"),
        ({"min_points": -1}, "min_points, max_points: expected"),
        ({"min_points": 3, "max_points": 2}, "min_points, max_points: expected"),
        ({"wanted": torch.zeros(4).long()}, "wanted: expected one per object"),
        ({"wanted": torch.zeros(5)}, "wanted: expected a contiguous int64 tensor"),
        ({"ignore_share": 0.0}, "ignore_share: expected"),
        ({"ignore_share": math.nan}, "ignore_share: expected"),
        ({"center_radius": math.inf}, "center_radius: expected"),
        ({"spacings": [8.0]}, "grid: expected lists of one length"),
        ({"spacings": [8.0, 8.0, 16.0, 0.0]}, "grid: level 1 is"),
        ({"offsets": [4.0, math.nan, 8.0, 8.0]}, "grid: level 0 is"),
        ({"ranges": [5.0, 4.0, 0.0, 9.0]}, "grid: level 0 is"),
        ({"activation": 2}, "activation: expected"),
        ({"heights": [2**20, 4], "widths": [2**20, 6]}, "grid: expected fewer than 2^31 points"),
        ({"heights": [2**62, 4], "widths": [2**62, 6]}, "grid: expected fewer than 2^31 points"),
    ],
    ids=lambda value: "" if isinstance(value, str) else str(value),
)
def test_the_operator_checks_its_settings(change, message):
    tensors, settings = raw_arguments()
    with pytest.raises(CHECKED, match="expected") as raised:
        torch.ops.mgassign.mutual_guidance_assign(*tensors, **{**settings, **change})
    assert message in str(raised.value)


def named_calls():
    """A good call of each operator in each form of objects: its name, and arguments by name."""
    for name, given, settings in calls(requires_grad=False):
        names = [argument.name for argument in getattr(torch.ops.mgassign, name).default._schema.arguments]
        arguments = {**dict(zip(names, given, strict=False)), **settings}
        if "wanted" in arguments:
            arguments["wanted"] = torch.ones_like(arguments["gt_labels"])
        yield name, arguments


CALLS = list(named_calls())
IDS = [f"{name} {i}" for i, (name, _) in enumerate(CALLS)]
# Dimensions of any size: nothing else says how many there are.
FREE = {
    ("sim_ota_assign", "pred_logits", 2),
    ("soft_label_assign", "pred_logits", 2),
    ("mutual_guidance_assign", "pred_logits", 2),
    ("task_aligned_assign", "pred_scores", 2),
    ("anchor_mutual_guidance_assign", "pred_logits", 2),
    ("max_iou_assign", "anchors", 0),
    ("box_iou", "boxes", 0),
    ("box_iou", "gt_boxes", 0),
    ("topk_per_object", "scores", 0),
}
# Of the others these have to be float32 or int64, and contiguous.
PACKED = {"gt_boxes", "gt_labels", "gt_offsets", "wanted", "k", "areas"}


def results(name: str, arguments: dict) -> list[torch.Tensor]:
    found = getattr(torch.ops.mgassign, name)(**arguments)
    return list(found) if isinstance(found, tuple) else [found]


# What has a size in common with others may be told as theirs, which do not fit it.
TOLD_AS = {
    "gt_counts": {"gt_boxes", "pred_boxes"},
    "gt_offsets": {"gt_boxes", "pred_boxes"},
    "gt_boxes": {"gt_labels", "probs"},
    "anchors": {"pred_boxes"},
    "scores": {"k"},
    **{key: {"grid"} for key in GRID_NAMES},
}


def refuses(name: str, arguments: dict, changed: str, value: object) -> None:
    with pytest.raises(CHECKED, match="expected") as raised:
        results(name, {**arguments, changed: value})
    # Told of arguments that the operator has, by their names.
    prefix, told = str(raised.value).split(": ")[:2]
    assert prefix == "mgassign"
    names = {re.sub(r"\[.*", "", one) for one in told.split(", ")}
    assert names <= {*arguments, "grid"}
    assert names & {changed, *TOLD_AS.get(changed, ())}, f"{changed} is wrong, told is {told}"


def tensors_of(arguments: dict):
    return [(key, value) for key, value in arguments.items() if isinstance(value, torch.Tensor)]


@pytest.mark.parametrize(("name", "arguments"), CALLS, ids=IDS)
def test_a_tensor_with_one_too_many_or_too_few_of_anything_is_refused(name, arguments):
    for key, tensor in tensors_of(arguments):
        for dim in range(tensor.dim()):
            if (name, key, dim) in FREE:
                continue
            refuses(name, arguments, key, torch.cat([tensor, tensor.narrow(dim, 0, 1)], dim))
            refuses(name, arguments, key, tensor.narrow(dim, 0, tensor.shape[dim] - 1).contiguous())
        refuses(name, arguments, key, tensor[None])
        refuses(name, arguments, key, tensor[0].contiguous())


@pytest.mark.parametrize(("name", "arguments"), CALLS, ids=IDS)
def test_a_tensor_of_another_dtype_or_strides_is_refused_or_read_right(name, arguments):
    expected = results(name, arguments)
    for key, tensor in tensors_of(arguments):
        refuses(name, arguments, key, tensor.to(torch.float32 if tensor.dtype == torch.int64 else torch.int64))
        refuses(name, arguments, key, tensor.to(torch.bool))
        apart = tensor.repeat_interleave(2, dim=-1)[..., ::2]
        for other in (apart, tensor.to(torch.int32 if tensor.dtype == torch.int64 else torch.float64)):
            assert torch.equal(other, tensor)
            if key in PACKED and name != "box_iou":
                refuses(name, arguments, key, other)
            else:
                found = results(name, {**arguments, key: other})
                assert equal(found, expected)


# What each setting may not be, wherever it stands.
BAD_SETTINGS = {
    "center_radius": [-1.0, -1e-30, nan, inf, 1e39],
    "sigma": [1.0, 1 + 1e-12, 0.5, -2.0, nan, inf, 1e39],
    "ignore_share": [0.0, 1e-60, -0.5, 1.5, nan, inf],
    "min_points": [-1],
    "max_points": [-1],
    "keep": [-1, 129],
    "alpha": [-0.5, nan, inf],
    "best_overlaps": [0, -1, 129],
    "overlap_weight": [0.0, -1.0, nan, inf, 1e39],
    "class_weight": [-1.0, nan, inf, 1e39],
    "penalty": [-1.0, nan, inf, 1e39],
    "anchor_scale": [0.0, -1.0, nan, inf, 1e39],
    "topk": [0, -1, 129],
    "beta": [0.0, 1e-60, -1.0, nan, inf, 1e39],
    "margin": [-1.0, nan, inf, 1e39],
    "raise_below": [-1.0, nan, inf, 1e39],
    "least_side": [-1.0, nan, inf, 1e39],
    "epsilon": [0.0, 1e-60, -1.0, nan, inf, 1e39],
    "high": [0.1, 1.5, nan, inf],
    "low": [0.0, -1.0, 0.6, nan, 1e-60],
    "min_iou": [-0.5, 1.5, nan, inf],
    "low_quality": [-1, 4],
    "overlap": [-1, 2],
    "candidates": [-1, 2],
    "contest": [-1, 2],
    "activation": [-1, 2],
    "gt_counts": [[3, 3], [3, 1], [6, -1], [-1, 6], [2**63 - 1, 2**63 - 1, 7], []],
}
NO_SETTINGS = {"level_gate", "inside", *GRID_NAMES}  # flags, and what the next test changes


@pytest.mark.parametrize(("name", "arguments"), CALLS, ids=IDS)
def test_a_setting_out_of_its_range_is_refused(name, arguments):
    for key, value in arguments.items():
        if value is None or isinstance(value, torch.Tensor) or key in NO_SETTINGS:
            continue
        for bad in BAD_SETTINGS[key]:
            refuses(name, arguments, key, bad)


CHOOSING_FIRST = [c for c in CALLS if c[0] in ("task_aligned_assign", "sim_ota_assign", "soft_label_assign")]


@pytest.mark.parametrize(("name", "arguments"), CHOOSING_FIRST, ids=[name for name, _ in CHOOSING_FIRST])
def test_no_object_chooses_more_points_than_lists_hold(name, arguments):
    results(name, {**arguments, "max_points": 128})
    for most in (129, 2**31, 2**62):
        refuses(name, arguments, "max_points", most)


@pytest.mark.parametrize(
    ("name", "arguments"), [c for c in CALLS if "heights" in c[1]], ids=lambda v: v if isinstance(v, str) else ""
)
def test_a_grid_that_is_none_is_refused(name, arguments):
    for key in GRID_NAMES:
        numbers = list(arguments[key])
        refuses(name, arguments, key, numbers[:-1])
        refuses(name, arguments, key, [*numbers, numbers[-1]])
        refuses(name, arguments, key, [])
        bad = {"heights": [-1, 2**31, 2**62], "widths": [-1, 2**31, 2**62], "strides": [0.0, -8.0, nan, inf, 1e-60, 1e39],
               "spacings": [0.0, -8.0, nan, inf, 1e-60, 1e39], "offsets": [nan, inf, -inf, 1e39], "ranges": [nan]}  # fmt: skip
        for place in range(len(numbers)):
            for value in bad[key]:
                refuses(name, arguments, key, [*numbers[:place], value, *numbers[place + 1 :]])
    backwards = [end for pair in zip(arguments["ranges"][1::2], arguments["ranges"][::2], strict=True) for end in pair]
    refuses(name, arguments, "ranges", backwards)


OF_ROWS = [
    (name, arguments)
    for name, arguments in CALLS
    if arguments.get("gt_counts") or arguments.get("gt_offsets") is not None
]


@pytest.mark.parametrize(("name", "arguments"), OF_ROWS, ids=[name for name, _ in OF_ROWS])
def test_offsets_out_of_order_are_refused(name, arguments):
    arguments = {**arguments, "gt_counts": None}
    results(name, {**arguments, "gt_offsets": torch.tensor([0, 3, 5])})
    for bad in (
        [0, 7, 5],
        [0, -1, 5],
        [1, 3, 5],
        [-1, 3, 5],
        [0, 3, 4],
        [0, 3, 9],
        [0, 2**62, 5],
        [0, 2**62, -(2**62)],
    ):
        refuses(name, arguments, "gt_offsets", torch.tensor(bad))


@pytest.mark.parametrize(("name", "arguments"), OF_ROWS, ids=[name for name, _ in OF_ROWS])
def test_rows_are_checked_where_there_is_nothing_to_assign(name, arguments):
    nothing = {**arguments, "gt_counts": None, "gt_offsets": None}
    for key, tensor in tensors_of(arguments):
        if key != "gt_offsets":
            nothing[key] = tensor[:, :0] if key.startswith("pred_") else tensor[:0]
    if "heights" in arguments:
        nothing["heights"] = [0] * len(arguments["heights"])
    images = len(arguments["gt_counts"] or arguments["gt_offsets"][1:])
    results(name, {**nothing, "gt_counts": [0] * images})
    results(name, {**nothing, "gt_offsets": torch.zeros(images + 1, dtype=torch.int64)})
    refuses(name, nothing, "gt_counts", [5] * images)
    refuses(name, nothing, "gt_counts", [-1] * images)
    refuses(name, nothing, "gt_offsets", torch.arange(images + 1).flip(0))
    refuses(name, nothing, "gt_offsets", torch.arange(images + 1))


def test_every_setting_has_its_bad_values():
    settings = {
        key for _, arguments in CALLS for key, value in arguments.items() if not isinstance(value, torch.Tensor)
    }
    assert settings - NO_SETTINGS - {"gt_labels", "gt_offsets", "wanted"} == set(BAD_SETTINGS)
