"""JSON files of settings, read in bounded time and memory, and the kind of each setting."""

import json
import math
import reprlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

DEEPEST = 64
"""The maximum depth of nested objects and lists."""
DIGITS = 32
"""The maximum number of digits of an integer. Tokenisers' files write 10^30 for an unlimited window."""


def read_json(path: Path, what: str, most: int = 2**24) -> dict[str, Any]:
    """The settings in a file.

    Args:
      path: The file.
      what: Its description in errors.
      most: The maximum size in bytes.

    Raises:
      FileNotFoundError: If there is no such file.
      ValueError: If it is larger, or is not a JSON object in UTF-8 with unique names and finite numbers. -Infinity is allowed,
        because diffusers writes it for `lambda_min_clipped`.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}, {what}.")
    if (size := path.stat().st_size) > most:
        raise ValueError(f"{path}, {what}, has {size:,} bytes, expected at most {most:,}.")
    try:
        return parsed(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}, {what}, is damaged: {error}. Download it again.") from error


def parsed(content: bytes) -> dict[str, Any]:
    """A JSON object, as `read_json` reads it.

    Args:
      content: The text in UTF-8.

    Raises:
      ValueError: If it is not a JSON object in UTF-8 with unique names and finite numbers.
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
        raise ValueError(f"it must hold a JSON object, got {type(settings).__name__}")
    return settings


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = set[str]()
        twice = next(name for name, _ in pairs if name in names or names.add(name))
        raise ValueError(f"{reprlib.repr(twice)} occurs twice")
    return found


def _whole(text: str) -> int:
    if len(text.removeprefix("-")) > DIGITS:
        raise ValueError(f"it has an integer of {len(text)} digits, expected at most {DIGITS}")
    return int(text)


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{reprlib.repr(text)} exceeds the range of numbers")
    return value


def _constant(text: str) -> float:
    if text != "-Infinity":
        raise ValueError(f"{text} is not a number")
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
    """The kind of a setting.

    Args:
      words: The description in errors.
      fits: Whether a value is of the kind.
    """

    words: str
    fits: Callable[[Any], bool]


def whole(low: int, high: int) -> Kind:
    """An integer from `low` to `high`, both included."""
    return Kind(f"an integer from {low:,} to {high:,}", lambda value: type(value) is int and low <= value <= high)


def between(low: float, high: float) -> Kind:
    """A number from `low` to `high`, both included."""
    return Kind(f"a number from {low:g} to {high:g}", lambda value: type(value) in (int, float) and low <= value <= high)


def several(kind: Kind, most: int = 16) -> Kind:
    """A list of 1 to `most` values of one kind."""
    fits = lambda value: isinstance(value, list | tuple) and 1 <= len(value) <= most and all(map(kind.fits, value))
    return Kind(f"a list of 1 to {most:,}, each {kind.words}", fits)


def either(*kinds: Kind) -> Kind:
    """A value of one of several kinds."""
    return Kind(" or ".join(kind.words for kind in kinds), lambda value: any(kind.fits(value) for kind in kinds))


SIZE = whole(1, 2**20)
"""A width, or a number of tokens."""
LAYERS = whole(1, 128)
NUMBER = between(-1e6, 1e6)
POSITIVE = between(1e-12, 1e6)
FLAG = Kind("true or false", lambda value: type(value) is bool)
TEXT = Kind("a string", lambda value: type(value) is str)
NULL = Kind("null", lambda value: value is None)


def check_settings(settings: Mapping[str, Any], kinds: Mapping[str, Kind]) -> None:
    """Raises unless each setting with a known kind is of that kind.

    Args:
      settings: The parsed file.
      kinds: The kinds by the names of settings.

    Raises:
      ValueError: If a setting is of another kind. The error names the first one and its value.
    """
    for name, kind in kinds.items():
        if name in settings and not kind.fits(settings[name]):
            raise ValueError(f"{name} must be {kind.words}, got {reprlib.repr(settings[name])}.")
