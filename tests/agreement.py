"""When two results of Classify to Localize agree: exactly, or up to scores that differ by rounding only."""

from __future__ import annotations

import torch
from torch import Tensor

from mgassign import Assignment, PointGrid, reference
from mgassign.reference.mutual_guidance import competing_boxes
from scenes import Scene

# Both float32 chains (distances, ratios, sigmoid, log or pow, exp) stay within this of the exact score:
# its logarithm within 4 ulp, 5e-7 relative, plus 4e-7 for centerness; doubled.
RELATIVE_ERROR = 1e-6


def score_bounds(grid: PointGrid, gt_boxes: Tensor, probs: Tensor, sigma: float, level_gate: bool, slack: float = 1.0):
    """Lower and upper bound of what float32 may make of each amplified centerness, float64 [P, G]."""
    candidate = reference.amplified_centerness(grid, gt_boxes, torch.ones_like(probs), sigma, level_gate) > 0
    left, top, right, bottom = (d.double() for d in reference.distances(grid, gt_boxes))
    ratio = (
        torch.minimum(left, right)
        / torch.maximum(left, right)
        * torch.minimum(top, bottom)
        / torch.maximum(top, bottom)
    )
    log = 0.5 * ratio.clamp(min=1e-300).log() * (sigma - probs.double()) / sigma
    margin = slack * RELATIVE_ERROR * (1 + log.abs())
    return [torch.where(candidate, log.exp() * factor, 0.0) for factor in (1 - margin, 1 + margin)]


def check_loc(loc: Tensor, num_points: Tensor, low: Tensor, high: Tensor) -> None:
    """Asserts that loc [P] is a right answer of one image for some scores within the bounds."""
    for g, allowed in enumerate(num_points.tolist()):
        chosen = loc == g
        assert chosen.sum() <= allowed
        assert (low[chosen, g] > 0).all(), "a positive without a score"
        # Whoever is chosen may be the best at its point.
        assert (high[chosen, g] >= low[chosen].amax(1)).all(), "a point given to a worse object"
        # Whoever surely stands for g and is not chosen may be no better than the worst chosen.
        others = high.clone()
        others[:, g] = 0
        left_out = (low[:, g] > others.amax(1)) & ~chosen
        if left_out.any():
            assert chosen.sum() == allowed, "an object got fewer points than it could"
            if allowed:
                assert low[left_out, g].max() <= high[chosen, g].min(), "a better point left out"


def check_nobody(found: Tensor, expected: Tensor) -> None:
    """Asserts that points to whom neither answer gives an object are background in both, or to be ignored in both."""
    nobody = (found < 0) & (expected < 0)
    assert torch.equal(found[nobody], expected[nobody]), "background that is to be ignored, or the other way round"


def check_agreement(
    found: Assignment, scene: Scene, *, sigma=2.0, level_gate=True, activation="sigmoid", **settings
) -> int:
    """Asserts that found is the reference's answer; returns how many points differ in loc, by rounding."""
    expected = scene.reference(sigma=sigma, level_gate=level_gate, activation=activation, **settings)
    torch.testing.assert_close(found.original, expected.original, rtol=0, atol=0)
    torch.testing.assert_close(found.num_points, expected.num_points, rtol=0, atol=0)
    torch.testing.assert_close(found.cls, expected.cls, rtol=0, atol=0)
    torch.testing.assert_close(found.iou, expected.iou, rtol=0, atol=0)
    check_nobody(found.loc, expected.loc)
    differing = int((found.loc != expected.loc).sum())
    if differing:
        per_image = found.num_points.split([len(labels) for labels in scene.gt_labels])
        for b, labels in enumerate(scene.gt_labels):
            logits = scene.pred_logits[b][:, labels.clamp(min=0)].float()
            probs = torch.sigmoid(logits) if activation == "sigmoid" else logits
            boxes = competing_boxes(scene.gt_boxes[b].float(), labels)
            bounds = score_bounds(scene.grid, boxes, probs.nan_to_num(0).clamp(0, 1), sigma, level_gate)
            check_loc(found.loc[b], per_image[b], *bounds)
    return differing
