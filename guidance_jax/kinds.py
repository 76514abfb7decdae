"""What kind of thing was given: told in a few words, and checked to be the kind that is asked for."""

import contextlib
import inspect
import reprlib
import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def told(value: Any) -> str:
    """A value in a few words, for an error: `float32[2,2]`, `the float 3.0`, `the function cfg`, `a Sampler`."""
    if hasattr(value, "ndim") and hasattr(value, "dtype"):
        return f"{value.dtype}[{','.join(map(str, value.shape))}]"
    if value is None:
        return "None"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if inspect.isroutine(value):
        return f"the function {getattr(value, '__name__', '?')}"
    name = type(value).__name__
    if isinstance(value, bool | int | float | complex | str | bytes | list | dict | set) or type(value) is tuple:
        return f"the {name} {reprlib.repr(value)}"
    return _article(name)


def check_kind(value: object, kind: Any, name: str, mend: str) -> None:
    """Raises unless a value is of a kind.

    Raises:
      TypeError: telling what it is, and the mend: to call it, where it is a function of this library.
    """
    if isinstance(value, kind):
        return
    raise TypeError(f"{name} must be {_article(kind.__name__)}, got {told(value)}{_call(value)}; {mend}")


def check_callable(value: object, name: str, mend: str) -> None:
    """Raises unless a value can be called: a function or a module, but no class, and nothing that is called otherwise.

    Raises:
      TypeError: telling what it is, and the mend.
    """
    uncalled = _call(value) if inspect.isfunction(value) and "<locals>" not in value.__qualname__ else ""
    if not callable(value) or isinstance(value, type | tuple) or uncalled:
        raise TypeError(f"{name} must be a function, got {told(value)}{uncalled}; {mend}")


def check_network(network: object) -> None:
    """Raises unless a network can be called.

    Raises:
      TypeError: telling what it is; of a Linen module without parameters, how it gets them.
    """
    check_callable(
        network, "the network", "it is (x, t, cond) -> output; of a class, an instance: UNet(config, rngs=nnx.Rngs(0))."
    )
    of = getattr(network, "__self__", network)
    linen = any(part.__module__.startswith("flax.linen") for part in type(of).__mro__)
    if linen and getattr(of, "scope", None) is None:
        raise TypeError(
            f"the network must hold its parameters, got {told(network)}; gj.networks.from_linen binds a Linen module."
        )


def check_takes(function: Any, name: str, *what: str) -> None:
    """Raises where a function is known not to take such arguments.

    Raises:
      TypeError: telling what it takes, and what it is given.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*what)
    except TypeError:
        given, taken = ", ".join(what), ", ".join(signature.parameters)
        raise TypeError(f"{name} must take ({given}), but {told(function)} takes ({taken}){_call(function)}.") from None


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


def check_count(value: object, name: str, least: int = 1) -> None:
    """Raises unless a value is a whole number, known, and not below the least.

    Raises:
      TypeError: if it is no integer.
      ValueError: if it is too small.
    """
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, got {told(value)}.")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}.")


def check_numbers(value: object, name: str) -> None:
    """Raises unless a value is a real number, or an array or list of them.

    Raises:
      TypeError: telling what it is.
    """
    if not _real(value):
        raise TypeError(f"{name} must be a real number or an array of them, got {told(value)}.")


def check_name(name: object) -> None:
    """Raises unless it is a string: the name of a branch.

    Raises:
      TypeError: telling what it is.
    """
    check_kind(name, str, "the name of a branch", "conditions go to gj.branches(denoise, cond=labels, uncond=null).")


def check_array(value: object, name: str, kind: Any, words: str) -> None:
    """Raises unless a value is an array of a kind of numbers, `jnp.floating` say.

    Raises:
      TypeError: telling what it is.
    """
    dtype = getattr(value, "dtype", None)
    if not hasattr(value, "shape") or dtype is None or not jnp.issubdtype(dtype, kind):
        raise TypeError(f"{name} must be an array of {words}, got {told(value)}.")


def _article(name: str) -> str:
    """With its article: an MLP is spelt, a UNet and a Moment are said."""
    return f"{'an' if name[0] in ('AEFHILMNORSX' if name[1:2].isupper() else 'AEIOaeio') else 'a'} {name}"


def _real(value: object) -> bool:
    dtype = getattr(value, "dtype", None)
    if dtype is not None:
        return any(jnp.issubdtype(dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_))
    return all(map(_real, value)) if isinstance(value, list) else isinstance(value, bool | int | float)


def _call(value: object) -> str:
    if not inspect.isfunction(value) or (value.__module__ or "").partition(".")[0] != "guidance_jax":
        return ""
    # By its name too: a function of a docstring's example says that it is of the module.
    own = getattr(sys.modules.get(value.__module__), value.__name__, None) is value
    return f": call it, {value.__name__}(...)" if own else ""
