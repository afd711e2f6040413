"""Assignments drawn: what is on the axes, by the numbers."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch

from mgassign import PointGrid, TaskAlignedAssignment, fcos_assign, max_iou_assign

pytest.importorskip("matplotlib")
from matplotlib.collections import PatchCollection
from matplotlib.colors import to_hex

from mgassign import draw
from scenes import scene
from test_packaging import python

GRID = PointGrid.for_image((64, 96), strides=(8, 16))


def dots(axes) -> PatchCollection:
    (found,) = (artist for artist in axes.collections if isinstance(artist, PatchCollection))
    return found


def owner_of(*owned: tuple[int, int]) -> torch.Tensor:
    owner = torch.full((1, GRID.num_points), -1)
    for point, of_point in owned:
        owner[0, point] = of_point
    return owner


def test_every_positive_of_every_field_is_drawn():
    of = scene()
    found = of.assign()
    axes = draw.assignment(found, of.grid, None, of.gt_boxes[1], index=1)
    positives = sum(int((getattr(found, name)[1] >= 0).sum()) for name in ("original", "cls", "loc"))
    assert len(dots(axes).get_paths()) == positives
    assert len(axes.patches) == len(of.gt_boxes[1])
    for name in ("original", "cls", "loc"):
        axes = draw.assignment(found, of.grid, index=1, fields=[name])
        assert len(dots(axes).get_paths()) == int((getattr(found, name)[1] >= 0).sum())


def test_dots_lie_at_their_points_and_coarse_ones_are_larger():
    fine, coarse = 13, 96 + 4
    axes = draw.assignment(owner_of((fine, 0), (coarse, 1)), GRID, scale=(2.0, 2.0))
    extents = [path.get_extents() for path in dots(axes).get_paths()]  # large ones first
    centers = [((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2) for box in extents]
    points = GRID.points()
    assert centers == [pytest.approx((2 * points[j]).tolist(), abs=0.02) for j in (coarse, fine)]
    assert extents[0].width == pytest.approx(extents[1].width * 2**0.5)


def test_colours_tell_field_object_or_level():
    found = {"original": owner_of((0, 0), (100, 1)), "loc": owner_of((0, 1), (100, 1))}

    def colours(**settings):
        return [to_hex(color) for color in dots(draw.assignment(found, GRID, **settings)).get_facecolor()]

    red, green = draw.COLORS["original"], draw.COLORS["loc"]
    assert colours() == [red, green, red, green]
    assert colours(color="object") == [draw.PALETTE[1], draw.PALETTE[0], draw.PALETTE[1]]
    assert colours(color="level") == [draw.PALETTE[1], draw.PALETTE[0]]


def test_points_to_be_ignored_are_drawn_where_asked_for():
    owner = owner_of((0, 0), (5, -2), (6, -2))
    assert len(dots(draw.assignment(owner, GRID)).get_paths()) == 1
    assert len(dots(draw.assignment(owner, GRID, ignored=True)).get_paths()) == 3


def test_what_all_assigners_return():
    boxes = [torch.tensor([[8.0, 8, 40, 40]])]
    original = fcos_assign(GRID, boxes)
    count = int((original.original >= 0).sum())
    owner = original.original
    for found in (original, owner, TaskAlignedAssignment(owner, owner.float(), owner.float())):
        assert len(dots(draw.assignment(found, GRID)).get_paths()) == count
    anchors = torch.tensor([[8.0, 8, 40, 40], [50, 8, 80, 40]])
    axes = draw.assignment(max_iou_assign(anchors, boxes), anchors)
    (path,) = dots(axes).get_paths()
    box = path.get_extents()
    assert ((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2) == pytest.approx((24, 24), abs=0.02)


@pytest.mark.parametrize("form", ["[3, H, W]", "[1, H, W]", "[H, W, 3]", "uint8", "bfloat16", "array", "PIL"])
def test_images_in_every_form(form, tmp_path):
    image = torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(0))
    pixels = image.permute(1, 2, 0).numpy()
    given, expected = {
        "[3, H, W]": lambda: (image, pixels),
        "[1, H, W]": lambda: (image[:1], np.repeat(pixels[..., :1], 3, axis=2)),
        "[H, W, 3]": lambda: (image.permute(1, 2, 0), pixels),
        "uint8": lambda: ((image * 255).to(torch.uint8), (pixels * 255).astype(np.uint8)),
        "bfloat16": lambda: (image.bfloat16(), image.bfloat16().float().permute(1, 2, 0).numpy()),
        "array": lambda: (pixels, pixels),
        "PIL": lambda: (
            pytest.importorskip("PIL.Image").fromarray((pixels * 255).astype(np.uint8)),
            (pixels * 255).astype(np.uint8),
        ),
    }[form]()
    axes = draw.assignment(owner_of((0, 0)), GRID, given, torch.tensor([[8.0, 8, 40, 40]]), names=["a $1 bill"])
    (shown,) = axes.images
    assert np.array_equal(shown.get_array(), expected)
    assert axes.get_xlim() == (0, 96)
    assert axes.get_ylim() == (64, 0)
    axes.figure.savefig(tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 1000


def test_frames_and_names_of_objects():
    boxes = torch.tensor([[8.0, 4, 40, 24], [30, 30, 50, 60]])

    def drawn(**settings):
        axes = draw.assignment(owner_of(), GRID, None, boxes, **settings)
        return [frame.get_bbox().extents.tolist() for frame in axes.patches], [text.get_text() for text in axes.texts]

    assert drawn() == (boxes.tolist(), ["0", "1"])
    assert drawn(names=["cat", "a $1 bill"], scale=(2.0, 3.0)) == (
        [[16, 12, 80, 72], [60, 90, 100, 180]],
        ["cat", "a $1 bill"],
    )
    assert drawn(names=()) == (boxes.tolist(), [])


def test_size_is_that_of_dots():
    (one,), (twice,) = (
        dots(draw.assignment(owner_of((13, 0)), GRID, size=size)).get_paths() for size in (1.0, 2.0)
    )  # fmt: skip
    assert twice.get_extents().width == pytest.approx(2 * one.get_extents().width)
    assert one.get_extents().width == pytest.approx(2 * draw.dot_radius(8), rel=1e-3)


def test_legend_says_what_colours_mean():
    axes = draw.assignment(owner_of(), GRID)
    draw.legend(axes, ["original", "loc", "mine"])
    legend = axes.get_legend()
    assert [text.get_text() for text in legend.get_texts()] == [draw.MEANINGS["original"], draw.MEANINGS["loc"], "mine"]
    assert [to_hex(handle.get_color()) for handle in legend.legend_handles] == [
        draw.COLORS["original"],
        draw.COLORS["loc"],
        draw.PALETTE[0],
    ]


def test_tensors_are_made_where_they_are_needed():
    owner, box, anchors = owner_of((13, 0)), torch.tensor([[8.0, 8, 40, 40]]), torch.ones(GRID.num_points, 4)
    torch.set_default_device("meta")  # whose tensors hold nothing
    try:
        for places in (GRID, anchors):
            assert len(dots(draw.assignment(owner, places, None, box)).get_paths()) == 1
    finally:
        torch.set_default_device(None)


def test_a_grid_without_points():
    grid = PointGrid.for_image((0, 64), strides=(8,))
    assert len(dots(draw.assignment(torch.empty(1, 0, dtype=torch.int64), grid)).get_paths()) == 0


def test_without_objects_and_with_boxes_that_are_none():
    axes = draw.assignment(owner_of(), GRID, None, torch.tensor([[0.0, 0, float("nan"), 4]]))
    assert len(dots(axes).get_paths()) == 0
    assert len(axes.patches) == 0


def test_without_an_image_the_axes_hold_all_points_of_any_scale():
    axes = draw.assignment(owner_of(), GRID, scale=(2.0, 3.0))
    assert axes.get_xlim() == (0, 2 * 96)
    assert axes.get_ylim() == (3 * 64, 0)


@pytest.mark.parametrize(
    ("error", "told", "arguments"),
    [
        (TypeError, "found: expected an assignment", {"found": None}),
        (ValueError, r"owner: expected shape \[B, P\]", {"found": torch.zeros(4, dtype=torch.int64)}),
        (ValueError, "fields: expected some of 'owner', got 'cls'", {"fields": ["cls"]}),
        (ValueError, "index: expected one of 1 images, got 1", {"index": 1}),
        (TypeError, "index: expected an int, got NoneType", {"index": None}),
        (TypeError, "fields: expected a list, got 'owner'", {"fields": "owner"}),
        (TypeError, r"scale: expected two numbers \(x, y\), got 2.0", {"scale": 2.0}),
        (ValueError, "scale, y: expected a finite number above 0, got 0.0", {"scale": (1.0, 0.0)}),
        (ValueError, "color: expected", {"color": "red"}),
        (ValueError, r"image: expected shape \[3, H, W\]", {"image": torch.zeros(2, 64, 96)}),
        (ValueError, r"image: expected shape \[3, H, W\]", {"image": torch.zeros(64, 96)}),
        (ValueError, r"image: expected an array \[H, W, 3\], got \[3, 64, 96\]", {"image": np.zeros((3, 64, 96))}),
        (ValueError, r"image: expected an array \[H, W, 3\], got \[1, 3, 6, 9\]", {"image": np.zeros((1, 3, 6, 9))}),
        (TypeError, "image: expected a tensor, an array or a picture of PIL, got str", {"image": "x.png"}),
        (ValueError, "names: expected one for each of 1 boxes, got 2", {"names": ["a", "b"]}),
        (TypeError, "names: expected a list, got 'a'", {"names": "a"}),
        (ValueError, "size: expected a finite number above 0, got -1", {"size": -1}),
        (TypeError, "size: expected a number, got str", {"size": "a"}),
        (ValueError, r"places: expected shape \[A, 4\]", {"places": torch.zeros(3, 2)}),
        (TypeError, "places: expected a tensor, got list", {"places": [[1.0] * 4]}),
        (ValueError, r"owners\['owner'\]: expected shape \[1\]", {"places": torch.ones(1, 4)}),
    ],
)
def test_errors(error, told, arguments):
    good = {"found": owner_of(), "places": GRID, "gt_boxes": torch.tensor([[8.0, 8, 40, 40]])}
    with pytest.raises(error, match=f"^{told}"):
        draw.assignment(**good | arguments)


@pytest.mark.parametrize(
    ("error", "told", "colors"),
    [
        (TypeError, "colors: expected a list, got 'white'", "white"),
        (ValueError, "colors: expected at least one, got none", ()),
    ],
)
def test_errors_of_colors(error, told, colors):
    with pytest.raises(error, match=f"^{told}"):
        draw.boxes(draw.assignment(owner_of(), GRID), torch.zeros(1, 4), colors=colors)


def test_anchors_that_are_not_finite():
    anchors = torch.tensor([[float("nan")] * 4, [0.0, 0, float("inf"), 8], [0.0, 0, 40, 24]])
    axes = draw.assignment(torch.zeros(1, 3, dtype=torch.int64), anchors)
    assert len(dots(axes).get_paths()) == 1
    assert axes.get_xlim() == (0, 40)
    assert axes.get_ylim() == (24, 0)
    axes.figure.savefig(io.BytesIO())


def test_what_few_need_is_imported_by_the_first_call_alone():
    code = "import sys, mgassign.draw; sys.exit(any(m in sys.modules for m in ('matplotlib', 'mgassign.reference', 'torch._dynamo')))"
    assert python("-c", code).returncode == 0


def test_without_matplotlib_it_says_what_to_install():
    code = "import sys; sys.modules['matplotlib.figure'] = None\nimport torch; from mgassign import PointGrid, draw\n"
    code += "draw.assignment(torch.full((1, 1), -1), PointGrid.for_image((8, 8), (8,)))"
    assert "ImportError: mgassign.draw needs matplotlib: pip install matplotlib" in python("-c", code).stderr
