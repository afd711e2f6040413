"""The package as it is installed, loaded and told about, and what its distributions hold."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch

import mgassign
from mgassign import _library

ROOT = Path(__file__).parents[1]
PACKAGE = Path(mgassign.__file__).parent


def python(*arguments: str, **settings) -> subprocess.CompletedProcess[str]:
    """Runs Python where the package under test, and no other, is found."""
    settings = {"cwd": PACKAGE.parent, "env": os.environ | {"PYTHONPATH": ""}} | settings
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120, **settings)


def test_python_dash_m_tells_what_is_installed():
    told = python("-m", "mgassign").stdout
    assert mgassign.__version__ in told
    assert torch.__version__ in told
    assert str(_library.cpu_library) in told
    assert (str(_library.cuda_library) if _library.cuda_library else _library.no_cuda_reason) in told


def test_python_dash_m_may_be_cut_off():
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "mgassign"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, cwd=PACKAGE.parent)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture
def copy(tmp_path) -> Path:
    """A second mgassign, under another name."""
    return Path(shutil.copytree(PACKAGE, tmp_path / "vendored", ignore=shutil.ignore_patterns("__pycache__")))


@pytest.mark.parametrize("imports", ["import mgassign, vendored", "import vendored, mgassign"])
def test_a_second_copy_in_one_process_is_refused_by_name(copy, imports):
    done = python("-c", f"import sys; sys.path.append({str(copy.parent)!r}); {imports}")
    assert done.returncode == 1
    told = done.stderr.splitlines()[-1]
    assert told.startswith("ImportError: mgassign: cannot load")
    assert str(copy) in told
    assert str(_library.cpu_library) in told


def test_operators_that_someone_loaded_before_are_refused_by_name(copy):
    library = next(copy.glob("_C.*"))
    done = python("-c", f"import torch; torch.ops.load_library({str(library)!r}); import mgassign")
    assert done.stderr.splitlines()[-1].startswith(
        f"ImportError: mgassign: cannot load {_library.cpu_library}: {library}"
    )


def test_the_library_has_one_name_whatever_python_builds_it():
    pytest.importorskip("setuptools", minversion="77")
    code = """
import runpy, setuptools, setuptools.command.build_ext as module
given = {}
setuptools.setup = lambda **arguments: given.update(arguments)
runpy.run_path("setup.py")
command = given["cmdclass"]["build_ext"](setuptools.Distribution())
command.ext_map = {"mgassign._C": given["ext_modules"][0]}
module.get_abi3_suffix = lambda: ".abi3-x86_64-linux-gnu.so"
print(command.get_ext_filename("mgassign._C"), module.build_ext.get_ext_filename(command, "mgassign._C"))
"""
    done = python("-c", code, cwd=ROOT, env={**os.environ, "MGASSIGN_CUDA": "0"})
    assert done.stdout.splitlines()[-1] == "mgassign/_C.abi3.so mgassign/_C.abi3-x86_64-linux-gnu.so"


def test_a_build_without_torch_says_so():
    pytest.importorskip("setuptools", minversion="77")

    def build_without(module: str) -> str:
        code = f"import sys, runpy; sys.modules[{module!r}] = None; runpy.run_path('setup.py')"
        return python("-c", code, cwd=ROOT).stderr.splitlines()[-1]

    assert build_without("torch").startswith("mgassign: no torch to build against: install torch 2.11 or newer")
    # What torch itself lacks, it says.
    assert build_without("typing_extensions").startswith("ModuleNotFoundError: import of typing_extensions")


def without_libraries(copy: Path) -> str:
    for library in copy.glob("_C*"):
        library.unlink()
    done = python("-c", "import vendored", cwd=copy.parent)
    assert done.returncode == 1
    return done.stderr.splitlines()[-1]


def test_an_unbuilt_checkout_says_so(copy):
    (copy.parent / "setup.py").touch()
    told = without_libraries(copy)
    assert told.startswith(f"ImportError: mgassign: Python imports the sources in {copy.parent}")
    assert "another folder" in told


def test_an_installation_without_its_library_says_so(copy):
    assert "the installation is incomplete" in without_libraries(copy)


def test_kernels_for_another_cuda_are_told(copy):
    for library in copy.glob("_C_cuda*"):
        library.unlink()
    (copy / "_C_cuda99.abi3.so").touch()
    done = python(
        "-c",
        "import torch; torch.version.cuda = '98.1'; import vendored._library as library; print(library.no_cuda_reason)",
        cwd=copy.parent,
    )
    assert "CUDA 98.1 needs _C_cuda98; there is _C_cuda99.abi3.so" in done.stdout


@pytest.mark.slow  # of the checkout, not of what is installed
@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no git checkout")
def test_the_source_distribution_holds_all_that_is_tracked(tmp_path):
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    tracked = {name for name in listed.split("\0") if name and (ROOT / name).exists()}
    # From a copy: setuptools writes into the folder it works on.
    for name in tracked:
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / "tree" / name)
    command = [sys.executable, "setup.py", "-q", "sdist", "-d", str(tmp_path)]
    subprocess.run(command, cwd=tmp_path / "tree", env=os.environ | {"MGASSIGN_CUDA": "0"}, check=True)
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        files = {name.partition("/")[2] for name in archive.getnames() if archive.getmember(name).isfile()}
    generated = {name for name in files if name == "PKG-INFO" or name == "setup.cfg" or ".egg-info/" in name}
    assert files - generated == tracked


def test_workflows_run_what_the_makefile_offers():
    targets = set(re.findall(r"^([a-z-]+):.* ## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for workflow in (ROOT / ".github/workflows").glob("*.yml"):
        steps = re.findall(r"^ +- run: (.*)$", workflow.read_text(), re.MULTILINE)
        steps = [step for step in steps if not step.startswith("sudo apt-get ")]
        assert all(step.startswith("make ") for step in steps), workflow
        assert {step.split()[1] for step in steps} <= targets, workflow


def test_recipes_make_the_folder_that_they_write_their_logs_to():
    recipes = re.findall(r"(?:^\t.*\n)+", (ROOT / "Makefile").read_text(), re.MULTILINE)
    writing = [recipe for recipe in recipes if "> build/" in recipe]
    assert writing
    assert all("\t@mkdir -p build\n" in recipe.partition("> build/")[0] for recipe in writing), writing


def test_versions_agree_between_files():
    constraints = (ROOT / "constraints.txt").read_text().splitlines()
    hooks = re.findall(r"[\w-]+==[\d.]+", (ROOT / ".pre-commit-config.yaml").read_text())
    assert len(hooks) == 4
    assert set(hooks) <= set(constraints)
    assert f"\nversion: {mgassign.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_links_lead_into_the_repository():
    """The README is shown on the package's page too: its links are absolute, to files and pages that exist."""
    repository = re.search(r'^Repository = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    assert f'repository-code: "{repository}"\n' in (ROOT / "CITATION.cff").read_text()
    links = re.findall(r"\]\(([^)]+)\)|^\[\w+\]: (\S+)", (ROOT / "README.md").read_text(), re.MULTILINE)
    places = (f"{repository}/blob/main/", f"{repository}/tree/main/", f"{repository}/raw/main/")
    site = re.search(r'^Documentation = "(.*/)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    assert f"\nsite_url: {site}\n" in (ROOT / "mkdocs.yml").read_text()
    for link in (first or second for first, second in links):
        assert link.startswith("https://"), link
        if link.startswith(repository):
            inside = next(link.removeprefix(place) for place in places if link.startswith(place))
            assert (ROOT / inside.partition("#")[0]).exists(), link
        if link.startswith(site):
            page = link.removeprefix(site).partition("#")[0] or "index.html"
            assert (ROOT / "docs" / page.replace(".html", ".md")).exists(), link
