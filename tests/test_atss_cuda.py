"""ATSS's CUDA kernels give the CPU's results, bit for bit; see test_cuda_kernels.py."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import check_parity, needs_gpu, on_gpu
from mgassign import PointGrid
from scenes import GRIDS, STRIDES, boxes
from test_atss import CASES, FOUR, draw
from test_mutual_guidance_assign import BAD_BOXES, OBJECT_CASES

pytestmark = pytest.mark.slow  # compiling the kernels is

GRID = PointGrid.for_image((96, 128), STRIDES[:3])


def check(run, grid, of_images, labels=None, form="list", scale=8.0, topk=9) -> torch.Tensor:
    counts = [len(of_image) for of_image in of_images]
    if form == "padded":
        packed = torch.nn.utils.rnn.pad_sequence(of_images, batch_first=True)
        if labels is not None:
            packed[:, :, 2:] += 20  # valid boxes that take no part
            labels = torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-1)
        rows = [packed, labels, None, None]
    else:
        offsets = torch.tensor([0, *counts]).cumsum(0) if form == "jagged" else None
        rows = [torch.cat(of_images), None if labels is None else torch.cat(labels), offsets]
        rows.append(None if form == "jagged" else counts)
    return check_parity(run, "atss_assign", *rows, *grid.arguments, scale, topk)[0]


@pytest.mark.parametrize("topk", [1, 9, 50, 128])
@pytest.mark.parametrize("step", [0.0, 8.0])
def test_objects(run, topk, step):
    owner = check(run, GRID, draw((7, 0, 30), (96, 128), 1, step), topk=topk)
    assert (owner >= 0).any() or topk == 1
    check(run, PointGrid.for_image((40, 9), (8,), offset=0), draw((3,), (40, 9), 2, step), topk=topk, scale=4.0)


def test_lists_of_candidates_are_shrunk(run):
    # More equally near points than the list holds: from far away, all of a row are.
    far = torch.tensor([[-1e8, -2e8, 1e8, 1e6], [0.0, 1e7, 500, 3e7], [1e6, -3e6, 1.1e6, 3e6]])
    grid = PointGrid.for_image((160, 320), (8, 16))
    for topk in (9, 128):
        check(run, grid, [far], topk=topk)


@pytest.mark.parametrize("form", ["list", "padded", "jagged"])
def test_forms_of_objects_padding_and_regions(run, form):
    of_images = draw((4, 0, 7), (96, 128), 4)
    labels = [torch.tensor([0, -2, 1, -1]), torch.empty(0, dtype=torch.int64), torch.arange(7) % 3 - 2]
    owner = check(run, GRID, of_images, labels, form)
    assert (owner == -2).any()
    assert (owner >= 0).any()
    check(run, GRID, of_images, None, form)


def test_more_images_than_one_launch_takes(run):
    grid = PointGrid.for_image((16, 16), strides=(8,))
    of_images = [torch.tensor([[0.0, 0, 9 + b % 7, 16]] * (b % 3)).reshape(-1, 4) for b in range(258)]
    for form in ("list", "jagged", "padded"):
        check(run, grid, of_images, form=form)


@pytest.mark.parametrize("objects", [*OBJECT_CASES.values(), BAD_BOXES], ids=[*OBJECT_CASES, "no boxes"])
def test_special_objects(run, objects):
    of_image = torch.tensor(objects, dtype=torch.float32).reshape(-1, 4)
    check(run, PointGrid.for_image((128, 128), (16, 32)), [of_image])


@pytest.mark.parametrize(("objects", "labels", "changed", "expected"), CASES.values(), ids=CASES.keys())
def test_case(run, objects, labels, changed, expected):
    labels = labels if labels is None else [torch.tensor(labels)]
    owner = check(run, FOUR, [torch.tensor(objects).reshape(-1, 4)], labels, scale=1.0, **changed)
    assert owner[0].tolist() == expected


@pytest.mark.parametrize("offsets", [[0, 9, 2, 9], [3, 1, 5, 4], [-5, 4, 2**60, 9], [0, 0, 0, 99]], ids=str)
def test_offsets_that_are_none_break_nothing(run, offsets):
    rows = torch.cat(draw((3, 3, 3), (96, 128), 9)), torch.zeros(9, dtype=torch.int64), torch.tensor(offsets), None
    owner, _ = run("atss_assign", *rows, *GRID.arguments, 8.0, 9)
    assert ((owner >= -2) & (owner < 9)).all()


def test_labels_of_no_class_are_objects(run):
    # As with every other operator; where labels can be read, they are refused.
    boxes = torch.cat(draw((5,), (96, 128), 10))
    expected, *_ = run("atss_assign", boxes, None, None, [5], *GRID.arguments, 8.0, 9)
    owner, *_ = run("atss_assign", boxes, torch.full((5,), -3), None, [5], *GRID.arguments, 8.0, 9)
    assert torch.equal(owner, expected)


@pytest.mark.parametrize("images", [0, 2])
def test_nothing_to_assign(run, images):
    no_points = PointGrid.from_features([(0, 4), (3, 0)], strides=(8, 16))
    if not images:
        for grid in (GRID, no_points):
            check_parity(run, "atss_assign", torch.empty(0, 4), None, None, [], *grid.arguments, 8.0, 9)
            check_parity(run, "atss_assign", torch.empty(0, 3, 4), None, None, None, *grid.arguments, 8.0, 9)
        return
    check(run, GRID, [torch.empty(0, 4)] * images)
    check(run, GRID, [torch.empty(0, 4)] * images, form="padded")
    check(run, no_points, [torch.tensor([[0.0, 0, 40, 40]])] * images)


any_objects = st.lists(st.lists(boxes(), max_size=6), min_size=1, max_size=2)


@settings(max_examples=15)
@pytest.mark.ptx
@given(any_objects, st.sampled_from(GRIDS), st.integers(1, 30))
def test_any_objects(on_ptx, objects, grid, topk):
    check(on_ptx, grid, [torch.tensor(of_image).reshape(-1, 4) for of_image in objects], topk=topk)


@needs_gpu
@given(any_objects, st.sampled_from(GRIDS), st.integers(1, 128))
def test_any_objects_on_a_gpu(objects, grid, topk):
    check(on_gpu, grid, [torch.tensor(of_image).reshape(-1, 4) for of_image in objects], topk=topk)
