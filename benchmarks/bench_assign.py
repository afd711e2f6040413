"""How fast assignment is and how much memory it takes, beside the plain PyTorch reference.

    python benchmarks/bench_assign.py                          everything; the table goes to stdout
    python benchmarks/bench_assign.py --scenarios A,C --no-reference --json results.json

First every scenario's assignments are compared with mgassign.reference; a difference beyond rounding ends the run with
exit code 1. Then each measurement runs in a process of its own: one call for memory, warm-up, timed calls with the
garbage collector off. Run it on an idle machine: with other work on its cores, threads wait for each other.

The reference handles one image, so for a batch it runs image by image. Compiled means torch.compile of that function;
what compiling costs is not counted, it happens in the calls before the timed ones.

Extra memory is what a call needs at its peak beyond its inputs and outputs: the most that was allocated at a time since
the call began, by any thread, as memray sees it, less the bytes of the outputs. Before it, a call on a small batch loads
code and starts threads. What the call allocates counts to the byte whether its pages were ever written or not; resident
memory would not do, as the system takes pages back from a process when it likes. Without memray, '-'.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from operator import attrgetter
from pathlib import Path
from time import perf_counter, perf_counter_ns
from typing import Any

import torch

try:
    import memray
except ImportError:  # there is none for Windows
    memray = None

import mgassign
from mgassign import reference
from peers import PEERS
from scenarios import COCO_BOXES, GROWTH, SCENARIOS, Inputs, make_inputs

OPERATORS = {  # and which inputs they take, after the grid
    "mutual_guidance_assign": ("pred_boxes", "pred_logits", "gt_boxes", "gt_labels"),
    "task_aligned_assign": ("pred_boxes", "pred_scores", "gt_boxes", "gt_labels"),
    "sim_ota_assign": ("pred_boxes", "pred_logits", "gt_boxes", "gt_labels"),
    "soft_label_assign": ("pred_boxes", "pred_logits", "gt_boxes", "gt_labels"),
    "fcos_assign": ("gt_boxes",),
}
REFERENCES = ("eager", "compiled")
WITH_REFERENCE = ("A", "B", "C", "D", "E", "R")
MOST_PAIRS_CHECKED = 50_000_000  # of a point and an object: what the reference does in some seconds
ROUNDING_SHARE = 0.001  # of the positives: scores that differ by rounding may swap places


def make_call(operator: str, by: str, inputs: Inputs, preset: str = "") -> Callable[[], Any]:
    """The call to measure, which returns tensors; ``by`` is mgassign or one of REFERENCES."""
    have = {**inputs._asdict(), "pred_scores": inputs.pred_logits}
    if "pred_scores" in OPERATORS[operator]:  # probabilities, which detectors that take them have at hand
        have["pred_scores"] = inputs.pred_logits.sigmoid()
    arguments = [have[name] for name in OPERATORS[operator]]
    assign = getattr(mgassign if by == "mgassign" else reference, operator)
    if preset:
        assign = partial(assign, settings=attrgetter(preset)(mgassign))
    if preset == "SimOTA.YOLOX_0_3":  # which takes objectness
        assign = partial(assign, pred_objectness=torch.zeros(inputs.pred_logits.shape[:2]))
    if by == "mgassign":
        return lambda: assign(inputs.grid, *arguments)
    if by == "compiled":
        assign = torch.compile(assign)
    images = list(zip(*arguments, strict=True))
    return lambda: [result for image in images for result in assign(inputs.grid, *image)]


def check(inputs: Inputs) -> dict[str, Any]:
    """Counts where the operators' results and the reference's differ; of large batches in the first images alone."""
    totals = {"points": inputs.pred_boxes[..., 0].numel(), "objects": sum(map(len, inputs.gt_boxes))}
    pairs = torch.tensor([inputs.grid.num_points * len(boxes) for boxes in inputs.gt_boxes]).cumsum(0)
    images = max(1, int((pairs <= MOST_PAIRS_CHECKED).sum()))
    inputs = Inputs(inputs.grid, *(of_images[:images] for of_images in inputs[1:]))

    differing, positives = {}, {}
    owners = dict.fromkeys(("task_aligned_assign", "sim_ota_assign", "soft_label_assign"), "owner")
    for operator, owner in {"mutual_guidance_assign": "loc", **owners}.items():
        found = make_call(operator, "mgassign", inputs)()
        results = make_call(operator, "eager", inputs)()
        expected = {name: torch.cat(results[i :: len(found)]) for i, name in enumerate(found._fields)}
        same = found._asdict()[owner].flatten() == expected[owner]
        positives[f"{operator}.{owner}"] = int((expected[owner] >= 0).sum())
        for name, value in found._asdict().items():
            different = value.flatten() != expected[name]
            if operator != "mutual_guidance_assign" and value.is_floating_point():
                # The same but for the last digits, where the point's owner is the same.
                different = same & ~torch.isclose(value.flatten(), expected[name], rtol=1e-4, atol=1e-6)
            differing[f"{operator}.{name}"] = int(different.sum())
        if operator == "mutual_guidance_assign":
            for name, value in make_call("fcos_assign", "mgassign", inputs)()._asdict().items():
                differing[f"fcos_assign.{name}"] = int((value.flatten() != expected[name]).sum())
    wrong = {name: count for name, count in differing.items() if count > ROUNDING_SHARE * positives.get(name, 0)}
    return {
        **totals,
        "compared": inputs.pred_boxes[..., 0].numel(),
        "positives": positives,
        "differing": differing,
        "wrong": ", ".join(f"{name} differs {count:,} times" for name, count in wrong.items()),
    }


def peak_extra_bytes(call: Callable[[], Any]) -> int | None:
    """What a call needs at its peak beyond inputs and outputs; see the top of this file."""
    if memray is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        allocations = Path(folder, "allocations")
        with memray.Tracker(allocations, file_format=memray.FileFormat.AGGREGATED_ALLOCATIONS):
            results = call()
        peak = memray.FileReader(allocations).metadata.peak_memory
    return peak - sum(output.nbytes for output in results)


def time_calls(call: Callable[[], Any], repeats: int, budget_s: float) -> dict[str, float]:
    """Median and spread over as many calls as the budget holds: at least three, at most ``repeats``."""

    def once() -> int:
        start = perf_counter_ns()
        call()
        return perf_counter_ns() - start

    once()
    end = perf_counter() + budget_s / 10
    while perf_counter() < end:
        once()
    gc.collect()
    gc.disable()
    times: list[int] = []
    end = perf_counter() + budget_s
    while len(times) < 3 or (len(times) < repeats and perf_counter() < end):
        times.append(once())
    gc.enable()
    deciles = statistics.quantiles(times, n=10, method="inclusive")
    in_ns = {"median_ms": statistics.median(times), "p10_ms": deciles[0], "p90_ms": deciles[-1]}
    return {"repeats": len(times), **{name: ns / 1e6 for name, ns in in_ns.items()}}


def do_job(args: argparse.Namespace) -> dict[str, Any]:
    """The work of one child process."""
    torch.set_num_threads(args.threads)
    name, what, *by = args.job
    if what == "peer":
        import bench_peers  # which imports this module

        return bench_peers.measure(args, name, by[0])
    inputs = make_inputs(SCENARIOS[name], args.data)
    if what == "check":
        return check(inputs)
    call = make_call(what, by[0], inputs)
    extra = None
    if by[0] != "compiled":  # its first call compiles
        make_call(what, by[0], make_inputs(replace(SCENARIOS["call"], images=16)))()
        extra = peak_extra_bytes(call)
    return {"extra_bytes": extra, **time_calls(call, args.repeats, args.budget)}


def run_job(
    args: argparse.Namespace, *job: str, script: str = __file__,
    settings: Sequence[str] = ("threads", "repeats", "budget", "data"),
) -> dict[str, Any]:  # fmt: skip
    """Runs a job of a script in a fresh process; ``{"failed": why}`` where it brought no result."""
    given = {name: getattr(args, name) for name in settings if getattr(args, name)}
    command = [sys.executable, script, *(f"--{name}={value}" for name, value in given.items()), "--job", *job]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=args.limit)
    except subprocess.TimeoutExpired:
        result = {"failed": f"over {args.limit} s"}
    else:
        if done.returncode == 0:
            result = json.loads(done.stdout.splitlines()[-1])
        else:
            errors = re.findall(r"^[\w.]*(?:Error|Exception)\b.*", done.stderr, re.MULTILINE)
            result = {"failed": errors[-1] if errors else f"exit code {done.returncode}"}
    print(*job, json.dumps(result), file=sys.stderr)
    return result


def describe_run(args: argparse.Namespace) -> dict[str, Any]:
    """What the figures hold for."""
    cpuinfo = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.is_file() else None
    return {
        "cpu": model[1] if model else platform.processor() or platform.machine(),
        "isa": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "mgassign": mgassign.__version__,
        "device": args.device,
        "threads": args.threads,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def make_table(scenarios: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = [
        "| scenario | operator | median ms | p10 to p90 | ns per point and object | extra MiB "
        "| bytes per point and image | eager reference | compiled reference |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, scenario in scenarios.items():
        points = scenario["check"]["points"]
        pairs = points * scenario["check"]["objects"] / SCENARIOS[name].images
        for operator in OPERATORS:
            ours = scenario[operator]["mgassign"]
            median, extra = ours["median_ms"], ours["extra_bytes"]
            cells = [f"{name}: {SCENARIOS[name].about}", operator, f"{median:.3g}"]
            cells += [f"{ours['p10_ms']:.3g} to {ours['p90_ms']:.3g}", f"{median * 1e6 / pairs:.2g}"]
            cells += ["-", "-"] if extra is None else [f"{extra / 2**20:.1f}", f"{extra / points:.1f}"]
            for by in REFERENCES:
                theirs = scenario[operator].get(by, {"failed": "-"})
                cell = theirs["failed"][:60] if "failed" in theirs else f"{theirs['median_ms'] / median:,.0f}x slower"
                memory = theirs.get("extra_bytes")
                cells.append(cell if memory is None else f"{cell}, {memory / 2**20:,.0f} MiB")
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="\n".join(["scenarios:", *(f"  {name:6} {scenario.about}" for name, scenario in SCENARIOS.items())]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    option = parser.add_argument
    option("--scenarios", metavar="A,B,...", help="which scenarios to run (default: all; R only with data)")
    option("--data", type=Path, metavar="DIR", help=f"folder with {COCO_BOXES}, for R (default: $MGASSIGN_DATA)")
    option("--no-reference", action="store_true", help="compare with the reference, but do not time it")
    option("--threads", type=int, default=2, help="threads PyTorch may use (default: 2)")
    option("--repeats", type=int, default=1000, help="most timed calls per measurement (default: 1000)")
    option("--budget", type=float, default=5, metavar="S", help="seconds of timed calls per measurement (default: 5)")
    option(
        "--limit", type=int, default=300, metavar="S", help="seconds a measurement may take, all of it (default: 300)"
    )
    option(
        "--device", choices=["cpu", "cuda"], default="cpu", help="where to run (default: cpu; cuda: see bench_cuda.py)"
    )
    option(
        "--objects", choices=["padded", "list"], default="padded", help="with --device cuda: the form of the objects"
    )
    option("--json", type=Path, metavar="FILE", help="write machine, versions and all figures there")
    option(
        "--peers", nargs="?", const=",".join(PEERS), metavar="A,B,...",
        help=f"instead, measure beside other packages: {', '.join(PEERS)} (default: all); --json FILE then gains the "
        "rows measured, with FILE.md and FILE.png beside it",
    )  # fmt: skip
    option("--job", nargs="+", help=argparse.SUPPRESS)  # what a child process is started for
    args = parser.parse_args()
    if args.data is None and os.environ.get("MGASSIGN_DATA"):
        args.data = Path(os.environ["MGASSIGN_DATA"])
    known = {**SCENARIOS, **GROWTH} if args.peers else SCENARIOS
    every = [*WITH_REFERENCE, *GROWTH] if args.peers else list(SCENARIOS)
    args.scenarios = args.scenarios.split(",") if args.scenarios else [s for s in every if s != "R" or args.data]
    args.peers = args.peers and args.peers.split(",")

    wrong = None
    if unknown := [name for name in args.scenarios if name not in known]:
        wrong = f"--scenarios: no scenario {unknown[0]!r}; there are {', '.join(known)}"
    elif unknown := [name for name in args.peers or () if name not in PEERS]:
        wrong = f"--peers: no peer {unknown[0]!r}; there are {', '.join(PEERS)}"
    elif "R" in args.scenarios and (args.data is None or not (args.data / COCO_BOXES).is_file()):
        wrong = f"--data: scenario R needs a folder with {COCO_BOXES}, got {args.data}"
    elif args.json and not args.json.absolute().parent.is_dir():
        wrong = f"--json: no folder {args.json.parent}"
    elif args.peers and args.device == "cuda":
        wrong = "--peers: measured on the CPU alone, got --device cuda"
    elif args.device == "cuda" and (mgassign._library.cuda_library is None or not torch.cuda.is_available()):
        wrong = f"--device: no CUDA: {mgassign._library.no_cuda_reason or 'torch finds no GPU'}"
    elif min(args.threads, args.repeats, args.limit) < 1 or args.budget <= 0:
        wrong = "--threads, --repeats, --budget, --limit: expected above 0"
    if wrong:
        parser.exit(2, f"{parser.prog}: {wrong}\n")
    return args


def write_json(path: Path, content: dict[str, Any]) -> None:
    """All or nothing: a run that ends halfway leaves an older file as it was."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(temporary, path)


def main() -> int:
    args = parse_arguments()
    if args.job:
        print(json.dumps(do_job(args)))
        return 0
    if args.peers:
        import bench_peers  # which imports this module

        return bench_peers.run(args)
    run = describe_run(args)
    if args.device == "cuda":
        import bench_cuda

        code, measured = bench_cuda.run(args, run)
        if args.json and code == 0:
            write_json(args.json, measured)
        return code
    scenarios: dict[str, Any] = {name: {"check": run_job(args, name, "check")} for name in args.scenarios}
    for name, scenario in scenarios.items():
        if wrong := scenario["check"].get("failed") or scenario["check"]["wrong"]:
            print(f"scenario {name}: comparison with the reference: {wrong}", file=sys.stderr)
            return 1
    for name, scenario in scenarios.items():
        references = REFERENCES if name in WITH_REFERENCE and not args.no_reference else ()
        for operator in OPERATORS:
            scenario[operator] = {by: run_job(args, name, operator, by) for by in ("mgassign", *references)}
            if failed := scenario[operator]["mgassign"].get("failed"):
                print(f"scenario {name}: {operator}: {failed}", file=sys.stderr)
                return 1

    checks = [scenario["check"] for scenario in scenarios.values()]
    print(make_table(scenarios), "\n\n", ", ".join(f"{key} {value}" for key, value in run.items()), ".", sep="")
    print(
        f"Compared with the reference before: {sum(c['compared'] for c in checks):,} points, of which "
        f"{sum(sum(c['differing'].values()) for c in checks):,} differ (in loc and owner alone, between scores a rounding apart)."
    )
    if {"S20", "S2000"} <= scenarios.keys():
        few, many = (scenarios[name]["mutual_guidance_assign"]["mgassign"]["median_ms"] for name in ("S20", "S2000"))
        print(f"Mutual Guidance, S20 to S2000: 100 times the objects take {many / few:.1f} times as long (aim: 15).")
    if args.json:
        write_json(args.json, {**run, "scenarios": scenarios})
    return 0


if __name__ == "__main__":
    sys.exit(main())
