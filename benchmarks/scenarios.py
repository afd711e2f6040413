"""Seeded inputs for the benchmark, the tests and the peers: what a detector early in its training hands to assignment.

Everything random is drawn on the CPU, in float64, image by image, and rounded to float32 at the end: instruction
sets differ in the last bit of ``log`` and ``exp``, and the rounding hides that.

**Objects.** The longer side is log-uniform within the scenario's ``sides``, the shorter one down to half of it; the
place is uniform inside the image. A to D and call go from 12 px to most of the image; E stops at 256 px, since 2,000
objects that fill the image would hide each other; S20 and S2000 hold small objects alone. R takes the boxes and
classes of COCO images, scaled to fit with their aspect ratio kept, as a detector's batch has them.

**Predicted boxes.** Each point predicts a box around itself. Most have distances to the four sides that are
log-normal around two strides. Of the points inside an object 30 % are near it instead: the true distances to
the smallest object there plus noise of one stride, negative ones cut to 0 as FCOS's ReLU does.

**Logits.** Normal around -4 (sd 1), which is where focal loss's prior puts them. Of the points inside an object 20 %
are raised by 5 at its class.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from mgassign import PointGrid

NUM_CLASSES = 80
COCO_BOXES = "coco_val2017_boxes.npz"


@dataclass(frozen=True)
class Scenario:
    """A batch of images, by description."""

    images: int
    size: tuple[int, int]
    """Height and width in pixels."""
    strides: tuple[int, ...]
    objects: int | tuple[int, ...] | None
    """Objects per image, of all or of each; None: those of COCO images."""
    sides: tuple[float, float] = (12, math.inf)
    """Least and greatest length of an object's longer side, in pixels; never above 0.9 of the image's shorter side."""

    @property
    def grid(self) -> PointGrid:
        return PointGrid.for_image(self.size, self.strides)

    @property
    def about(self) -> str:
        """One line for a person: ``16 x 640x640, 8,400 points, 20 objects``."""
        height, width = self.size
        if isinstance(self.objects, tuple):
            objects = f"{sum(self.objects):,} objects, up to {max(self.objects):,}"
        else:
            objects = "COCO objects" if self.objects is None else f"{self.objects:,} object{'s'[: self.objects != 1]}"
        return f"{self.images} x {height}x{width}, {self.grid.num_points:,} points, {objects}"


_SMALL_GRID, _LARGE_GRID = ((640, 640), (8, 16, 32)), ((800, 1024), (8, 16, 32, 64, 128))

# 75,000 objects in 128 images, 4,967 in one of them, as a public report of a batch of satellite images has it; the others
# have more and more, from 1 to 1,102.
_SATELLITE = (4967, *(round(1102 * ((i + 1) / 127)) or 1 for i in range(127)))

SCENARIOS = {
    "A": Scenario(16, *_SMALL_GRID, 20),
    "B": Scenario(16, *_SMALL_GRID, 300),
    "C": Scenario(16, *_LARGE_GRID, 20),
    "D": Scenario(16, *_LARGE_GRID, 300),
    "E": Scenario(1, *_LARGE_GRID, 2000, sides=(12, 256)),
    "R": Scenario(16, *_LARGE_GRID, None),
    "S20": Scenario(1, *_LARGE_GRID, 20, sides=(8, 24)),
    "S2000": Scenario(1, *_LARGE_GRID, 2000, sides=(8, 24)),
    "X": Scenario(128, *_SMALL_GRID, _SATELLITE, sides=(8, 64)),
    "call": Scenario(1, (320, 320), (8, 16, 32, 64), 1),
}
GROWTH = {f"N{n}": replace(SCENARIOS["S20"], objects=n) for n in (10, 30, 100, 300, 1000, 2000, 5000)}
"""More and more small objects in one image."""


class Inputs(NamedTuple):
    """The arguments of ``mutual_guidance_assign``, in its order."""

    grid: PointGrid
    pred_boxes: Tensor
    """float32 [B, P, 4], xyxy in pixels."""
    pred_logits: Tensor
    """float32 [B, P, NUM_CLASSES]."""
    gt_boxes: list[Tensor]
    """B tensors, float32 [G_b, 4], xyxy in pixels."""
    gt_labels: list[Tensor]
    """B tensors, int64 [G_b]."""


def make_inputs(scenario: Scenario, data: Path | None = None) -> Inputs:
    """Makes a scenario's tensors, on the CPU: the same ones at every call.

    Args:
        scenario: One of ``SCENARIOS``, or any other.
        data: The folder that holds ``coco_val2017_boxes.npz``; needed where ``scenario.objects`` is None.

    Raises:
        FileNotFoundError: if the file is not there.
    """
    grid = scenario.grid
    if scenario.objects is None:
        objects = _coco_objects(scenario, data)
    else:
        counts = scenario.objects if isinstance(scenario.objects, tuple) else (scenario.objects,) * scenario.images
        objects = [_random_objects(scenario, count, _seeded(image)) for image, count in enumerate(counts)]
    # Filled image by image, so that making the inputs needs little more memory than they do.
    pred_boxes = torch.empty(scenario.images, grid.num_points, 4)
    pred_logits = torch.empty(scenario.images, grid.num_points, NUM_CLASSES)
    for image, (boxes, labels) in enumerate(objects):
        generator = _seeded(scenario.images + image)
        owner = _smallest_around(grid, boxes)
        pred_boxes[image] = _predicted_boxes(grid, boxes, owner, generator)
        pred_logits[image] = _predicted_logits(labels, owner, generator)
    return Inputs(grid, pred_boxes, pred_logits, [boxes for boxes, _ in objects], [labels for _, labels in objects])


def _seeded(seed: int) -> Generator:
    return torch.Generator().manual_seed(seed)


def _uniform(generator: Generator, *shape: int) -> Tensor:
    return torch.rand(shape, generator=generator, dtype=torch.float64)


def _normal(generator: Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _random_objects(scenario: Scenario, count: int, generator: Generator) -> tuple[Tensor, Tensor]:
    (height, width), (least, most) = scenario.size, scenario.sides
    most = min(most, 0.9 * min(height, width))
    longer = least * torch.exp(_uniform(generator, count) * math.log(most / least))
    shorter = (longer * (1 - 0.5 * _uniform(generator, count))).clamp(min=least)
    upright = _uniform(generator, count) < 0.5
    sides = torch.stack([torch.where(upright, shorter, longer), torch.where(upright, longer, shorter)], dim=-1)
    corner = _uniform(generator, count, 2) * (torch.tensor([width, height]) - sides)
    labels = torch.randint(NUM_CLASSES, (count,), generator=generator)
    return torch.cat([corner, corner + sides], dim=-1).float(), labels


def _coco_objects(scenario: Scenario, data: Path | None) -> list[tuple[Tensor, Tensor]]:
    path = (data or Path()) / COCO_BOXES
    if data is None or not path.is_file():
        raise FileNotFoundError(f"no {COCO_BOXES} in {'a data folder: none given' if data is None else data}")
    import numpy as np  # here alone: the other scenarios do without it

    with np.load(path) as file:
        sizes, starts, boxes, labels = (
            torch.from_numpy(file[key].astype(dtype))
            for key, dtype in (("image_wh", "f8"), ("box_start", "i8"), ("boxes_xyxy", "f8"), ("cls", "i8"))
        )
    with_objects = (starts[1:] > starts[:-1]).nonzero().flatten()
    chosen = with_objects[torch.randperm(len(with_objects), generator=_seeded(0))[: scenario.images]]
    height, width = scenario.size
    objects = []
    for image in chosen.tolist():
        own = slice(int(starts[image]), int(starts[image + 1]))
        scale = (torch.tensor([width, height]) / sizes[image]).min()
        objects.append(((boxes[own] * scale).float(), labels[own]))
    return objects


def _smallest_around(grid: PointGrid, boxes: Tensor) -> Tensor:
    """For each point the smallest object it lies in, or -1: int64 [P]."""
    x, y = grid.points().unbind(-1)
    owner = torch.full((grid.num_points,), -1)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    # Painted from large to small: [P] at a time, where [P, G] would not fit for 2,000 objects on small machines.
    for g in areas.argsort(descending=True, stable=True).tolist():
        x1, y1, x2, y2 = boxes[g].tolist()
        owner[(x > x1) & (x < x2) & (y > y1) & (y < y2)] = g
    return owner


def _predicted_boxes(grid: PointGrid, boxes: Tensor, owner: Tensor, generator: Generator) -> Tensor:
    points, strides = grid.points().double(), grid.point_strides().double()[:, None]
    anywhere = 2 * strides * torch.exp(0.5 * _normal(generator, grid.num_points, 4))
    near = (owner >= 0) & (_uniform(generator, grid.num_points) < 0.3)
    noise = strides * _normal(generator, grid.num_points, 4)
    around = boxes[owner[near]].double()
    true = torch.cat([points[near] - around[:, :2], around[:, 2:] - points[near]], dim=-1)
    ltrb = anywhere
    ltrb[near] = (true + noise[near]).clamp(min=0)
    return grid.decode(ltrb).float()


def _predicted_logits(labels: Tensor, owner: Tensor, generator: Generator) -> Tensor:
    logits = _normal(generator, len(owner), NUM_CLASSES) - 4
    confident = (owner >= 0) & (_uniform(generator, len(owner)) < 0.2)
    logits[confident, labels[owner[confident]]] += 5
    return logits.float()
