"""What a call needs beyond its inputs and results grows with points plus objects, never with their product."""

from __future__ import annotations

import mmap
from functools import partial
from pathlib import Path

import pytest
import torch

import mgassign
from bench_assign import peak_extra_bytes
from scenarios import SCENARIOS, Scenario, make_inputs

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


def check_seen(extra: int | None) -> None:
    """That a matrix was seen, as exactly as the system counts pages."""
    if extra is None:
        pytest.skip("no peak of resident memory: neither Linux nor glibc")
    assert extra > 0.95 * PAIRS, "a byte for each point and object is not seen"


@pytest.fixture(scope="module")
def few_and_many():
    check_seen(peak_extra_bytes(matrix))
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # each has scratch space of its own
    yield calls(FEW), calls(MANY)
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", [name for name in mgassign.__all__ if name.endswith("_assign")])
def test_no_matrix_of_points_and_objects_is_made(few_and_many, name):
    few, many = few_and_many
    few[name]()  # loads code, starts threads
    assert peak_extra_bytes(many[name]) < PAIRS / 8  # not even a bit for each


def need(pages: mmap.mmap) -> None:
    assert not any(pages[:: mmap.PAGESIZE])


@pytest.fixture
def pages(tmp_path: Path):
    """A file in memory, every page of it."""
    path = tmp_path / "pages"
    path.write_bytes(bytes(PAIRS))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as pages:
        need(pages)
        yield pages


def test_a_matrix_is_seen_while_the_system_takes_pages_back(pages):
    def lose_pages_once() -> list[torch.Tensor]:
        pages.madvise(mmap.MADV_DONTNEED)
        return matrix()

    check_seen(peak_extra_bytes(lose_pages_once))


def test_a_matrix_is_seen_before_pages_come(pages):
    def need_pages_after() -> list[torch.Tensor]:
        results = matrix()
        need(pages)
        return results

    pages.madvise(mmap.MADV_DONTNEED)
    check_seen(peak_extra_bytes(need_pages_after))


def test_a_matrix_is_seen_while_memory_of_before_is_freed():
    kept = [torch.ones(PAIRS, dtype=torch.uint8)]

    def free_once() -> list[torch.Tensor]:
        kept.clear()
        return matrix()

    check_seen(peak_extra_bytes(free_once))


def test_pages_that_come_back_do_not_count(pages):
    def need_pages() -> list[torch.Tensor]:
        need(pages)
        return []

    pages.madvise(mmap.MADV_DONTNEED)
    assert (peak_extra_bytes(need_pages) or 0) < PAIRS / 8
