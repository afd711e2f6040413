"""What all settings have in common; what each refuses is in its assigner's own tests."""

from __future__ import annotations

import numpy as np
import torch

from mgassign import SimOTA, SoftLabel, TaskAligned


def test_those_of_numpy_s_numbers_are_loaded(tmp_path):
    made = [TaskAligned(alpha=np.float64(0.5)), SimOTA(penalty=np.float64(9)), SoftLabel(epsilon=np.float64(0.1))]
    torch.save(made, tmp_path / "settings.pt")
    assert torch.load(tmp_path / "settings.pt") == made
