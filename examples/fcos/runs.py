"""What the commands share: the run folder, files written whole or not at all, several processes, errors for people."""

from __future__ import annotations

import argparse
import fcntl
import glob
import json
import math
import os
import pickle
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class UserError(Exception):
    """Something is wrong with what the user gave; the message says what."""


def command(main: Callable[[list[str] | None], int], arguments: list[str] | None = None) -> int:
    """Runs a command; a UserError, or a file that the system refuses, becomes a line on stderr and exit code 2."""
    try:
        return main(arguments)
    except (UserError, OSError) as error:
        if isinstance(error, OSError) and error.filename is None:
            raise
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        return 2


@contextmanager
def naming(path: Path, otherwise: str) -> Iterator[None]:
    """Makes whatever goes wrong inside a UserError that names the file: about anything is raised on a broken one.

    Args:
        otherwise: What to say then, before the reason.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        why = error.strerror if isinstance(error, OSError) else None
        why = why or (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{path}: {otherwise}: {why}") from error


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Has ``write`` make a file or folder beside ``path`` and puts it in its place, so that nobody ever sees half of it.

    What processes of this machine left there that were killed while they wrote is removed.

    Raises:
        UserError: if that fails; what was at ``path`` is still there.
    """
    host = platform.node()
    unfinished = path.with_name(f".{path.name}.{host}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(glob.escape(f".{path.name}.{host}.") + "[0-9]*"):
            if not _is_running(int(left.suffix[1:])):
                _remove(left)
        try:
            write(unfinished)
            os.replace(unfinished, path)
        finally:
            _remove(unfinished)
    except (OSError, RuntimeError) as error:
        # On a full disk torch.save raises a riddle of its own on top of the system's error.
        cause = error if isinstance(error, OSError) else error.__context__
        why = cause.strerror if isinstance(cause, OSError) else None
        raise UserError(f"cannot write {path}: {why or str(error).splitlines()[0]}") from error


def write_figure(path: Path, figure: Figure) -> None:
    """Writes a picture of the kind that the path's name ends with, as :func:`write_file`."""
    write_file(path, lambda file: figure.savefig(file, format=path.suffix[1:], dpi=130))


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    return True


def write_text(path: Path, text: str) -> None:
    write_file(path, lambda file: file.write_text(text))


def write_tensors(path: Path, value: object) -> None:
    """What ``torch.load`` reads."""

    def write(file: Path) -> None:
        with file.open("wb") as opened:
            torch.save(value, opened)

    write_file(path, write)


def as_json(value: object, indent: int | None = None) -> str:
    """JSON, which has no NaN: null in its place."""

    def numbers(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: numbers(of_key) for key, of_key in value.items()}
        if isinstance(value, (list, tuple)):
            return [numbers(entry) for entry in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(numbers(value), indent=indent, allow_nan=False)


def write_json(path: Path, value: object) -> None:
    write_text(path, as_json(value, indent=2) + "\n")


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Keeps other processes out of a run folder, until this one is done with it or ends, however it does.

    Raises:
        UserError: if another process has it; the message says which.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a+") as file:
        try:
            # Not flock: processes that prepare batches would hold it too, and outlive this one for some seconds.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            file.seek(0)
            raise UserError(f"{folder}: process {file.read().strip()} is training in it") from error
        except OSError:  # a file system without locks
            pass
        file.truncate(0)
        print(os.getpid(), "of", platform.node(), file=file, flush=True)
        yield


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Waits until no other process is in such a block for the same folder, where the file system has such locks."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


SETTINGS = (
    "assigner",
    "seed",
    "quality",
    "amp",
    "min_points",
    "level_gate",
)  # of a checkpoint's, those that others than train.py ask for


MOST_SEEDS = 100_000_000  # what an image is changed or drawn from, made of the seed and its number, is below 2^64


class RunFolder:
    """A training's folder: ``config.json``, ``metrics.jsonl``, ``last.pt``, ``best.pt``, those kept, TensorBoard's events."""

    def __init__(self, path: Path) -> None:
        self.path, self.last, self.best = path, path / "last.pt", path / "best.pt"
        self.config, self.metrics = path / "config.json", path / "metrics.jsonl"

    def after(self, epoch: int) -> Path:
        """Where the model is kept as it was after so many epochs."""
        return self.path / f"epoch-{epoch}.pt"

    def kept(self) -> list[tuple[int, Path]]:
        """The epochs after which it was kept, and where."""
        return sorted((int(path.stem[6:]), path) for path in self.path.glob("epoch-*.pt") if path.stem[6:].isdecimal())

    def read_metrics(self) -> list[dict[str, Any]]:
        """All lines; the last one is left out if the process was killed while it wrote it.

        Raises:
            UserError: if another line is no metrics of a step.
        """
        with naming(self.metrics, "cannot read the metrics"):
            lines = self.metrics.read_text().splitlines() if self.metrics.is_file() else []
        found = []
        for number, line in enumerate(lines, 1):
            try:
                metrics = json.loads(line)
                metrics["step"] + 0
            except (ValueError, TypeError, KeyError) as error:
                if number == len(lines):
                    break
                raise UserError(f"{self.metrics}: line {number} is no metrics of a step: {error}") from error
            found.append(metrics)
        return found

    def forget_after(self, step: int) -> None:
        """Drops the metrics of steps that will be run again."""
        kept = [as_json(line) + "\n" for line in self.read_metrics() if line["step"] <= step]
        write_text(self.metrics, "".join(kept))

    def add_metrics(self, **values: object) -> None:
        try:
            with self.metrics.open("a") as file:
                file.write(as_json(values) + "\n")
        except OSError as error:
            raise UserError(f"cannot write {self.metrics}: {error.strerror or error}") from error

    def remove_unfinished(self) -> None:
        """Removes what killed processes of whatever machine left half written; only for who holds the folder."""
        for path in (self.last, self.best, self.config, self.metrics):
            for left in self.path.glob(f".{path.name}.*"):
                left.unlink(missing_ok=True)


def load_checkpoint(path: Path, *parts: str) -> dict[str, Any]:
    """A checkpoint of train.py, on the CPU.

    Args:
        parts: What is wanted of it beside the model, its settings and classes and the configuration.

    Raises:
        UserError: if it cannot be read, or a part is not there.
    """
    with naming(path, "not a checkpoint of train.py"):
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:  # torch's own advice is to load it unsafely
            raise ValueError("torch.save did not write it, or more than tensors and plain values are in it") from error
        parts = ("model", "model_settings", "classes", "config", *parts)
        missing = [part for part in parts if not isinstance(state, dict) or part not in state]
        missing += [f"config.{name}" for name in SETTINGS if not missing and name not in state["config"]]
        if missing:
            raise ValueError(f"it has no {', '.join(missing)}")
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
    if not (known := re.fullmatch(r"cpu|cuda(?::(\d+))?", device)):
        raise UserError(f"--device {device}: expected auto, cpu, cuda or cuda:N")
    if device.startswith("cuda") and not has_cuda:
        raise UserError(f"--device {device}: torch {torch.__version__} sees no CUDA device here")
    if known[1] and int(known[1]) >= torch.cuda.device_count():
        raise UserError(f"--device {device}: there are only {torch.cuda.device_count()} CUDA devices")
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


def seed(text: str) -> int:
    """For argparse: what randomness comes from."""
    number = int(text)
    if not 0 <= number < MOST_SEEDS:
        raise argparse.ArgumentTypeError(f"expected 0 to {MOST_SEEDS - 1}, got {number}")
    return number


def picture(text: str) -> Path:
    """For argparse: where to write a picture."""
    path = Path(text)
    if path.suffix not in (".png", ".svg"):
        raise argparse.ArgumentTypeError(f"expected a name that ends with .png or .svg, got {text}")
    return path
