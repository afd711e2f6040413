"""CUDA kernels under test: run as PTX on the CPU or on a GPU, and compared with the CPU's operators."""

from __future__ import annotations

import faulthandler
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from mgassign import _library
from scenes import STRIDES, Scene

Run = Callable[..., Any]

# Callers of torch.ops.mgassign come past the Python checks, and past what makes a ValueError of every check: from torch
# 2.15 on theirs is a RuntimeError.
CHECKED = (ValueError, RuntimeError)

has_gpu = torch.cuda.is_available() and _library.cuda_library is not None
needs_gpu = pytest.mark.skipif(not has_gpu, reason="no GPU, or no CUDA kernels built")

# Who runs when: a seed, and how many blocks at a time.
SCHEDULES = [(1, 1), (2, 4), (3, 1), (4, 4)]


def as_ptx(arch: str = "9.0") -> Run:
    """Of a compute capability."""
    import ptx_on_cpu  # wants what compiles extensions

    library = ptx_on_cpu.load_operators(arch)

    def run(name: str, *arguments: Any, repeatable: bool = True) -> Any:
        results = []
        for schedule in SCHEDULES:
            library.schedule(*schedule)
            with ptx_on_cpu.junk_in_new_tensors():
                found = getattr(library.operators, name)(*arguments)
            results.append((found,) if isinstance(found, torch.Tensor) else found)
            same = all(map(same_bits, results[0], results[-1]))
            assert same or not repeatable, f"schedule {schedule} gives another result"
        return found

    run.counts = library.counts
    return run


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two zeros have the same sign, too."""
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def on_gpu(name: str, *arguments: Any, repeatable: bool = True) -> Any:
    def moved(value: Any, device: str) -> Any:
        # A view keeps its strides and its place in a larger buffer.
        if not isinstance(value, torch.Tensor):
            return value
        return torch.empty(0, dtype=value.dtype, device=device).set_(
            value.untyped_storage().to(device=device), value.storage_offset(), value.shape, value.stride()
        )

    # New tensors hold the largest numbers: what nobody writes is seen. A tool that sees for itself has them as they are.
    torch.use_deterministic_algorithms(os.environ.get("MGASSIGN_FILL") != "0")
    try:
        results = getattr(torch.ops.mgassign, name)(*(moved(value, "cuda") for value in arguments))
    finally:
        torch.use_deterministic_algorithms(False)
    return results.cpu() if isinstance(results, torch.Tensor) else tuple(result.cpu() for result in results)


@contextmanager
def ending(seconds: float = 300) -> Iterator[None]:
    """Ends the process where what is inside does not end: a kernel cannot be interrupted, and xdist names the test."""
    faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def check_parity(run: Run, name: str, *arguments: Any) -> Any:
    """Asserts that the kernels' results equal the CPU's; returns them."""
    found, expected = run(name, *arguments), getattr(torch.ops.mgassign, name)(*arguments)
    for result, wanted in zip(*((r,) if isinstance(r, torch.Tensor) else r for r in (found, expected)), strict=True):
        assert result.dtype == wanted.dtype
        assert same_bits(result, wanted), f"{int((result != wanted).sum())} of {result.numel()} differ in value"
    return found


def operands(of: Scene, form: str = "list") -> list[Any]:
    """A scene's tensors as the operator takes them, up to gt_counts."""
    boxes, labels = of.gt_boxes, of.gt_labels
    if form == "padded":
        boxes = torch.nn.utils.rnn.pad_sequence(boxes, batch_first=True, padding_value=20.0)
        labels = torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-1)
        boxes[labels < 0] += torch.tensor([0.0, 0.0, 30.0, 30.0])  # a valid box, yet it takes no part
        return [of.pred_boxes, of.pred_logits, boxes, labels, None, None]
    counts = [len(of_image) for of_image in labels]
    tensors = [of.pred_boxes, of.pred_logits, torch.cat(boxes), torch.cat(labels)]
    if form == "jagged":
        return [*tensors, torch.tensor([0, *counts]).cumsum(0), None]
    return [*tensors, None, counts]


SMALL_SHAPES = {
    "three levels": {"size": (96, 128), "strides": STRIDES[:3], "objects": (5, 0, 1)},
    "narrow": {"size": (40, 9), "strides": (8,), "objects": (3,), "offset": 0},
    "two warps share a tile": {"size": (48, 64), "strides": (8, 16), "objects": (50,)},
    "eight warps share a tile": {"size": (48, 48), "strides": (8,), "objects": (300,)},
    "own ranges": {"size": (64, 72), "strides": (8, 16), "objects": (7, 9), "ranges": ((0, 40), (30, 200))},
}
