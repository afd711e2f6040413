"""The site as a reader meets it: its code runs, its links lead somewhere, its questions are answered within two clicks.

`make docs` builds the site and runs this with what the site needs; elsewhere the parts that cannot run are skipped.
"""

from __future__ import annotations

import ast
import os
import re
import tokenize
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest

from test_packaging import python

ROOT = Path(__file__).parents[1]
SITE = ROOT / "build/site"
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^( *)```(\w+)[^\n]*\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
pytestmark = pytest.mark.skipif(not (ROOT / "mkdocs.yml").exists(), reason="no checkout")


def blocks(document: Path, *languages: str) -> list[str]:
    return [code for _, language, code in FENCE.findall(document.read_text()) if language in languages]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.stem)
def test_code_runs(document, tmp_path, monkeypatch):
    """Blocks of a page follow one another, as a reader types them. Those taken from a file are tested where it is."""
    codeblock = pytest.importorskip("sybil.parsers.markdown")
    sybil = pytest.importorskip("sybil")
    monkeypatch.chdir(tmp_path)
    python = codeblock.PythonCodeBlockParser()
    examples = list(sybil.Sybil(parsers=[python]).parse(document).examples())
    assert len(examples) == len(blocks(document, "python"))
    for example in examples:
        if included := re.fullmatch(r'--8<-- "(.+)"\n?', str(example.parsed)):
            assert included[1].startswith("examples/detectors/")  # tests/test_detectors.py tests all of these
            assert (ROOT / included[1]).exists()
        else:
            example.evaluate()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.stem)
def test_every_block_is_code_that_is_tested(document):
    languages = {language for _, language, _ in FENCE.findall(document.read_text())}
    assert languages <= {"python", "bash", "bibtex"}
    assert document.read_text().count("```") == 2 * len(FENCE.findall(document.read_text()))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.stem)
def test_commands_exist(document):
    targets = set(re.findall(r"^([a-z-]+):.* ## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for command in "".join(blocks(document, "bash")).splitlines():
        words = re.sub(r"^(\w+=\S* )+", "", command.partition("#")[0]).split()
        if words[0] == "make":
            assert words[1] in targets, command
        elif words[:3] == ["python", "-m", "mgassign"]:
            python(*words[1:], check=True)
        elif words[0] == "python":
            assert (ROOT / words[1]).exists(), command
        else:
            assert words[0] in ("pip", "git", "cd"), command


def lines_of_code(path: Path) -> int:
    """How many are not blank, a comment or a docstring."""
    documented = [
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
    ]
    docstrings = [node.body[0] for node in documented if ast.get_docstring(node) is not None]
    with path.open("rb") as file:
        tokens = [t for t in tokenize.tokenize(file.readline) if t.type not in (tokenize.ENCODING, tokenize.COMMENT)]
    lines = {line for t in tokens if t.string.strip() for line in range(t.start[0], t.end[0] + 1)}
    return len(lines - {line for node in docstrings for line in range(node.lineno, node.end_lineno + 1)})


def test_detectors_have_as_many_lines_as_is_said():
    folder = ROOT / "examples/detectors"
    lines = {path.name: lines_of_code(path) for path in folder.glob("*.py")}
    table = re.findall(r"\((\w+\.py)\) \| (\d+) \|", (folder / "README.md").read_text())
    assert {name: int(said) for name, said in table} == lines
    said = f"{min(lines.values())} to {max(lines.values())} lines each"
    assert said in (ROOT / "README.md").read_text()
    assert said in (ROOT / "CHANGELOG.md").read_text()


class Page(HTMLParser):
    """What a page links to, what can be linked to in it, and the text below each of these."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.main_links: list[str] = []
        self.sources: list[str] = []
        self.text: dict[str, str] = {"": ""}
        self.level = self.within = 0
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attributes: list) -> None:
        of = dict(attributes)
        if tag == "article":
            self.within = 1
        if of.get("id"):
            self.text[of["id"]] = ""
        if tag == "a" and of.get("href"):
            self.links.append(of["href"])
            if self.within:
                self.main_links.append(of["href"])
        if tag in ("img", "script") and of.get("src"):
            self.sources.append(of["src"])
        if tag == "link" and of.get("href") and of.get("rel") != "canonical":
            self.sources.append(of["href"])

    def handle_endtag(self, tag: str) -> None:
        if tag == "article":
            self.within = 0

    def handle_data(self, data: str) -> None:
        if self.within:
            self.text[next(reversed(self.text))] += data


@cache
def page(path: Path) -> Page:
    return Page(path)


@pytest.fixture
def site() -> Path:
    if not (SITE / "index.html").exists() or not os.environ.get("MGASSIGN_SITE"):
        pytest.skip("the site is built and tested by `make docs`")
    return SITE


def test_links_lead_somewhere(site):
    pages = [path for path in site.rglob("*.html") if path.name != "404.html"]
    assert len(pages) >= 15
    checked = 0
    for path in pages:
        for link in page(path).links:
            target, anchor = urldefrag(unquote(link))
            if target.startswith("https://github.com/mgassign/mgassign"):
                for kind in ("/blob/main/", "/tree/main/", "/raw/main/"):
                    if kind in target:
                        assert (ROOT / target.partition(kind)[2]).exists(), (path, link)
                continue
            if re.match(r"https?:|mailto:", target):
                continue
            to = (path.parent / target).resolve() if target else path
            to = to / "index.html" if to.is_dir() else to
            assert to.exists(), (path, link)
            if anchor and to.suffix == ".html" and anchor != "__skip":
                assert anchor in page(to).text, (path, link)
            checked += 1
    assert checked > 500


def test_nothing_is_asked_of_other_hosts(site):
    for path in site.rglob("*.html"):
        for source in page(path).sources:
            assert not re.match(r"(https?:)?//", source), (path, source)
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//", style.read_text()), style
    # Material asks GitHub for stars where a page names a repository so.
    assert not any('data-md-component="source"' in path.read_text() for path in site.rglob("*.html"))


def test_docstrings_arrive_as_they_are_meant(site):
    told = "".join(page(site / "api.html").text.values())
    assert ">>> grid = PointGrid" in told
    assert "``" not in told
    assert not re.search(r":(func|class|meth|data):", told)


QUESTIONS = {
    "strides 4 to 64": ("grids.html#strides-4-to-64", "strides=(4, 8, 16, 32, 64)"),
    "rectangular images": ("grids.html#rectangular-images", "(height, width)"),
    "crowd regions": ("losses.html#regions-to-ignore", "IGNORE"),
    "what num_points means": ("losses.html#what-num_points-means", "how many points"),
    "two positive sets": ("losses.html#two-sets-of-positives", "found.loc"),
    "getting targets": ("losses.html#targets", "take(found.cls"),
    "installing with CUDA": ("install.html#cuda", "MGASSIGN_CUDA=1"),
    "which torch": ("install.html#which-torch-which-python", "2.11 or newer"),
    "citing": ("paper.html#citing", "@inproceedings"),
    "ties": ("rules.html#ties", "lowest object index"),
    "why other results than torchvision's": ("coming-from.html#why-other-results-than-torchvisions", "nextafter"),
    "seeing my own positives": ("first-steps.html#3-see-your-own-positives", "draw.assignment"),
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_questions_are_answered_within_two_clicks(site, question):
    place, answer = QUESTIONS[question]
    target, anchor = urldefrag(place)
    assert answer in page(site / target).text[anchor]
    once = {urldefrag(link) for link in page(site / "index.html").main_links}
    twice = {
        (urldefrag(link)[0] or name, urldefrag(link)[1])
        for name, _ in once
        if name.endswith(".html") and "/" not in name
        for link in page(site / name).links
    }
    assert (target, anchor) in once | twice
