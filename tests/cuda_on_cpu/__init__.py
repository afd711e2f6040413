"""Builds the CUDA operators for the host: the kernels of csrc/cuda on threads, see cuda_on_cpu.h beside this.

The library registers ``torch.ops.mgassign_cuda_on_cpu.*`` for tensors in host memory.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from hashlib import sha256
from pathlib import Path

import torch
from torch.utils.cpp_extension import include_paths, library_paths

from mgassign import _library

ROOT = Path(__file__).parents[2]
NAMESPACE = "mgassign_cuda_on_cpu"


def build(folder: Path, sanitizer: str = "") -> Path | None:
    """Compiles the library into a folder, unless it is there already; None without a C++ compiler.

    Args:
        folder: Where to; made if need be.
        sanitizer: "address" or "thread"; Python must then run with that sanitizer's library preloaded.

    Raises:
        subprocess.CalledProcessError: if the sources do not compile.
    """
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        return None
    sources = sorted((ROOT / "csrc/cuda").glob("*.cu"))
    headers = [path for path in sorted((ROOT / "csrc").rglob("*")) if path.suffix in (".h", ".cuh")]
    flags = ["-std=c++20", "-O1", "-g", "-fPIC", "-shared", "-pthread", "-ffp-contract=off", "-fvisibility=hidden"]
    flags += ["-Wall", "-Wextra", "-Werror", "-DTORCH_TARGET_VERSION=0x020b000000000000", f"-I{Path(__file__).parent}"]
    flags += [f"-isystem{path}" for path in include_paths()]
    flags += [f"-fsanitize={sanitizer}"] * bool(sanitizer)
    libraries = [*(f"-L{path}" for path in library_paths()), "-ltorch_cpu"]
    content = [path.read_bytes() for path in (*sources, *headers, *Path(__file__).parent.glob("*.h"))]
    key = sha256(
        b"\0".join([*content, " ".join([compiler, torch.__version__, *flags, *libraries]).encode()])
    ).hexdigest()[:16]
    library = folder / f"{NAMESPACE}-{key}.so"
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        temporary = library.with_suffix(f".{os.getpid()}")
        command = [compiler, *flags, "-x", "c++", *map(str, sources), *libraries, "-o", str(temporary)]
        subprocess.run(command, check=True)
        temporary.replace(library)
    return library


def load(library: Path) -> None:
    """Makes the operators available, with the schemas of mgassign's own. Once in a process."""
    definitions = torch.library.Library(NAMESPACE, "DEF")
    for name in _library.OPERATORS:
        schema = str(getattr(torch.ops.mgassign, name).default._schema)
        definitions.define(schema.removeprefix("mgassign::"))
    load.definitions = definitions  # type: ignore[attr-defined]
    torch.ops.load_library(library)
