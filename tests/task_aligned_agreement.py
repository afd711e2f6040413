"""When two task-aligned assignments agree: exactly, or where scores and overlaps that differ by rounding allow both."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mgassign import PointGrid, TaskAligned, reference
from mgassign.reference.task_aligned import holding

# Of the overlap, absolutely: complete IoU is a difference of numbers up to 1, each within some units of 2^-24.
OVERLAP_ERROR = 1e-6
SCORE_ERROR = 1e-6  # of a score, relatively, beyond what its overlap is off
UNDERFLOW = 1e-36  # a score below it may be 0 to the one who rounds it so


class Answers(NamedTuple):
    """What each point of an image may be given, as far as rounding leaves it open."""

    owner: Tensor  # bool [P, G]
    background: Tensor  # bool [P]

    def allow(self, owner: Tensor) -> Tensor:
        """Which of the points have an owner they may have, or none where they may have none: bool [P]."""
        if self.owner.shape[1] == 0:
            return owner < 0
        own = self.owner.gather(1, owner.clamp(min=0)[:, None])[:, 0]
        return torch.where(owner < 0, self.background, own)


def answers(
    grid: PointGrid, pred_boxes: Tensor, probabilities: Tensor, gt_boxes: Tensor, gt_labels: Tensor,
    settings: TaskAligned, k: int | None = None, *, fills_up: bool = False,
) -> Answers:  # fmt: skip
    """The answers for one image, from bounds of every score and overlap.

    An object certainly chooses a point that fewer than k others can outdo, and may choose one that fewer than k others
    certainly outdo. ``fills_up``: one that runs out of points of positive score chooses others in its window as well.
    """
    u = reference.task_aligned_overlap(pred_boxes, gt_boxes, settings.overlap).double()
    u_low, u_high = (u - OVERLAP_ERROR).clamp(min=0), torch.where(u > 0, u + OVERLAP_ERROR, 0.0)
    s = probabilities.double().nan_to_num(0).clamp(0, 1)[:, gt_labels.clamp(min=0)] ** settings.alpha
    low, high = s * u_low**settings.beta * (1 - SCORE_ERROR), s * u_high**settings.beta * (1 + SCORE_ERROR)
    low = torch.where((low < UNDERFLOW) | (u <= 0), 0.0, low)
    holds = holding(grid, gt_boxes, gt_labels, settings)

    may_choose = holds if settings.candidates == "inside" else (gt_labels >= 0).expand_as(holds)
    low, high = low * may_choose, high * may_choose
    k = settings.k if k is None else k
    choosers = holds & (low > 0) & (not_below(low, high) <= k)  # itself among them
    may_choosers = holds & (fills_up | (high > 0)) & (above(high, low) < k)

    # Nobody else's, or contested: the highest overlap of those that hold it, or of those that chose it.
    others = choosers.sum(1, keepdim=True) - choosers.int()
    rivals = holds if settings.contest == "inside" else may_choosers
    to_beat = holds if settings.contest == "inside" else choosers
    highest = torch.where(to_beat, u_low, 0.0).amax(1, keepdim=True) if len(gt_boxes) else u.new_zeros(len(u), 1)
    wins = rivals & (u_high >= highest) & (may_choosers.sum(1, keepdim=True) > 1)
    owner, background = (may_choosers & (others == 0)) | wins, ~choosers.any(1)

    if settings.keep is not None:
        certain = owner & (owner.sum(1, keepdim=True) == 1) & ~background[:, None]
        pushed_out = owner & (not_below(low, high * owner) - owner.int() >= settings.keep)
        owner = owner & (above(high, low * certain) < settings.keep)
        background |= pushed_out.any(1)
    return Answers(owner, background)


def not_below(of: Tensor, among: Tensor) -> Tensor:
    """Of each object and point, how many points of ``among`` are no lower: int64 [P, G]."""
    ordered = among.T.contiguous().sort(1).values
    return (len(of) - torch.searchsorted(ordered, of.T.contiguous())).T


def above(of: Tensor, among: Tensor) -> Tensor:
    """Of each object and point, how many points of ``among`` are higher: int64 [P, G]."""
    ordered = among.T.contiguous().sort(1).values
    return (len(of) - torch.searchsorted(ordered, of.T.contiguous(), right=True)).T
