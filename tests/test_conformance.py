"""The known faults of other assigners, each as a case that mgassign must get right.

A case asks one question that has one answer whatever the algorithm ("does a box without area get points?"), and is put
to mgassign and, where their packages are installed, to the peers known to answer it wrongly. If one of those answers
rightly the test fails: it has been mended, and what is said about it must be revisited. `python -m pytest -rs` names
the peers that were not installed. The adapters, and how to install their packages, are in benchmarks/peers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

import bench_peers
import scenarios
from mgassign import PointGrid, mutual_guidance_assign, reference
from peers import PEERS
from scenarios import Inputs
from scenes import STRIDES, scene_of

# Theirs, about what they import.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

Assign = Callable[[Inputs], Tensor]
"""From a batch to int64 [B, P]: each point's object within its image, or -1."""

GRID = PointGrid.for_image((256, 256), STRIDES)


def inputs_with(boxes: list[list[float]] | Tensor, grid: PointGrid = GRID) -> Inputs:
    """An image with these objects, and predictions as an early detector makes them."""
    objects = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    scene = scene_of(grid, [objects], 6, torch.Generator().manual_seed(0))
    return Inputs(grid, scene.pred_boxes, scene.pred_logits, scene.gt_boxes, scene.gt_labels)


def owners_of(owners: Tensor) -> set[int]:
    return set(owners[owners >= 0].tolist())


ORDINARY = [[20.0, 30, 120, 140], [60, 60, 100, 110], [130, 20, 250, 240]]
FAR_AWAY = [5000.0, 5000, 5100, 5080]


def the_smaller_of_two_nearly_equal_boxes_wins(assign: Assign) -> bool:
    nested = [[30.0, 30, 90, 90], [30, 30, 90, 89.957]]  # 2.6 square pixels apart
    return owners_of(assign(inputs_with(nested))) == {1}


def a_box_of_15000_px_is_an_object(assign: Assign) -> bool:
    huge = [-7000.0, -7100, 8000, 7900]
    return owners_of(assign(inputs_with([huge, ORDINARY[0]], PointGrid.for_image((800, 1024), STRIDES)))) == {0, 1}


def half_precision_means_the_same_values(assign: Assign) -> bool:
    half = inputs_with(ORDINARY)
    half = half._replace(
        pred_boxes=half.pred_boxes.half(), pred_logits=half.pred_logits.half(), gt_boxes=[half.gt_boxes[0].half()]
    )
    widened = half._replace(
        pred_boxes=half.pred_boxes.float(), pred_logits=half.pred_logits.float(), gt_boxes=[half.gt_boxes[0].float()]
    )
    return torch.equal(assign(half), assign(widened))


def an_object_outside_the_grid_gets_nothing(assign: Assign) -> bool:
    return owners_of(assign(inputs_with([*ORDINARY, FAR_AWAY]))) == {0, 1, 2}


def an_only_object_outside_the_grid_gets_nothing(assign: Assign) -> bool:
    return not owners_of(assign(inputs_with([FAR_AWAY])))


def no_objects_no_positives(assign: Assign) -> bool:
    return not owners_of(assign(inputs_with([])))


def a_box_without_area_gets_nothing(assign: Assign) -> bool:
    return not owners_of(assign(inputs_with([[100.0, 50, 100, 50]])))


def an_inverted_box_gets_nothing(assign: Assign) -> bool:
    return not owners_of(assign(inputs_with([[140.0, 120, 20, 30]])))


def fewer_points_than_an_object_may_have(assign: Assign) -> bool:
    few = PointGrid.for_image((16, 16), strides=(8, 16))
    return owners_of(assign(inputs_with([[0.0, 0, 16, 15]], few))) == {0}


def contested_points_stay_with_those_who_asked(assign: Assign) -> bool:
    # Two equal boxes over all ten points; the first object is elsewhere; no predicted box overlaps anything.
    ten = PointGrid.from_features([(2, 5)], strides=(8,))
    inputs = inputs_with([FAR_AWAY, [-4.0, -4, 44, 20], [-4, -4, 44, 20]], ten)
    return 0 not in owners_of(assign(inputs._replace(pred_boxes=inputs.pred_boxes - 3000)))


def a_nan_prediction_is_its_own_points_affair(assign: Assign) -> bool:
    inputs = inputs_with(ORDINARY)
    # At a point of the first object: what others get must be the same whether its prediction is poor or NaN.
    point = int((assign(inputs)[0] == 0).nonzero()[0])
    poor_boxes, poor_logits = inputs.pred_boxes.clone(), inputs.pred_logits.clone()
    poor_boxes[0, point], poor_logits[0, point] = torch.tensor([900.0, 900, 901, 901]), -30
    nan_boxes, nan_logits = poor_boxes.clone(), poor_logits.clone()
    nan_boxes[0, point], nan_logits[0, point] = torch.nan, torch.nan
    poor = assign(inputs._replace(pred_boxes=poor_boxes, pred_logits=poor_logits))
    nan = assign(inputs._replace(pred_boxes=nan_boxes, pred_logits=nan_logits))
    others = torch.arange(inputs.grid.num_points) != point
    return torch.equal(poor[:, others], nan[:, others])


def objects_need_not_be_contiguous(assign: Assign) -> bool:
    inputs = inputs_with(ORDINARY)
    strided = inputs.gt_boxes[0].T.contiguous().T
    wide_labels = torch.stack([inputs.gt_labels[0], inputs.gt_labels[0] + 1], dim=1)
    assert not strided.is_contiguous()
    return torch.equal(assign(inputs), assign(inputs._replace(gt_boxes=[strided], gt_labels=[wide_labels[:, 0]])))


WRONG = ""
OUT_OF_RANGE = "selected index k out of range"
NO_PROBABILITY = "elements of input should be between 0 and 1"
OTHER_DTYPES = "source and destination dtypes match"

# The results of mgassign that a case is about; and how peers fail it: with a wrong answer, or with this error.
ALL = ("cls", "loc", "original")
CASES: dict[Callable[[Assign], bool], tuple[tuple[str, ...], dict[str, str]]] = {
    the_smaller_of_two_nearly_equal_boxes_wins: (("original",), {"torchvision-fcos": WRONG}),
    a_box_of_15000_px_is_an_object: (ALL, {"torchvision-fcos": WRONG, "mmdet-fcos": WRONG}),
    half_precision_means_the_same_values: (
        ALL,
        {
            "ultralytics-tal": WRONG,
            "mmdet-simota": OTHER_DTYPES,
            "mmdet-tal": "without overflow",
            "mmdet-dsl": OTHER_DTYPES,
            "torchvision-fcos": WRONG,
        },
    ),
    an_object_outside_the_grid_gets_nothing: (
        ALL,
        {"yolox-simota": WRONG, "mmdet-simota": WRONG, "mmdet-dsl": WRONG},
    ),
    an_only_object_outside_the_grid_gets_nothing: (ALL, {"yolox-simota": OUT_OF_RANGE, "torchvision-matcher": WRONG}),
    no_objects_no_positives: (ALL, {}),
    a_box_without_area_gets_nothing: (
        ALL,
        {"yolox-simota": WRONG, "mmdet-simota": WRONG, "torchvision-matcher": WRONG},
    ),
    an_inverted_box_gets_nothing: (
        ALL,
        {"yolox-simota": WRONG, "mmdet-simota": WRONG, "torchvision-matcher": WRONG},
    ),
    fewer_points_than_an_object_may_have: (ALL, {"ultralytics-tal": OUT_OF_RANGE}),
    contested_points_stay_with_those_who_asked: (ALL, {"ultralytics-tal": WRONG}),
    a_nan_prediction_is_its_own_points_affair: (
        ALL,
        {
            "ultralytics-tal": WRONG,
            "yolox-simota": NO_PROBABILITY,
            "mmdet-simota": NO_PROBABILITY,
            "mmdet-tal": WRONG,
            "mmdet-dsl": WRONG,
        },
    ),
    objects_need_not_be_contiguous: (ALL, {}),
}


def by_mgassign(output: str) -> Assign:
    return lambda inputs: getattr(mutual_guidance_assign(*inputs), output)


def by_peer(name: str) -> Assign:
    def assign(inputs: Inputs) -> Tensor:
        adapter = PEERS[name].load()(inputs)
        return adapter.owners(adapter())

    return assign


def skip_without(name: str) -> None:
    if PEERS[name].versions is None:
        pytest.skip(f"{PEERS[name].about}: {', '.join(PEERS[name].packages)} not installed")


@pytest.mark.parametrize(
    ("case", "output"), [(case, output) for case, (outputs, _) in CASES.items() for output in outputs]
)
def test_mgassign_gets_it_right(case, output):
    assert case(by_mgassign(output))


@pytest.mark.parametrize(("case", "peer"), [(case, peer) for case, (_, peers) in CASES.items() for peer in peers])
def test_the_peer_gets_it_wrong(case, peer):
    skip_without(peer)
    error = CASES[case][1][peer]
    if error:
        with pytest.raises(RuntimeError, match=error):
            case(by_peer(peer))
    else:
        mended = f"{PEERS[peer].about} has mended this: take it from the list, and from what is said about it"
        assert not case(by_peer(peer)), mended


@pytest.mark.parametrize("peer", [name for name in PEERS if name != "reference-compiled"])
def test_the_peer_works_otherwise(peer):
    # Else what is said about it would be the adapter's fault.
    skip_without(peer)
    assert owners_of(by_peer(peer)(inputs_with(ORDINARY))) == {0, 1, 2}


def test_5000_objects_in_one_image():
    inputs = inputs_with(
        torch.rand(5000, 2, generator=torch.Generator().manual_seed(0)).mul(200).repeat(1, 2)
        + torch.tensor([0, 0, 30, 20.0])
    )
    found = mutual_guidance_assign(*inputs)
    boxes, labels = inputs.gt_boxes[0], inputs.gt_labels[0]
    expected = reference.mutual_guidance_assign(GRID, inputs.pred_boxes[0], inputs.pred_logits[0], boxes, labels)
    assert torch.equal(found.cls[0], expected[0])
    assert torch.equal(found.original[0], expected[2])


@pytest.mark.parametrize("peer", ["yolox-simota", "mmdet-simota", "mmdet-dsl"])
def test_the_peer_needs_more_memory_than_there_is_for_5000_objects(peer, tmp_path):
    skip_without(peer)
    figures, benchmark = tmp_path / "figures.json", Path(scenarios.__file__).with_name("bench_assign.py")
    command = [sys.executable, benchmark, f"--peers={peer}", "--scenarios=N5000", f"--json={figures}"]
    subprocess.run(
        command, check=True, capture_output=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )
    row = json.loads(figures.read_text())["scenarios"]["N5000"][peer]
    assert row.get("failed", "").startswith("out of memory"), f"{PEERS[peer].about} has mended this"


# What is called with x = [0, 1, 2, 3] and its mask x > 1, and how often that would wait for a GPU.
WAITS = {
    "arithmetic": (lambda x, mask: (x + 1) * mask, 0),
    "item": (lambda x, mask: x.sum().item(), 1),
    "an if": (lambda x, mask: 1 if mask.any() else 0, 1),
    "a tensor as an index of a list": (lambda x, mask: [7, 8, 9][x[1]], 1),
    "nonzero": (lambda x, mask: mask.nonzero(), 1),
    "torch.where of one argument": (lambda x, mask: torch.where(mask), 1),
    "torch.where of three": (lambda x, mask: torch.where(mask, x, 0), 0),
    "a mask reads": (lambda x, mask: x[mask], 1),
    "indices read": (lambda x, mask: x[x], 0),
    "a mask writes a number": (lambda x, mask: x.clone().__setitem__(mask, 0), 0),
    "a mask writes a tensor": (lambda x, mask: x.clone().__setitem__(mask, x[2:]), 1),
    "masked_select": (lambda x, mask: x.masked_select(mask), 1),
    "unique": (lambda x, mask: x.unique(), 1),
    "bincount": (lambda x, mask: x.bincount(), 1),
    "tolist": (lambda x, mask: x.tolist(), 1),
    "cpu": (lambda x, mask: x.cpu(), 1),
    "one_hot, told how many": (lambda x, mask: torch.nn.functional.one_hot(x, 4), 0),
    "repeat_interleave": (lambda x, mask: x.repeat_interleave(x), 1),
    "repeat_interleave, told how many": (lambda x, mask: x.repeat_interleave(x, output_size=6), 0),
    "twice": (lambda x, mask: x[mask].max().item(), 2),
}


@pytest.mark.parametrize(("call", "expected"), WAITS.values(), ids=WAITS.keys())
def test_the_benchmark_counts_what_waits_for_a_gpu(call, expected):
    x = torch.arange(4)
    mask = x > 1
    _, counts = bench_peers.count_operators(lambda: call(x, mask))
    assert counts["waits"] == expected


def test_the_benchmark_times_no_peer_that_does_something_else():
    peer, expected = SimpleNamespace(compared="owner", same_job=True), torch.full((1, 10_000), -1)
    expected[0, :50] = 0
    ours = SimpleNamespace(owner=expected)
    assert bench_peers.compare(peer, ours, expected, 1)["differ_share"] == 0
    with pytest.raises(ValueError, match=r"100\.00% of the points that have an object"):
        bench_peers.compare(peer, ours, torch.full_like(expected, -1), 1)
