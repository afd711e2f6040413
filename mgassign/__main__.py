"""``python -m mgassign``: versions, the compiled libraries, and CUDA or why not."""

import platform

import torch

from . import __version__, _library


def main() -> None:
    cuda = _library.cuda_library
    print(f"mgassign {__version__}, torch {torch.__version__}, Python {platform.python_version()}")
    print(f"CPU kernels:  {_library.cpu_library}")
    print(f"CUDA kernels: {cuda if cuda else f'none: {_library.no_cuda_reason}'}")
    if cuda:
        devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        print(f"CUDA {torch.version.cuda}, devices: {', '.join(devices) or 'none'}")


if __name__ == "__main__":
    main()
