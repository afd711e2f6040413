"""What a call needs beyond its inputs and results grows with points plus objects, never with their product."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch

import mgassign
from bench_assign import peak_extra_bytes
from scenarios import SCENARIOS, Scenario, make_inputs

pytest.importorskip("memray")

FEW, MANY = SCENARIOS["call"], SCENARIOS["E"]
PAIRS = MANY.grid.num_points * MANY.objects


def calls(scenario: Scenario) -> dict[str, partial]:
    """A call of each function that takes points and objects."""
    of = make_inputs(scenario)
    boxes, labels = torch.stack(of.gt_boxes), torch.stack(of.gt_labels)
    predicted = of.pred_boxes, of.pred_logits, boxes, labels
    anchors = of.grid.decode(2 * of.grid.point_strides()[:, None].expand(-1, 4))
    on_points = "mutual_guidance_assign", "task_aligned_assign", "sim_ota_assign", "soft_label_assign"
    return {
        **{name: partial(getattr(mgassign, name), of.grid, *predicted) for name in on_points},
        "fcos_assign": partial(mgassign.fcos_assign, of.grid, boxes),
        "atss_assign": partial(mgassign.atss_assign, of.grid, boxes, gt_labels=labels),
        "max_iou_assign": partial(mgassign.max_iou_assign, anchors, boxes, gt_labels=labels),
        "anchor_mutual_guidance_assign": partial(mgassign.anchor_mutual_guidance_assign, anchors, *predicted),
    }


def matrix() -> list[torch.Tensor]:
    """Makes what none of them may make, here of one byte for each point and object."""
    return [torch.ones(PAIRS, dtype=torch.uint8)[:1].clone()]


@pytest.fixture(scope="module")
def few_and_many():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # each has scratch space of its own
    yield calls(FEW), calls(MANY)
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", [name for name in mgassign.__all__ if name.endswith("_assign")])
def test_no_matrix_of_points_and_objects_is_made(few_and_many, name):
    few, many = few_and_many
    few[name]()  # loads code, starts threads
    assert peak_extra_bytes(many[name]) < PAIRS / 8  # not even a bit for each


kept: list[torch.Tensor] = []


def after_memory_was_freed() -> list[torch.Tensor]:
    kept.clear()
    return matrix()


def by_another_thread() -> list[torch.Tensor]:
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(matrix).result()


def twice() -> list[torch.Tensor]:
    matrix()
    return matrix()


def in_pieces() -> list[torch.Tensor]:
    """One for each object, small enough to come from what the heap has free."""
    pieces = [torch.ones(MANY.grid.num_points, dtype=torch.uint8) for _ in range(MANY.objects)]
    return [pieces[0]]


@pytest.mark.parametrize("call", [matrix, after_memory_was_freed, by_another_thread, twice, in_pieces])
def test_a_matrix_is_seen_once(call):
    kept[:] = [torch.ones(PAIRS, dtype=torch.uint8)]
    seen = peak_extra_bytes(call)
    kept.clear()
    assert PAIRS - MANY.grid.num_points <= seen < 1.05 * PAIRS  # less the results, and what Python and tensors want
