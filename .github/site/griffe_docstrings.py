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
        sure = start and (start[1] or "." in start[2] or doc[: span.start()].endswith("The same as of "))
        found = every.get(start[2].rstrip(".")) if start and sure else None
        return f"[{span[0]}][{found.path}]" if found else span[0]

    def same(section: re.Match[str]) -> str:
        return f"**{'Parameters' if section[1] == 'Args' else section[1]}** · {section[2]}"

    doc = re.sub(r"^(Args|Raises):\n +(The same as of `[\w.]+`\.)$", same, doc, flags=re.MULTILINE)
    doc = re.sub(r"^Example:$", "Examples:", doc, flags=re.MULTILINE)
    doc = re.sub(r"^References?:\s+", "**Reference** · ", doc, flags=re.MULTILINE)
    doc = PAPER.sub(r"[arXiv:\1](https://arxiv.org/abs/\1)", doc)
    return re.sub(r"(?<![`\[])`([^`\n]+)`(?!`)", linked, doc)
