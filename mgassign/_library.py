"""Loads the compiled libraries and tells torch what a kernel alone cannot: shapes, gradients, errors.

Kernels live in csrc; each operator has a block here with its fake kernel (the shapes and dtypes that
``torch.compile`` and ``torch.export`` trace with). No operator is differentiable.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

OPERATORS = (
    "fcos_assign",
    "mutual_guidance_assign",
    "task_aligned_assign",
    "sim_ota_assign",
    "soft_label_assign",
    "atss_assign",
    "max_iou_assign",
    "anchor_mutual_guidance_assign",
    "box_iou",
    "amplified_centerness",
    "topk_per_object",
)


def _find(name: str) -> Path | None:
    """The compiled library of that name beside this file."""
    path = Path(__file__).with_name(f"{name}.abi3.so")
    return path if path.exists() else None


def _why_not_built() -> str:
    folder = Path(__file__).parents[1]
    if sys.platform == "win32":
        return "mgassign: Windows is not supported; the Windows Subsystem for Linux is"
    if (folder / "setup.py").exists():
        return (
            f"mgassign: Python imports the sources in {folder}, whose compiled libraries are not built. To use an installed "
            "mgassign, start Python in another folder; to use the sources, run `make mgassign/_C.abi3.so` there"
        )
    return f"mgassign: no compiled library _C beside {__file__}: the installation is incomplete, install it again"


def _refuse_second_copy(path: Path) -> None:
    """One process has one set of operators: a second library that registers them would end it."""
    if os.path.realpath(path) in torch.ops.loaded_libraries or not hasattr(torch.ops.mgassign, OPERATORS[0]):
        return
    copies = (Path(loaded) for loaded in torch.ops.loaded_libraries if Path(loaded).name.startswith("_C."))
    first = next((copy for copy in copies if copy.exists() and b"mgassign" in copy.read_bytes()), "another library")
    raise ImportError(f"mgassign: cannot load {path}: {first} has registered the same operators in this process")


def _load_cpu() -> Path:
    path = _find("_C")
    if path is None:
        raise ImportError(_why_not_built())
    _refuse_second_copy(path)
    try:
        torch.ops.load_library(path)
    except OSError as error:
        raise ImportError(
            f"mgassign: {path.name} does not load with torch {torch.__version__} (needs 2.11 or newer): {error}"
        ) from error
    return path


def _load_cuda() -> tuple[Path | None, str]:
    """The CUDA library's path, or None and the reason there is none."""
    if torch.version.cuda is None:
        return None, f"torch {torch.__version__} is built without CUDA"
    wanted = f"_C_cuda{torch.version.cuda.split('.')[0]}"
    path = _find(wanted)
    if path is None:
        others = ", ".join(path.name for path in Path(__file__).parent.glob("_C_cuda*"))
        if others:
            return None, f"torch {torch.__version__} with CUDA {torch.version.cuda} needs {wanted}; there is {others}"
        return None, "mgassign was built without CUDA kernels (build it with MGASSIGN_CUDA=1)"
    try:
        torch.ops.load_library(path)
    except OSError as error:
        return None, f"{path.name} does not load with torch {torch.__version__}, CUDA {torch.version.cuda}: {error}"
    return path, ""


cpu_library = _load_cpu()
cuda_library, no_cuda_reason = _load_cuda()

_library = torch.library.Library("mgassign", "IMPL")


def _refuse_cuda(*args: Any, **kwargs: Any) -> NoReturn:
    raise RuntimeError(f"mgassign: no CUDA kernels: {no_cuda_reason}")


for _name in OPERATORS:
    # Assignments carry no gradient: step over autograd, whatever the inputs require.
    _library.impl(_name, torch.library.fallthrough_kernel, "Autograd")
    if cuda_library is None:
        _library.impl(_name, _refuse_cuda, "CUDA")


_CHECK = re.compile(r"mgassign: (?!CUDA: )(?=.*expected)", re.DOTALL)
_OUT_OF_MEMORY = re.compile(r"mgassign: out of memory, cannot allocate (\d+) bytes")


def call(operator: Callable[..., Any], *arguments: Any) -> Any:
    """Calls an operator; what it raises arrives as the exception that the public functions promise.

    A check of the compiled library is a ValueError, up to torch 2.14 by itself, later only here. Where memory ran out,
    torch's own out-of-memory exception is raised, which programs that retry with less catch. Compiled code calls operators
    directly: there the exceptions are torch's. Arguments go by position: the dispatcher looks keywords up one by one, which
    is time on every call.
    """
    if torch.compiler.is_compiling():
        return operator(*arguments)
    try:
        return operator(*arguments)
    except NotImplementedError as error:
        device = next(a.device for a in arguments if isinstance(a, Tensor))
        if device.type in ("cpu", "cuda"):  # somebody else's: a mode's, or of a subclass of Tensor
            raise
        raise NotImplementedError(f"mgassign: expected tensors on cpu or cuda, got {device}") from error
    except (RuntimeError, ValueError) as error:
        message = str(error)
        if _CHECK.match(message):
            raise ValueError(_CHECK.sub("", message, count=1)) from None
        if failed := _OUT_OF_MEMORY.match(message):
            device = next(a.device for a in arguments if isinstance(a, Tensor))
            torch.empty(min(int(failed[1]), 2**62), dtype=torch.uint8, device=device)  # raises, in torch's own words
            # No exception where the memory that the failed operator gave back is enough: then it is raised here.
            if device.type == "cuda":
                # An earlier kernel's fault comes to light at the next allocation; synchronizing raises it as what it is.
                if not torch.cuda.is_current_stream_capturing():
                    torch.cuda.synchronize(device)
                raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {failed[1]} bytes.") from None
            told = f"DefaultCPUAllocator: can't allocate memory: you tried to allocate {failed[1]} bytes."
            raise RuntimeError(told) from None
        raise


def _num_images(gt_boxes: Tensor, gt_offsets: Tensor | None, gt_counts: list[int] | None) -> int:
    if gt_counts is not None:
        return len(gt_counts)
    return gt_boxes.shape[0] if gt_offsets is None else gt_offsets.shape[0] - 1


def _fake(operator: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """torch.library.register_fake without its search of all loaded modules for the caller, a quarter of our import time."""

    def register(kernel: Callable[..., Any]) -> Callable[..., Any]:
        _library.impl(operator, kernel, "Meta")
        return kernel

    return register


@_fake("fcos_assign")
def _(
    gt_boxes: Tensor,
    gt_offsets: Tensor | None,
    gt_counts: list[int] | None,
    heights: list[int],
    widths: list[int],
    *grid_and_settings: Any,
) -> tuple[Tensor, Tensor]:
    num_images = _num_images(gt_boxes, gt_offsets, gt_counts)
    num_points = sum(h * w for h, w in zip(heights, widths, strict=True))
    original = gt_boxes.new_empty((num_images, num_points), dtype=torch.int64)
    return original, gt_boxes.new_empty((gt_boxes.numel() // 4,), dtype=torch.int64)


def _mutual_guidance(pred_boxes: Tensor, gt_labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    cls, loc, original = (pred_boxes.new_empty(pred_boxes.shape[:2], dtype=torch.int64) for _ in range(3))
    num_points = pred_boxes.new_empty((gt_labels.numel(),), dtype=torch.int64)
    return cls, loc, original, num_points, pred_boxes.new_empty(pred_boxes.shape[:2], dtype=torch.float32)


@_fake("mutual_guidance_assign")
def _(
    pred_boxes: Tensor, pred_logits: Tensor, gt_boxes: Tensor, gt_labels: Tensor, *objects_grid_and_settings: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return _mutual_guidance(pred_boxes, gt_labels)


@_fake("task_aligned_assign")
def _(pred_boxes: Tensor, *scores_objects_grid_and_settings: Any) -> tuple[Tensor, Tensor, Tensor]:
    owner = pred_boxes.new_empty(pred_boxes.shape[:2], dtype=torch.int64)
    target, iou = (pred_boxes.new_empty(pred_boxes.shape[:2], dtype=torch.float32) for _ in range(2))
    return owner, target, iou


@_fake("sim_ota_assign")
@_fake("soft_label_assign")
def _(pred_boxes: Tensor, *logits_objects_grid_and_settings: Any) -> tuple[Tensor, Tensor]:
    owner = pred_boxes.new_empty(pred_boxes.shape[:2], dtype=torch.int64)
    return owner, pred_boxes.new_empty(pred_boxes.shape[:2], dtype=torch.float32)


@_fake("atss_assign")
def _(
    gt_boxes: Tensor,
    gt_labels: Tensor | None,
    gt_offsets: Tensor | None,
    gt_counts: list[int] | None,
    heights: list[int],
    widths: list[int],
    *grid_and_settings: Any,
) -> tuple[Tensor, Tensor]:
    num_points = sum(h * w for h, w in zip(heights, widths, strict=True))
    shape = (_num_images(gt_boxes, gt_offsets, gt_counts), num_points)
    return gt_boxes.new_empty(shape, dtype=torch.int64), gt_boxes.new_empty(shape)


@_fake("anchor_mutual_guidance_assign")
def _(
    anchors: Tensor, pred_boxes: Tensor, pred_logits: Tensor, gt_boxes: Tensor, gt_labels: Tensor, *settings: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return _mutual_guidance(pred_boxes, gt_labels)


@_fake("max_iou_assign")
def _(
    anchors: Tensor,
    gt_boxes: Tensor,
    gt_labels: Tensor | None,
    gt_offsets: Tensor | None,
    gt_counts: list[int] | None,
    *settings: Any,
) -> tuple[Tensor, Tensor]:
    shape = (_num_images(gt_boxes, gt_offsets, gt_counts), anchors.shape[0])
    return gt_boxes.new_empty(shape, dtype=torch.int64), gt_boxes.new_empty(shape)


@_fake("box_iou")
def _(boxes: Tensor, gt_boxes: Tensor) -> Tensor:
    return boxes.new_empty((boxes.shape[0], gt_boxes.shape[0]), dtype=torch.float32)


@_fake("amplified_centerness")
def _(gt_boxes: Tensor, probs: Tensor, *grid_and_settings: Any) -> Tensor:
    return torch.empty_like(probs, dtype=torch.float32, memory_format=torch.contiguous_format)


@_fake("topk_per_object")
def _(scores: Tensor, k: Tensor, areas: Tensor) -> Tensor:
    return scores.new_empty(scores.shape[:1], dtype=torch.int64)
