"""Turing has no reductions of a warp: what stands in for them gives the CPU's results, too; see test_cuda_kernels.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import kernels
from test_library import calls

pytestmark = [pytest.mark.slow, pytest.mark.ptx]  # compiling the kernels is

STEPS = Path(__file__).parents[1] / "csrc/cuda/steps.cuh"


@pytest.fixture(scope="module")
def on_turing(nvcc) -> kernels.Run:
    return kernels.as_ptx(arch="7.5")


def test_every_operator(on_turing):
    on_turing.counts()
    for name, args, kwargs in calls(requires_grad=False):
        schema = getattr(torch.ops.mgassign, name).default._schema
        by_name = [kwargs[argument.name] for argument in schema.arguments[len(args) :]]
        kernels.check_parity(on_turing, name, *args, *by_name)
    ran = {place for of_kernel in on_turing.counts().values() for place, times in of_kernel.by_line.items() if times}
    lines = enumerate(STEPS.read_text().splitlines(), 1)
    shuffles = {f"{STEPS.name}:{number}" for number, line in lines if "__shfl_xor_sync" in line}
    assert len(shuffles) == 2
    assert shuffles <= ran
