"""Builds mgassign's two compiled libraries; all other metadata stands in pyproject.toml.

``mgassign._C`` holds every operator's schema and CPU kernel. ``mgassign._C_cuda13`` (the major version of CUDA) holds
CUDA kernels only and may be absent. Both use LibTorch's stable ABI, so one build serves several torch versions.

Environment:
    MGASSIGN_CUDA=auto|1|0   auto (default): build CUDA kernels where nvcc and a CUDA build of torch are found
    TORCH_CUDA_ARCH_LIST     as in torch; unset and without a GPU: a written list, and PTX
    MGASSIGN_STRICT=1        warnings are errors, kernels that spill registers too, on every architecture: for those who work
                             on mgassign
    MGASSIGN_SANITIZE=1      address and undefined-behaviour sanitizers (run Python with libasan preloaded)
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import setuptools

# Said before setuptools reads pyproject.toml: what it says itself is a riddle.
if int(setuptools.__version__.split(".")[0]) < 77:
    sys.exit(
        f"mgassign: built by setuptools 77 or newer, not {setuptools.__version__}: pip install 'setuptools>=77,<82'"
    )
if sys.platform == "win32":
    sys.exit("mgassign: Windows is not supported; the Windows Subsystem for Linux is")

try:
    import torch
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    sys.exit("mgassign: no torch to build against: install torch 2.11 or newer, or leave out --no-build-isolation")
from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build


def find_cuda_toolkit() -> Path | None:
    """The folder of a toolkit that can compile and link: nvcc and libcudart in it."""
    nvcc = shutil.which("nvcc")
    chosen = {name: os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)}
    folders = (*chosen.values(), nvcc and Path(nvcc).parents[1], "/usr/local/cuda")
    for folder in (Path(folder) for folder in folders if folder):
        libraries = (
            library for lib in ("lib64", "lib", "lib/*-linux-gnu") for library in folder.glob(f"{lib}/libcudart.so*")
        )
        if (folder / "bin/nvcc").exists() and any(libraries):
            return folder
        for name, value in chosen.items():
            if folder == Path(value):
                print(f"mgassign: {name}={value} is passed over: no bin/nvcc and libcudart in it")
    return None


# Told to torch before it looks for itself: it takes any folder that holds a program named nvcc.
if cuda_toolkit := find_cuda_toolkit():
    os.environ["CUDA_HOME"] = str(cuda_toolkit)

from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension  # noqa: E402

# Compute capabilities: what is built where nothing else is said. What is made for 8.0 runs on 8.6 and 8.9 too, for which
# ptxas makes almost the same instructions. On newer GPUs the driver makes all kernels from PTX when the first operator
# is called (ptxas takes 1.9 s), and keeps them: code for 10.0 and 12.0 would be a quarter of the wheel.
CUDA_ARCHITECTURES = ("7.5", "8.0", "9.0")
# Those that have to do with that: a strict build shows that nothing spills there either.
OTHER_ARCHITECTURES = ("8.6", "8.9", "10.0", "12.0")
OLDEST_ARCHITECTURE = (7, 5)

# The oldest torch whose stable ABI the sources use: 2.11.
STABLE_ABI = ["-DTORCH_TARGET_VERSION=0x020b000000000000"]

# The bits are part of the contract: no contraction to fused multiply-add, no fast-math. The two -fno
# flags only say that nobody reads errno or floating-point exceptions; results stay IEEE.
CXX_FLAGS = [
    "-O3",
    "-std=c++17",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fvisibility=hidden",
    "-g1",
    "-Wall",
    "-Wextra",
    "-Wno-unused-parameter",
]
# Kernels are optimized for speed whatever is said; what is left, checks and launches, for size. ptxas tells registers and
# shared memory of each kernel. Architectures are made side by side.
NVCC_FLAGS = ["-std=c++17", "-fmad=false", "-Xcompiler=-fvisibility=hidden,-Os", "-Xptxas=-v", "--threads=0"]
if torch.version.cuda and int(torch.version.cuda.split(".")[0]) >= 13:
    NVCC_FLAGS.append("--compress-mode=size")  # older compilers do not know it
STRICT = os.environ.get("MGASSIGN_STRICT") == "1"
if STRICT:
    CXX_FLAGS.append("-Werror")
    NVCC_FLAGS.append("-Werror=all-warnings")
    NVCC_FLAGS.append("-Xptxas=--warn-on-spills,--warn-on-local-memory-usage,--warning-as-error")


def is_too_old(architecture: str) -> bool:
    """Whether a compute capability, as in TORCH_CUDA_ARCH_LIST, is below what the kernels need; names are not known."""
    number = re.match(r"(\d+)\.(\d+)", architecture)
    return number is not None and (int(number[1]), int(number[2])) < OLDEST_ARCHITECTURE


def choose_architectures() -> str:
    """Says what to build for where torch would not know better; why there is nothing to build for, or ""."""
    oldest = "{}.{}".format(*OLDEST_ARCHITECTURE)
    if wanted := [arch for arch in re.split("[; ]", os.environ.get("TORCH_CUDA_ARCH_LIST", "")) if arch]:
        new_enough, told = [arch for arch in wanted if not is_too_old(arch)], f"TORCH_CUDA_ARCH_LIST={';'.join(wanted)}"
        if new_enough != wanted:
            print(f"mgassign: of {told} what is older than {oldest} is passed over")
        os.environ["TORCH_CUDA_ARCH_LIST"] = ";".join(new_enough)
        return "" if new_enough else f"{told}, and the kernels need {oldest} or newer"
    if torch.cuda.is_available():
        capability = torch.cuda.get_device_capability()
        too_old = f"{torch.cuda.get_device_name()} has compute capability {capability[0]}.{capability[1]}"
        return f"{too_old}, and the kernels need {oldest} or newer" if capability < OLDEST_ARCHITECTURE else ""
    # From the PTX of two generations, of which the second serves all later ones: making PTX takes most of the time.
    for architecture in CUDA_ARCHITECTURES + OTHER_ARCHITECTURES * STRICT:
        number = architecture.replace(".", "")
        NVCC_FLAGS.append(f"-gencode=arch=compute_{'75' if number == '75' else '80'},code=sm_{number}")
    NVCC_FLAGS.append("-gencode=arch=compute_80,code=compute_80")
    return ""


def cuda_sources() -> list[str]:
    """The CUDA sources to build, or none; prints what was decided and why."""
    wish = os.environ.get("MGASSIGN_CUDA", "auto")
    if wish not in ("auto", "1", "0"):
        sys.exit(f"MGASSIGN_CUDA: expected auto, 1 or 0, got {wish!r}")
    missing = []
    if cuda_toolkit is None:
        missing.append("no CUDA toolkit with nvcc and libcudart (set CUDA_HOME)")
    if torch.version.cuda is None:
        missing.append(f"torch {torch.__version__} is built without CUDA")
    elif cuda_toolkit:
        version = subprocess.run([cuda_toolkit / "bin/nvcc", "--version"], capture_output=True, text=True).stdout
        found = re.search(r"release (\d+)\.", version)
        if found is None or found[1] != torch.version.cuda.split(".")[0]:
            release = found[1] if found else "unknown"
            missing.append(f"nvcc's CUDA {release} in {cuda_toolkit} is not torch's {torch.version.cuda}")
    if wish != "0" and not missing and (nothing_to_build_for := choose_architectures()):
        missing.append(nothing_to_build_for)
    if wish == "1" and missing:
        sys.exit(f"MGASSIGN_CUDA=1, but {'; '.join(missing)}")
    if wish == "0" or missing:
        print(f"mgassign: building without CUDA ({'MGASSIGN_CUDA=0' if wish == '0' else '; '.join(missing)})")
        return []
    print(f"mgassign: building with CUDA {torch.version.cuda}, toolkit in {cuda_toolkit}")
    return ["csrc/kernels.cu"]


def extensions() -> list[CppExtension]:
    cxx, link = CXX_FLAGS + STABLE_ABI, []
    if os.environ.get("MGASSIGN_SANITIZE") == "1":
        sanitizers = ["-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all"]
        sanitizers += ["-fno-wrapv", "-fno-omit-frame-pointer", "-g"]  # Python's -fwrapv would allow what overflows
        cxx, link = cxx + sanitizers, sanitizers
    common = {"py_limited_api": True, "extra_link_args": link}
    cpu = ["csrc/library.cpp", *sorted(str(path) for path in Path("csrc/cpu").glob("*.cpp"))]
    built = [CppExtension("mgassign._C", cpu, extra_compile_args={"cxx": cxx}, **common)]
    if cuda := cuda_sources():
        flags = {"cxx": cxx, "nvcc": NVCC_FLAGS + STABLE_ABI + ["-DUSE_CUDA"]}
        name = f"mgassign._C_cuda{torch.version.cuda.split('.')[0]}"
        # Nobody who did not insist on CUDA goes without the CPU's kernels because of it.
        optional = os.environ.get("MGASSIGN_CUDA", "auto") == "auto"
        built.append(CUDAExtension(name, cuda, extra_compile_args=flags, optional=optional, **common))
    return built


class Build(build):
    """Starts from an empty folder: whatever lies in it, from an earlier build too, goes into the wheel."""

    def run(self) -> None:
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


class BuildLibraries(BuildExtension):
    """Leaves no library of an earlier build beside its own; what is to be installed is stripped."""

    def get_ext_filename(self, ext_name: str) -> str:
        """The name that mgassign/_library.py looks for, also where a Python has another one for its own modules."""
        return os.path.join(*ext_name.split(".")) + ".abi3.so"

    def run(self) -> None:
        folder = Path("mgassign") if self.inplace else Path(self.build_lib, "mgassign")
        for stale in folder.glob("_C*.so"):
            stale.unlink()
        # In place the line numbers stay, for profilers; setuptools forgets where while it builds.
        self.strips = not self.inplace and sys.platform == "linux"
        super().run()

    def build_extensions(self) -> None:
        if self.strips:
            for extension in self.extensions:
                extension.extra_link_args.append("-Wl,--strip-all")
        try:
            super().build_extensions()
        except Exception as error:
            needed = [extension for extension in self.extensions if not extension.optional]
            if len(needed) == len(self.extensions):
                raise
            print(f"mgassign: built without CUDA, whose compilation failed (MGASSIGN_CUDA=1 insists on it): {error}")
            self.extensions = needed
            super().build_extensions()


class Wheel(bdist_wheel):
    """One wheel for every Python: the libraries are loaded by torch and use nothing of Python's."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=extensions(),
    cmdclass={"build": Build, "build_ext": BuildLibraries, "bdist_wheel": Wheel},
)
