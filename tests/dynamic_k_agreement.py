"""When two assignments by dynamic k agree: exactly, or where costs or sums of overlaps differ by rounding only."""

from __future__ import annotations

import torch
from torch import Tensor

# Of a cost, beside what it is of itself: float32 logarithms of probabilities, added over classes.
ABSOLUTE, RELATIVE = 2e-6, 1e-6


def unexplained(
    ours: Tensor, theirs: Tensor, costs: Tensor, pool: Tensor, u: Tensor, best_overlaps: int, k: int | None = None
) -> list[int]:
    """The points of an image to which two answers give different owners for no reason but a mistake of one of them.

    A difference is explained where an object that either names chose the point, or did not, by rounding: its cost is that
    of the last one chosen up to rounding, or the overlaps of the object add up to a whole number up to rounding, and the
    point is the one more or less; or where the two lowest costs of the point are equal up to rounding.

    Args:
        ours, theirs: Owners [P], indices within the image.
        costs, u: Of the T objects that take part, [P, T]; ``pool`` bool [P]: who may be chosen.
        best_overlaps: How many overlaps are added.
        k: How many points each object chooses whatever they add up to, at least 1.
    """
    different = (ours != theirs).nonzero().flatten()
    if len(different) == 0:
        return []
    costs = torch.where(pool[:, None], costs, torch.inf).double()
    beyond = torch.full((max(best_overlaps, k or 0) + 2, costs.shape[1]), torch.inf)
    ranked = torch.cat([costs.sort(0).values, beyond.double()])
    sums = torch.where(pool[:, None], u, 0.0).sort(0, descending=True).values[:best_overlaps].double().sum(0)
    slack = 1e-5  # ten roundings of numbers up to 10
    fewest, most = ((sums + s).floor().long().clamp(min=1) for s in (-slack, slack))
    if k is not None:
        fewest = most = torch.full_like(fewest, k)

    def error(cost: Tensor) -> Tensor:
        return ABSOLUTE + RELATIVE * cost.abs()

    last = ranked.gather(0, (fewest - 1)[None])  # surely chosen, but for its own rounding
    first = ranked.gather(0, torch.where(fewest == most, most, most - 1)[None])  # and the last one that may be
    in_doubt = (fewest != most) | (first - last <= 2 * error(first))
    choices = in_doubt & (costs >= last - 2 * error(last)) & (costs <= first + 2 * error(first)) & (costs < torch.inf)
    lowest = torch.cat([costs, torch.full((len(costs), 2), torch.inf).double()], 1).topk(2, dim=1, largest=False).values
    contests = lowest[:, 1] - lowest[:, 0] <= 2 * error(lowest[:, 0])
    # An object that chose a point or not in doubt makes it contested, or not: then others' owners change, too.
    return [j for j in different.tolist() if not (choices[j].any() or contests[j])]
