"""PointGrid: where the points lie, and that it is a value."""

from __future__ import annotations

import math
import pickle

import pytest
import torch

from mgassign import FCOS_RANGES, PointGrid


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


def test_ranges():
    assert PointGrid.for_image((64, 64), strides=(8,)).ranges == ((-1, math.inf),)
    assert PointGrid.for_image((64, 64), strides=(8, 16, 32)).ranges == ((-1, 64), (64, 128), (128, math.inf))
    assert PointGrid.for_image((64, 64)).ranges == FCOS_RANGES


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


def test_decode_is_differentiable_and_keeps_the_dtype():
    grid = PointGrid.for_image((16, 8), strides=(8,))
    ltrb = torch.tensor([[1.0, 2, 3, 4], [0, 0, 5, 5]], requires_grad=True)
    boxes = grid.decode(ltrb)
    assert boxes.tolist() == [[3, 2, 7, 8], [4, 12, 9, 17]]
    boxes.sum().backward()
    assert ltrb.grad.tolist() == [[-1, -1, 1, 1]] * 2
    assert grid.decode(torch.rand(3, 2, 4, dtype=torch.float16)).dtype == torch.float16


def test_no_levels_of_points():
    grid = PointGrid.from_features([(0, 5)], strides=(8,))
    assert grid.points().shape == (0, 2)
    assert grid.decode(torch.empty(2, 0, 4)).shape == (2, 0, 4)
