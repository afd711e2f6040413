"""Options, hypothesis profiles, and where optional data is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

import kernels
import mgassign

_COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow], "print_blob": True}
settings.register_profile("default", max_examples=200, derandomize=True, **_COMMON)
settings.register_profile("quick", max_examples=20, derandomize=True, **_COMMON)
settings.register_profile("deep", max_examples=5000, **_COMMON)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--deep", action="store_true", help="many more examples of each property, and every float32 where sampled"
    )
    parser.addoption("--quick", action="store_true", help="few examples of each property")
    parser.addoption(
        "--data",
        default=os.environ.get("MGASSIGN_DATA"),
        help="folder with coco_val2017_boxes.npz (default: $MGASSIGN_DATA)",
    )
    parser.addoption(
        "--installed",
        action="store_true",
        help="refuse to test the checkout's mgassign: pytest --installed --pyargs mgassign tests (not python -m pytest)",
    )


def pytest_configure(config: pytest.Config) -> None:
    chosen = next((name for name in ("deep", "quick") if config.getoption(f"--{name}")), "default")
    settings.load_profile(chosen)
    if config.getoption("--installed") and Path(mgassign.__file__).is_relative_to(
        Path(__file__).parents[1] / "mgassign"
    ):
        raise pytest.UsageError(f"--installed: expected an installed mgassign, got the checkout's {mgassign.__file__}")


def pytest_report_header() -> str:
    return f"mgassign {mgassign.__version__} in {Path(mgassign.__file__).parent}, torch {torch.__version__}"


@pytest.fixture(scope="session")
def deep(pytestconfig: pytest.Config) -> bool:
    return bool(pytestconfig.getoption("--deep"))


@pytest.fixture(scope="session")
def coco_boxes_file(pytestconfig: pytest.Config) -> Path:
    folder = pytestconfig.getoption("--data")
    path = Path(folder, "coco_val2017_boxes.npz") if folder else None
    if path is None or not path.exists():
        pytest.skip("no coco_val2017_boxes.npz (give its folder by --data or MGASSIGN_DATA)")
    return path


@pytest.fixture
def fresh_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A compiler that has compiled nothing yet, in no earlier run either."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture(scope="session")
def nvcc() -> None:
    """Skips what wants it where there is none."""
    import ptx_on_cpu  # wants what compiles extensions

    if ptx_on_cpu.find_nvcc() is None:
        pytest.skip("no nvcc")


@pytest.fixture(scope="session")
def on_ptx(nvcc: None) -> kernels.Run:
    """Runs an operator's CUDA kernels as PTX on the CPU."""
    return kernels.as_ptx()


@pytest.fixture(params=[pytest.param("PTX", marks=pytest.mark.ptx), pytest.param("GPU", marks=kernels.needs_gpu)])
def run(request: pytest.FixtureRequest) -> kernels.Run:
    """Runs an operator's CUDA kernels."""
    return kernels.on_gpu if request.param == "GPU" else request.getfixturevalue("on_ptx")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small drawn set for the FCOS example."""
    from drawn import draw_set  # wants Pillow

    folder = tmp_path_factory.mktemp("data") / "drawn"
    draw_set(folder, {"train": 9, "val": 3, "test": 4}, size=64)
    return folder
