"""What the tests of the FCOS example share: a small drawn set, options of a small network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import runs

TINY = ["--size", "64", "--width", "32", "--head-convs", "1", "--norm", "group", "--log-every", "1", "--device", "cpu"]
EXAMPLE = Path(runs.__file__).parent


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    from drawn import draw_set  # wants Pillow

    folder = tmp_path_factory.mktemp("data") / "drawn"
    draw_set(folder, {"train": 9, "val": 3, "test": 4}, size=64)
    return folder


def options(data: Path, *more: str) -> list[str]:
    return ["--train", f"{data}:train", *TINY, "--batch", "4", "--epochs", "2", *more]


def metrics_of(run: Path) -> list[dict]:
    """The lines but for the time, which differs from run to run."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "images_per_s"} for line in lines]
