"""Runs the CUDA operators without a GPU: what nvcc makes of csrc/cuda, its PTX, on the CPU.

nvcc compiles each file as for a GPU, except that ``Queue`` of csrc/cuda/common.cuh is the one of queue.h. Its host code
is kept; its PTX becomes C++ (translate.py) for a machine of warps and blocks (machine.h, machine.cpp) that watches over
races, barriers, masks, alignment, bounds and what is read before it is written: whatever it finds is the
``RuntimeError`` of the operator that launched the kernel. The library registers operators for tensors in host memory:
``torch.ops.mgassign_ptx_on_cpu_90.*``, of compute capability 9.0.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, partial
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from torch.utils.cpp_extension import include_paths, library_paths

from mgassign import _library
from ptx_on_cpu.translate import translate

ROOT, HERE = Path(__file__).parents[2], Path(__file__).parent
FOLDER = ROOT / "build" / "ptx_on_cpu"
# As setup.py, with the places in the source told, for messages.
CUDA_FLAGS = ["-std=c++17", "-O3", "-fmad=false", "-lineinfo", "-DTORCH_TARGET_VERSION=0x020b000000000000"]
CUDA_FLAGS += ["-Xcompiler=-O1,-fPIC,-fvisibility=hidden"]
# Everything else: nvcc only calls its host compiler, and knows where CUDA's headers are.
CXX_FLAGS = ["-std=c++20", "-Xcompiler=-fPIC,-fvisibility=hidden,-ffp-contract=off,-Wall,-Wextra,-Werror"]
TRANSLATED_FLAGS = [
    "-O1",
    "-Xcompiler=-finline-small-functions,-Wno-unused-variable,-Wno-unused-label,-Wno-unused-parameter",
]


class Counts(NamedTuple):
    """What a kernel did: its launches, their warps, and how many instructions these issued together.

    An instruction of which only some lanes take part counts like one of all; where they go round a loop, the lane that
    does so most often counts.
    """

    launches: int
    warps: int
    instructions: int
    by_line: dict[str, int]
    """Instructions by where they come from: "file:line"."""


def find_nvcc() -> str | None:
    """None where there is none and ``CUDA_HOME``, which would promise one, is not set."""
    home = os.environ.get("CUDA_HOME")
    places = ([f"{home}/bin/nvcc"] if home else []) + ["nvcc", "/usr/local/cuda/bin/nvcc"]
    nvcc = next(filter(None, map(shutil.which, places)), None)
    if home and nvcc is None:
        raise FileNotFoundError(f"CUDA_HOME={home}: expected bin/nvcc in it")
    return nvcc


def namespace_of(arch: str) -> str:
    return f"mgassign_ptx_on_cpu_{arch.replace('.', '')}"


@contextmanager
def junk_in_new_tensors() -> Iterator[None]:
    """What torch allocates for a CPU holds kJunk of machine.h until somebody writes there."""
    fills = ctypes.c_bool.in_dll(ctypes.CDLL("libc10.so"), "FLAGS_caffe2_cpu_allocator_do_junk_fill")
    fills.value = True
    try:
        yield
    finally:
        fills.value = False


def build(sources: Iterable[Path], arch: str = "9.0") -> Path:
    """Compiles .cu files into one library in ``FOLDER``, as far as it is not there already.

    Args:
        sources: The files, host code and kernels.
        arch: The compute capability to compile for.

    Raises:
        FileNotFoundError: without nvcc.
        NotImplementedError: for PTX that is not known, see translate.py.
        subprocess.CalledProcessError: if something does not compile.
    """
    nvcc = find_nvcc()
    if nvcc is None:
        raise FileNotFoundError("no nvcc")
    virtual = f"compute_{arch.replace('.', '')}"
    registered = f"-DMGASSIGN_PTX_ON_CPU={namespace_of(arch)}"
    # nvcc ends badly with a sanitizer preloaded, which is meant for the kernels.
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    run_nvcc = partial(subprocess.run, env=environment, check=True)
    version = run_nvcc([nvcc, "--version"], capture_output=True, text=True).stdout
    headers = [path for path in sorted((ROOT / "csrc").rglob("*")) if path.suffix in (".h", ".cuh")]
    include = [f"-I{HERE}", *(f"-isystem={path}" for path in include_paths())]
    FOLDER.mkdir(parents=True, exist_ok=True)

    def make(name: str, inputs: list[Path], *arguments: str | Path) -> Path:
        """What nvcc makes of some files with some arguments, its PTX beside it; again only if something is new."""
        key = sha256("|".join([version, torch.__version__, *map(str, arguments)]).encode())
        for path in inputs:
            key.update(path.read_bytes())
        made = FOLDER / f"{Path(name).stem}-{key.hexdigest()[:16]}{Path(name).suffix}"
        if not made.exists():
            with TemporaryDirectory(dir=FOLDER) as work:
                new = Path(work, name)
                run_nvcc([nvcc, *map(str, arguments), "--keep", "--keep-dir", work, "-o", new])
                for path in Path(work).glob("*.ptx"):
                    path.replace(made.with_suffix(".ptx"))
                new.replace(made)
        return made

    def compile_file(source: Path) -> list[Path]:
        """The objects of a .cu file: its host code, and its kernels."""
        flags = [*CUDA_FLAGS, registered, *include, f"-arch={virtual}", f"-code={virtual}"]
        host = make(f"{source.stem}.o", [source, HERE / "queue.h", *headers], *flags, "-c", source)
        translated = translate(host.with_suffix(".ptx"))
        kernels = FOLDER / f"{host.stem}-{sha256(translated.encode()).hexdigest()[:16]}.cpp"
        kernels.write_text(translated)
        flags = [*CXX_FLAGS, *TRANSLATED_FLAGS, include[0]]
        return [host, make(f"{source.stem}-kernels.o", [HERE / "machine.h"], *flags, "-c", kernels)]

    def compile_machine(source: Path) -> list[Path]:
        own = [source, *sorted(HERE.glob("*.h"))]
        return [make(f"{source.stem}.o", own, *CXX_FLAGS, "-O2", include[0], "-c", source)]

    with (FOLDER / "lock").open("w") as lock, ThreadPoolExecutor(os.cpu_count()) as pool:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of several processes that test, one builds
        jobs = [pool.submit(compile_file, source) for source in sources]
        jobs += [pool.submit(compile_machine, source) for source in sorted(HERE.glob("*.cpp"))]
        objects = [path for job in jobs for path in job.result()]
        libraries = [*(f"-L{path}" for path in library_paths()), "-ltorch_cpu", "-lc10"]
        return make(f"{namespace_of(arch)}.so", [], "-shared", "-cudart=none", "-Xlinker=-z,defs", *objects, *libraries)


class Library:
    """A library that build() made, loaded."""

    operators: Any
    """Those of ``load_operators``."""

    def __init__(self, path: Path):
        self._library = ctypes.CDLL(str(path))
        self._library.ptx_on_cpu_schedule.argtypes = [ctypes.c_uint64, ctypes.c_uint]
        self._library.ptx_on_cpu_counts.restype = ctypes.c_char_p

    def schedule(self, seed: int, blocks_at_once: int) -> None:
        """Who runs when from now on: by chance, from a seed, with so many blocks at a time."""
        self._library.ptx_on_cpu_schedule(seed, blocks_at_once)

    def counts(self) -> dict[str, Counts]:
        """What each kernel did since the last time this was asked."""
        found: dict[str, Counts] = {}
        for line in self._library.ptx_on_cpu_counts().decode().splitlines():
            name, *numbers = line.split("\t")
            if len(numbers) == 2:
                found[name].by_line[numbers[0]] = int(numbers[1])
            else:
                launches, warps, instructions = map(int, numbers)
                found[name] = Counts(launches, warps, instructions, {})
        return found


@cache
def load_operators(arch: str = "9.0") -> Library:
    """Builds all of csrc/cuda and registers its operators, with mgassign's own schemas; once in a process for each
    compute capability."""
    library = Library(build(sorted((ROOT / "csrc/cuda").glob("*.cu")), arch))
    definitions = torch.library.Library(namespace_of(arch), "DEF")
    for name in _library.OPERATORS:
        schema = str(getattr(torch.ops.mgassign, name).default._schema)
        definitions.define(schema.removeprefix("mgassign::"))
    library.definitions = definitions  # which end with it
    library.operators = getattr(torch.ops, namespace_of(arch))
    return library
