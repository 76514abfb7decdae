"""Reads the library's docstrings for mkdocstrings: an extension of Griffe."""

import re
from typing import Any

import griffe
from names import Entry, entries

PAPER = re.compile(r"(?<![\w/\[])arXiv:(\d{4}\.\d{4,5})")


class Docstrings(griffe.Extension):
    """Turns what Griffe does not know into Markdown that it knows."""

    def __init__(self) -> None:
        self.every = entries()

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrites one docstring, before it is parsed."""
        if obj.docstring:
            obj.docstring.value = readable(obj.docstring.value, self.every)


def readable(doc: str, every: dict[str, Entry]) -> str:
    """A docstring with examples as Griffe names them, references as a paragraph with links, public names as links."""

    def linked(span: re.Match[str]) -> str:
        start = re.match(r"(gj\.)?([A-Za-z_][\w.]*)", span[1])
        found = every.get(start[2].rstrip(".")) if start and (start[1] or "." in start[2]) else None
        return f"[{span[0]}][{found.path}]" if found else span[0]

    doc = re.sub(r"^Example:$", "Examples:", doc, flags=re.MULTILINE)
    doc = re.sub(r"^References?:\s+", "**Reference** · ", doc, flags=re.MULTILINE)
    doc = PAPER.sub(r"[arXiv:\1](https://arxiv.org/abs/\1)", doc)
    return re.sub(r"(?<![`\[])`([^`\n]+)`(?!`)", linked, doc)
