"""What one instruction gives where C++ and PTX could differ: at the edges of its operands."""

from __future__ import annotations

import ctypes
import math
import os
import struct

import numpy as np
import pytest

import ptx_on_cpu
from ptx_on_cpu.translate import PLAIN

pytestmark = pytest.mark.ptx

inf, nan = math.inf, math.nan
ONES = 2**32 - 1
LEAST = 2.0**-149  # of float32

# By the PTX ISA: an instruction, the types of its result and operands, and some of their values.
VALUES = [
    ("mov.b32", "u32 u32", [(ONES, ONES)]),
    ("add.s32", "s32 s32 s32", [(-(2**31), 2**31 - 1, 1)]),
    ("sub.u64", "u64 u64 u64", [(2**64 - 1, 0, 1)]),
    ("neg.s32", "s32 s32", [(-5, 5), (-(2**31), -(2**31))]),
    ("abs.s64", "s64 s64", [(5, -5), (5, 5)]),
    ("mul.lo.u16", "u16 u16 u16", [(1, 65535, 65535)]),
    ("mul.lo.s32", "s32 s32 s32", [(-(2**31) + 65536, 65536, 32769), (1, -1, -1)]),
    ("mad.lo.s32", "s32 s32 s32 s32", [(65535, 65536, 65537, -1)]),
    ("mul.wide.s16", "s32 s16 s16", [(2**30, -32768, -32768)]),
    ("mul.wide.s32", "s64 s32 s32", [(-(2**32), -(2**31), 2), (1, -1, -1)]),
    ("mul.wide.u32", "u64 u32 u32", [(ONES**2, ONES, ONES)]),
    ("mad.wide.s32", "s64 s32 s32 s64", [(-(2**32) - 1, -(2**31), 2, -1)]),
    ("mul.hi.s32", "s32 s32 s32", [(2**30, -(2**31), -(2**31)), (-1, -1, 1)]),
    ("mul.hi.u64", "u64 u64 u64", [(2**64 - 2, 2**64 - 1, 2**64 - 1), (1, 2**32, 2**32)]),
    ("div.s32", "s32 s32 s32", [(-3, -7, 2), (-3, 7, -2)]),
    ("div.u32", "u32 u32 u32", [(2**31 - 4, ONES - 6, 2)]),
    ("rem.s32", "s32 s32 s32", [(-1, -7, 2), (1, 7, -2)]),
    ("rem.u64", "u64 u64 u64", [(5, 2**64 - 1, 10)]),
    ("and.b32", "u32 u32 u32", [(8, 12, 10)]),
    ("or.b32", "u32 u32 u32", [(14, 12, 10)]),
    ("xor.b32", "u32 u32 u32", [(6, 12, 10)]),
    ("not.b16", "u16 u16", [(65534, 1)]),
    ("shl.b16", "u16 u16 u32", [(32768, 3, 15), (0, 3, 16)]),
    ("shl.b32", "u32 u32 u32", [(2**31, 3, 31), (0, 3, 32), (0, 3, ONES)]),
    ("shl.b64", "u64 u64 u32", [(2**63, 3, 63), (0, 3, 64)]),
    ("shr.u32", "u32 u32 u32", [(1, 2**31, 31), (0, ONES, 32), (0, ONES, ONES)]),
    ("shr.s32", "s32 s32 u32", [(-3, -5, 1), (-1, -5, 31), (-1, -5, 32), (-1, -5, ONES), (0, 5, ONES)]),
    ("shf.l.wrap.b32", "u32 u32 u32 u32", [(5, 2**31, 2, 1), (9, 7, 9, 0), (9, 7, 9, 32)]),
    ("shf.r.wrap.b32", "u32 u32 u32 u32", [(2**31 + 2, 5, 1, 1), (7, 7, 9, 0), (7, 7, 9, 32)]),
    ("popc.b64", "u32 u64", [(64, 2**64 - 1), (0, 0)]),
    ("clz.b32", "u32 u32", [(32, 0), (31, 1)]),
    ("clz.b64", "u32 u64", [(64, 0), (0, 2**63)]),
    ("brev.b32", "u32 u32", [(2**31, 1), (3 * 2**29, 6)]),
    ("bfind.u32", "u32 u32", [(ONES, 0), (0, 1), (31, ONES)]),
    ("bfind.s32", "u32 s32", [(ONES, 0), (ONES, -1), (2, 5), (0, -2), (30, -(2**31))]),
    ("bfind.shiftamt.u32", "u32 u32", [(ONES, 0), (31, 1), (0, ONES)]),
    ("bfind.shiftamt.s64", "u32 s64", [(ONES, -1), (63, -2), (61, 5)]),
    ("bfe.u32", "u32 u32 u32 u32", [(0xBC, 0xABCD, 4, 8), (15, ONES, 28, 8), (0, ONES, 5, 0), (0, ONES, 32, 4)]),
    ("bfe.s32", "s32 s32 u32 u32", [(-4, 0xC0, 4, 4), (4, 0x40, 4, 4), (0, -1, 5, 0), (-1, -9, 40, 4)]),
    ("bfi.b32", "u32 u32 u32 u32 u32", [(0xF0000001, 255, 1, 28, 8), (9, 5, 9, 0, 0), (6, 7, 6, 32, 3)]),
    ("prmt.b32", "u32 u32 u32 u32", [(0x77331100, 0x33221100, 0x77665544, 0x7310), (0x80808000, 0x80, 0, 0x0009),
                                     (0xFF, 0x80, 0, 0x1118)]),
    ("min.s32", "s32 s32 s32", [(-1, -1, 1)]),
    ("min.u32", "u32 u32 u32", [(1, ONES, 1)]),
    ("max.s64", "s64 s64 s64", [(1, -1, 1)]),
    ("max.u64", "u64 u64 u64", [(2**64 - 1, 2**64 - 1, 1)]),
    ("min.f32", "f32 f32 f32", [(1.0, nan, 1.0), (1.0, 1.0, nan), (nan, nan, nan), (-0.0, 0.0, -0.0), (-0.0, -0.0, 0.0)]),
    ("max.f32", "f32 f32 f32", [(1.0, nan, 1.0), (1.0, 1.0, nan), (nan, nan, nan), (0.0, 0.0, -0.0), (0.0, -0.0, 0.0)]),
    ("neg.f32", "f32 f32", [(-0.0, 0.0), (inf, -inf)]),
    ("abs.f32", "f32 f32", [(0.0, -0.0), (inf, -inf)]),
    ("copysign.f32", "f32 f32 f32", [(-3.0, -1.0, 3.0), (inf, 0.0, -inf)]),
    ("add.rn.f32", "f32 f32 f32", [(2.0**24, 2.0**24, 1.0), (2 * LEAST, LEAST, LEAST), (nan, inf, -inf), (0.0, -0.0, 0.0)]),
    ("sub.rn.f32", "f32 f32 f32", [(nan, inf, inf), (1.0, 1.0, 2.0**-25), (2.0**-126 - LEAST, 2.0**-126, LEAST)]),
    ("mul.rn.f32", "f32 f32 f32", [(LEAST, 2.0**-100, 2.0**-49), (0.0, 2.0**-100, 2.0**-50), (-0.0, -0.0, 1.0), (nan, inf, 0.0)]),
    ("div.rn.f32", "f32 f32 f32", [(0xAAAAAB * 2.0**-25, 1.0, 3.0), (-inf, -1.0, 0.0), (nan, 0.0, 0.0), (0.0, LEAST, 2.0)]),
    ("rcp.rn.f32", "f32 f32", [(0xAAAAAB * 2.0**-25, 3.0), (-inf, -0.0), (inf, LEAST)]),
    ("sqrt.rn.f32", "f32 f32", [(0xB504F3 * 2.0**-23, 2.0), (-0.0, -0.0), (nan, -1.0)]),
    # Rounded once: neither the product by itself, nor the sum in float64.
    ("fma.rn.f32", "f32 f32 f32 f32", [(2.0**-46, 1 + 2.0**-23, 1 + 2.0**-23, -1 - 2.0**-22),
                                       (1 + 2.0**-11 + 2.0**-23, 1 + 2.0**-12, 1 + 2.0**-12, 2.0**-80)]),
    ("cvt.rzi.s32.f32", "s32 f32", [(-2, -2.9), (2**31 - 1, 3e9), (-(2**31), -inf), (0, nan)]),
    ("cvt.rzi.u32.f32", "u32 f32", [(2, 2.9), (0, -1.0), (ONES, 5e9), (0, nan)]),
    ("cvt.rzi.s64.f32", "s64 f32", [(2**63 - 1, 1e30), (-(2**63), nan)]),
    ("cvt.rzi.u64.f32", "u64 f32", [(0, -1.0), (2**64 - 1, 1e30), (2**63, nan)]),
    ("cvt.rzi.s32.f64", "s32 f64", [(2**31 - 1, 2**31 - 0.5), (-(2**31), nan)]),
    ("cvt.rzi.u32.f64", "u32 f64", [(ONES, 2**32 - 0.5), (2**31, nan)]),
    ("cvt.rni.s32.f32", "s32 f32", [(2, 2.5), (4, 3.5), (-2, -2.5)]),
    ("cvt.rmi.s32.f32", "s32 f32", [(-3, -2.5)]),
    ("cvt.rpi.s32.f32", "s32 f32", [(3, 2.1), (0, -0.5)]),
    ("cvt.rni.f32.f32", "f32 f32", [(2.0, 2.5), (-0.0, -0.4)]),
    ("cvt.rn.f32.s32", "f32 s32", [(2.0**24, 2**24 + 1), (-(2.0**24) - 4, -(2**24) - 3)]),
    ("cvt.rn.f32.u64", "f32 u64", [(2.0**64, 2**64 - 1)]),
    ("cvt.rn.f32.f64", "f32 f64", [(1.0, 1 + 2.0**-24), (inf, 1e39), (LEAST, 2.0**-149)]),
    ("cvt.f64.f32", "f64 f32", [(LEAST, LEAST)]),
    ("cvt.f32.f16", "f32 u16", [(1 + 2.0**-10, 0x3C01), (2.0**-24, 1), (-inf, 0xFC00)]),
    ("cvt.f32.bf16", "f32 u16", [(1 + 2.0**-7, 0x3F81), (2.0**-133, 1)]),
    ("cvt.s64.s32", "s64 s32", [(-1, -1)]),
    ("cvt.u64.u32", "u64 u32", [(ONES, ONES)]),
    ("cvt.u16.u32", "u16 u32", [(0x2345, 0x12345)]),
    ("cvt.s32.s8", "s32 u16", [(-1, 0x1FF), (127, 0x17F)]),
]  # fmt: skip

C_TYPES = {"u16": "unsigned short", "s16": "short", "u32": "unsigned", "s32": "int", "u64": "unsigned long",
           "s64": "long", "f32": "float", "f64": "double"}  # fmt: skip
CONSTRAINTS = {"u16": "h", "s16": "h", "u32": "r", "s32": "r", "u64": "l", "s64": "l", "f32": "f", "f64": "d"}

SOURCE = """
#include <queue.h>

#include <utility>

struct Task {
  const uint64_t* operands[4];
  uint64_t* results;
};

template <typename Number>
__device__ Number operand(const Task& task, int i) {
  return *reinterpret_cast<const Number*>(task.operands[i] + threadIdx.x);
}

template <int kNumber>
__global__ void value_kernel(const __grid_constant__ Task task);
KERNELS
template <int... kNumbers>
auto kernel_of(int number, std::integer_sequence<int, kNumbers...>) {
  static void (*const kernels[])(Task) = {value_kernel<kNumbers>...};
  return kernels[number];
}

extern "C" __attribute__((visibility("default"))) void run_values(int number, int count, const uint64_t* operands,
                                                                  uint64_t* results) {
  Task task{{}, results};
  for (int i = 0; i < 4; ++i) task.operands[i] = operands + i * count;
  ptx_on_cpu::Queue(0).launch(kernel_of(number, std::make_integer_sequence<int, COUNT>()), dim3(1), count, task);
}
"""
KERNEL = """
template <>
__global__ void value_kernel<{number}>(const __grid_constant__ Task task) {{
  {c_type} result;
  asm volatile("{instruction} {places};" : "={constraint}"(result) : {operands});
  *reinterpret_cast<{c_type}*>(task.results + threadIdx.x) = result;
}}
"""


def kernel_source(number: int, instruction: str, types: str) -> str:
    result, *operands = types.split()
    given = (f'"{CONSTRAINTS[kind]}"(operand<{C_TYPES[kind]}>(task, {i}))' for i, kind in enumerate(operands))
    places = ", ".join(f"%{i}" for i in range(len(operands) + 1))
    return KERNEL.format(number=number, c_type=C_TYPES[result], instruction=instruction, places=places,
                         constraint=CONSTRAINTS[result], operands=", ".join(given))  # fmt: skip


@pytest.fixture(scope="module")
def run_values(nvcc):
    ptx_on_cpu.FOLDER.mkdir(parents=True, exist_ok=True)
    kernels = "".join(kernel_source(number, *row[:2]) for number, row in enumerate(VALUES))
    source, new = (ptx_on_cpu.FOLDER / name for name in ("values.cu", f"values-{os.getpid()}.cu"))
    new.write_text(SOURCE.replace("KERNELS", kernels).replace("COUNT", str(len(VALUES))))
    new.replace(source)  # at once: another process may be compiling it
    return ctypes.CDLL(str(ptx_on_cpu.build([source]))).run_values


def bits_of(value: float, kind: str) -> int:
    if kind == "f32":
        return 0x7FFFFFFF if math.isnan(value) else struct.unpack("<I", struct.pack("<f", value))[0]
    if kind == "f64":
        return struct.unpack("<Q", struct.pack("<d", value))[0]
    return int(value) % 2 ** int(kind[1:])


@pytest.mark.parametrize("number", range(len(VALUES)), ids=[row[0] for row in VALUES])
def test_values(run_values, number):
    _, types, cases = VALUES[number]
    words = np.zeros((5, len(cases)), np.uint64)  # results, then operands
    for i, case in enumerate(cases):
        words[: len(case), i] = [bits_of(*pair) for pair in zip(case, types.split(), strict=True)]
    found = np.zeros(len(cases), np.uint64)
    run_values(number, len(cases), ctypes.c_void_p(words[1:].ctypes.data), ctypes.c_void_p(found.ctypes.data))
    for case, result, expected in zip(cases, found.tolist(), words[0].tolist(), strict=True):
        assert hex(result) == hex(expected), case


def test_every_plain_instruction_has_values():
    names = {(".".join(name.split(".")[:-1]), name.split(".")[-1]) for name, *_ in VALUES}
    tested = {name for name, _ in names} | {f"{name}.float" for name, kind in names if kind[0] == "f"}
    # What takes predicates, which inline assembly cannot, and casts between address spaces.
    assert {name for name in PLAIN if not name.startswith("cvta")} - tested == {"selp", "not.pred"}
