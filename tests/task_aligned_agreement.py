"""When two task-aligned assignments agree: exactly, or up to scores and overlaps that differ by rounding only."""

from __future__ import annotations

import torch
from torch import Tensor

from mgassign import PointGrid, TaskAligned, reference
from mgassign.reference.task_aligned import holding

# Of the overlap, absolutely: complete IoU is a difference of numbers up to 1, each within some units of 2^-24.
OVERLAP_ERROR = 1e-6


def doubtful(
    grid: PointGrid, pred_boxes: Tensor, probabilities: Tensor, gt_boxes: Tensor, gt_labels: Tensor,
    settings: TaskAligned, k: int | Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """For one image: whose choice rounding may turn [P, G], whose points' contests [P], and the scores [P, G].

    A choice is in doubt where its score is within rounding of the last one chosen, or so small that the one who rounds
    it to 0 does not choose it; a contest, where its two highest overlaps are.
    """
    u = reference.task_aligned_overlap(pred_boxes, gt_boxes, settings.overlap).double()
    s = probabilities.double().nan_to_num(0).clamp(0, 1)[:, gt_labels.clamp(min=0)]
    m = s**settings.alpha * u**settings.beta
    error = m * (1e-6 + (settings.alpha + settings.beta) * OVERLAP_ERROR / u.clamp(min=OVERLAP_ERROR))
    holds = holding(grid, gt_boxes, gt_labels, settings)
    may_choose = holds if settings.candidates == "inside" else (gt_labels >= 0).expand_as(holds)

    scores = torch.where(may_choose, m, 0.0)
    k = torch.as_tensor(settings.k if k is None else k).expand(len(gt_boxes)).clamp(max=len(m))
    ranked = torch.cat([torch.full((1, len(gt_boxes)), torch.inf), scores.sort(0, descending=True).values])
    last = ranked.gather(0, k[None])
    choices = may_choose & (((m - last).abs() <= error + last * 1e-5) | (m < 1e-36))

    rivals = torch.where(holds, u, -1.0)
    highest = torch.cat([rivals, torch.full((len(u), 2), -1.0)], 1).topk(2, dim=1).values
    return choices, highest[:, 0] - highest[:, 1] <= 2 * OVERLAP_ERROR, m


def unexplained(ours: Tensor, theirs: Tensor, choices: Tensor, contests: Tensor, m: Tensor) -> list[int]:
    """The points to which two answers give different owners for no reason but a mistake of one of them."""
    different = ours != theirs
    explained = different & (choices.any(1) | contests)
    # With `keep`, an object that loses a point for a good reason keeps another one instead; and so on.
    while True:
        objects = torch.cat([ours[explained], theirs[explained]]).unique()
        more = (
            different
            & ~explained
            & (torch.isin(ours, objects[objects >= 0]) | torch.isin(theirs, objects[objects >= 0]))
        )
        # Or two of its points are within rounding of each other.
        for j in (different & ~explained & ~more).nonzero().flatten().tolist():
            for g in {int(ours[j]), int(theirs[j])} - {-1, -2}:
                own = m[(ours == g) | (theirs == g), g]
                more[j] |= int(((own - m[j, g]).abs() <= 1e-5 * m[j, g]).sum()) > 1
        if not more.any():
            return (different & ~explained).nonzero().flatten().tolist()
        explained |= more
