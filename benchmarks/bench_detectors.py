"""Times the loss of each head of examples/detectors and of the stock head, on the same predictions and objects.

    build/projects/bin/python benchmarks/bench_detectors.py --output RESULTS.json

Prints a table: the loss with the assignment in it, and with its backward pass down to the predictions.
"""

from __future__ import annotations

import argparse
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

SIZE = (640, 640)


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


def median_of(call: Callable[[], tuple[float, float]], repeats: int) -> dict[str, float]:
    """In milliseconds, the first call left out."""
    call()
    loss, whole = zip(*(call() for _ in range(repeats)), strict=True)
    return {"loss": statistics.median(loss) * 1e3, "loss_and_backward": statistics.median(whole) * 1e3}


def measure(head: heads.Head, predictions: Any, of_images: heads.Objects, repeats: int) -> dict[str, float]:
    def step() -> tuple[float, float]:
        given = leaves(predictions)
        start = time.perf_counter()
        terms = head.loss(given, of_images)
        between = time.perf_counter()
        sum(terms.values()).backward()
        return between - start, time.perf_counter() - start

    return median_of(step, repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", nargs="*", choices=[head.__name__ for head in heads.HEADS], help="default: all")
    parser.add_argument("--objects", nargs="*", type=int, default=[20, 300], help="in each image")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    heads.NUM_CLASSES = options.classes
    rows = []
    for kind in heads.HEADS:
        if not heads.installed(kind) or (options.heads and kind.__name__ not in options.heads):
            continue
        for count in options.objects:
            row: dict[str, Any] = {"head": kind.__name__, "objects": count}
            for ours in (False, True):
                torch.manual_seed(0)
                head = kind(ours)
                with torch.no_grad():
                    predictions = head.predict(SIZE, options.batch)
                row["ours" if ours else "stock"] = measure(
                    head, predictions, objects(options.batch, count), options.repeats
                )
            rows.append(row)
            stock, ours = row["stock"], row["ours"]
            print(
                f"{row['head']:22} {count:4} objects  loss {stock['loss']:7.0f} -> {ours['loss']:5.0f} ms  with backward "
                f"{stock['loss_and_backward']:7.0f} -> {ours['loss_and_backward']:5.0f} ms",
                flush=True,
            )
    if options.output:
        machine = {"processor": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}
        versions = {"python": platform.python_version(), "torch": torch.__version__}
        settings = {"batch": options.batch, "size": SIZE, "classes": options.classes, "repeats": options.repeats}
        options.output.write_text(json.dumps({**machine, **versions, **settings, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
