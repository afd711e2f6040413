"""Times the loss of each head of examples/detectors and of the stock head, on the same predictions and objects.

    build/projects/bin/python benchmarks/bench_detectors.py --output RESULTS.json

Prints a table: the loss with the assignment in it, and with its backward pass down to the predictions. Each row is measured
in a process of its own, since what a call before it left in the heap moves a loss by a third. Both heads are timed in turn,
after some calls of each, so that what slows the machine down for a while slows both.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "examples/detectors")]

import heads  # noqa: E402
from bench_assign import run_job, write_json  # noqa: E402

SIZE = (640, 640)
Times = tuple[float, float]  # the loss alone, and with its backward pass, in seconds


def leaves(value: Any) -> Any:
    """The predictions cut off from the network, to be differentiated by."""
    if isinstance(value, Tensor):
        return value.detach().requires_grad_() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: leaves(of_key) for key, of_key in value.items()}
    return type(value)(map(leaves, value)) if isinstance(value, (list, tuple)) else value


def objects(batch: int, count: int) -> heads.Objects:
    generator = torch.Generator().manual_seed(0)
    drawn = []
    for _ in range(batch):
        sides = 8 * 40 ** torch.rand(count, 2, generator=generator)  # 8 to 320 px, log-uniform
        corners = torch.rand(count, 2, generator=generator) * (SIZE[0] - sides)
        labels = torch.randint(heads.NUM_CLASSES, (count,), generator=generator)
        drawn.append((torch.cat([corners, corners + sides], 1), labels))
    return drawn


def make_step(kind: type[heads.Head], ours: bool, batch: int, of_images: heads.Objects) -> Callable[[], Times]:
    torch.manual_seed(0)
    head = kind(ours)
    with torch.no_grad():
        predictions = head.predict(SIZE, batch)

    def step() -> Times:
        given = leaves(predictions)
        start = time.perf_counter()
        terms = head.loss(given, of_images)
        between = time.perf_counter()
        sum(terms.values()).backward()
        return between - start, time.perf_counter() - start

    return step


def medians(steps: dict[str, Callable[[], Times]], budget_s: float) -> dict[str, Any]:
    """Of each in milliseconds, over as many pairs of calls as the budget holds, at least three."""

    def take_turns(least: int, seconds: float) -> list[dict[str, Times]]:
        turns: list[dict[str, Times]] = []
        end = time.perf_counter() + seconds
        while len(turns) < least or time.perf_counter() < end:
            turns.append({name: step() for name, step in steps.items()})
        return turns

    take_turns(1, budget_s / 5)
    gc.collect()
    gc.disable()
    turns = take_turns(3, budget_s)
    gc.enable()

    def median(name: str, part: int) -> float:
        return statistics.median(turn[name][part] for turn in turns) * 1e3

    return {
        "pairs": len(turns),
        **{name: {"loss": median(name, 0), "loss_and_backward": median(name, 1)} for name in steps},
    }


def measure(kind: type[heads.Head], count: int, batch: int, budget_s: float) -> dict[str, Any]:
    drawn = objects(batch, count)
    steps = {name: make_step(kind, name == "ours", batch, drawn) for name in ("stock", "ours")}
    return {"head": kind.__name__, "objects": count, **medians(steps, budget_s)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", nargs="*", choices=[head.__name__ for head in heads.HEADS], help="default: all")
    parser.add_argument("--objects", nargs="*", type=int, default=[20, 300], help="in each image")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument(
        "--budget", type=float, default=5, metavar="S", help="seconds of timed calls a row (default: 5)"
    )
    parser.add_argument("--threads", type=int, default=2, help="threads PyTorch may use (default: 2)")
    parser.add_argument("--limit", type=int, default=600, metavar="S", help="seconds a row may take (default: 600)")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--job", nargs=2, help=argparse.SUPPRESS)  # what a child process is started for
    options = parser.parse_args()
    if min(options.batch, options.classes, options.threads, options.limit) < 1 or options.budget <= 0:
        parser.error("--batch, --classes, --threads, --budget, --limit: expected above 0")
    if min(options.objects, default=-1) < 0:
        parser.error(f"--objects: expected numbers of at least 0, got {options.objects}")
    if options.output and not options.output.absolute().parent.is_dir():
        parser.error(f"--output: no folder {options.output.parent}")
    if missing := [name for name in options.heads or () if not heads.installed(getattr(heads, name))]:
        parser.error(f"--heads: not installed are the packages of {', '.join(missing)}")
    heads.NUM_CLASSES = options.classes
    torch.set_num_threads(options.threads)
    if options.job:
        name, count = options.job
        print(json.dumps(measure(getattr(heads, name), int(count), options.batch, options.budget)))
        return 0
    rows, failed = [], False
    for kind in heads.HEADS:
        if not heads.installed(kind) or (options.heads and kind.__name__ not in options.heads):
            continue
        for count in options.objects:
            row = run_job(
                options, kind.__name__, str(count), script=__file__, settings=("batch", "classes", "budget", "threads")
            )
            if "failed" in row:
                failed = True
                continue
            rows.append(row)
            stock, ours = row["stock"], row["ours"]
            print(
                f"{row['head']:22} {count:4} objects  loss {stock['loss']:7.0f} -> {ours['loss']:5.0f} ms  with backward "
                f"{stock['loss_and_backward']:7.0f} -> {ours['loss_and_backward']:5.0f} ms",
                flush=True,
            )
    if options.output and not failed:
        machine = {"processor": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}
        versions = {"python": platform.python_version(), "torch": torch.__version__}
        settings = {"batch": options.batch, "size": SIZE, "classes": options.classes, "budget_s": options.budget}
        write_json(options.output, {**machine, **versions, **settings, "rows": rows})
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
