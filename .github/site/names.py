"""The public names of the library, and the reference page of each."""

import inspect
import re
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import guidance_jax as gj  # noqa: E402
from guidance_jax.checks import kinds  # noqa: E402

ROOMS = {
    "": "Core",
    "guidance": "Guidance",
    "samplers": "Samplers",
    "schedules": "Schedules",
    "particles": "Particles",
    "networks": "Networks",
    "training": "Training",
    "metrics": "Metrics",
    "pretrained": "Published networks",
    "checks": "Checks",
}
"""The groups of reference pages: the rooms with a folder, and all rooms of one file together."""
BY_FILE = ("guidance", "samplers")
"""Rooms with one page per file, because a file is a family of methods. Other rooms have one page per public module."""


@dataclass(frozen=True)
class Entry:
    """One name on its reference page."""

    name: str
    """As a user writes it after `gj.`."""
    path: str
    """Where it is defined, and its anchor: `guidance_jax.guidance.linear.cfg`."""
    page: str
    """The module whose page has it, after `guidance_jax.`: `guidance.linear`."""
    line: int
    """Its line in the file, or 0."""


def modules() -> dict[str, types.ModuleType]:
    """The public modules, by their shortest names."""
    found: dict[str, types.ModuleType] = {}

    def walk(module: types.ModuleType, prefix: str) -> None:
        for name in module.__all__:
            value = getattr(module, name)
            if isinstance(value, types.ModuleType) and value not in found.values():
                found[f"{prefix}{name}"] = value
                walk(value, f"{prefix}{name}.")

    walk(gj, "")
    return found


def entries() -> dict[str, Entry]:
    """Every public name, and the kinds that annotate parameters, by the shortest name."""
    found: dict[int, Entry] = {}
    for prefix, module in {"": gj, **modules()}.items():
        for name in module.__all__:
            value = getattr(module, name)
            short = f"{prefix}.{name}".lstrip(".")
            if isinstance(value, types.ModuleType) or (id(value) in found and "." in short):
                continue
            found[id(value)] = entry(short, value, module)
    for name, value in vars(kinds).items():
        if type(value).__name__ == "TypeAliasType" and id(value) not in found and value.__module__ == kinds.__name__:
            found[id(value)] = entry(f"checks.kinds.{name}", value, kinds)
    return {each.name: each for each in sorted(found.values(), key=lambda each: each.name)}


def entry(name: str, value: Any, module: types.ModuleType) -> Entry:
    """The entry of a value that a public module lists under this name."""
    home = getattr(value, "__module__", None)
    defined = home if isinstance(home, str) and home.startswith("guidance_jax.") else module.__name__
    file = defined.removeprefix("guidance_jax.")
    room, prefix = file.partition(".")[0] if "." in file else "", name.rpartition(".")[0]
    if room in BY_FILE and prefix in ("", room):
        page = file
    elif room == "checks":
        page = room
    elif prefix:
        page = modules()[prefix].__name__.removeprefix("guidance_jax.")
    else:
        page = room or file
    code = inspect.isclass(value) or inspect.isfunction(value)
    line = inspect.getsourcelines(inspect.unwrap(value))[1] if code else 0
    return Entry(name, f"{defined}.{name.rpartition('.')[2]}", page, line)


def pages(every: dict[str, Entry]) -> dict[str, list[Entry]]:
    """The entries of each page, by its module, in the order of the rooms."""
    order = list(ROOMS)
    found: dict[str, list[Entry]] = {}
    for each in every.values():
        found.setdefault(each.page, []).append(each)
    rooms = {page: room_of(page) for page in found}
    unknown = {room for room in rooms.values() if room not in order}
    if unknown:
        raise SystemExit(f"names.py: ROOMS has no {', '.join(sorted(unknown))}; add the room and its title.")
    return {
        page: sorted(found[page], key=lambda each: (is_kind(each), each.path.rpartition(".")[0], each.line, each.name))
        for page in sorted(found, key=lambda page: (order.index(rooms[page]), page))
    }


def is_kind(each: Entry) -> bool:
    """Whether an entry is no public name, but a kind that annotates parameters."""
    return each.name.startswith("checks.kinds.")


def room_of(page: str) -> str:
    """The group of a page: its folder in the library, or none for a single file."""
    room = page.partition(".")[0]
    return room if (ROOT / "guidance_jax" / room).is_dir() else ""


def written(code: str) -> list[str]:
    """The names after `gj.` in a piece of code: `chain` and `cfg` in `gj.chain(gj.cfg(2.0))`."""
    return re.findall(r"(?<![\w.])gj\.([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)", code)


def resolve(name: str, every: dict[str, Entry], public: dict[str, types.ModuleType]) -> Entry | str | None:
    """The entry of a name, the page of a module, or None if `gj` has no such public name.

    What follows a public name must be its attribute: `oracles.GaussianMixture.denoise`.
    """
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        head, rest = ".".join(parts[:count]), parts[count:]
        if head in every and not is_kind(every[head]):
            value = gj
            for part in head.split("."):
                value = getattr(value, part)
            return every[head] if has(value, rest) else None
        if head in public and (not rest or rest[0].startswith("__")):
            return public[head].__name__.removeprefix("guidance_jax.")
    if name == "__version__":
        return "core"
    return aliased(parts, every)


def aliased(parts: list[str], every: dict[str, Entry]) -> Entry | None:
    """The entry of a public name that is written by a longer name: `guidance.cfg`, `samplers.ddim`."""
    value = gj
    for part in parts:
        if part not in getattr(value, "__all__", ()):
            return None
        value = getattr(value, part)
    home = getattr(value, "__module__", "")
    return next((each for each in every.values() if each.path == f"{home}.{parts[-1]}"), None)


def has(value: Any, attributes: list[str]) -> bool:
    """Whether a value has these attributes, one in another. Fields of data classes count. What a call returns is not known."""
    for name in attributes:
        fields = getattr(value, "__dataclass_fields__", {}) | getattr(value, "__annotations__", {})
        if not hasattr(value, name) and name not in fields:
            return False
        value = getattr(value, name, None)
        if value is None:
            return True
    return True
