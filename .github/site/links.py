"""Markdown of the repository as pages of the site: links, pictures, papers, and code spans of public names."""

import os
import re
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from names import ROOT, Entry, resolve, written

TOKEN = re.compile(
    r"""
    (?P<fence> ^[ ]*(?P<ticks>```+|~~~+)[^\n]*\n.*?^[ ]*(?P=ticks)[ ]*$ )
    | (?P<heading> ^\#+[ ].*?$ )
    | (?P<code> (?<!`)(?P<tick>`+)(?!`)[^\n]+?(?<!`)(?P=tick)(?!`) )
    | (?P<link> (?P<bang>!?) \[ (?P<label> (?:[^\[\]]|!?\[[^\[\]]*\](?:\([^()]*\))?)* ) \]
        \( (?P<where>[^()\s]+) (?P<title>(?:\s+"[^"]*")?) \) )
    | (?P<tag> (?P<before><(?P<kind>img|source|a)\b[^>]*?\b(?:src|srcset|href)=")(?P<address>[^"]+)" )
    | (?P<paper> (?<![\w./:-]) (?:arXiv:)? (?P<number> (?:0[7-9]|[12]\d)(?:0[1-9]|1[0-2])\.\d{5}) (?![\w.]\d|\w) )
    """,
    re.DOTALL | re.MULTILINE | re.VERBOSE,
)
ITEM = re.compile(r"([-*+]|\d+\.)\s")
PICTURES = (".png", ".svg", ".jpg", ".jpeg", ".gif", ".webp")


@dataclass
class Site:
    """Where the parts of the site are, and what is wrong with them."""

    docs: Path
    """The folder of the pages that the tool reads."""
    every: dict[str, Entry]
    """The public names."""
    public: dict[str, types.ModuleType]
    """The public modules."""
    repository: str | None
    """The address of the repository, for links to files that are no pages."""
    pages: dict[Path, str] = field(default_factory=dict)
    """The page of each file of the repository that has one: `README.md` becomes `index.md`."""
    faults: list[str] = field(default_factory=list)
    """What is wrong, each with its file and line."""

    def find(self, name: str) -> str | None:
        """The address of a public name or module from the root of the pages, or None if there is no such name."""
        found = resolve(name, self.every, self.public)
        if isinstance(found, Entry):
            return f"reference/{found.page}.md#{found.path}"
        if found in {each.page for each in self.every.values()}:
            return f"reference/{found}.md"
        return found and f"reference/index.md#{found}"


def page(site: Site, source: Path, text: str, target: str) -> str:
    """The Markdown of a page: links lead within the site, pictures are copied, code spans of public names are links.

    Args:
      site: The site.
      source: The file, for its relative links and for messages.
      text: Its Markdown.
      target: The page that it becomes, from the root of the pages.
    """

    def rewritten(token: re.Match[str], start: int = 0) -> str:
        line = text.count("\n", 0, start + token.start()) + 1
        fault = lambda words: site.faults.append(f"{source.relative_to(ROOT)}:{line}: {words}")
        for name in written(token[0]) if token["fence"] or token["heading"] or token["code"] else ():
            if site.find(name) is None and f"def {name}(" not in token[0]:
                fault(f"gj.{name} is no public name")
        if token["code"]:
            return linked(site, token["code"], target)
        if token["link"]:
            address = moved(site, source, token["where"], target, bool(token["bang"]), fault)
            inner = lambda part: rewritten(part, start + token.start("label")) if part["bang"] else part[0]
            label = token["label"] if token["bang"] else TOKEN.sub(inner, token["label"])
            return f"{token['bang']}[{label}]({address}{token['title']})" if address else label
        if token["tag"]:
            address = moved(site, source, token["address"], target, token["kind"] != "a", fault)
            return f'{token["before"]}{address or "#"}"'
        if token["paper"]:
            return f"[{token['paper']}](https://arxiv.org/abs/{token['number']})"
        return token[0]

    return lists(TOKEN.sub(rewritten, text))


def linked(site: Site, code: str, target: str) -> str:
    """A code span, as a link if it begins with a public name: `gj.cfg(w)`."""
    names = written(code) if code.lstrip("` ").startswith("gj.") else []
    address = site.find(names[0]) if names else None
    return f"[{code}]({relative(address, target)})" if address else code


def lists(text: str) -> str:
    """The text with an empty line before each list after a paragraph, which Python-Markdown needs and GitHub does not."""
    done: list[str] = []
    fenced = paragraph = False
    for line in text.split("\n"):
        if line.lstrip().startswith(("```", "~~~")):
            fenced, paragraph = not fenced, False
        elif not fenced:
            if ITEM.match(line):
                done += [""] if paragraph else []
                paragraph = False
            elif not line.strip() or line.startswith(("#", "|", ">", " ")):
                paragraph = False
            elif not done or not done[-1].strip() or done[-1].startswith("#"):
                paragraph = True
        done.append(line)
    return "\n".join(done)


def moved(site: Site, source: Path, where: str, target: str, picture: bool, fault: Callable[[str], None]) -> str | None:
    """The address of a link on the site, or None if it becomes plain text. A folder leads to its first page."""
    if re.match(r"[a-z]+:|//", where):
        if picture:
            fault(f"the picture {where} would be loaded from another server")
        if "OWNER" in where:
            fault(f"the link {where} has a placeholder")
            return None
        return where
    path, _, anchor = where.partition("#")
    if not path:
        return where
    file = Path(os.path.normpath(source.parent / path))
    if not file.exists() or not file.is_relative_to(ROOT):
        fault(f"{where} does not exist")
        return None
    if file.is_dir():
        file = next((first for first in site.pages if first.parent == file), file)
    if file in site.pages:
        return relative(site.pages[file], target) + (f"#{anchor}" if anchor else "")
    if picture or file.suffix in PICTURES:
        return relative(copied(site, file), target)
    if site.repository:
        return f"{site.repository}/{'tree' if file.is_dir() else 'blob'}/main/{file.relative_to(ROOT).as_posix()}"
    return None


def copied(site: Site, file: Path) -> str:
    """A picture of the repository, copied to the pages."""
    place = f"files/{file.relative_to(ROOT).as_posix().removeprefix('.')}"
    (site.docs / place).parent.mkdir(parents=True, exist_ok=True)
    (site.docs / place).write_bytes(file.read_bytes())
    return place


def relative(address: str, target: str) -> str:
    """An address from the root of the pages, as seen from a page."""
    path, _, anchor = address.partition("#")
    return os.path.relpath(path, Path(target).parent).replace(os.sep, "/") + (f"#{anchor}" if anchor else "")
