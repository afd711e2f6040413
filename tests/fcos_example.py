"""What the tests of the FCOS example share: options of a small network, what it wrote."""

from __future__ import annotations

import json
from pathlib import Path

import runs

TINY = ["--size", "64", "--width", "32", "--head-convs", "1", "--norm", "group", "--log-every", "1", "--device", "cpu"]
EXAMPLE = Path(runs.__file__).parent


def options(data: Path, *more: str) -> list[str]:
    return ["--train", f"{data}:train", *TINY, "--batch", "4", "--epochs", "2", *more]


def metrics_of(run: Path) -> list[dict]:
    """The lines but for the time, which differs from run to run."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "images_per_s"} for line in lines]
