"""The library on an accelerator: exactness, overhead, PyTorch, training and scale, measured by one command in eight minutes.

`python -m experiments.accelerator` measures, and prints a table per part. Each part writes a row to `PART.json` as soon as it
has it, so a run that is cut leaves what it has. `--report DIR` prints the tables of such files. `--smoke` checks every part at
toy size on any device. Nothing here needs the network.
"""

import dataclasses
import importlib
import importlib.metadata
import json
import os
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

# PyTorch needs some of the same memory.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
if os.environ.get("JAX_PLATFORMS") and "cpu" not in os.environ["JAX_PLATFORMS"]:
    os.environ["JAX_PLATFORMS"] += ",cpu"  # The host's float64 is what the device is compared with.

import jax
import tyro

from experiments.tools.stages import Stages, duration, say

Part = Literal["exactness", "overhead", "pytorch", "training", "scale"]
SHARES: dict[str, float] = {"exactness": 0.75, "overhead": 2.5, "pytorch": 2.0, "training": 2.0, "scale": 0.75}
"""The parts in their order, with the relative time of each. What a part leaves is shared among those after it."""
TITLES = {
    "exactness": "Exactness: float32 against float64 on the host, exact mixtures",
    "overhead": "Overhead: a guided run against the same calls of the network alone",
    "pytorch": "PyTorch: diffusers' pipeline, same weights, latents, texts and steps",
    "training": "Training and pictures",
    "scale": "Scale: one program for many runs, many particles, many samples",
}
PACKAGES = ("jax", "jaxlib", "flax", "torch", "diffusers")


@dataclasses.dataclass(frozen=True)
class Config:
    """The library on an accelerator.

    Args:
      parts: The parts, in the order of this list.
      minutes: The time of all parts together. A part leaves out the rows that do not fit.
      out: The directory for one JSON file per part, and for pictures.
      report: A directory of such files. Their tables are printed, and nothing is measured.
      smoke: Check every part at toy size, in minutes on a CPU. The numbers of such a run mean nothing.
    """

    parts: tuple[Part, ...] = get_args(Part)
    minutes: float = 8.0
    out: Path = Path("out/accelerator")
    report: Path | None = None
    smoke: bool = False

    def __post_init__(self) -> None:
        unknown = [part for part in self.parts if part not in SHARES]
        if unknown or not self.parts:
            raise ValueError(f"parts must be some of {', '.join(SHARES)}, got {', '.join(unknown) or 'none'}.")
        if not self.minutes > 0:
            raise ValueError(f"minutes must be positive, got {self.minutes}.")


def module(part: str) -> Any:
    """The module of a part, imported when its turn comes. It has `measure(smoke, minutes, out)` and `table(rows)`."""
    return importlib.import_module(f"experiments.accelerator.{part}")


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that are installed."""
    found = {"python": sys.version.split()[0]}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def run(part: str, smoke: bool, minutes: float, out: Path) -> dict[str, Any]:
    """Measures one part. Its file is written again after every row, so that it always holds all rows so far.

    An exception ends the part. It is recorded in the file.

    Args:
      part: The name of the part.
      smoke: Whether sizes are those of a toy.
      minutes: The time of this part.
      out: The directory for `PART.json`.
    """
    start, device = time.perf_counter(), jax.devices()[0]
    rows: list[dict[str, Any]] = []
    found = {
        "part": part,
        "device": f"{jax.device_count()} x {device.device_kind} ({device.platform})",
        "versions": versions(),
        "smoke": smoke,
        "seconds": 0.0,
        "rows": rows,
    }

    def write() -> None:
        found["seconds"] = time.perf_counter() - start
        partial = out / f"{part}.json.partial"
        partial.write_text(json.dumps(found, indent=1))
        partial.replace(out / f"{part}.json")

    write()
    try:
        measured: Iterator[dict[str, Any]] = module(part).measure(smoke, minutes, out)
        for row in measured:
            rows.append(row)
            write()
    except Exception as error:
        found["error"] = f"{type(error).__name__}: {error}"
        found["traceback"] = traceback.format_exc()
        write()
    write()
    return found


def report(found: dict[str, Any]) -> str:
    """A part as Markdown: its title, where it was measured, and its table."""
    part, rows = found["part"], found["rows"]
    packages = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    lines = [f"**{TITLES[part]}** ({found['device']}, {duration(found['seconds'])}; {packages})", ""]
    if found["smoke"]:
        lines[:0] = ["A smoke run at toy size: these numbers mean nothing.", ""]
    if "error" in found:
        lines += [f"It stopped with {found['error']}", ""]
    return "\n".join([*lines, module(part).table(rows) if rows else "No rows.", ""])


def main(config: Config) -> int:
    """Measures the parts, or reads their files, and prints their tables. It returns the exit code: 1 if a part stopped."""
    if config.report is not None:
        files = [config.report / f"{part}.json" for part in SHARES if part in config.parts]
        results = [json.loads(file.read_text()) for file in files if file.exists()]
        if not results:
            raise FileNotFoundError(f"{config.report} has none of {', '.join(file.name for file in files)}.")
        print("\n".join(map(report, results)))
        return int(any("error" in found for found in results))
    out = config.out / "smoke" if config.smoke else config.out
    out.mkdir(parents=True, exist_ok=True)
    parts = [part for part in SHARES if part in config.parts]
    end = time.perf_counter() + 60 * config.minutes
    title = f"The library on {jax.devices()[0].device_kind}, in at most {config.minutes:g} minutes. Results are in {out}."
    stage = Stages(title, dict.fromkeys(parts, ""))
    results = []
    for number, part in enumerate(parts):
        left = max(0.0, end - time.perf_counter()) / 60
        share = left * SHARES[part] / sum(SHARES[later] for later in parts[number:])
        with stage(part) as tell:
            found = run(part, config.smoke, share, out)
            tell(f"{len(found['rows'])} rows")
            if "error" in found:
                tell(f"it stopped with {found['error']}")
        results.append(found)
    say("\n" + "\n".join(map(report, results)))
    for found in results:
        if "error" in found:
            print(found["traceback"], file=sys.stderr)
    return int(any("error" in found for found in results))


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Config, description=__doc__)))
