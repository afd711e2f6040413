"""The label assignment of detectors people use, each called through the API of its own installed package.

An adapter brings the inputs of ``scenarios.make_inputs`` into its peer's form (padding, sigmoid, box format), which is
not timed, since detectors have them in that form anyway; then it calls the peer. None carries code of a peer, and none
of their packages is needed by mgassign: ``requirements.txt`` beside this file says how to install them.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata

from torch import Tensor

from scenarios import Inputs


class Adapter(ABC):
    """One peer on one batch."""

    @abstractmethod
    def __init__(self, inputs: Inputs) -> None:
        """Brings the inputs into the peer's form."""

    @abstractmethod
    def __call__(self) -> Sequence[Tensor]:
        """The assignment of the batch by the peer's own API, and what that returns: the work that is timed."""

    @abstractmethod
    def owners(self, results: Sequence[Tensor]) -> Tensor:
        """The results in mgassign's words: int64 [B, P], each point's object within its image, or -1."""


@dataclass(frozen=True)
class Peer:
    """An adapter, known without importing it: its package may not be installed."""

    about: str
    module: str
    """Where the class ``Assigner`` is."""
    operator: str
    """Of mgassign, the one that does the same job; ``mutual_guidance_assign`` where predictions decide."""
    packages: tuple[str, ...]
    same_job: bool = False
    """Whether it computes what the operator does, its own rounding aside."""
    preset: str = ""
    """Of the operator's settings, those of this peer."""
    targets: tuple[str, ...] = ()
    """Of what its call makes of the owners besides, what mgassign's side makes, too, to be compared: ``labels``,
    ``boxes``, ``distances`` to their sides, dense ``scores``."""

    @property
    def dynamic(self) -> bool:
        """Whether the predictions have a say."""
        return self.operator == "mutual_guidance_assign"

    @property
    def compared(self) -> str:
        """Which of the operator's results is the peer's."""
        return {_DYNAMIC: "cls", _STATIC: "original"}.get(self.operator, "owner")

    @property
    def versions(self) -> dict[str, str] | None:
        """Of its packages; None where one is not installed."""
        try:
            return {package: metadata.version(package) for package in self.packages}
        except metadata.PackageNotFoundError:
            return None

    def load(self) -> type[Adapter]:
        """The adapter's class.

        Raises:
            ImportError: if its package is not there, or cannot be imported.
        """
        adapter: type[Adapter] = importlib.import_module(f"peers.{self.module}").Assigner
        return adapter


_DYNAMIC, _STATIC, _ALIGNED = "mutual_guidance_assign", "fcos_assign", "task_aligned_assign"
_SIM_OTA, _SOFT_LABEL = "sim_ota_assign", "soft_label_assign"
_MMDET = ("mmdet", "mmengine", "mmcv-lite")

PEERS = {
    "ultralytics-tal": Peer("ultralytics TaskAlignedAssigner", "ultralytics_tal", _DYNAMIC, ("ultralytics",)),
    "yolox-simota": Peer("YOLOX SimOTA", "yolox_simota", _DYNAMIC, ("yolox",)),
    "mmdet-simota": Peer("mmdet SimOTAAssigner", "mmdet_simota", _DYNAMIC, _MMDET),
    "mmdet-tal": Peer("mmdet TaskAlignedAssigner", "mmdet_tal", _DYNAMIC, _MMDET),
    "mmdet-dsl": Peer("mmdet DynamicSoftLabelAssigner", "mmdet_dsl", _DYNAMIC, _MMDET),
    "ultralytics-tal-same": Peer(
        "ultralytics TaskAlignedAssigner, by task_aligned_assign", "ultralytics_tal", _ALIGNED, ("ultralytics",),
        same_job=True, preset="TaskAligned.ULTRALYTICS", targets=("labels", "boxes", "scores"),
    ),
    "mmdet-tal-same": Peer(
        "mmdet TaskAlignedAssigner, by task_aligned_assign", "mmdet_tal", _ALIGNED, _MMDET,
        same_job=True, preset="TaskAligned.TOOD", targets=("labels",),
    ),
    "yolox-simota-same": Peer(
        "YOLOX SimOTA, by sim_ota_assign", "yolox_simota", _SIM_OTA, ("yolox",),
        same_job=True, preset="SimOTA.YOLOX_0_3", targets=("labels",),
    ),
    "mmdet-simota-same": Peer(
        "mmdet SimOTAAssigner, by sim_ota_assign", "mmdet_simota", _SIM_OTA, _MMDET,
        same_job=True, preset="SimOTA.MMDET", targets=("labels",),
    ),
    "mmdet-dsl-same": Peer(
        "mmdet DynamicSoftLabelAssigner, by soft_label_assign", "mmdet_dsl", _SOFT_LABEL, _MMDET,
        same_job=True, preset="SoftLabel.MMDET", targets=("labels",),
    ),
    "reference": Peer("mgassign.reference, eager", "reference", _DYNAMIC, (), same_job=True),
    "reference-compiled": Peer("mgassign.reference, compiled", "reference_compiled", _DYNAMIC, (), same_job=True),
    "torchvision-fcos": Peer("torchvision FCOS matching", "torchvision_fcos", _STATIC, ("torchvision",), same_job=True),
    "torchvision-matcher": Peer("torchvision box_iou + Matcher", "torchvision_matcher", _STATIC, ("torchvision",)),
    "mmdet-fcos": Peer(
        "mmdet FCOS targets", "mmdet_fcos", _STATIC, _MMDET, same_job=True, targets=("labels", "distances")
    ),
    "mmdet-atss": Peer("mmdet ATSSAssigner", "mmdet_atss", _STATIC, _MMDET),
}  # fmt: skip
