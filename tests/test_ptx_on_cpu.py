"""The machine that runs the kernels' PTX finds what is wrong with a kernel, and nothing in one that is right."""

from __future__ import annotations

import ctypes
import re
import shutil

import numpy as np
import pytest

import ptx_on_cpu
from kernels import SCHEDULES
from ptx_on_cpu.translate import translate

pytestmark = pytest.mark.ptx

BLOCKS = 6
JUNK = 0x7FEDBEEF  # as in new tensors
WITH_ASAN = hasattr(ctypes.CDLL(None), "__asan_region_is_poisoned")  # which alone knows where tensors end

# In the order of faults.cu.
FAULTS = {
    "none": "",
    "no barrier of the block": r"race in shared memory of one block: (write|read) at faults\.cu:\d+ and (write|read) at",
    "no barrier of the warp": r"race in shared memory of one block: (write|read) at faults\.cu:\d+ and (write|read) at",
    "a barrier for some warps": "a barrier of a block whose threads have not all come",
    "an exit before a barrier": "a barrier of a block whose threads have not all come",
    "an exit before a vote": "a collective of lanes that have exited",
    "a vote in a branch": "lanes meet at faults.cu:.* and at another collective",
    "a mask without its caller": "a lane outside of its own mask",
    "a shuffle from outside": "a shuffle from a lane outside of the mask",
    "past the end": "an access outside of shared memory at faults.cu",
    "past the parameter": "an access outside of parameter memory at faults.cu",
    "past the tensor": "an access outside of global memory at faults.cu",
    "never written": "a read of shared memory that nobody wrote",
    "a tensor never written": "a read of global memory that nobody wrote",
    "no barrier among bytes": r"race in shared memory of one block: write at faults\.cu:\d+ and read at",
    "a plain add": "race in global memory of two blocks",
    "what another block writes": "race in global memory of two blocks",
    "misaligned": "a misaligned access of 8 bytes",
    "division by 0": "a division by 0 at faults.cu",
    "waiting forever": "deadlock: .*threads wait at faults.cu",
    "too many threads": "more threads in a block than it was compiled for",
    "too many rows": "a grid that no GPU takes",
}


@pytest.fixture(scope="module")
def machine(nvcc):
    path = ptx_on_cpu.build([ptx_on_cpu.HERE / "faults.cu"])
    machine, library = ptx_on_cpu.Library(path), ctypes.CDLL(str(path))
    library.run_fault.restype = ctypes.c_char_p

    def run(fault: int, numbers: np.ndarray) -> tuple[str, int]:
        total, sums = np.zeros(1, np.uint32), np.full(BLOCKS, JUNK, np.uint32)
        given = (ctypes.c_void_p(array.ctypes.data) for array in (numbers, total, sums))
        return library.run_fault(fault, len(numbers) // 128, *given).decode(), int(total[0])

    machine.run = run
    return machine


@pytest.fixture
def numbers():
    return np.random.default_rng(1).permutation(128 * BLOCKS).astype(np.uint32)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("fault", range(len(FAULTS)), ids=FAULTS.keys())
def test_faults_are_caught(machine, numbers, fault, schedule):
    if [*FAULTS][fault] == "past the tensor" and not WITH_ASAN:
        pytest.skip("without the address sanitizer")
    machine.schedule(*schedule)
    found, total = machine.run(fault, numbers)
    if fault:
        assert re.search([*FAULTS.values()][fault], found), found
    else:
        assert found == ""
        assert total == numbers[numbers % 2 == 1].sum()
    # Whatever went wrong, the next launch does not suffer from it.
    assert machine.run(0, numbers)[0] == ""


def test_counts_are_those_of_the_launches_since(machine, numbers):
    machine.counts()
    machine.run(0, numbers)
    few = machine.counts()["sum_kernel<0>"]
    machine.run(0, numbers | 1)  # twice as many to gather
    many = machine.counts()["sum_kernel<0>"]
    assert (few.launches, few.warps) == (many.launches, many.warps) == (1, 4 * BLOCKS)
    assert 20 * few.warps < few.instructions < many.instructions
    assert machine.counts() == {}


def test_an_nvcc_that_is_promised_and_missing_is_an_error(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda path: None)
    monkeypatch.delenv("CUDA_HOME", raising=False)
    assert ptx_on_cpu.find_nvcc() is None
    monkeypatch.setenv("CUDA_HOME", "/nowhere")
    with pytest.raises(FileNotFoundError, match="CUDA_HOME=/nowhere: expected bin/nvcc in it"):
        ptx_on_cpu.find_nvcc()


PTX = """
.version 9.0
.target sm_90
.address_size 64
.entry tiny_kernel(
	.param .u64 tiny_kernel_param_0
)
{
	.reg .f32 	%f<4>;
	.reg .b32 	%r<4>;
	BODY
	ret;
}
"""


UNKNOWN = {
    "an instruction": ("sin.approx.f32 %f1, %f2;", "unknown instruction in `sin.approx.f32 %f1, %f2`"),
    "a modifier": ("add.rn.ftz.f32 %f1, %f2, %f3;", "unknown instruction in `add.rn.ftz.f32"),
    "what may be fused": ("mul.f32 %f1, %f2, %f3;", "unknown instruction in `mul.f32"),
    "a way to load": ("ld.global.v8.u32 %r1, [%r2];", "unknown instruction in `ld.global.v8.u32"),
    "an operand": ("add.s32 %r1, %r2, %clock;", "unknown operand `%clock`"),
    "a directive": (".reg .b128 %q;", "unknown directive `.reg .b128 %q`"),
}


@pytest.mark.parametrize(("body", "named"), UNKNOWN.values(), ids=UNKNOWN.keys())
def test_what_is_unknown_is_named(tmp_path, body, named):
    path = tmp_path / "tiny.ptx"
    path.write_text(PTX.replace("BODY", body))
    with pytest.raises(NotImplementedError, match=re.escape(named)):
        translate(path)
