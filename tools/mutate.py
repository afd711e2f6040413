"""Changes csrc one place at a time and says which changes no test notices.

    nice .venv/bin/python tools/mutate.py --sample 12          # places of every file of csrc/math and csrc/cpu
    nice .venv/bin/python tools/mutate.py csrc/cpu/tile.h      # every place of one

Works on a copy in build/mutation. Changed scalar math meets its golden hashes first, then all the golden results, then the
fast tests. tools/mutants.txt lists what changes nothing, and why; an entry that is no change of its file ends the run. A
loop that runs one too far is the sanitizers' business.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from shlex import split

import hypothesis  # noqa: F401  (this and the others here, so that each child has them already)
import pytest
import torch._dynamo
import torchvision  # noqa: F401

ROOT = Path(__file__).parents[1]
WORK, TORCH = ROOT / "build/mutation", Path(torch.__file__).parent
TESTS = split(
    "errors operators building_blocks fcos_assign mutual_guidance_assign anchors task_aligned atss dynamic_k properties"
)
PYTEST = split("-x -q --quick -p no:cacheprovider -m 'not slow and not ptx' -k 'not (compile or export or memory)'")
SECONDS = 300  # for the tests of one change: an endless loop ends so
CXX = split("g++ -std=c++17 -fPIC -ffp-contract=off -fno-math-errno -fno-trapping-math -DNDEBUG -w")
HEADERS = split(f"-I{TORCH}/include -I{TORCH}/include/torch/csrc/api/include -DTORCH_TARGET_VERSION=0x020b000000000000")
NOT_COPIED = shutil.ignore_patterns("*.o", "_C*", "__pycache__")

SWAPS = "smaller larger,smaller_number larger_number,std::min std::max,true false,x1 y1,x2 y2,x1 x2,y1 y2,begin end"
OPERATORS = {"<": "<= >", "<=": "<", ">": ">= <", ">=": ">", "==": "!=", "!=": "==", "&&": "||", "||": "&&", "&": "|",
             "|": "&", "+": "-", "-": "+", "*": "/", "/": "*", "%": "/", "+=": "-=", "*=": "/="}  # fmt: skip
NO_CODE = re.compile(r'//[^\n]*|"(?:\\.|[^"\\])*"|^ *#(?:\\\n|[^\n])*|^ *(template <|static_assert)[^\n]*', re.M)
NUMBER = re.compile(r"(?<![\w.])(?:0x[\da-f]+\.?[\da-f]*(?:p[+-]\d+)?|\d+\.?\d*(?:e-?\d+)?)(f?)u?(?![\w.])")
NO_CALL = "return|const|auto|using|for|if|else|while|throw"
STATEMENT = re.compile(rf"^ +(?!{NO_CALL})[\w:.\[\]>*()+-]+( [-+*|^&]?= |\(|;).*;$", re.M)


def changes(text: str) -> set[tuple[int, int, str]]:
    """Where a change begins and ends, and what stands there instead."""
    code = NO_CODE.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), text)
    last_left_out = {(*m.span(1), "+ 1 <") for m in re.finditer(r"\bfor \([^;]*;[^;]*? (<) ", code)}
    found = last_left_out.copy()
    for m in NUMBER.finditer(code):
        other = "* 0.99f" if m[1] and m[0] != "0.0f" else "- 1"
        found |= {(*m.span(), f"({m[0]} {more})") for more in ("+ 1", other)[: 1 + (m[0] != "0")]}
    for pair in SWAPS.split(","):
        for old, new in (pair.split(), pair.split()[::-1]):
            found |= {(*m.span(), new) for m in re.finditer(rf"(?<![\w:]){old}(?!\w)", code)}
    for old, replacements in OPERATORS.items():
        places = {m.span() for m in re.finditer(rf"(?<= ){re.escape(old)}(?= )", code)}
        found |= {(*place, new) for place in places - {m[:2] for m in last_left_out} for new in replacements.split()}
    found |= {(*m.span(), "") for m in re.finditer(r"(?<![\w=])!(?=[\w(])|(?<=[(,= ])-(?=[a-z(])", code)}
    found |= {(*m.span(), ";") for m in STATEMENT.finditer(code) if m[0].count("(") == m[0].count(")")}
    for m in re.finditer(r"\bif \(", code):
        end = next(i for i in range(m.end(), len(code)) if code[m.end() : i].count(")") > code[m.end() : i].count("("))
        found.add((m.end(), end - 1, f"false && ({text[m.end() : end - 1]})"))
    return found


def as_listed(file: str, text: str, begin: int, end: int, new: str) -> tuple[str, str, str]:
    """A change as tools/mutants.txt lists it: the file, the line, the line changed."""
    start, stop = text.rfind("\n", 0, begin) + 1, text.find("\n", end)
    line, changed = text[start:stop], text[start:begin] + new + text[end:stop]
    return file, " ".join(line.split()), " ".join(changed.split())


def runs(command: list[str], folder: Path = WORK) -> bool:
    return subprocess.run(command, cwd=folder, stderr=subprocess.DEVNULL).returncode == 0


def built(unit: Path) -> bytes | None:
    """The object file of a translation unit, None where it does not compile."""
    command = [*CXX, *HEADERS, "-include", f"{WORK}/torch.h", "-MMD", "-c", unit.name, "-o", unit.stem + ".o"]
    return unit.with_suffix(".o").read_bytes() if runs(command, unit.parent) else None


def math_differs() -> bool:
    """Whether the scalar math gives other bits, where it compiles."""
    if not runs([*CXX, "-O1", "tests/golden_math.cpp", "-o", "golden_math"]):
        return False
    told = subprocess.run(["timeout", "60", WORK / "golden_math"], capture_output=True, text=True).stdout
    return (
        dict(line.split() for line in told.splitlines()) != json.loads((WORK / "tests/golden.json").read_text())["math"]
    )


def run_tests(units: list[Path]) -> str:
    """Links, and tests in a child of this process, which has torch already."""
    objects = [str(unit.with_suffix(".o")) for unit in units]
    if not runs([*CXX, "-shared", *objects, f"-L{TORCH}/lib", "-ltorch_cpu", "-lc10", "-o", "mgassign/_C.abi3.so"]):
        return "does not link"
    if (child := os.fork()) == 0:
        signal.alarm(SECONDS)
        os.dup2(os.open(WORK / "tests.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
        os.dup2(1, 2)
        os.chdir(WORK)
        sys.path[:0] = [str(WORK), str(WORK / "tests")]
        for kind, names in enumerate((["golden"], TESTS), start=1):
            if pytest.main([*PYTEST, *(f"tests/test_{name}.py" for name in names)]):
                os._exit(kind)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return "killed by time" if os.WTERMSIG(status) == signal.SIGALRM else "killed by a crash"
    return ("SURVIVED", "killed by golden results", "killed by tests")[os.WEXITSTATUS(status)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="default: all of csrc/math and csrc/cpu")
    parser.add_argument("--sample", type=int, help="so many places of each file, drawn by --seed")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    files = args.files or [p.relative_to(ROOT) for kind in ("math", "cpu") for p in (ROOT / "csrc" / kind).rglob("*.*")]
    listed = (ROOT / "tools/mutants.txt").read_text().split("\n\n")
    known = {tuple(line.strip() for line in entry.splitlines()[:3]) for entry in listed[1:]}
    texts = {file: (ROOT / file).read_text() for file, *_ in known}
    if stale := known - {as_listed(file, text, *change) for file, text in texts.items() for change in changes(text)}:
        sys.exit("tools/mutants.txt: expected changes that are made, got\n" + "\n".join(map("\n".join, sorted(stale))))

    shutil.rmtree(WORK, ignore_errors=True)
    for name in ("csrc", "mgassign", "tests", "build/release"):  # the last: the scalar math as it is
        shutil.copytree(ROOT / name, WORK / name, ignore=NOT_COPIED)
    ours = "".join(p.read_text() for p in [*(WORK / "csrc").glob("*.h"), *(WORK / "csrc/cpu").glob("*.[ch]*")])
    (WORK / "torch.h").write_text("".join(sorted(set(re.findall("#include <.*>\n", ours)))))  # all of it compiled once
    runs([*CXX, *HEADERS, "torch.h", "-o", "torch.h.gch"])
    units = [WORK / "csrc/library.cpp", *sorted((WORK / "csrc/cpu").glob("*.cpp"))]
    original = {unit: built(unit) or sys.exit(f"{unit} does not compile") for unit in units}
    includes = {unit: unit.with_suffix(".d").read_text() for unit in units}
    if run_tests(units) != "SURVIVED" or math_differs():
        sys.exit(f"the tests fail without any change: {WORK}/tests.log")

    for file in sorted(files):
        text, verdicts = (ROOT / file).read_text(), Counter[str]()
        places = sorted(changes(text))
        chosen = random.Random(f"{args.seed} {file}").sample(places, min(args.sample or len(places), len(places)))
        for begin, end, new in sorted(chosen):
            change = as_listed(str(file), text, begin, end, new)
            (WORK / file).write_text(text[:begin] + new + text[end:])
            if change in known:
                verdict = "known"
            elif "math" in file.parts and math_differs():
                verdict = "killed by golden math"
            else:
                including = [unit for unit in units if re.search(rf"[ /]{file.name}\b", includes[unit])]
                objects = {unit: built(unit) for unit in including}
                same = all(objects[unit] == original[unit] for unit in including)
                verdict = "does not compile" if None in objects.values() else "same code" if same else run_tests(units)
                for unit in including:
                    unit.with_suffix(".o").write_bytes(original[unit])
            verdicts[verdict] += 1
            print(f"{verdict}\n{file}\n  {change[1]}\n  {change[2]}\n", flush=True)
        (WORK / file).write_text(text)
        print(f"== {file}: {len(chosen)} of {len(places)} places: {dict(verdicts)}\n", flush=True)


if __name__ == "__main__":
    main()
