"""Anchors: max-IoU beside torchvision and MMDetection, Mutual Guidance beside its building blocks, ATSS beside MMDetection.

    python benchmarks/bench_anchors.py [--scenarios A20,M2000] [--json results.json]

Each row is a process of its own, in which the other side does the same work on the same inputs, is compared with
mgassign (every owner; a difference ends the run with exit code 1) and then timed in turn with it. MMDetection's assigners
make labels of the owners, too; so does mgassign's side beside them. Anchors are nine shapes a place on five levels, as
torchvision's RetinaNet makes them; "shuffled" is in random order. ATSS has one a place. Objects are drawn as in
scenarios.py; predictions lie around the anchors, logits around -4. Extra memory is told as bench_assign.py tells it: at
the peak of a call, beyond inputs and outputs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import bench_assign
import bench_peers
import scenarios
from mgassign import (
    PointGrid,
    anchor_mutual_guidance_assign,
    atss_assign,
    box_iou,
    max_iou_assign,
    take,
    topk_per_object,
)

STRIDES = (8, 16, 32, 64, 128)
SHAPES = [(2 ** (octave / 3) * tall**0.5, 2 ** (octave / 3) / tall**0.5) for octave in range(3) for tall in (0.5, 1, 2)]


@dataclass(frozen=True)
class Scenario:
    operator: str
    images: int
    side: int
    objects: int
    others: tuple[str, ...] = ()
    sides: tuple[float, float] = (12, 1e9)
    shuffled: bool = False


_MATCH, _GUIDE, _ATSS = "max_iou_assign", "anchor_mutual_guidance_assign", "atss_assign"
SCENARIOS = {
    "A20": Scenario(_MATCH, 16, 640, 20, ("torchvision", "mmdet")),
    "A300": Scenario(_MATCH, 16, 640, 300, ("torchvision", "mmdet")),
    "A20 shuffled": Scenario(_MATCH, 16, 640, 20, shuffled=True),
    "A300 shuffled": Scenario(_MATCH, 16, 640, 300, shuffled=True),
    "M2000": Scenario(_MATCH, 1, 2304, 2000, (), (12, 256)),
    "M2000 shuffled": Scenario(_MATCH, 1, 2304, 2000, (), (12, 256), shuffled=True),
    "G20": Scenario(_GUIDE, 1, 640, 20, ("building blocks",)),
    "G300": Scenario(_GUIDE, 1, 640, 300, ("building blocks",)),
    "G300 shuffled": Scenario(_GUIDE, 1, 640, 300, shuffled=True),
    "T20": Scenario(_ATSS, 16, 640, 20, ("mmdet",)),
    "T300": Scenario(_ATSS, 16, 640, 300, ("mmdet",)),
}


def make_anchors(side: int) -> Tensor:
    levels = []
    for stride in STRIDES:
        at = torch.arange(-(-side // stride), dtype=torch.float32) * stride
        center = torch.cartesian_prod(at, at).flip(1)[:, None]
        half = 2 * stride * torch.tensor(SHAPES)
        levels.append(torch.cat([center - half, center + half], dim=2).flatten(0, 1))
    return torch.cat(levels)


def make_inputs(scenario: Scenario) -> list[Any]:
    """What the operator takes by position: anchors or a grid, predictions where they have a say, objects, labels."""
    size = (scenario.side, scenario.side)
    described = scenarios.Scenario(scenario.images, size, STRIDES, scenario.objects, scenario.sides)
    drawn = [
        scenarios._random_objects(described, scenario.objects, scenarios._seeded(image))
        for image in range(scenario.images)
    ]
    boxes, labels = map(list, zip(*drawn, strict=True))
    if scenario.operator == _ATSS:
        return [described.grid, boxes, labels]
    generator = torch.Generator().manual_seed(0)
    anchors = make_anchors(scenario.side)
    if scenario.shuffled:
        anchors = anchors[torch.randperm(len(anchors), generator=generator)]
    if scenario.operator == _MATCH:
        return [anchors, boxes, labels]
    shape = scenario.images, len(anchors)
    sides = (anchors[:, 2:] - anchors[:, :2]).repeat(1, 2)
    predicted = anchors + 0.1 * sides * torch.randn(*shape, 4, generator=generator)
    return [anchors, predicted, torch.randn(*shape, scenarios.NUM_CLASSES, generator=generator) - 4, boxes, labels]


def make_call(scenario: Scenario, inputs: list[Any], other: str = "") -> Callable[[], Any]:
    if scenario.operator == _GUIDE:
        return lambda: anchor_mutual_guidance_assign(*inputs)
    assign: Callable[..., Any] = atss_assign
    if scenario.operator == _MATCH:
        assign = partial(max_iou_assign, low_quality="object" if other == "mmdet" else "own")

    def with_labels() -> list[Tensor]:
        found = assign(*inputs[:2])
        return [*found, take(found.owner, inputs[2])]

    return with_labels if other == "mmdet" else lambda: assign(*inputs[:2])


def from_building_blocks(
    anchors: Tensor, pred_boxes: Tensor, pred_logits: Tensor, gt_boxes: list[Tensor], gt_labels: list[Tensor]
) -> list[Tensor]:
    """Mutual Guidance on anchors as one would put it together: cls, loc, original of each image."""
    results = []
    for predicted, logits, boxes, labels in zip(pred_boxes, pred_logits, gt_boxes, gt_labels, strict=True):
        static, regressed = box_iou(anchors, boxes), box_iou(predicted, boxes)
        amplified = static ** ((2.0 - logits[:, labels].sigmoid()) / 2.0)
        areas, objects = (boxes[:, 2:] - boxes[:, :2]).prod(1), torch.arange(len(boxes))
        for scores in (static, regressed, amplified):
            scores[scores.argmax(0), objects] = 1.0
        owner = topk_per_object(static, torch.full_like(objects, len(anchors)), areas)
        best = torch.where(owner >= 0, static.gather(1, owner.clamp(min=0)[:, None])[:, 0], 0.0)
        positive, more = (
            torch.bincount(owner[(owner >= 0) & (best >= least)], minlength=len(boxes)) for least in (0.5, 0.4)
        )
        k = positive.clamp(min=1)
        cls, near = (topk_per_object(regressed, n, areas) for n in (k, k + more - positive))
        original = torch.where(best >= 0.5, owner, torch.where(best >= 0.4, -2, -1))
        results += [torch.where((cls < 0) & (near >= 0), -2, cls), topk_per_object(amplified, k, areas), original]
    return results


def in_our_words(gt_inds: list[Tensor]) -> list[Tensor]:
    """mmdet's: 0 is background, -1 to be ignored."""
    stacked = torch.stack(gt_inds)
    return [torch.where(stacked > 0, stacked - 1, -1 - (stacked < 0).long())]


def make_other(
    scenario: Scenario, name: str, inputs: list[Any]
) -> tuple[Callable[[], Any], Callable[[Any], list[Tensor]]]:
    """The other side's call, and its results in mgassign's words."""
    if name == "building blocks":
        return (lambda: from_building_blocks(*inputs)), (lambda found: [torch.stack(found[i::3]) for i in range(3)])
    first, gt_boxes, gt_labels = inputs
    if name == "torchvision":
        from torchvision.models.detection._utils import Matcher
        from torchvision.ops import box_iou as torchvision_iou

        matcher = Matcher(0.5, 0.4, allow_low_quality_matches=True)
        return (lambda: [matcher(torchvision_iou(boxes, first)) for boxes in gt_boxes]), (
            lambda found: [torch.stack(found)]
        )
    from peers.mmdet_common import InstanceData  # first: it makes mmdet importable

    from mmdet.models.task_modules.assigners import ATSSAssigner, MaxIoUAssigner  # isort: skip

    objects = [InstanceData(bboxes=b, labels=t) for b, t in zip(gt_boxes, gt_labels, strict=True)]
    if isinstance(first, PointGrid):
        points, half = first.points(), 4 * first.point_strides()[:, None]
        priors = InstanceData(priors=torch.cat([points - half, points + half], dim=1))
        atss, per_level = ATSSAssigner(topk=9), list(first.points_per_level)
        return (lambda: [atss.assign(priors, per_level, of_image).gt_inds for of_image in objects]), in_our_words
    assigner, anchors = MaxIoUAssigner(0.5, 0.4, min_pos_iou=0.0), InstanceData(priors=first)
    return (lambda: [assigner.assign(anchors, of_image).gt_inds for of_image in objects]), in_our_words


def measure(scenario: Scenario, other: str, budget_s: float) -> dict[str, Any]:
    """The work of one child process."""
    small = replace(scenario, images=2, side=64, objects=2)
    make_call(small, make_inputs(small), other)()  # loads code, starts threads
    if other:
        make_other(small, other, make_inputs(small))[0]()
    inputs = make_inputs(scenario)
    ours = make_call(scenario, inputs, other)
    points = inputs[0].num_points if scenario.operator == _ATSS else len(inputs[0])
    row: dict[str, Any] = {"operator": scenario.operator, "points": points, "images": scenario.images}
    row |= {"objects": scenario.objects, "extra_bytes": bench_assign.peak_extra_bytes(ours)}
    if not other:
        return row | bench_assign.time_calls(ours, 1000, budget_s)
    theirs, words = make_other(scenario, other, inputs)
    row["other_extra_bytes"] = bench_assign.peak_extra_bytes(theirs)
    expected = words(theirs())
    row["positives"] = sum(int((owner >= 0).sum()) for owner in expected)
    row["differing"] = sum(int((a != b).sum()) for a, b in zip(ours(), expected, strict=False))
    return row | bench_peers.time_pairs(ours, theirs, 1000, budget_s)


def make_table(rows: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = [
        "| scenario: images x points x objects | beside | mgassign ms | other ms | times as fast | extra MiB (bytes a point) "
        "| other's MiB | positives, of which differ |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name, r in rows.items():
        scenario, _, other = name.partition(": ")
        about = f"{scenario}: {r['images']} x {r['points']:,} x {r['objects']:,}"
        extra = r["extra_bytes"]
        memory = "-" if extra is None else f"{extra / 2**20:.1f} ({extra / r['images'] / r['points']:.0f})"
        if other:
            more = r["other_extra_bytes"]
            cells = [
                f"{r['mgassign_ms']['median']:.3g}",
                f"{r['peer_ms']['median']:,.0f}",
                f"{r['ratio']['median']:,.0f}",
            ]
            cells += [memory, "-" if more is None else f"{more / 2**20:,.0f}"]
            cells += [f"{r['positives']:,}, {r['differing']:,}"]
        else:
            cells = [f"{r['median_ms']:.3g}", "-", "-", memory, "-", "-"]
        lines.append(f"| {about} | {' | '.join([other or '-', *cells])} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenarios", default=",".join(SCENARIOS), help=f"of {', '.join(SCENARIOS)} (default: all)")
    parser.add_argument("--threads", type=int, default=2, help="threads PyTorch may use (default: 2)")
    parser.add_argument("--budget", type=float, default=5, metavar="S", help="seconds of timed calls (default: 5)")
    parser.add_argument("--limit", type=int, default=300, metavar="S", help="seconds a row may take (default: 300)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine, versions and all figures there")
    parser.add_argument("--job", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.device = "cpu"
    if min(args.threads, args.limit) < 1 or args.budget <= 0:
        parser.error("--threads, --budget, --limit: expected above 0")
    if args.json and not args.json.absolute().parent.is_dir():
        parser.error(f"--json: no folder {args.json.parent}")
    torch.set_num_threads(args.threads)
    if args.job:
        print(json.dumps(measure(SCENARIOS[args.job[0]], args.job[1], args.budget)))
        return 0
    names = args.scenarios.split(",")
    if unknown := [name for name in names if name not in SCENARIOS]:
        parser.error(f"no scenario {unknown[0]!r}; there are {', '.join(SCENARIOS)}")
    run, rows, failed = bench_assign.describe_run(args), {}, False
    for name in names:
        for other in SCENARIOS[name].others or ("",):
            row = bench_assign.run_job(args, name, other, script=__file__, settings=("threads", "budget"))
            if "failed" in row:
                failed = True
                continue
            rows[f"{name}: {other}" if other else name] = row
            if row.get("differing"):
                print(f"{name}: {row['differing']} labels differ from those of {other}", file=sys.stderr)
                return 1
    print(make_table(rows), "\n\n", ", ".join(f"{key} {value}" for key, value in run.items()), ".", sep="")
    if args.json and not failed:
        bench_assign.write_json(args.json, {**run, "rows": rows})
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
