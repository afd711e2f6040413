"""Label assignment for dense object detectors, as torch operators on CPU and CUDA.

Mutual Guidance, FCOS, task alignment, SimOTA, soft labels, ATSS, max-IoU.
"""

import torch.serialization
from torch.utils import _pytree

from . import draw as draw
from ._objects import IGNORE
from .anchors import AnchorAssignment, anchor_mutual_guidance_assign, max_iou_assign
from .assign import Assignment, OriginalAssignment, fcos_assign, mutual_guidance_assign
from .atss import AtssAssignment, atss_assign
from .diagnose import Unassigned, unassigned
from .dynamic_k import DynamicKAssignment, sim_ota_assign, soft_label_assign
from .ops import amplified_centerness, box_iou, topk_per_object
from .points import FCOS_RANGES, PointGrid
from .settings import SimOTA, SoftLabel, TaskAligned
from .targets import centerness, dense_scores, take
from .task_aligned import TaskAlignedAssignment, task_aligned_assign

__version__ = "0.1.0"

__all__ = [
    "FCOS_RANGES",
    "IGNORE",
    "AnchorAssignment",
    "Assignment",
    "AtssAssignment",
    "DynamicKAssignment",
    "OriginalAssignment",
    "PointGrid",
    "SimOTA",
    "SoftLabel",
    "TaskAligned",
    "TaskAlignedAssignment",
    "Unassigned",
    "amplified_centerness",
    "anchor_mutual_guidance_assign",
    "atss_assign",
    "box_iou",
    "centerness",
    "dense_scores",
    "fcos_assign",
    "max_iou_assign",
    "mutual_guidance_assign",
    "sim_ota_assign",
    "soft_label_assign",
    "take",
    "task_aligned_assign",
    "topk_per_object",
    "unassigned",
]

_RESULTS = (
    AnchorAssignment,
    Assignment,
    AtssAssignment,
    DynamicKAssignment,
    OriginalAssignment,
    TaskAlignedAssignment,
)
# Checkpoints may hold a grid or an assignment: torch.load takes them with weights_only, its default.
torch.serialization.add_safe_globals([*_RESULTS, PointGrid, SimOTA, SoftLabel, TaskAligned, Unassigned])
# Exported programs may return an assignment, and are saved. What torch has for that is private to it.
if hasattr(_pytree, "_register_namedtuple"):
    for _result in _RESULTS:
        if _result not in _pytree.SUPPORTED_NODES:  # as after importlib.reload
            _pytree._register_namedtuple(_result, serialized_type_name=f"mgassign.{_result.__name__}")
