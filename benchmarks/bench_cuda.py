"""``bench_assign.py --device cuda``: how long assignment takes on a GPU, and how far that is from what it must take.

First each scenario's results are compared with the CPU's; a single difference ends the run with exit code 1. Then, per
scenario and operator, objects padded to one tensor (or ``--objects list``: a tensor for each image):

graph       time of a call within a CUDA graph that holds one call for each of several copies of the inputs, so many that
            none is still in the L2 cache when its turn comes again; the graph's replay between two events, divided.
            Marked with a * where so many copies would not fit: then it may read from the cache.
eager       time between two events around one call from Python, its host time included; copies in turn.
host        time until the call returns, which does not wait for the GPU.
launches    kernels and memsets of a call.
extra       peak memory beyond inputs and outputs, as asked for: the allocator rounds it up.
floor       the bytes that must move (objects read, results written; for Mutual Guidance predicted boxes and the logits
            inside objects, too) at the bandwidth of a large copy, plus launches that wait for one another; and which share
            of the graph time that is.

The floor is no promise. What a GPU spends its time on here is instructions, not bytes: each point is compared with the
objects near it, where 40 to 60 bytes of memory meet some hundreds to thousands of instructions, and the warps of coarse
levels, near which most objects are, take the longest.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
from collections.abc import Callable
from time import perf_counter_ns
from typing import Any, NamedTuple

import torch
from torch import Tensor

import mgassign
from mgassign import PointGrid
from scenarios import SCENARIOS, Inputs, make_inputs

MOST_COPIES = 2048
SECTOR = 32  # bytes: the least that is read of a row of logits

Call = Callable[[], tuple[Tensor, ...]]


class Ceilings(NamedTuple):
    """What the GPU can do, as measured."""

    bytes_per_us: float
    """Of a large copy, read and written ones counted."""
    launch_us: float
    """A kernel that does next to nothing, in a graph of many that wait for one another."""


def time_us(run: Callable[[], Any], count: int) -> float:
    """Microseconds of GPU time, by events, for one of ``count`` things that ``run`` does."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1000 / count


def spread(times: list[float], prefix: str) -> dict[str, float]:
    deciles = statistics.quantiles(times, n=10, method="inclusive")
    return {f"{prefix}_us": statistics.median(times), f"{prefix}_p10_us": deciles[0], f"{prefix}_p90_us": deciles[-1]}


def capture(calls: list[Call]) -> torch.cuda.CUDAGraph:
    """A graph of all the calls, one after the other."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = [call() for call in calls]  # so that each has results of its own
    del kept
    return graph


def measure_ceilings() -> Ceilings:
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    copy_us = min(time_us(lambda: target.copy_(source), 1) for _ in range(20))
    tiny = torch.zeros(1, device="cuda")
    graph = capture([lambda: (tiny.add_(1),)] * 200)
    return Ceilings(2 * source.numel() / copy_us, min(time_us(graph.replay, 200) for _ in range(20)))


Objects = Tensor | list[Tensor]


def operands(inputs: Inputs, objects: str) -> list[Objects]:
    """pred_boxes, pred_logits, gt_boxes, gt_labels, the last two padded or as lists."""
    if objects == "list":
        return list(inputs[1:])
    boxes = torch.nn.utils.rnn.pad_sequence(inputs.gt_boxes, batch_first=True)
    labels = torch.nn.utils.rnn.pad_sequence(inputs.gt_labels, batch_first=True, padding_value=-1)
    return [inputs.pred_boxes, inputs.pred_logits, boxes, labels]


def copy_of(value: Objects, device: str) -> Objects:
    return [copy_of(tensor, device) for tensor in value] if isinstance(value, list) else value.to(device, copy=True)


class Operator(NamedTuple):
    launches: int
    """Kernels and memsets that wait for one another."""
    call: Callable[[PointGrid, Tensor, list[Objects]], tuple[Tensor, ...]]
    """Of a grid, its anchors, and operands()."""


# Logits count as they are, also where an original takes probabilities. Anchors: one a point, as wide as eight strides.
OPERATORS = {
    "mutual_guidance_assign": Operator(3, lambda grid, _, tensors: mgassign.mutual_guidance_assign(grid, *tensors)),
    "fcos_assign": Operator(2, lambda grid, _, tensors: mgassign.fcos_assign(grid, tensors[2])),
    "task_aligned_assign": Operator(
        4, lambda grid, _, tensors: mgassign.task_aligned_assign(grid, *tensors, activation="sigmoid")
    ),
    "sim_ota_assign": Operator(3, lambda grid, _, tensors: mgassign.sim_ota_assign(grid, *tensors)),
    "soft_label_assign": Operator(3, lambda grid, _, tensors: mgassign.soft_label_assign(grid, *tensors)),
    "atss_assign": Operator(3, lambda grid, _, tensors: mgassign.atss_assign(grid, tensors[2], gt_labels=tensors[3])),
    "max_iou_assign": Operator(
        3, lambda _, anchors, tensors: mgassign.max_iou_assign(anchors, tensors[2], gt_labels=tensors[3])
    ),
    "anchor_mutual_guidance_assign": Operator(
        8, lambda _, anchors, tensors: mgassign.anchor_mutual_guidance_assign(anchors, *tensors)
    ),
}


def make_call(operator: str, grid: PointGrid, tensors: list[Objects]) -> Call:
    reach = 4 * grid.point_strides()[:, None]
    anchors = torch.cat([grid.points() - reach, grid.points() + reach], dim=1).to(tensors[0].device)
    return functools.partial(OPERATORS[operator].call, grid, anchors, tensors)


def least_bytes(operator: str, inputs: Inputs) -> int:
    """What has to move, whatever the algorithm."""
    results = make_call(operator, inputs.grid, operands(inputs, "list"))()
    must_move = sum(result.nbytes for result in results) + sum(
        boxes.nbytes + 8 * len(boxes) for boxes in inputs.gt_boxes
    )
    if operator != "mutual_guidance_assign":
        return must_move
    points = inputs.grid.num_points
    read = sum(
        int((mgassign.amplified_centerness(inputs.grid, boxes, torch.ones(points, 1).expand(-1, len(boxes))) > 0).sum())
        for boxes in inputs.gt_boxes
    )
    return must_move + inputs.pred_boxes.nbytes + read * SECTOR


def count_launches(call: Call) -> int | None:
    with torch.profiler.profile(activities=list(torch.profiler.supported_activities())) as profile:
        call()
        torch.cuda.synchronize()
    on_gpu = [event for event in profile.events() or () if event.device_type == torch.autograd.DeviceType.CUDA]
    return len(on_gpu) or None  # None: the profiler has no access to the GPU


def extra_bytes(call: Call) -> int:
    def requested(when: str) -> int:
        return torch.cuda.memory_stats()[f"requested_bytes.all.{when}"]

    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = requested("current")
    results = call()
    held = requested("current")
    del results
    return requested("peak") - before - (held - before)


def measure(operator: str, inputs: Inputs, objects: str, ceilings: Ceilings, repeats: int) -> dict[str, Any]:
    tensors = operands(inputs, objects)
    must_move = least_bytes(operator, inputs)
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    free, _ = torch.cuda.mem_get_info()
    fitting = free // 2 // sum(tensor.nbytes for tensor in operands(inputs, "padded"))
    copies = min(MOST_COPIES, fitting, 2 + 2 * cache // must_move)
    calls = [make_call(operator, inputs.grid, [copy_of(t, "cuda") for t in tensors]) for _ in range(copies)]

    graph = capture(calls)
    for _ in range(3):
        graph.replay()
    replays = [time_us(graph.replay, copies) for _ in range(max(10, repeats // copies))]
    del graph

    eager, host = [], []
    for i in range(max(repeats, 20)):
        torch.cuda.synchronize()
        eager.append(time_us(calls[i % copies], 1))
        torch.cuda.synchronize()
        start = perf_counter_ns()
        calls[(i + 1) % copies]()
        host.append((perf_counter_ns() - start) / 1000)
    floor = must_move / ceilings.bytes_per_us + OPERATORS[operator].launches * ceilings.launch_us
    return {
        **spread(replays, "graph"),
        **spread(eager[10:], "eager"),
        **spread(host[10:], "host"),
        "launches": count_launches(calls[0]),
        "extra_bytes": extra_bytes(calls[0]),
        "must_move_bytes": must_move,
        "floor_us": floor,
        "copies": copies,
        "cached": copies * must_move <= cache,
    }


def differing(operator: str, inputs: Inputs, objects: str) -> int:
    """How many entries of the GPU's results are not the CPU's."""
    tensors = operands(inputs, objects)
    expected = make_call(operator, inputs.grid, tensors)()
    found = make_call(operator, inputs.grid, [copy_of(tensor, "cuda") for tensor in tensors])()
    return sum(int((a.cpu() != b).sum()) for a, b in zip(found, expected, strict=True))


def make_table(scenarios: dict[str, Any]) -> str:
    lines = [
        "| scenario | operator | graph µs | p10 to p90 | eager µs | host µs | launches | extra MiB "
        "| bytes per point and image | floor µs | floor / graph |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, scenario in scenarios.items():
        for operator, row in scenario["operators"].items():
            cells = [f"{name}: {SCENARIOS[name].about}", operator, f"{row['graph_us']:.1f}{'*' * row['cached']}"]
            cells += [f"{row['graph_p10_us']:.1f} to {row['graph_p90_us']:.1f}", f"{row['eager_us']:.0f}"]
            cells += [f"{row['host_us']:.0f}", str(row["launches"] or "-"), f"{row['extra_bytes'] / 2**20:.1f}"]
            cells += [f"{row['extra_bytes'] / scenario['points']:.1f}", f"{row['floor_us']:.1f}"]
            lines.append(f"| {' | '.join(cells)} | {row['floor_us'] / row['graph_us']:.0%} |")
    return "\n".join(lines)


def run(args: argparse.Namespace, about: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Measures ``args.scenarios`` and prints a table: the exit code, and what there is to write."""
    ceilings = measure_ceilings()
    about = {
        **about,
        "objects": args.objects,
        "gpu": torch.cuda.get_device_name(),
        "cuda": torch.version.cuda,
        "copy_tb_per_s": round(ceilings.bytes_per_us / 1e6, 2),
        "empty_launch_us": round(ceilings.launch_us, 2),
    }
    scenarios: dict[str, Any] = {}
    for name in args.scenarios:
        inputs = make_inputs(SCENARIOS[name], args.data)
        for operator in OPERATORS:
            if wrong := differing(operator, inputs, args.objects):
                print(f"scenario {name}: {operator}: {wrong:,} results differ from the CPU's", file=sys.stderr)
                return 1, {}
        rows = {op: measure(op, inputs, args.objects, ceilings, args.repeats) for op in OPERATORS}
        scenarios[name] = {"points": inputs.pred_boxes.shape[0] * inputs.pred_boxes.shape[1], "operators": rows}
        torch.cuda.empty_cache()
    compared = sum(scenario["points"] for scenario in scenarios.values())
    print(make_table(scenarios), "\n\n", ", ".join(f"{key} {value}" for key, value in about.items()), ".", sep="")
    print(f"Compared with the CPU before: {compared:,} points, of which 0 differ.")
    return 0, {**about, "scenarios": scenarios}
