"""csrc/math, through the torch-free module CMake builds: accuracy, monotonicity, special values, point ranges."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "build" / "release"))
math = pytest.importorskip("mgassign_math", reason="`make math` builds it, for the Python in .venv")

pytestmark = pytest.mark.slow

F32 = np.float32
MAX = float(np.finfo(F32).max)


def float32s(low: float, high: float, step: int):
    """Every step-th float32 from low to high (of one sign), in blocks."""
    first, last = sorted(int(F32(value).view(np.uint32)) for value in (low, high))
    for begin in range(first, last, step << 20):
        yield np.arange(begin, min(begin + (step << 20), last + 1), step, dtype=np.uint32).view(F32)


def worst_error(function, exact, low: float, high: float, step: int) -> float:
    """The largest distance from the exact value, in units of the last place of the float32 nearest to it."""
    worst = 0.0
    for x in float32s(low, high, step):
        want = exact(x.astype(np.float64))
        ulp = np.spacing(np.abs(want).astype(F32)).astype(np.float64)
        worst = max(worst, float(np.max(np.abs(function(x).astype(np.float64) - want) / ulp)))
    return worst


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("exp", 0.0, 88.72), ("exp", -0.0, -103.97), ("log", 1e-45, MAX), ("atan", 0.0, MAX), ("atan", -0.0, -MAX)],
    ids=["exp+", "exp-", "log", "atan+", "atan-"],
)
def test_within_2_ulp_over_the_whole_range(name, low, high, deep):
    # A prime step samples all mantissas; together the samples are some ten million values.
    exact = np.arctan if name == "atan" else getattr(np, name)
    assert worst_error(getattr(math, name), exact, low, high, 1 if deep else 211) < 2.0


@pytest.mark.parametrize("exponent", [0.0, 0.25, 1 / 3, 0.5, 1.0, 2.0, 4.5, 6.0, 20.0])
def test_powers_are_rounded_once(exponent, deep):
    # Of what probabilities and overlaps can be; below the smallest normal result one unit is worth more.
    error = worst_error(lambda x: math.power(x, exponent), lambda x: x**exponent, 1e-45, 1.0, 1 if deep else 2111)
    assert error < 0.5001


def test_powers_never_decrease():
    x = np.sort(np.random.default_rng(0).random(1_000_000, dtype=F32))
    for exponent in (0.01, 0.5, 1.0, 2.5, 6.0):
        assert (np.diff(math.power(x, exponent)) >= 0).all()


def test_exp_and_log_never_decrease(deep):
    # Below a quarter e^x is 1 + x and a little: the short run leaves those out.
    for begin, end in [(-104.0, 89.0)] if deep else [(-104.0, -0.25), (0.25, 89.0)]:
        assert np.isnan(math.exp_first_decrease(begin, end))
    for begin, end in [(0.0, MAX)] if deep else [(0.25, 4.0), (1e-45, 1e-38)]:
        assert np.isnan(math.log_first_decrease(begin, end))


def test_special_values():
    inf, nan = np.inf, np.nan
    np.testing.assert_array_equal(
        math.exp(F32([-inf, -104, 0, -0.0, 88.73, inf, nan])), F32([0, 0, 1, 1, inf, inf, nan])
    )
    np.testing.assert_array_equal(
        math.log(F32([0, -0.0, 1, inf, -1, -inf, nan])), F32([-inf, -inf, 0, inf, nan, nan, nan])
    )
    np.testing.assert_array_equal(math.atan(F32([-inf, -0.0, 0, inf, nan])), F32([-np.pi / 2, -0.0, 0, np.pi / 2, nan]))
    assert np.signbit(math.atan(F32(-0.0)))
    for exponent in (0.25, 0.5, 1.0, 6.0, 7.0):
        np.testing.assert_array_equal(math.power(F32([0, 1, inf]), exponent), F32([0, 1, inf]))
    np.testing.assert_array_equal(math.power(F32([0, 0.5, 1, nan]), 0.0), F32([1, 1, 1, 1]))
    np.testing.assert_array_equal(math.sigmoid(F32([-inf, -200, 0, 200, inf, nan])), F32([0, 0, 0.5, 1, 1, 0]))
    np.testing.assert_array_equal(
        math.probability(F32([-1, 0, 0.25, 1, 7, inf, -inf, nan])), F32([0, 0, 0.25, 1, 1, 1, 0, 0])
    )


def test_sigmoid_is_accurate():
    x = np.linspace(-80, 80, 1_000_001, dtype=F32)
    exact = 1 / (1 + np.exp(-x.astype(np.float64)))
    np.testing.assert_allclose(math.sigmoid(x), exact, rtol=3e-7)


def test_amplify_at_its_ends():
    assert math.amplify(F32(0), F32(0.5), F32(2)) == 0
    assert math.amplify(F32(1), F32(0.5), F32(2)) == 1
    c = F32(0.49)
    np.testing.assert_allclose(math.amplify(c, F32([0, 1]), F32(2)), [0.49, 0.7], rtol=1e-6)


def test_iou_of_extreme_boxes_is_a_number():
    huge, tiny = F32(3e38), F32(1e-38)
    assert math.iou(0, 0, huge, huge, 0, 0, huge, huge) == 0  # areas overflow
    assert math.iou(0, 0, tiny, tiny, 0, 0, tiny, tiny) == 0  # areas underflow
    assert math.iou(0, 0, 2, 2, 1, 1, 3, 3) == F32(1) / F32(7)


def test_complete_iou_never_exceeds_iou_and_is_near_it_exactly():
    random = np.random.default_rng(1)
    sides = random.uniform(0.5, 200, (4, 1_000_000)) * 2.0 ** random.uniform(-12, 4, 1_000_000)
    corners = random.uniform(-50, 50, (4, 1_000_000)) * sides[:1] / 50
    a = [side.astype(F32) for side in (*corners[:2], *(corners[:2] + sides[:2]))]
    b = [side.astype(F32) for side in (*corners[2:], *(corners[2:] + sides[2:]))]
    found = math.complete_iou(*a, *b)
    assert (found <= math.iou(*a, *b)).all()
    assert (found > 0).mean() > 0.1

    ax1, ay1, ax2, ay2, bx1, by1, bx2, by2 = (side.astype(np.float64) for side in (*a, *b))
    inter = np.maximum(np.minimum(ax2, bx2) - np.maximum(ax1, bx1), 0) * np.maximum(
        np.minimum(ay2, by2) - np.maximum(ay1, by1), 0
    )
    iou = inter / ((ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - inter)
    apart = ((ax1 + ax2 - bx1 - bx2) ** 2 + (ay1 + ay2 - by1 - by2) ** 2) / 4
    across, down = np.maximum(ax2, bx2) - np.minimum(ax1, bx1), np.maximum(ay2, by2) - np.minimum(ay1, by1)
    v = 4 / np.pi**2 * (np.arctan((ax2 - ax1) / (ay2 - ay1)) - np.arctan((bx2 - bx1) / (by2 - by1))) ** 2
    exact = iou - (apart / (across**2 + down**2) + v * v / (1 - iou + v))
    large = np.minimum.reduce([ax2 - ax1, ay2 - ay1, bx2 - bx1, by2 - by1]) > 1
    np.testing.assert_allclose(found[large], np.maximum(exact, 0)[large], atol=2e-6)
    np.testing.assert_allclose(math.complete_iou(*a, *a)[large], 1, atol=1e-6)


@given(
    count=st.integers(0, 40),
    stride=st.sampled_from([1, 4, 8, 100]),
    offset=st.sampled_from([0.0, 4.0, 2.5, -7.0]),
    low=st.floats(-1e9, 1e9, width=32),
    high=st.floats(-1e9, 1e9, width=32),
)
def test_strictly_between_is_what_comparisons_say(count, stride, offset, low, high):
    coordinates = np.arange(count, dtype=F32) * F32(stride) + F32(offset)
    inside = np.flatnonzero((coordinates > F32(low)) & (coordinates < F32(high)))
    begin, end = math.strictly_between(count, stride, offset, low, high)
    assert list(range(begin, end)) == inside.tolist()


@given(
    x1=st.floats(-1e4, 1e4, width=32), width=st.floats(2**-10, 1e4, width=32), where=st.floats(0, 1, width=32),
    lo=st.floats(-1, 600, width=32), hi=st.floats(0, 600, width=32),
)  # fmt: skip
def test_a_level_is_only_skipped_where_no_point_inside_could_be_accepted(x1, width, where, lo, hi):
    x1, x2 = F32(x1), F32(x1) + F32(width)
    x = F32(x1 + (x2 - x1) * F32(where))
    if x1 < x < x2:
        longest = max(x - x1, x2 - x)
        if lo <= longest <= hi:
            assert math.may_accept_inside(lo, hi, x2 - x1, F32(0))  # the vertical side decides nothing here


def test_a_level_may_accept_points_of_objects_whose_sides_are_beyond_float():
    assert math.may_accept_inside(-1, 3e38, F32(np.inf), F32(1))  # a point in the middle may see 2e38
    assert not math.may_accept_inside(-1, 1.6e38, F32(np.inf), F32(1))


@pytest.mark.parametrize("scale", [2.0**e for e in (-74, -66, -40, -31, -30, -29, -16, 0, 8, 15, 17, 50, 62)])
@pytest.mark.parametrize("alike", [0.0, 1e-7, 1e-6, 1e-3])
def test_overlaps_are_told_apart_by_products_as_divisions_do(scale, alike):
    # From areas that are not even numbers with all their digits to areas that overflow; rivals that are nearly the same.
    random = np.random.default_rng(0)

    def boxes(corner, sides):
        return [*corner, *(corner + sides)]

    a, b, best = (boxes(random.random((2, 300_000)), 2.0 ** random.uniform(-9, 1, (2, 300_000))) for _ in range(3))
    if alike:
        best = [side * (1 + alike * random.standard_normal(side.shape)) for side in b]
    sides = [(side * scale).astype(F32) for box in (a, b, best) for side in box]
    valid = np.logical_and.reduce([sides[i + 2] > sides[i] for i in (0, 1, 4, 5, 8, 9)])
    sides = [side[valid] for side in sides]
    result, iou, iou_of_best = math.compare(*sides), math.iou(*sides[:8]), math.iou(*sides[:4], *sides[8:])
    assert (iou[result == 1] > iou_of_best[result == 1]).all()
    assert ((iou < iou_of_best) | (iou == 0))[result == -1].all()
    if not alike and 1 <= scale <= 2**15:  # areas as images have them: what is not the same is told apart
        assert (result == 0).mean() < 1e-3

    nothing = [F32(0)] * 4
    result = math.compare(*sides[:8], *nothing)
    assert (iou[result == 1] > 0).all()
    assert (iou[result == -1] == 0).all()


def test_orders_are_total():
    nan = float("nan")
    ranked = [(1.0, 3), (2.0, 0), (2.0, 1), (nan, 0), (nan, 2)]
    for i, a in enumerate(ranked):
        for j, b in enumerate(ranked):
            assert math.smaller_object(*a, *b) == (i < j)
    points = [(0.9, 7), (0.5, 0), (0.5, 4)]
    for i, a in enumerate(points):
        for j, b in enumerate(points):
            assert math.ranks_before(*a, *b) == (i < j)
