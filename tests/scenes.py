"""Images with objects and predictions for the tests: seeded ones, and a strategy for hypothesis."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mgassign import IGNORE, Assignment, PointGrid, mutual_guidance_assign, reference

STRIDES = (8, 16, 32, 64, 128)
GRID_NAMES = ("heights", "widths", "strides", "spacings", "offsets", "ranges")  # of PointGrid.arguments, in the schemas


def equal(found: Iterable[Tensor], expected: Iterable[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


FORMS = ("list", "padded", "jagged")


def in_form(form: str, of_images: list[Tensor], padding: float = 0) -> list[Tensor] | Tensor:
    """Tensors of at least one image in one of the forms in which objects come."""
    if form == "list":
        return of_images
    if form == "padded":
        return pad_sequence(of_images, batch_first=True, padding_value=padding)
    return torch.nested.nested_tensor(of_images, layout=torch.jagged)


def objects_in_form(form: str, boxes: list[Tensor], labels: list[Tensor]):
    """Boxes and labels in one of the forms; what pads are valid boxes, which take no part."""
    packed = in_form(form, boxes)
    if form == "padded":
        for image, of_image in zip(packed, boxes, strict=True):
            image[len(of_image) :] = torch.tensor([20.0, 20, 60, 50])
    return packed, in_form(form, labels, -1)


@dataclass(frozen=True)
class Scene:
    """A batch: what mutual_guidance_assign takes, objects as lists."""

    grid: PointGrid
    pred_boxes: Tensor
    pred_logits: Tensor
    gt_boxes: list[Tensor]
    gt_labels: list[Tensor]

    def assign(self, **settings) -> Assignment:
        return mutual_guidance_assign(
            self.grid, self.pred_boxes, self.pred_logits, self.gt_boxes, self.gt_labels, **settings
        )

    def reference(self, **settings) -> Assignment:
        """The reference's answer, its images put together."""
        images = [
            reference.mutual_guidance_assign(self.grid, *of_image, **settings)
            for of_image in zip(self.pred_boxes, self.pred_logits, self.gt_boxes, self.gt_labels, strict=True)
        ]
        if not images:
            none = torch.empty(0, self.grid.num_points, dtype=torch.int64)
            return Assignment(none, none, none, torch.empty(0, dtype=torch.int64), none.float())
        cls, loc, original, num_points, iou = zip(*images, strict=True)
        stacked = map(torch.stack, (cls, loc, original))
        return Assignment(*stacked, torch.cat(num_points), torch.stack(iou))

    def in_form(self, form: str) -> Scene:
        """Its objects in another form."""
        boxes, labels = objects_in_form(form, self.gt_boxes, self.gt_labels)
        return replace(self, gt_boxes=boxes, gt_labels=labels)

    def to(self, dtype: torch.dtype) -> Scene:
        """Predictions in another dtype."""
        return replace(self, pred_boxes=self.pred_boxes.to(dtype), pred_logits=self.pred_logits.to(dtype))


def random_boxes(count: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Boxes [count, 4] of 8 px to most of an image of size (height, width), sides log-uniform."""
    extent = torch.tensor([size[1], size[0]], dtype=torch.float32)
    wh = torch.minimum(8 * (extent.min() / 8) ** torch.rand(count, 2, generator=generator), 0.95 * extent)
    xy = torch.rand(count, 2, generator=generator) * (extent - wh)
    return torch.cat([xy, xy + wh], dim=1)


def predict(grid: PointGrid, boxes: Tensor, labels: Tensor, num_classes: int, generator: torch.Generator):
    """Boxes [P, 4] and logits [P, C] as an early detector makes them: some near an object, most at stride scale."""
    strides = grid.point_strides()[:, None]
    noise = torch.randn(grid.num_points, 4, generator=generator)
    pred_boxes = grid.decode(2 * strides * torch.exp(0.5 * noise))
    pred_logits = torch.randn(grid.num_points, num_classes, generator=generator) - 4
    if len(boxes):
        picked = torch.randint(len(boxes), (grid.num_points,), generator=generator)
        left, top, right, bottom = reference.distances(grid, boxes)
        inside = torch.stack([left, top, right, bottom]).amin(0).gather(1, picked[:, None]) > 0
        near = inside & (torch.rand(grid.num_points, 1, generator=generator) < 0.5)
        pred_boxes = torch.where(near, boxes[picked] + 0.5 * strides * noise, pred_boxes)
        confident = torch.nn.functional.one_hot(labels[picked], num_classes)
        pred_logits = pred_logits + 5 * confident * near
    return pred_boxes, pred_logits


def scene(
    size: tuple[int, int] = (320, 320),
    strides: tuple[int, ...] = STRIDES[:4],
    objects: tuple[int, ...] = (5, 3),
    num_classes: int = 6,
    seed: int = 0,
    **grid_settings,
) -> Scene:
    """A batch with so many objects in each image."""
    generator = torch.Generator().manual_seed(seed)
    boxes = [random_boxes(count, size, generator) for count in objects]
    return scene_of(PointGrid.for_image(size, strides, **grid_settings), boxes, num_classes, generator)


def scene_of(grid: PointGrid, boxes: list[Tensor], num_classes: int, generator: torch.Generator) -> Scene:
    """A batch with these objects, labels and predictions drawn."""
    labels = [torch.randint(num_classes, (len(of_image),), generator=generator) for of_image in boxes]
    predictions = [predict(grid, *objects, num_classes, generator) for objects in zip(boxes, labels, strict=True)]
    if not predictions:
        return Scene(grid, torch.empty(0, grid.num_points, 4), torch.empty(0, grid.num_points, num_classes), [], [])
    pred_boxes, pred_logits = map(torch.stack, zip(*predictions, strict=True))
    return Scene(grid, pred_boxes, pred_logits, boxes, labels)


GRIDS = (
    PointGrid.for_image((96, 128), strides=(8, 16, 32)),
    PointGrid.for_image((130, 70), strides=(8, 16, 32, 64, 128)),
    PointGrid.for_image((96, 96), strides=(8, 16), ranges=((0, 24), (16, 80)), offset=0),
    PointGrid.for_image((40, 56), strides=(4,), offset=2.5),
    PointGrid.for_image((96, 80), strides=(8, 12.5), spacing=((7.5, 8), (12, 13)), offset=((0, 0), (0, 3))),
)

# Eighths are exact in float32 here, sums and differences too, and equal coordinates come up often.
coordinates = st.integers(-16 * 8, 160 * 8).map(lambda eighths: eighths / 8)


@st.composite
def boxes(draw: st.DrawFn) -> list[float]:
    x, y = draw(coordinates), draw(coordinates)
    width, height = (draw(st.integers(1, 120 * 4)) / 4 for _ in range(2))
    return [x, y, x + width, y + height]


kinds = st.sampled_from((0, 0, 0, -1, IGNORE))  # an object of any class, padding, a region
dtypes = st.sampled_from((torch.float32, torch.float64, torch.float16, torch.bfloat16))


@st.composite
def scenes(draw: st.DrawFn, min_objects: int = 0, max_images: int = 2) -> Scene:
    """Any scene of valid boxes, many of them overlapping or equal, some of them padding or regions.

    In half of them everything lies on a coarse raster, so that equal overlaps and scores are frequent.
    """
    grid, objects = draw(st.sampled_from(GRIDS)), st.tuples(boxes(), kinds)
    of_images = draw(st.lists(st.lists(objects, min_size=min_objects, max_size=6), min_size=1, max_size=max_images))
    corners = [torch.tensor([box for box, _ in image], dtype=torch.float32).reshape(-1, 4) for image in of_images]
    coarse = draw(st.booleans())
    if coarse:  # boxes grow, so that they stay valid
        corners = [4 * torch.cat([(t[:, :2] / 4).floor(), (t[:, 2:] / 4).ceil()], 1) for t in corners]
    drawn = scene_of(grid, corners, 3, torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1))))
    for labels, image in zip(drawn.gt_labels, of_images, strict=True):
        kind = torch.tensor([kind for _, kind in image], dtype=torch.int64)
        labels.copy_(torch.where(kind < 0, kind, labels))
    if coarse:
        drawn = replace(drawn, pred_boxes=8 * (drawn.pred_boxes / 8).round(), pred_logits=drawn.pred_logits.round())
    return drawn.to(draw(dtypes))
