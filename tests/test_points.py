"""PointGrid: where the points lie, and that it is a value."""

from __future__ import annotations

import dataclasses
import io
import math
import pickle

import numpy as np
import pytest
import torch

from mgassign import (
    FCOS_RANGES,
    PointGrid,
    fcos_assign,
    reference,
)


def test_points_by_hand():
    grid = PointGrid.from_features([(2, 3), (1, 2)], strides=(8, 15))
    assert grid.num_points == 8
    assert grid.points().tolist() == [[4, 4], [12, 4], [20, 4], [4, 12], [12, 12], [20, 12], [7, 7], [22, 7]]
    assert grid.points().dtype == torch.float32
    assert grid.point_strides().tolist() == [8] * 6 + [15] * 2


@pytest.mark.parametrize(("offset", "first"), [(0, [0, 0]), (2.5, [2.5, 2.5]), ((1, 3), [1, 3]), (None, [4, 8])])
def test_offset(offset, first):
    grid = PointGrid.for_image((32, 32), strides=(8, 16), offset=offset)
    assert [grid.points()[0, 0].item(), grid.points()[16, 1].item()] == first


def test_levels_are_rounded_up():
    grid = PointGrid.for_image((33, 17), strides=(8, 16))
    assert (grid.heights, grid.widths) == ((5, 3), (3, 2))


def test_spacing_apart_from_stride():
    # torchvision: points image // map apart, from 0; for 31 x 50 pixels and maps of 4 x 7 and 2 x 4.
    grid = PointGrid.from_features([(4, 7), (2, 4)], (8, 16), spacing=((7, 7), (15, 12)), offset=0)
    assert grid.points()[1].tolist() == [7, 0]
    assert grid.points()[28:].tolist() == [[0, 0], [12, 0], [24, 0], [36, 0], [0, 15], [12, 15], [24, 15], [36, 15]]
    assert grid.point_strides().unique().tolist() == [8, 16]
    assert PointGrid.from_features([(2, 2)], (8,), spacing=4, offset=((1, 2),)).points().tolist() == [
        [2, 1], [6, 1], [2, 5], [6, 5]
    ]  # fmt: skip


def test_ranges():
    assert PointGrid.for_image((64, 64), strides=(8,)).ranges == ((-1, math.inf),)
    assert PointGrid.for_image((64, 64), strides=(8, 16, 32)).ranges == ((-1, 64), (64, 128), (128, math.inf))
    assert PointGrid.for_image((64, 64)).ranges == FCOS_RANGES
    fine = PointGrid.for_image((64, 64), strides=(4, 8, 16, 32, 64, 128))
    assert fine.ranges == ((-1, 32), (32, 64), (64, 128), (128, 256), (256, 512), (512, math.inf))


SAME = {
    "ints": ((64, 96), (8, 16)),
    "floats": ((64.0, 96.0), [8.0, 16.0]),
    "a tensor of strides": ((64, 96), torch.tensor([8.0, 16.0])),
    "tensors of no dimension": ((torch.tensor(64), torch.tensor(96.0)), [torch.tensor(8), torch.tensor(16)]),
    "numpy": (np.array([64, 96]), np.array([8.0, 16.0], dtype=np.float32)),
    "numpy's numbers": ((np.int32(64), np.float64(96)), (np.float32(8), np.int8(16))),
    "an image's shape": (torch.empty(3, 64, 96).shape[-2:], (8, 16)),
}


@pytest.mark.parametrize(("size", "strides"), SAME.values(), ids=SAME.keys())
def test_whatever_says_it_is_a_number_counts(size, strides):
    plain = PointGrid.for_image((64, 96), (8, 16), ranges=((-1, 50), (40, 1e6)), offset=((0, 2), (1, 3)))
    grid = PointGrid.for_image(
        size, strides, ranges=np.array([[-1, 50], [40, 1e6]]), offset=torch.tensor([[0.0, 2], [1, 3]])
    )
    assert (grid, hash(grid), repr(grid), pickle.dumps(grid)) == (plain, hash(plain), repr(plain), pickle.dumps(plain))
    boxes = torch.tensor([[8.0, 8, 50, 50]])
    assert torch.equal(fcos_assign(grid, [boxes]).original[0], reference.fcos_assign(plain, boxes)[0])


def test_strides_need_not_be_whole():
    grid = PointGrid.for_image((20, 20), strides=(2.5, 5))
    assert grid.heights == (8, 4)
    assert grid.points()[1].tolist() == [3.5, 1]
    assert PointGrid.for_image((21, 20), strides=(2.5, 5)).heights == (9, 5)
    assert PointGrid.for_image((48, 224), strides=(1.2, 44.8)).arguments[:2] == ((40, 2), (187, 5))


def test_a_stride_made_of_a_number_of_cells_gives_so_many():
    for cells in range(1, 100):
        for side in (33, 100, 224, 640, 1333):
            grid = PointGrid.for_image((side, 2 * side), strides=(side / cells,))
            assert (grid.heights, grid.widths) == ((cells,), (2 * cells,))


# Each: how a good grid is changed, what is said.
WRONG = {
    "strides, a bool": ({"strides": (True, 16)}, TypeError, "strides: expected a number, got bool True"),
    "strides, text": ({"strides": "48"}, TypeError, "strides: expected a sequence of numbers, got str '48'"),
    "strides, texts": ({"strides": ("4", "8")}, TypeError, "strides: expected a number, got str '4'"),
    "strides, a generator": ({"strides": (s for s in (8, 16))}, TypeError, "strides: expected a sequence of numbers"),
    "strides, a number": ({"strides": 8}, TypeError, "strides: expected a sequence of numbers, got int 8"),
    "strides, NaN": ({"strides": (8, math.nan)}, ValueError, "strides: expected a finite number, got nan"),
    "strides, infinite": ({"strides": (8, math.inf)}, ValueError, "strides: expected a finite number, got inf"),
    "strides, huge": ({"strides": (8, 10**400)}, ValueError, "strides: expected a finite number"),
    "strides, zero": ({"strides": (0, 8)}, ValueError, "strides: expected at least one number, above 0 in float32 and increasing"),
    "strides that float32 rounds to 0": ({"strides": (1e-60, 8)}, ValueError, "strides: expected at least one number, above 0 in float32"),
    "strides that decrease": ({"strides": (16, 8)}, ValueError, "strides: expected at least one number, above 0 in float32 and inc"),
    "strides that stay": ({"strides": (8, 8)}, ValueError, "strides: expected at least one number, above 0 in float32 and increasing"),
    "strides, none": ({"strides": ()}, ValueError, "strides: expected at least one number"),
    "strides, a matrix": ({"strides": torch.ones(2, 2)}, TypeError, "strides: expected a number, got Tensor"),
    "strides, complex": ({"strides": (8j, 16)}, TypeError, "strides: expected a number, got complex"),
    "size, a fraction": ({"size": (80.5, 64)}, ValueError, "size: expected whole numbers of at least 0, got (80.5, 64)"),
    "size, negative": ({"size": (-5, 64)}, ValueError, "size: expected whole numbers of at least 0, got (-5, 64)"),
    "size, NaN": ({"size": (math.nan, 64)}, ValueError, "size: expected a finite number, got nan"),
    "size, a number": ({"size": 64}, TypeError, "size: expected a sequence of numbers, got int 64"),
    "size of three": ({"size": (3, 64, 64)}, ValueError, "size: expected (height, width), got (3, 64, 64)"),
    "a side beyond int32 beside none": ({"size": (2**40, 0)}, ValueError, "heights: expected numbers below 2^31, got "),
    "size beyond int32": ({"size": (2**20, 2**20)}, ValueError, "heights, widths: expected fewer than 2^31 points"),
    "offset, NaN": ({"offset": math.nan}, ValueError, "offset: expected a finite number, got nan"),
    "offset, text": ({"offset": "4"}, TypeError, "offset: expected a sequence of numbers, got str '4'"),
    "offset, a bool": ({"offset": True}, TypeError, "offset: expected a number, got bool True"),
    "offset, too few": ({"offset": (4,)}, ValueError, "offset: expected a number, or one per stride (2), got (4,)"),
    "offset, three a level": ({"offset": ((1, 2, 3),) * 2}, ValueError, "offset: expected two numbers per level (2)"),
    "spacing, zero": ({"spacing": 0}, ValueError, "spacing: expected numbers above 0"),
    "spacing, negative": ({"spacing": ((8, -8), (16, 16))}, ValueError, "spacing: expected numbers above 0"),
    "spacing that float32 rounds to 0": ({"spacing": 1e-60}, ValueError, "spacing: expected numbers above 0 in float32"),
    "ranges, None": ({"ranges": [(0, None), (5, 9)]}, TypeError, "ranges: expected a number, got NoneType None"),
    "ranges, NaN": ({"ranges": [(0, math.nan), (5, 9)]}, ValueError, "ranges: expected a number, got nan"),
    "ranges, too few": ({"ranges": [(0, 9)]}, ValueError, "ranges: expected two numbers per level (2), got [(0, 9)]"),
    "ranges, the wrong way": ({"ranges": [(9, 2), (5, 9)]}, ValueError, "ranges: expected (lo, hi) with lo <= hi"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "error", "message"), WRONG.values(), ids=WRONG.keys())
def test_everything_else_is_refused_at_construction(change, error, message):
    with pytest.raises(error) as raised:
        PointGrid.for_image(**{"size": (64, 64), "strides": (8, 16), **change})
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strides": (8, 16)}, "heights: expected one number per level (2), got"),
        ({"heights": (1,)}, "heights: expected one number per level (5), got (1,)"),
        ({"offsets": ((0, 0),)}, "offsets: expected two numbers per level (5), got"),
        ({"spacings": ((8, 8),) * 4 + ((0, 8),)}, "spacings: expected numbers above 0"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_replacing_a_part_checks_the_whole(change, message):
    with pytest.raises(ValueError, match="expected") as raised:
        dataclasses.replace(PointGrid.for_image((64, 64)), **change)
    assert str(raised.value).startswith(message)


def test_checkpoints_hold_grids():
    grid, file = PointGrid.for_image((64, 96), (8, 16.5), offset=0.25), io.BytesIO()
    torch.save(grid, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert loaded == grid
    assert loaded.arguments == grid.arguments


def test_the_default_dtype_changes_nothing():
    grid = PointGrid.for_image((64, 96), (8, 16))
    boxes, labels = torch.tensor([[8.0, 8, 50, 50]]), torch.tensor([0])
    before = grid.points(), grid.point_strides(), reference.fcos_assign(grid, boxes)
    torch.set_default_dtype(torch.float64)
    try:
        assert grid.points().dtype == grid.point_strides().dtype == torch.float32
        assert PointGrid.from_features([(0, 5)], strides=(8,)).points().dtype == torch.float32
        assert grid.decode(torch.rand(1, grid.num_points, 4)).dtype == torch.float32
        after = grid.points(), grid.point_strides(), reference.fcos_assign(grid, boxes)
        assert torch.equal(before[0], after[0])
        assert torch.equal(before[1], after[1])
        assert torch.equal(before[2][0], after[2][0])
        found = reference.mutual_guidance_assign(
            grid, grid.points().repeat(1, 2), torch.zeros(grid.num_points, 1).float(), boxes.float(), labels
        )
        assert found[4].dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_is_a_value():
    grid = PointGrid.for_image((320, 320), strides=(8, 16, 32, 64))
    same = PointGrid.from_features([(40, 40), (20, 20), (10, 10), (5, 5)], strides=[8, 16, 32, 64])
    assert grid == same
    assert hash(grid) == hash(same)
    assert grid != PointGrid.for_image((320, 320), strides=(8, 16, 32, 64), offset=0)
    assert pickle.loads(pickle.dumps(grid)) == grid
    assert "strides=(8, 16, 32, 64)" in repr(grid)
    with pytest.raises(AttributeError):
        grid.strides = (1,)


def test_decode_is_differentiable_and_float32():
    grid = PointGrid.for_image((16, 8), strides=(8,))
    ltrb = torch.tensor([[1.0, 2, 3, 4], [0, 0, 5, 5]], requires_grad=True)
    boxes = grid.decode(ltrb)
    assert boxes.tolist() == [[3, 2, 7, 8], [4, 12, 9, 17]]
    boxes.sum().backward()
    assert ltrb.grad.tolist() == [[-1, -1, 1, 1]] * 2
    # A bfloat16 has 8 bits: at 1,000 px it could not tell points 4 px apart.
    far = PointGrid.for_image((8, 1280), strides=(8,))
    half = far.decode(torch.ones(160, 4, dtype=torch.bfloat16))
    assert half.dtype == torch.float32
    assert half[-1].tolist() == [1275, 3, 1277, 5]


def test_encode_undoes_decode():
    grid = PointGrid.from_features([(3, 4), (2, 2)], strides=(8, 16), spacing=[(7, 9), (15, 17)], offset=(1, 2.5))
    ltrb = torch.randint(-40, 40, (2, grid.num_points, 4)).float()
    assert torch.equal(grid.encode(grid.decode(ltrb)), ltrb)
    boxes = torch.zeros(grid.num_points, 4, dtype=torch.bfloat16, requires_grad=True)
    found = grid.encode(boxes)
    assert found.dtype == torch.float32
    assert torch.equal(found, torch.cat([grid.points(), -grid.points()], 1))
    found.sum().backward()
    assert boxes.grad[0].tolist() == [-1, -1, 1, 1]


def test_results_lie_where_they_are_asked_for():
    grid = PointGrid.for_image((16, 8), strides=(8,))
    given = torch.empty(2, grid.num_points, 4, device="meta")
    for result in (grid.decode(given), grid.encode(given), grid.points("meta"), grid.point_strides("meta")):
        assert result.device.type == "meta"


def test_ranges_without_end_may_be_said_by_any_number():
    ends = ((-(10**400), 10**400), (-math.inf, 1e300), (0, 2e38))
    grid = PointGrid.for_image((64, 64), (8, 16, 32), ranges=ends)
    assert grid.ranges == ((-math.inf, math.inf), (-math.inf, math.inf), (0.0, 2e38))


@pytest.mark.parametrize("name", ["decode", "encode"])
@pytest.mark.parametrize("value", [None, [[1.0, 2, 3, 4]] * 4, torch.ones(4, 4).long(), torch.ones(4, 4) * 1j], ids=str)
def test_only_tensors_of_floating_point_are_boxes(name, value):
    grid = PointGrid.for_image((16, 16), strides=(8,))
    with pytest.raises(TypeError, match=r"(ltrb|boxes): expected a (floating-point )?tensor, got "):
        getattr(grid, name)(value)


@pytest.mark.parametrize("name", ["decode", "encode"])
@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 4, 5), (4, 2)])
def test_a_box_for_each_point(name, shape):
    grid = PointGrid.for_image((16, 16), strides=(8,))
    with pytest.raises(ValueError, match=r"(ltrb|boxes): expected shape \[..., 4, 4\], got \["):
        getattr(grid, name)(torch.zeros(shape))


def test_no_levels_of_points():
    grid = PointGrid.from_features([(0, 5)], strides=(8,))
    assert grid.points().shape == (0, 2)
    assert grid.decode(torch.empty(2, 0, 4)).shape == (2, 0, 4)


def test_points_are_numbers_times_spacing_plus_offset():
    """In float32, operation by operation, as the kernels have them."""
    grid = PointGrid.from_features(
        [(3, 5), (6, 2), (1, 4)], strides=(8, 16, 32), spacing=[(7.3, 7.3), (13.7, 17.1), (31.9, 31.9)],
        offset=[(0.1, 0.1), (2.3, 2.3), (4.7, 5.9)],
    )  # fmt: skip
    expected = [
        [np.float32(k) * np.float32(dx) + np.float32(ox), np.float32(i) * np.float32(dy) + np.float32(oy)]
        for h, w, (dy, dx), (oy, ox) in zip(grid.heights, grid.widths, grid.spacings, grid.offsets, strict=True)
        for i in range(h)
        for k in range(w)
    ]
    assert np.array_equal(grid.points().numpy(), np.array(expected, dtype=np.float32))


@pytest.mark.parametrize("convert", ["decode", "encode"])
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
def test_what_is_not_dense_is_refused(convert):
    grid = PointGrid.for_image((16, 16), strides=(8,))
    boxes = torch.zeros(4, 4)
    for value, got in (
        (boxes.to_sparse(), "torch.sparse_coo"),
        (boxes.to_sparse_csr(), "torch.sparse_csr"),
        (torch.nested.nested_tensor([boxes]), "a nested one"),
    ):
        with pytest.raises(TypeError, match=f": expected a dense tensor, got {got}"):
            getattr(grid, convert)(value)


def test_equal_grids_print_alike():
    grids = [PointGrid.for_image((16, 16), strides=(8,), ranges=[(zero, 64)]) for zero in (0, 0.0, -0.0)]
    assert grids[0] == grids[1] == grids[2]
    assert len({repr(grid) for grid in grids}) == 1
