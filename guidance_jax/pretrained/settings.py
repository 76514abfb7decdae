"""JSON files of settings: read in bounded time and memory, each setting of the kind that it must have."""

import json
import math
import reprlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

DEEPEST = 64
"""How deep objects and lists may lie within each other."""
DIGITS = 32
"""Of the largest whole numbers: 10^30 stands in tokenisers' files for no window."""


def read_json(path: Path, what: str, most: int = 2**24) -> dict[str, Any]:
    """A file of settings.

    Args:
      path: Of the file.
      what: It is, for the error.
      most: Bytes that it may have.

    Raises:
      FileNotFoundError: If it is not there.
      ValueError: If it is larger, or no JSON object in UTF-8 with each name once and finite numbers. Only -Infinity may stand
        there, as diffusers writes it for `lambda_min_clipped`.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}, {what}.")
    if (size := path.stat().st_size) > most:
        raise ValueError(f"{path}, {what}, has {size:,} bytes, and at most {most:,} are read.")
    try:
        return parsed(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}, {what}, is damaged: {error}. Download it again.") from error


def parsed(content: bytes) -> dict[str, Any]:
    """A JSON object, as `read_json` reads it.

    Args:
      content: Its text, in UTF-8.

    Raises:
      ValueError: As `read_json` does.
    """
    try:
        settings = json.loads(
            content.decode(),
            object_pairs_hook=_once,
            parse_int=_whole,
            parse_float=_finite,
            parse_constant=_constant,
        )
    except RecursionError as error:
        raise ValueError(f"it is nested deeper than {DEEPEST}") from error
    _check_depth(settings)
    if not isinstance(settings, dict):
        raise ValueError(f"it must hold a JSON object, and holds {type(settings).__name__}")
    return settings


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = set[str]()
        twice = next(name for name, _ in pairs if name in names or names.add(name))
        raise ValueError(f"{reprlib.repr(twice)} is there twice")
    return found


def _whole(text: str) -> int:
    if len(text.removeprefix("-")) > DIGITS:
        raise ValueError(f"a whole number of {len(text)} digits")
    return int(text)


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{reprlib.repr(text)} is beyond all numbers")
    return value


def _constant(text: str) -> float:
    if text != "-Infinity":
        raise ValueError(f"{text} is no number")
    return -math.inf


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(DEEPEST):
        inner = [each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list)]
        level = [each for values in inner for each in values]
        if not level:
            return
    raise ValueError(f"it is nested deeper than {DEEPEST}")


class Kind(NamedTuple):
    """What a setting must be."""

    told: str
    """In words."""
    fits: Callable[[Any], bool]
    """Whether a value is one."""


def whole(low: int, high: int) -> Kind:
    """A whole number, its bounds included."""
    return Kind(f"a whole number of {low:,} to {high:,}", lambda value: type(value) is int and low <= value <= high)


def between(low: float, high: float) -> Kind:
    """A number, its bounds included."""
    return Kind(f"a number of {low:g} to {high:g}", lambda value: type(value) in (int, float) and low <= value <= high)


def several(kind: Kind, most: int = 16) -> Kind:
    """A list."""
    fits = lambda value: isinstance(value, list | tuple) and 1 <= len(value) <= most and all(map(kind.fits, value))
    return Kind(f"a list of 1 to {most:,}, each {kind.told}", fits)


def either(*kinds: Kind) -> Kind:
    """One of several."""
    return Kind(" or ".join(kind.told for kind in kinds), lambda value: any(kind.fits(value) for kind in kinds))


SIZE = whole(1, 2**20)
"""A width, or how many tokens there are."""
LAYERS = whole(1, 128)
NUMBER = between(-1e6, 1e6)
POSITIVE = between(1e-12, 1e6)
FLAG = Kind("true or false", lambda value: type(value) is bool)
TEXT = Kind("a string", lambda value: type(value) is str)
NULL = Kind("null", lambda value: value is None)


def check_settings(settings: Mapping[str, Any], kinds: Mapping[str, Kind]) -> None:
    """Each setting that is there and has a kind is of it.

    Args:
      settings: A file's, parsed.
      kinds: By the names of settings.

    Raises:
      ValueError: Naming the first that is of another kind, and its value.
    """
    for name, kind in kinds.items():
        if name in settings and not kind.fits(settings[name]):
            raise ValueError(f"{name} must be {kind.told}, got {reprlib.repr(settings[name])}.")
