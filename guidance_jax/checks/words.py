"""Values in words, for errors: what was given, in a few words, and what a user's own function was called with."""

import contextlib
import inspect
import reprlib
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import jax

from guidance_jax.programs.parts import Part


def told(value: Any) -> str:
    """A value in a few words, for an error: `float32[2,2]`, `the float 3.0`, `the function cfg`, `a Sampler`."""
    if hasattr(value, "ndim") and hasattr(value, "dtype"):
        return f"{value.dtype}[{','.join(map(str, value.shape))}]"
    if value is None:
        return "None"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, Part):
        return article(type(value).__name__) if value.call is None else f"the {type(value).__name__} {value!r}"
    if inspect.isroutine(value):
        return f"the function {getattr(value, '__name__', '?')}"
    name = type(value).__name__
    if isinstance(value, bool | int | float | complex | str | bytes | list | dict | set) or type(value) is tuple:
        return f"the {name} {reprlib.repr(value)}"
    return article(name)


def shown(value: Any) -> Any:
    """A value in an error: itself, or what it is where that would be long."""
    if isinstance(value, type) or getattr(value, "size", 1) > 8 or (not isinstance(value, str) and len(str(value)) > 200):
        return told(value)
    return value


def check_takes(function: Any, name: str, *what: str, **named: Any) -> None:
    """Raises where a function is known not to take such arguments, the last of them by name.

    Raises:
      TypeError: telling what it takes, and what it is given.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*what, **named)
    except TypeError:
        given, taken = ", ".join([*what, *(f"{key}=" for key in named)]), ", ".join(signature.parameters)
        raise TypeError(f"{name} must take ({given}), but {told(function)} takes ({taken}){call_it(function)}.") from None


@contextlib.contextmanager
def noting(name: str, **given: Any) -> Iterator[None]:
    """Adds to an error within a function of the user's what it was called with."""
    try:
        yield
    except Exception as error:
        words = ", ".join(f"{argument} {jax.tree.map(told, value)}" for argument, value in given.items()).replace("'", "")
        error.add_note(f"This was raised by {name}, called with {words}.")
        if isinstance(error, jax.errors.TracerBoolConversionError):
            error.add_note("Its arguments are traced: choose with jnp.where(level.ratio > 1, a, b), not with if.")
        if type(error).__name__ == "TraceContextError":
            error.add_note("A module that changes when called (dropout, batch norm) is no pure function: module.eval() first.")
        raise


def warn(message: str) -> None:
    """Warns at the line that called this library."""
    frame, depth = sys._getframe(1), 2
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in ("guidance_jax", "jaxtyping", "jax"):
        frame, depth = frame.f_back, depth + 1
    warnings.warn(message, stacklevel=depth)


def article(name: str) -> str:
    """With its article: an MLP is spelt, a UNet and a Moment are said."""
    return f"{'an' if name[0] in ('AEFHILMNORSX' if name[1:2].isupper() else 'AEIOaeio') else 'a'} {name}"


def call_it(value: object) -> str:
    """For a function of this library where its result is wanted: to call it."""
    if not inspect.isfunction(value) or (value.__module__ or "").partition(".")[0] != "guidance_jax":
        return ""
    # By its name too: a function of a docstring's example says that it is of the module.
    own = getattr(sys.modules.get(value.__module__), value.__name__, None) is value
    return f": call it, {value.__name__}(...)" if own else ""
