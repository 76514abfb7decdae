"""Every public name is on one guide page and on one reference page, every link resolves, and one command builds the site."""

import collections
import html
import inspect
import json
import re
import subprocess
import sys
import types
from pathlib import Path

import links
import names
import nbformat
import pytest
import sources
from docstrings import SECTIONS, public

import guidance_jax as gj

ROOT = Path(__file__).parents[2]
EVERY, MODULES = names.entries(), names.modules()


@pytest.fixture
def site(tmp_path):
    """A site in which every file has its page."""
    found = links.Site(tmp_path, EVERY, MODULES, None)
    sources.place(found)
    found.faults.clear()
    return found


def firsts(text):
    """The names that lead a code span in the first column of a table."""
    cells = re.findall(r"^\|((?:[^|\n`\\]|\\.|`[^`\n]*`)*)\|", text, flags=re.MULTILINE)
    spans = [span for cell in cells for span in re.findall(r"`(gj\.[^`]+)`", cell)]
    return {names.written(span)[0] for span in spans}


def test_every_public_name_is_on_one_reference_page():
    pages = names.pages(EVERY)
    paths = collections.Counter(each.path for entries in pages.values() for each in entries)
    assert set(paths.values()) == {1}
    assert set(EVERY) >= set(public())
    listed = {"": gj, **MODULES}
    for prefix, module in listed.items():
        for name in module.__all__:
            if not isinstance(getattr(module, name), types.ModuleType):
                entry = names.resolve(f"{prefix}.{name}".lstrip("."), EVERY, MODULES)
                assert isinstance(entry, names.Entry), f"{prefix}.{name}"
    assert len(pages) > 50
    assert max(map(len, pages.values())) < 60


def test_every_public_name_leads_a_row_of_a_table_on_one_guide_page():
    """Once all guide pages are there. Before, no name is on two of those that are."""
    tables = {file.stem: firsts(file.read_text()) for file in sources.guides()}
    found = collections.defaultdict(list)
    for page, led in tables.items():
        for name in led:
            entry = names.resolve(name, EVERY, MODULES)
            assert entry is not None, f"{page}: gj.{name} is no public name"
            if isinstance(entry, names.Entry):
                found[entry.name].append(page)
    assert not {name: pages for name, pages in found.items() if len(pages) > 1}
    if len(tables) == len(sources.GUIDES):
        assert not set(public()) - set(found)


def test_links_pictures_and_names_in_code_spans_exist(site):
    for file, target in site.pages.items():
        if file.suffix == ".ipynb":
            for cell in nbformat.reads(file.read_text(), as_version=4).cells:
                links.page(site, file, cell.source if cell.cell_type == "markdown" else "", target)
        else:
            links.page(site, file, file.read_text(), target)
    assert not site.faults, "\n".join(site.faults)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[a](nowhere.md)", "nowhere.md does not exist"),
        ("![a](experiments/figures/none.png)", "none.png does not exist"),
        ('<img src="experiments/none.png">', "none.png does not exist"),
        ("![a](https://example.org/badge.svg)", "would be loaded from another server"),
        ("[![a](none.svg)](README.md)", "none.svg does not exist"),
        ("[a](https://example.org/OWNER/a)", "has a placeholder"),
        ("| `gj.chain(gj.cfq(w))` |", "gj.cfq is no public name"),
        ("```py\ngj.schedules.cosin()\n```", "gj.schedules.cosin is no public name"),
    ],
)
def test_a_fault_of_a_page_is_found(text, fault, site):
    links.page(site, ROOT / "README.md", f"# A page\n\n{text}\n", "index.md")
    assert len(site.faults) == 1
    assert re.match(rf"README\.md:3: .*{re.escape(fault)}", site.faults[0])


@pytest.mark.parametrize(
    ("text", "page"),
    [
        ("`gj.cfg(w)`", "[`gj.cfg(w)`](../reference/guidance.linear.md#guidance_jax.guidance.linear.cfg)"),
        ("| `gj.scales` | a |", "| [`gj.scales`](../reference/guidance.scales.md) | a |"),
        ("`gj.samplers`", "[`gj.samplers`](../reference/index.md#samplers)"),
        ("`cfg(w)`, `x[0](y)`", "`cfg(w)`, `x[0](y)`"),
        ("```py\ngj.cfg\n```", "```py\ngj.cfg\n```"),
        ("```python\ndef own():\n    gj.own()\n```", "```python\ndef own():\n    gj.own()\n```"),
        ("## `gj.cfg`", "## `gj.cfg`"),
        ("[`gj.cfg`](../../../README.md#two-commands)", "[`gj.cfg`](../index.md#two-commands)"),
        ("![a](../../../experiments/figures/toy_2d.png)", "![a](../files/experiments/figures/toy_2d.png)"),
        ("[the job](../../../experiments/toy_2d.py)", "the job"),
        ("[a](https://example.org)", "[a](https://example.org)"),
        ("2207.12598 is 0.98 of 2024.12345", "[2207.12598](https://arxiv.org/abs/2207.12598) is 0.98 of 2024.12345"),
        ("arXiv:2207.12598.", "[arXiv:2207.12598](https://arxiv.org/abs/2207.12598)."),
        ("A list:\n- one\n  more\n- two", "A list:\n\n- one\n  more\n- two"),
    ],
)
def test_a_page_of_the_site(text, page, site):
    assert links.page(site, sources.FOLDER / "concepts.md", text, "guide/concepts.md") == page
    assert not site.faults


def test_links_to_files_lead_to_the_repository_if_it_is_known(site):
    site.repository = "https://example.org/it"
    text = links.page(site, ROOT / "README.md", "[job](experiments/toy_2d.py), [tests](tests)", "index.md")
    assert (
        text == "[job](https://example.org/it/blob/main/experiments/toy_2d.py), [tests](https://example.org/it/tree/main/tests)"
    )


@pytest.mark.slow
def test_one_command_builds_the_site(tmp_path):
    pytest.importorskip("zensical")
    command = [sys.executable, ".github/site", "--out", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    pages = {str(file.relative_to(tmp_path / "site")): file.read_text() for file in tmp_path.rglob("*.html")}
    assert set(pages) >= {"index.html", "guide/concepts.html", "notebooks/quickstart.html", "reference/schedules.html"}
    page = pages["reference/guidance.linear.html"]
    entry = page[
        page.index('id="guidance_jax.guidance.linear.cfg"') : page.index('id="guidance_jax.guidance.linear.autoguidance"')
    ]
    equation, reference, kind = "<code>D = uncond + scale (cond - uncond)</code>", "arxiv.org/abs/2207.12598", "kinds.Scale"
    for part in (equation, reference, kind, "Raises:", "&gt;&gt;&gt;"):
        assert part in entry, part
    assert 'class="katex"' in pages["guide/concepts.html"]
    assert re.search(r'<a href="\.\./reference/guidance\.linear\.html#[\w.]+\.cfg"><code>gj\.cfg', pages["guide/methods.html"])
    assert "data:image/png" in pages["notebooks/quickstart.html"] or list(tmp_path.rglob("notebooks/*/quickstart*.png"))
    search = json.loads((tmp_path / "site/search.json").read_text())
    assert any("autoguidance" in str(item) for item in search["items"])
    shown = {name: letters(html.unescape(re.sub(r"<[^>]+>", "", text))) for name, text in pages.items()}
    lost = [f"{name}: {line}" for name, line in lines() if letters(line) not in shown[f"reference/{EVERY[name].page}.html"]]
    assert not lost


def lines():
    """The lines of every docstring without the names of parameters."""
    for name, value in public().items():
        for line in inspect.cleandoc(value.__doc__).splitlines():
            heading = line.removesuffix(":") in SECTIONS or line.lstrip().startswith("```")
            if not heading and "doctest:" not in line:
                yield name, re.sub(r"^  \*{0,2}[\w.]+: |^References?: ", "", line)


def letters(text):
    return re.sub(r"[^A-Za-z0-9]", "", text)
