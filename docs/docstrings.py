"""Docstrings as Markdown: they are written to be read by ``help``, with the roles and doctests of Python's own tools."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:func|class|meth|data|mod|attr):`~?([\w.]+)`")
_TOGETHER = re.compile(r"^( {4})((?:[a-z]\w*, )+[a-z]\w*): (.*(?:\n {5,}.*)*)", re.MULTILINE)
_DOCTEST = re.compile(r"^>>> .*(?:\n.+)*", re.MULTILINE)


def as_markdown(text: str, of: griffe.Object) -> str:
    """Roles become links, doctests code; arguments that are told together are told one by one."""

    def link(role: re.Match[str]) -> str:
        name = role[1].rpartition(".")[2]
        if name in of.package.members:
            target = f"{of.package.path}.{name}"
        elif name in of.members:  # a class speaks of its methods
            target = f"{_public(of)}.{name}"
        elif of.parent and name in of.parent.members:
            target = f"{_public(of.parent)}.{name}"
        else:
            target = f"{of.package.path}.{role[1].removeprefix('mgassign.')}"
        return f"[`{name}`][{target}]"

    fenced = _DOCTEST.sub(lambda found: f"```pycon\n{found[0]}\n```", _ROLE.sub(link, text))
    apart = _TOGETHER.sub(
        lambda found: "\n".join(f"{found[1]}{name}: {found[3]}" for name in found[2].split(", ")), fenced
    )
    return re.sub(r"(?<!`)``(?!`)([^`]+)``(?!`)", r"`\1`", apart)


def _public(of: griffe.Object) -> str:
    """The path under which the API page has it."""
    if of.name in of.package.members:
        return f"{of.package.path}.{of.name}"
    return of.path


class Docstrings(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value, obj)
