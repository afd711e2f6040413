"""``python -m mgassign``: versions, the compiled libraries, and CUDA or why not."""

import os
import platform
import sys

import torch

from . import __version__, _library


def report() -> str:
    cuda = _library.cuda_library
    lines = [
        f"mgassign {__version__}, torch {torch.__version__}, Python {platform.python_version()}, {platform.platform()}",
        f"CPU kernels:  {_library.cpu_library}",
        f"CUDA kernels: {cuda if cuda else f'none: {_library.no_cuda_reason}'}",
    ]
    if cuda:
        devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        lines.append(f"CUDA {torch.version.cuda}, devices: {', '.join(devices) or 'none'}")
    return "\n".join(lines)


def main() -> None:
    try:
        print(report(), flush=True)
    except BrokenPipeError:  # whoever reads has seen enough; what is left in the buffer goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
