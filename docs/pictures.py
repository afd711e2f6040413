"""The site's pictures, drawn by the library when the site is built. `python docs/pictures.py FOLDER` writes them."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from mgassign import PointGrid, draw, fcos_assign, max_iou_assign, mutual_guidance_assign, task_aligned_assign

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from demo import draw_scene, simulate

matplotlib.rcParams.update({"svg.hashsalt": "mgassign", "svg.fonttype": "none", "font.family": "sans-serif"})
STRIDES = (8, 16, 32, 64, 128)
ACCENT, SECOND, QUIET = "#009688", "#e8710a", "#8a8f98"


def anchors_of(grid: PointGrid) -> Tensor:
    """RetinaNet's nine anchors a point: four strides wide, three sizes, three shapes."""
    scales = torch.tensor([2 ** (i / 3) for i in range(3)])[:, None] * 4
    shape = torch.tensor([0.5, 1.0, 2.0]).sqrt()
    sides = torch.stack([scales / shape, scales * shape], dim=-1).reshape(1, 9, 2) * grid.point_strides()[:, None, None]
    centers = grid.points()[:, None]
    return torch.cat([centers - sides / 2, centers + sides / 2], dim=-1).reshape(-1, 4)


def assigners() -> dict[str, Figure]:
    """The same image under each assigner, with the same simulated predictions."""
    generator = torch.Generator().manual_seed(0)
    scene = draw_scene(generator)
    grid = PointGrid.for_image((scene.image.height, scene.image.width), strides=STRIDES)
    labels = torch.arange(len(scene.names))
    pred_boxes, logits = (of[None] for of in simulate(grid, scene.boxes, labels, generator))
    objects = [scene.boxes], [labels]
    anchors = anchors_of(grid)
    mutual = mutual_guidance_assign(grid, pred_boxes, logits, *objects)
    aligned = task_aligned_assign(grid, pred_boxes, logits, *objects, activation="sigmoid")
    found = {
        "fcos": (fcos_assign(grid, [scene.boxes]), grid),
        "mutual-guidance": (mutual, grid),
        "mutual-guidance-cls": ({"cls": mutual.cls}, grid),
        "mutual-guidance-loc": ({"loc": mutual.loc}, grid),
        "task-aligned": (aligned, grid),
        "max-iou": (max_iou_assign(anchors, [scene.boxes]), anchors),
    }
    figures = {}
    for name, (of, places) in found.items():
        figure = Figure(figsize=(6.4, 4.8))
        axes = figure.add_axes((0, 0, 1, 1))
        draw.assignment(of, places, scene.image, scene.boxes, axes=axes, size=1.1)
        figures[name] = figure
    return figures


def blank(width: float, height: float, *, size: float = 6.4) -> tuple[Figure, matplotlib.axes.Axes]:
    figure = Figure(figsize=(size, size * height / width))
    figure.patch.set_alpha(0)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0), aspect="equal")
    axes.set_axis_off()
    return figure, axes


def paper(ink: str) -> dict:
    """What lies behind a label, so that it can be read over points."""
    return {"facecolor": "#ffffff" if ink == "#222222" else "#1e2129", "edgecolor": "none", "pad": 1}


def frame(axes: matplotlib.axes.Axes, box: list[float], color: str, style: str = "-", fill: float = 0, lw: float = 1.8):
    x1, y1, x2, y2 = box
    if fill:
        axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, color=color, alpha=fill, lw=0))
    axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=color, linestyle=style, linewidth=lw))


def enumeration(ink: str) -> Figure:
    """The points that an object may have follow from its box by division: nobody searches for them."""
    figure, axes = blank(320, 176)
    grid = PointGrid.for_image((176, 320), strides=(16,), ranges=((-1, 1000),))
    box = torch.tensor([[70.0, 26.0, 250.0, 150.0]])
    x, y = grid.points().T
    mine = fcos_assign(grid, [box]).original[0] == 0
    inside = torch.stack([x - 70, y - 26, 250 - x, 150 - y]).amin(0) > 0
    frame(axes, box[0].tolist(), ACCENT, lw=2.2)
    frame(axes, [160 - 24, 88 - 24, 160 + 24, 88 + 24], SECOND, fill=0.18)
    axes.scatter(x[~inside], y[~inside], s=7, color=QUIET, alpha=0.5, lw=0)
    axes.scatter(x[inside & ~mine], y[inside & ~mine], s=14, color=ACCENT, lw=0)
    axes.scatter(x[mine], y[mine], s=44, color=SECOND, edgecolor=ink, lw=0.6, zorder=3)
    axes.text(74, 22, "the object", color=ACCENT, size=11, va="bottom", bbox=paper(ink))
    axes.text(160, 60, "central box", color=SECOND, size=11, ha="center", va="bottom", bbox=paper(ink))
    text = f"{int(mine.sum())} of {grid.num_points} points are looked at for the original strategy, {int(inside.sum())} for localization"
    axes.text(160, 170, text, color=ink, size=10.5, ha="center", va="bottom", bbox=paper(ink))
    return figure


def tiles(ink: str) -> Figure:
    """The predictions of 32 neighbouring points lie together: most objects do not touch them."""
    figure, axes = blank(320, 176)
    grid = PointGrid.for_image((176, 320), strides=(8,))
    generator = torch.Generator().manual_seed(3)
    points = grid.points().reshape(22, 40, 2)[8:12, 8:16].reshape(-1, 2)
    ltrb = 8 + 20 * torch.rand(len(points), 4, generator=generator)
    boxes = torch.cat([points - ltrb[:, :2], points + ltrb[:, 2:]], dim=1)
    around = torch.cat([boxes[:, :2].amin(0), boxes[:, 2:].amax(0)]).tolist()
    objects = [[20, 30, 88, 92], [128, 84, 200, 150], [214, 20, 300, 76], [232, 96, 296, 158], [14, 118, 36, 156]]
    x, y = grid.points().T
    axes.scatter(x, y, s=3, color=QUIET, alpha=0.45, lw=0)
    for box in boxes.tolist():
        frame(axes, box, SECOND, lw=0.5)
    frame(axes, around, SECOND, "--", fill=0.1, lw=2)
    axes.scatter(*points.T, s=12, color=SECOND, lw=0, zorder=3)
    for box in objects:
        meets = box[0] < around[2] and box[2] > around[0] and box[1] < around[3] and box[3] > around[1]
        frame(axes, box, ACCENT if meets else QUIET, lw=2.2)
        axes.text(box[0] + 3, box[3] - 3, "compared" if meets else "skipped", color=ACCENT if meets else QUIET, size=10)
    axes.text(20, 25, "around the predictions of 32 points", color=SECOND, size=10.5, bbox=paper(ink))
    return figure


def contests(ink: str) -> Figure:
    """Two objects want the same points: the smaller one gets them."""
    figure, axes = blank(320, 150)
    grid = PointGrid.for_image((150, 160), strides=(16,), ranges=((-1, 1000),))
    boxes = torch.tensor([[12.0, 20, 148, 132], [58.0, 52, 106, 100]])
    colors = (ACCENT, SECOND)
    together = fcos_assign(grid, [boxes], center_radius=2.0).original[0]
    alone = [fcos_assign(grid, [box[None]], center_radius=2.0).original[0] == 0 for box in boxes]
    for panel, title in enumerate(("who wants which points", "who gets them")):
        shift = 160 * panel
        for box, color in zip(boxes.tolist(), colors, strict=True):
            frame(axes, [box[0] + shift, box[1], box[2] + shift, box[3]], color, lw=2)
        for j, (x, y) in enumerate(grid.points().tolist()):
            wanted = [g for g in range(2) if alone[g][j]] if panel == 0 else [g for g in range(2) if together[j] == g]
            if not wanted:
                axes.scatter(x + shift, y, s=5, color=QUIET, alpha=0.5, lw=0)
            for g in wanted:
                ring = len(wanted) == 2
                axes.scatter(
                    x + shift, y, s=90 if ring and g == 0 else 40, lw=1.8 if ring and g == 0 else 0, zorder=3 + g,
                    facecolor="none" if ring and g == 0 else colors[g], edgecolor=colors[g],
                )  # fmt: skip
        axes.text(80 + shift, 12, title, color=ink, size=11, ha="center", bbox=paper(ink))
    return figure


DRAWINGS: dict[str, Callable[[str], Figure]] = {"enumeration": enumeration, "tiles": tiles, "contests": contests}


def draw_all() -> dict[str, bytes]:
    """The files: pictures of assigners as they are, drawings for light and for dark pages."""
    files = {f"{name}.svg": svg(figure) for name, figure in assigners().items()}
    for name, drawing in DRAWINGS.items():
        for mode, ink in (("light", "#222222"), ("dark", "#eeeeee")):
            files[f"{name}-{mode}.svg"] = svg(drawing(ink))
    return files


def svg(figure: Figure) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="svg", metadata={"Date": None, "Creator": None})
    return content.getvalue()


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in draw_all().items():
        (folder / name).write_bytes(content)
