"""mgassign beside its peers, on the same inputs: what `bench_assign.py --peers` runs.

Each peer works in a process of its own, in which mgassign's operator for the same job is timed in turn with it: one call
of the one, one of the other, and so on. The ratio is that of each such pair, so what slows the machine down for a while
slows both sides of a pair. A call of less than a tenth of a second is made once more directly before the timed one,
without being timed: each side finds its own data in the caches. CPU time, of all threads together, is told beside: on a
busy machine it is the figure to compare, with --threads 1.

What the peer's call makes of the owners besides, mgassign's side makes, too, in the rows named "-same" and in mmdet-fcos
(Peer.targets). In the others mgassign's side is owners alone: there ultralytics-tal makes labels, boxes and dense scores
besides, yolox-simota, mmdet-simota, mmdet-tal, mmdet-dsl and mmdet-atss make labels, torchvision and the reference
nothing more.

A process may take MEMORY_LIMIT of memory and `--limit` seconds; one that wants more is a row that says so.

Two counts say what a call asks of PyTorch's dispatcher. *Dispatched* are the operators that reach the device's kernels.
*Waits* are those among them that, on CUDA, make the host wait until the device has done all that was asked of it before:
their result is a Python number or has a shape that depends on values. It is a lower bound: small uploads
(`torch.tensor(number, device=...)`) wait too, and cannot be told apart on a CPU.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from time import perf_counter, perf_counter_ns, process_time_ns
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import bench_assign
from mgassign import dense_scores, take
from peers import PEERS, Adapter, Peer, report
from scenarios import GROWTH, SCENARIOS, Inputs, make_inputs

ALL_SCENARIOS = {**SCENARIOS, **GROWTH}
MEMORY_LIMIT = 12 * 2**30
SHORT_NS = 10**8
MOST_DIFFERING = 0.01  # of the points that have an object by either, where a peer computes the same up to its rounding

aten = torch.ops.aten
ALWAYS_WAIT = {
    aten._local_scalar_dense,  # item(), int(), bool(), an if, a tensor as a size or as an index of a list
    aten.equal,
    aten.nonzero,
    aten.masked_select,
    aten.bincount,
    aten._unique2,
    aten.unique_consecutive,
    aten.unique_dim,
}


def waits_for_device(operator: torch._ops.OpOverload, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    packet = operator.overloadpacket
    if packet in (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_):
        # Masks are turned into indices by nonzero, unless a single number is written: that is a masked_fill.
        masks = [index for index in args[1] if index is not None and index.dtype in (torch.bool, torch.uint8)]
        return bool(masks) and (packet is aten.index or args[2].numel() != 1)
    if packet is aten.repeat_interleave:
        return kwargs.get("output_size") is None
    return packet in ALWAYS_WAIT


class _Operators(TorchDispatchMode):
    dispatched = waits = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.dispatched += 1
        self.waits += waits_for_device(func, args, kwargs or {})
        return func(*args, **(kwargs or {}))


class _Functions(TorchFunctionMode):
    """What the dispatcher does not show when everything is on the CPU anyway."""

    def __init__(self, operators: _Operators) -> None:
        super().__init__()
        self.operators = operators

    def __torch_function__(self, func, types, args=(), kwargs=None):
        before = self.operators.waits
        result = func(*args, **(kwargs or {}))
        if func is torch.nn.functional.one_hot:
            self.operators.waits = before  # it looks at its values on the CPU alone
        elif func in (Tensor.cpu, Tensor.numpy, Tensor.tolist):
            self.operators.waits = before + 1
        return result


def count_operators(call: Callable[[], Any]) -> tuple[Any, dict[str, int]]:
    """What the call returns, and the two counts."""
    with _Operators() as operators, _Functions(operators):
        results = call()
    return results, {"dispatched": operators.dispatched, "waits": operators.waits}


def spread(values: Sequence[float]) -> dict[str, float]:
    deciles = statistics.quantiles(values, n=10, method="inclusive")
    return {"median": statistics.median(values), "p10": deciles[0], "p90": deciles[-1]}


def time_pairs(ours: Callable[[], Any], theirs: Callable[[], Any], repeats: int, budget_s: float) -> dict[str, Any]:
    """Times the two in turn: at least three pairs, at most ``repeats``. Both must have been called before."""

    def once(call: Callable[[], Any]) -> tuple[int, int]:
        start, start_of_cpu = perf_counter_ns(), process_time_ns()
        call()
        return perf_counter_ns() - start, process_time_ns() - start_of_cpu

    calls, times, cpu_times = (ours, theirs), ([], []), ([], [])
    latest = [0, SHORT_NS]  # slow peers make no call in vain
    gc.collect()
    gc.disable()
    end = perf_counter() + budget_s
    while len(times[0]) < 3 or (len(times[0]) < repeats and perf_counter() < end):
        for side, call in enumerate(calls):
            if latest[side] < SHORT_NS:
                call()
            latest[side], cpu_time = once(call)
            times[side].append(latest[side] / 1e6)
            cpu_times[side].append(cpu_time / 1e6)
    gc.enable()
    row: dict[str, Any] = {"pairs": len(times[0])}
    for kind, (our_times, their_times) in (("", times), ("cpu_", cpu_times)):
        row[f"mgassign_{kind}ms"], row[f"peer_{kind}ms"] = spread(our_times), spread(their_times)
        row[f"{kind}ratio"] = spread([their / our for our, their in zip(our_times, their_times, strict=True)])
    return row


def compare(peer: Peer, ours: Any, owners: Tensor, objects: int) -> dict[str, float]:
    """How many points each gives an object on average; how many they share, where both compute the same.

    Raises:
        ValueError: if too many that have an object by either differ to call it the same.
    """
    expected = getattr(ours, peer.compared)
    result = {
        "points_per_object": int((owners >= 0).sum()) / objects,
        "mgassign_points_per_object": int((expected >= 0).sum()) / objects,
    }
    if peer.same_job:
        result["agreement"] = float((owners == expected).double().mean())
        either = ((owners >= 0) | (expected >= 0)).sum()
        result["differ_share"] = float((owners != expected).sum() / either.clamp(min=1))
        if result["differ_share"] > MOST_DIFFERING:
            raise ValueError(f"{result['differ_share']:.2%} of the points that have an object get another by the peer")
    return result


def with_targets(call: Callable[[], Any], peer: Peer, inputs: Inputs) -> Callable[[], Any]:
    """The operator's call, and what the peer's makes of its owners besides."""
    grid, classes = inputs.grid, inputs.pred_logits.shape[-1]
    targets: dict[str, Callable[[Any, Tensor], Tensor]] = {
        "labels": lambda _, owner: take(owner, inputs.gt_labels),
        "boxes": lambda _, owner: take(owner, inputs.gt_boxes),
        "distances": lambda _, owner: grid.encode(take(owner, inputs.gt_boxes)),
        "scores": lambda found, owner: dense_scores(owner, found.target, inputs.gt_labels, classes),
    }

    def both() -> list[Tensor]:
        found = call()
        return [*found, *(targets[name](found, getattr(found, peer.compared)) for name in peer.targets)]

    return both if peer.targets else call


def measure(args: argparse.Namespace, scenario: str, name: str) -> dict[str, Any]:
    """The work of one child process."""
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_LIMIT, MEMORY_LIMIT))
    peer, stamp = PEERS[name], datetime.now(timezone.utc).isoformat(timespec="seconds")
    try:
        adapter = peer.load()
        small = make_inputs(replace(SCENARIOS["call"], images=16))
        adapter(small)()  # loads code, starts threads
        with_targets(bench_assign.make_call(peer.operator, "mgassign", small, peer.preset), peer, small)()
        inputs = make_inputs(ALL_SCENARIOS[scenario], args.data)
        theirs: Adapter = adapter(inputs)
        assign = bench_assign.make_call(peer.operator, "mgassign", inputs, peer.preset)
        ours = with_targets(assign, peer, inputs)
        objects = max(sum(map(len, inputs.gt_boxes)), 1)
        found, our_counts = count_operators(assign)  # take waits on a CPU alone, to look at its values
        if name.endswith("compiled"):  # it compiles now, and would run uncompiled while its operators are counted
            results, their_counts = theirs(), {}
        else:
            results, their_counts = count_operators(theirs)
        row = {"date": stamp, **compare(peer, found, theirs.owners(results), objects), **their_counts}
        if "differ_share" in row:
            print(f"{scenario} {name}: {row['differ_share']:.1e} of the positives differ", file=sys.stderr)
        row |= {f"mgassign_{key}": value for key, value in our_counts.items()}
        del found, results
        row["extra_bytes"] = bench_assign.peak_extra_bytes(theirs)
        row["mgassign_extra_bytes"] = bench_assign.peak_extra_bytes(ours)
        return row | time_pairs(ours, theirs, args.repeats, args.budget)
    except (RuntimeError, MemoryError) as error:
        if "allocate memory" not in str(error) and not isinstance(error, MemoryError):
            raise
        return {"date": stamp, "failed": f"out of memory: more than {MEMORY_LIMIT >> 30} GiB"}


def run(args: argparse.Namespace) -> int:
    """Measures ``args.peers`` on ``args.scenarios`` and prints the table; with ``args.json`` that file gains the rows."""
    content: dict[str, Any] = {
        "run": {key: value for key, value in bench_assign.describe_run(args).items() if key not in ("date", "load_before")},
        "scenarios": {},
    }  # fmt: skip
    content["run"]["peers"] = {key: value for peer in PEERS.values() for key, value in (peer.versions or {}).items()}
    if args.json and args.json.exists():
        earlier = json.loads(args.json.read_text())
        if earlier["run"] != content["run"]:
            print(f"--json: {args.json} holds figures of another machine, version or setting", file=sys.stderr)
            return 2
        content = earlier
    for scenario in args.scenarios:
        rows = content["scenarios"].setdefault(scenario, {})
        for name in args.peers:
            if PEERS[name].versions is None:
                rows.setdefault(name, {"failed": "not installed"})
            else:
                rows[name] = bench_assign.run_job(args, scenario, "peer", name)
        if args.json:
            bench_assign.write_json(args.json, content)
    print(report.markdown(content))
    if args.json:
        report.write_text(args.json.with_suffix(".md"), report.markdown(content))
        grown = [row for name in GROWTH for row in content["scenarios"].get(name, {}).values()]
        if any("failed" not in row for row in grown):
            report.write_plot(args.json.with_suffix(".png"), content)
    return 0
