"""Runs the CUDA operators without a GPU: what nvcc makes of csrc/cuda, its PTX, on the CPU.

nvcc compiles each file as for a GPU, except that ``Queue`` of csrc/cuda/common.cuh is the one of queue.h. Its host code
is kept; its PTX becomes C++ (translate.py) for a machine of warps and blocks (machine.h, machine.cpp) that watches over
races, barriers, masks, alignment and shared memory: whatever it finds is the ``RuntimeError`` of the operator that
launched the kernel. The library registers ``torch.ops.mgassign_ptx_on_cpu.*`` for tensors in host memory.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils.cpp_extension import include_paths, library_paths

from mgassign import _library
from ptx_on_cpu.translate import translate

ROOT, HERE = Path(__file__).parents[2], Path(__file__).parent
NAMESPACE = "mgassign_ptx_on_cpu"
# As setup.py, with the places in the source told, for messages.
CUDA_FLAGS = ["-std=c++17", "-O3", "-fmad=false", "-lineinfo", "-DTORCH_TARGET_VERSION=0x020b000000000000"]
CUDA_FLAGS += ["-DMGASSIGN_PTX_ON_CPU", "-Xcompiler=-O1,-fPIC,-fvisibility=hidden"]
# Everything else: nvcc only calls its host compiler, and knows where CUDA's headers are.
CXX_FLAGS = ["-std=c++20", "-Xcompiler=-fPIC,-fvisibility=hidden,-ffp-contract=off,-Wall,-Wextra,-Werror"]
TRANSLATED_FLAGS = [
    "-O1",
    "-Xcompiler=-finline-small-functions,-Wno-unused-variable,-Wno-unused-label,-Wno-unused-parameter",
]


class Counts(NamedTuple):
    """What a kernel did: its launches, their warps, and how many instructions these issued together."""

    launches: int
    warps: int
    instructions: int


def find_nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME")
    return (
        (home and shutil.which(f"{home}/bin/nvcc")) or shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    )


def build(sources: Iterable[Path], folder: Path, arch: str = "9.0") -> Path | None:
    """Compiles .cu files into one library in a folder, unless it is there already; None without nvcc.

    Args:
        sources: The files, host code and kernels.
        folder: Where to; made if need be.
        arch: The compute capability to compile for.

    Raises:
        NotImplementedError: for PTX that is not known, see translate.py.
        subprocess.CalledProcessError: if something does not compile.
    """
    nvcc, sources = find_nvcc(), list(sources)
    if nvcc is None:
        return None
    virtual = f"compute_{arch.replace('.', '')}"
    version = subprocess.run([nvcc, "--version"], capture_output=True, check=True).stdout
    headers = [path for path in sorted((ROOT / "csrc").rglob("*")) if path.suffix in (".h", ".cuh")]
    own = [HERE / name for name in ("machine.cpp", "machine.h", "queue.h", "translate.py", "__init__.py")]
    content = [version, torch.__version__.encode(), virtual.encode(), *map(Path.read_bytes, (*sources, *headers, *own))]
    library = folder / f"{NAMESPACE}-{sha256(b'|'.join(content)).hexdigest()[:16]}.so"
    if library.exists():
        return library
    work = folder / f"{library.stem}.{os.getpid()}"
    work.mkdir(parents=True)
    include = [f"-I{HERE}", *(f"-isystem={path}" for path in include_paths())]

    def run(*arguments: str | Path) -> None:
        subprocess.run([nvcc, *map(str, arguments)], check=True)

    def compile_file(source: Path) -> list[Path]:
        """The objects of a .cu file: its host code, and its kernels."""
        host, kernels, kept = (work / f"{source.stem}.{suffix}" for suffix in ("host.o", "kernels.o", "kept"))
        kept.mkdir()
        arch_flags = [f"-arch={virtual}", f"-code={virtual}"]
        run(*CUDA_FLAGS, *include, *arch_flags, "--keep", "--keep-dir", kept, "-c", source, "-o", host)
        translated = work / f"{source.stem}.cpp"
        translated.write_text(translate(kept / f"{source.stem}.ptx"))
        run(*CXX_FLAGS, *TRANSLATED_FLAGS, include[0], "-c", translated, "-o", kernels)
        return [host, kernels]

    def compile_machine() -> list[Path]:
        run(*CXX_FLAGS, "-O2", include[0], "-c", HERE / "machine.cpp", "-o", work / "machine.o")
        return [work / "machine.o"]

    try:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            jobs = [pool.submit(compile_file, source) for source in sources] + [pool.submit(compile_machine)]
            objects = [path for job in jobs for path in job.result()]
        libraries = [*(f"-L{path}" for path in library_paths()), "-ltorch_cpu", "-lc10"]
        run("-shared", "-cudart=none", "-Xlinker=-z,defs", *objects, *libraries, "-o", work / "library.so")
        (work / "library.so").replace(library)
    finally:
        shutil.rmtree(work)
    return library


class Library:
    """A library that build() made, loaded."""

    def __init__(self, path: Path):
        self._library = ctypes.CDLL(str(path))
        self._library.ptx_on_cpu_schedule.argtypes = [ctypes.c_uint64, ctypes.c_uint]
        self._library.ptx_on_cpu_counts.restype = ctypes.c_char_p

    def schedule(self, seed: int, blocks_at_once: int) -> None:
        """Who runs when from now on: by chance, from a seed, with so many blocks at a time."""
        self._library.ptx_on_cpu_schedule(seed, blocks_at_once)

    def counts(self) -> dict[str, Counts]:
        """What each kernel did since the last time this was asked."""
        lines = (line.split("\t") for line in self._library.ptx_on_cpu_counts().decode().splitlines())
        return {name: Counts(*map(int, numbers)) for name, *numbers in lines}


def load_operators(folder: Path, arch: str = "9.0") -> Library | None:
    """Builds all of csrc/cuda and registers its operators, with mgassign's own schemas. Once in a process."""
    path = build(sorted((ROOT / "csrc/cuda").glob("*.cu")), folder, arch)
    if path is None:
        return None
    definitions = torch.library.Library(NAMESPACE, "DEF")
    for name in _library.OPERATORS:
        schema = str(getattr(torch.ops.mgassign, name).default._schema)
        definitions.define(schema.removeprefix("mgassign::"))
    load_operators.definitions = definitions  # type: ignore[attr-defined]
    return Library(path)
