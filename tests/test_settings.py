"""What all settings have in common; what each refuses is in its assigner's own tests."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from mgassign import SimOTA, SoftLabel, TaskAligned

# The numbers of the packages, in the order of the fields. No other test holds all of them where no package is installed.
PRESETS = {
    TaskAligned: {
        "ULTRALYTICS": (10, None, 0.5, 6.0, "ciou", "inside", 1e-9, 16.0, None, "inside", 1e-9),
        "YOLO26": (7, 1, 0.5, 6.0, "ciou", "inside", 1e-9, 16.0, None, "inside", 1e-9),
        "YOLOV10": (1, None, 0.5, 6.0, "ciou", "inside", 1e-9, 16.0, None, "inside", 1e-9),
        "ULTRALYTICS_8_4_0": (10, None, 0.5, 6.0, "ciou", "inside", 1e-9, 16.0, 8.0, "inside", 1e-9),
        "ULTRALYTICS_8_3": (10, None, 0.5, 6.0, "ciou", "inside", 1e-9, 0.0, None, "inside", 1e-9),
        "TOOD": (13, None, 1.0, 6.0, "iou", "anywhere", 0.01, 0.0, None, "chosen", 1e-7),
    },
    SimOTA: {
        "YOLOX": (10, 1.5, False, 1e6, 3.0, 1.0, 1e-8),
        "YOLOX_0_3": (10, 2.5, True, 1e5, 3.0, 1.0, 1e-8),
        "MMDET": (10, 2.5, True, 1e5, 3.0, 1.0, 1e-7),
    },
    SoftLabel: {"MMDET": (13, 3.0, 3.0, 1e-7)},
}


@pytest.mark.parametrize("kind", PRESETS)
def test_presets_are_the_packages_numbers(kind):
    presets = {name: preset for name, preset in vars(kind).items() if isinstance(preset, kind)}
    assert {name: dataclasses.astuple(preset) for name, preset in presets.items()} == PRESETS[kind]


def test_those_of_numpy_s_numbers_are_loaded(tmp_path):
    made = [TaskAligned(alpha=np.float64(0.5)), SimOTA(penalty=np.float64(9)), SoftLabel(epsilon=np.float64(0.1))]
    torch.save(made, tmp_path / "settings.pt")
    assert torch.load(tmp_path / "settings.pt") == made
