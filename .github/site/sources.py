"""Which files of the repository become pages, in which order."""

from pathlib import Path

from links import Site
from names import ROOT

GUIDES = (
    *("first_steps", "concepts", "methods", "samplers", "schedules", "particles"),
    *("gradients", "training", "published", "your_data", "moving", "questions"),
)
"""The guide pages, in reading order."""
PAPERS = {
    "README.md": "index.md",
    "README.zh-CN.md": "chinese.md",
    "experiments/README.md": "experiments.md",
    ".github/CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
"""The other pages, and what each becomes."""
FOLDER = ROOT / ".github/site/guide"


def guides() -> list[Path]:
    """The guide pages that exist, in reading order."""
    return [file for name in GUIDES if (file := FOLDER / f"{name}.md").exists()]


def notebooks() -> list[Path]:
    """The notebooks. The first one is for beginners."""
    return sorted((ROOT / "experiments/notebooks").glob("*.ipynb"), key=lambda file: (file.stem != "quickstart", file.stem))


def place(site: Site) -> None:
    """Gives every file its page, for links between them. A guide page that is missing or has no place is a fault."""
    site.pages |= {ROOT / source: target for source, target in PAPERS.items()}
    site.pages |= {file: f"guide/{file.stem}.md" for file in guides()}
    site.pages |= {file: f"notebooks/{file.stem}.md" for file in notebooks()}
    wanted, found = {FOLDER / f"{name}.md" for name in GUIDES}, set(FOLDER.glob("*.md"))
    site.faults += [f"{file.relative_to(ROOT)}: the page is missing" for file in sorted(wanted - found)]
    site.faults += [f"{file.relative_to(ROOT)}: GUIDES in sources.py has no place for it" for file in sorted(found - wanted)]
