"""What the site takes from outside of this folder: pages of the repository, and the pictures that pictures.py draws."""

from __future__ import annotations

import os
import posixpath
import re
import sys
from functools import cache
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
#: Files of the repository by the name that the site gives them.
OUTSIDE = {
    "benchmarks.md": "benchmarks/README.md",
    "changelog.md": "CHANGELOG.md",
    "detectors.md": "examples/detectors/README.md",
    "peers.png": "benchmarks/results/peers.png",
}
_LINK = re.compile(r"(\]\()(?!https?:|mailto:|#)([^)\s#]+)((?:#[^)]*)?\))")


@cache
def drawn() -> dict[str, bytes]:
    sys.path.insert(0, str(Path(__file__).parent))
    import pictures

    return pictures.draw_all()


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for name, source in OUTSIDE.items():
        files.append(File.generated(config, name, content=(ROOT / source).read_bytes()))
    for name, content in drawn().items():
        files.append(File.generated(config, f"pictures/{name}", content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links work in the repository, where the page lies, and on the site: what the site lacks is looked up there."""
    name = page.file.src_uri
    source = OUTSIDE.get(name, f"docs/{name}")
    on_site = {path: name for name, path in OUTSIDE.items()}

    def follow(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link[2]))
        inside = on_site.get(target, target.removeprefix("docs/") if target.startswith("docs/") else None)
        if inside is not None:
            return link[1] + posixpath.relpath(inside, posixpath.dirname(name) or ".") + link[3]
        if not os.path.exists(ROOT / target):
            raise PluginError(f"{source}: no such file: {link[2]}")
        kind = "tree" if os.path.isdir(ROOT / target) else "blob"
        return f"{link[1]}{config.extra['repository']}/{kind}/main/{target}{link[3]}"

    return _LINK.sub(follow, markdown)
