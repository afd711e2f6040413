"""What the commands share: the run folder, files written whole or not at all, several processes, errors for people."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor


class UserError(Exception):
    """Something is wrong with what the user gave; the message says what."""


def command(main: Callable[[list[str] | None], int], arguments: list[str] | None = None) -> int:
    """Runs a command; a UserError becomes a line on stderr and exit code 2."""
    try:
        return main(arguments)
    except UserError as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        return 2


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Has ``write`` make a file beside ``path`` and puts it in its place, so that a reader never sees half of one."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(unfinished)
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def write_text(path: Path, text: str) -> None:
    write_file(path, lambda file: file.write_text(text))


def write_json(path: Path, value: object) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


class RunFolder:
    """A training's folder: ``config.json``, ``metrics.jsonl``, ``last.pt``, ``best.pt``, TensorBoard's events."""

    def __init__(self, path: Path) -> None:
        self.path, self.last, self.best = path, path / "last.pt", path / "best.pt"
        self.config, self.metrics = path / "config.json", path / "metrics.jsonl"

    def read_metrics(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.metrics.read_text().splitlines()] if self.metrics.is_file() else []

    def forget_after(self, step: int) -> None:
        """Drops the metrics of steps that will be run again."""
        kept = [json.dumps(line) + "\n" for line in self.read_metrics() if line["step"] <= step]
        write_text(self.metrics, "".join(kept))

    def add_metrics(self, **values: object) -> None:
        with self.metrics.open("a") as file:
            file.write(json.dumps(values) + "\n")

    def save(self, path: Path, state: dict[str, Any]) -> None:
        write_file(path, lambda file: torch.save(state, file))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A file that :meth:`RunFolder.save` wrote, on the CPU.

    Raises:
        UserError: if it cannot be read.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such checkpoint") from error
    except Exception as error:  # torch.load raises about anything on a broken file
        raise UserError(f"{path}: not a checkpoint of train.py: {str(error).splitlines()[0]}") from error
    return state


class World(NamedTuple):
    """The processes that train together, and which of them this one is."""

    rank: int
    size: int
    device: torch.device

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes."""
        values = values.detach().clone()
        if self.size > 1:
            dist.all_reduce(values)
        return values


@contextmanager
def join_world(device: str) -> Iterator[World]:
    """Joins the other processes if torchrun started this one; ``device`` is auto, cpu, cuda or one cuda:N.

    Raises:
        UserError: if the device is not there.
    """
    has_cuda = torch.cuda.is_available()
    if device == "auto":
        device = "cuda" if has_cuda else "cpu"
    if device.startswith("cuda") and not has_cuda:
        raise UserError(f"--device {device}: torch {torch.__version__} sees no CUDA device here")
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    if size > 1:
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield World(rank, size, torch.device(device))
    finally:
        if size > 1:
            dist.destroy_process_group()


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows the defaults that say something, and leaves the description's lines as they are."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        is_switch = action.nargs == 0
        return action.help if is_switch or action.default is None else super()._get_help_string(action)


def positive(text: str) -> int:
    """For argparse: a whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {number}")
    return number
