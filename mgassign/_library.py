"""Loads the compiled libraries and tells torch what a kernel alone cannot: shapes and gradients.

Kernels live in csrc; each operator has a block here with its fake kernel (the shapes and dtypes that
``torch.compile`` and ``torch.export`` trace with). No operator is differentiable.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

OPERATORS = ("fcos_assign", "mutual_guidance_assign", "box_iou", "amplified_centerness", "topk_per_object")

INTEGERS = torch.int64


def _find(name: str) -> Path | None:
    return next(iter(sorted(Path(__file__).parent.glob(f"{name}.*so"))), None)


def _load_cpu() -> Path:
    path = _find("_C")
    if path is None:
        raise ImportError(f"mgassign: no compiled library _C beside {__file__}; build it with `pip install .`")
    try:
        torch.ops.load_library(path)
    except OSError as error:
        raise ImportError(f"mgassign: {path.name} does not load with torch {torch.__version__} (needs 2.11 or newer): {error}") from error
    return path


def _load_cuda() -> tuple[Path | None, str]:
    """The CUDA library's path, or None and the reason there is none."""
    if torch.version.cuda is None:
        return None, f"torch {torch.__version__} is built without CUDA"
    path = _find("_C_cuda")
    if path is None:
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


def _num_images(gt_boxes: Tensor, gt_offsets: Tensor | None, gt_counts: list[int] | None) -> int:
    if gt_counts is not None:
        return len(gt_counts)
    return gt_boxes.shape[0] if gt_offsets is None else gt_offsets.shape[0] - 1


@torch.library.register_fake("mgassign::fcos_assign")
def _(gt_boxes, gt_offsets, gt_counts, heights, widths, strides, offsets, ranges, center_radius):
    num_points = sum(h * w for h, w in zip(heights, widths, strict=True))
    num_images = _num_images(gt_boxes, gt_offsets, gt_counts)
    return (
        gt_boxes.new_empty((num_images, num_points), dtype=INTEGERS),
        gt_boxes.new_empty((gt_boxes.numel() // 4,), dtype=INTEGERS),
    )


@torch.library.register_fake("mgassign::mutual_guidance_assign")
def _(pred_boxes, pred_logits, gt_boxes, gt_labels, *objects_grid_and_settings):
    owners = [pred_boxes.new_empty(pred_boxes.shape[:2], dtype=INTEGERS) for _ in range(3)]
    return (*owners, pred_boxes.new_empty((gt_labels.numel(),), dtype=INTEGERS))


@torch.library.register_fake("mgassign::box_iou")
def _(boxes, gt_boxes):
    return boxes.new_empty((boxes.shape[0], gt_boxes.shape[0]), dtype=torch.float32)


@torch.library.register_fake("mgassign::amplified_centerness")
def _(gt_boxes, probs, *grid_and_settings):
    return probs.new_empty(probs.shape, dtype=torch.float32)


@torch.library.register_fake("mgassign::topk_per_object")
def _(scores, k, areas):
    return scores.new_empty(scores.shape[:1], dtype=INTEGERS)
