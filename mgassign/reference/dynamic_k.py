"""SimOTA and dynamic soft labels, one image.

Ge, Liu, Li, Zhang, Wang, Sun: *OTA: Optimal Transport Assignment for Object Detection* (CVPR 2021), in the simple form
of *YOLOX: Exceeding YOLO Series in 2021* (Ge et al., 2021); Lyu et al., *RTMDet: An Empirical Study of Designing
Real-Time Object Detectors* (2022), section 3.3.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ..points import PointGrid
from ..settings import SimOTA, SoftLabel
from .mutual_guidance import box_iou, per_point, regions_of, strictly_inside, valid_boxes

#: Logits are held to this, so that no cost is infinite for a class's sake.
LARGEST_LOGIT = 10_000.0


def near_center(grid: PointGrid, gt_boxes: Tensor, radius: float) -> Tensor:
    """Which points lie nearer to which boxes' centres than `radius` strides along each axis, bool [P, G]."""
    center = (gt_boxes[:, :2] + gt_boxes[:, 2:]) / 2
    reach = per_point(grid, [radius * s for s in grid.strides], gt_boxes.device)[:, None, None]
    points = grid.points(gt_boxes.device)[:, None]
    return ((points - (center - reach) > 0) & ((center + reach) - points > 0)).all(-1)


def sim_ota_costs(
    grid: PointGrid, pred_boxes: Tensor, probabilities: Tensor, gt_boxes: Tensor, gt_labels: Tensor, settings: SimOTA
) -> tuple[Tensor, Tensor]:
    """What each point costs each object [P, G], and which points may be chosen [P], for objects that take part."""
    central, pool = near_center(grid, gt_boxes, settings.center_radius), None
    if settings.inside:
        inside = strictly_inside(grid, gt_boxes)
        central, pool = central & inside, (central | inside).any(1)
    # As labels go, every class but the object's is to be 0: a sum over classes, one term of which is replaced.
    without = -torch.log1p(-probabilities).clamp(min=-100)
    with_it = -torch.log(probabilities).clamp(min=-100)
    of_class = without.sum(1, keepdim=True) - without[:, gt_labels] + with_it[:, gt_labels]
    of_overlap = -torch.log(box_iou(pred_boxes, gt_boxes) + settings.epsilon)
    costs = settings.class_weight * of_class + settings.overlap_weight * of_overlap + settings.penalty * ~central
    return costs, central.any(1) if pool is None else pool


def soft_label_costs(
    grid: PointGrid, pred_boxes: Tensor, logits: Tensor, gt_boxes: Tensor, gt_labels: Tensor, settings: SoftLabel
) -> tuple[Tensor, Tensor]:
    """What each point costs each object [P, G], and which points may be chosen [P], for objects that take part."""
    u = box_iou(pred_boxes, gt_boxes)
    background = softplus(logits) * torch.sigmoid(logits) ** 2  # where a class is to be 0
    own = logits[:, gt_labels]
    foreground = (softplus(own) - own * u) * (u - torch.sigmoid(own)) ** 2
    of_class = background.sum(1, keepdim=True) - background[:, gt_labels] + foreground
    center = (gt_boxes[:, :2] + gt_boxes[:, 2:]) / 2
    points, strides = grid.points(gt_boxes.device)[:, None], grid.point_strides(gt_boxes.device)[:, None]
    distance = (points - center).pow(2).sum(-1).sqrt() / strides
    of_overlap = -torch.log(u + settings.epsilon)
    costs = of_class + settings.overlap_weight * of_overlap + 10 ** (distance - settings.center_radius)
    return costs, strictly_inside(grid, gt_boxes).any(1)


def numbers_of_points(u: Tensor, pool: Tensor, best_overlaps: int) -> Tensor:
    """How many points each object chooses: what its best overlaps in the pool add up to, at least 1; int64 [G]."""
    best = torch.where(pool[:, None], u, 0.0).sort(0, descending=True).values[:best_overlaps]
    return best.double().sum(0).float().long().clamp(min=1)


def _assign(
    costs_of: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    grid: PointGrid,
    pred_boxes: Tensor,
    gt_boxes: Tensor,
    gt_labels: Tensor,
    best_overlaps: int,
    num_points: int | Tensor | None,
) -> tuple[Tensor, Tensor]:
    gt_boxes, gt_labels = gt_boxes.float(), gt_labels.long()
    index = (valid_boxes(gt_boxes) & (gt_labels >= 0)).nonzero().flatten()
    owner = torch.full((grid.num_points,), -1, device=gt_boxes.device)
    iou = torch.zeros(grid.num_points, dtype=torch.float32, device=gt_boxes.device)
    if len(index) > 0:
        costs, pool = costs_of(gt_boxes[index], gt_labels[index])
        costs = torch.where(pool[:, None], costs, torch.inf)
        u = box_iou(pred_boxes, gt_boxes[index])
        if num_points is None:
            k = numbers_of_points(u, pool, best_overlaps)
        elif isinstance(num_points, Tensor):
            k = num_points[index].clamp(max=best_overlaps)
        else:
            k = torch.full_like(index, num_points)

        # Each object chooses its k points of lowest cost; equal costs: the lower point index.
        order = torch.argsort(costs, dim=0, stable=True)
        ranks = torch.arange(len(owner), device=k.device)[:, None].expand_as(costs)
        chosen = torch.zeros_like(costs, dtype=torch.bool).scatter_(0, order, ranks < k) & (costs < torch.inf)

        # A point that several chose goes to the object that it costs least, of all; equal costs: the lower index.
        contested = chosen.sum(1, keepdim=True) > 1
        best = torch.where(contested | chosen, costs, torch.inf).min(1).indices
        positive = chosen.any(1)
        owner = torch.where(positive, index[best], -1)
        iou = torch.where(positive, u.gather(1, best[:, None])[:, 0], 0.0)

    # In a region, what would be background is to be ignored.
    owner[(owner == -1) & strictly_inside(grid, regions_of(gt_boxes, gt_labels)).any(1)] = -2
    return owner, iou


@torch.no_grad()
def sim_ota_assign(
    grid: PointGrid,
    pred_boxes: Tensor,
    pred_logits: Tensor,
    gt_boxes: Tensor,
    gt_labels: Tensor,
    settings: SimOTA = SimOTA.YOLOX,
    *,
    pred_objectness: Tensor | None = None,
    num_points: int | Tensor | None = None,
    activation: str = "sigmoid",
) -> tuple[Tensor, Tensor]:
    """SimOTA for one image: owner int64 [P], iou float32 [P]."""

    def probability(raw: Tensor) -> Tensor:
        raw = raw.float()
        return torch.sigmoid(raw).nan_to_num(0) if activation == "sigmoid" else raw.nan_to_num(0, 1, 0).clamp(0, 1)

    p = probability(pred_logits)
    if pred_objectness is not None:
        p = (p * probability(pred_objectness)[:, None]).sqrt()

    def costs_of(boxes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return sim_ota_costs(grid, pred_boxes, p, boxes, labels, settings)

    return _assign(costs_of, grid, pred_boxes, gt_boxes, gt_labels, settings.best_overlaps, num_points)


@torch.no_grad()
def soft_label_assign(
    grid: PointGrid,
    pred_boxes: Tensor,
    pred_logits: Tensor,
    gt_boxes: Tensor,
    gt_labels: Tensor,
    settings: SoftLabel = SoftLabel.MMDET,
    *,
    num_points: int | Tensor | None = None,
    activation: str = "sigmoid",
) -> tuple[Tensor, Tensor]:
    """Dynamic soft label assignment for one image: owner int64 [P], iou float32 [P]."""
    x = pred_logits.float()
    if activation == "none":
        x = x.nan_to_num(0, 1, 0).clamp(0, 1)
        x = x.log().clamp(min=-100) - torch.log1p(-x).clamp(min=-100)
    x = x.nan_to_num(-LARGEST_LOGIT, LARGEST_LOGIT, -LARGEST_LOGIT).clamp(-LARGEST_LOGIT, LARGEST_LOGIT)

    def costs_of(boxes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return soft_label_costs(grid, pred_boxes, x, boxes, labels, settings)

    return _assign(costs_of, grid, pred_boxes, gt_boxes, gt_labels, settings.best_overlaps, num_points)
