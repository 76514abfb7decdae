"""Descriptions of values for error messages, and notes on errors that a user's own function raises."""

import contextlib
import inspect
import reprlib
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import jax

from guidance_jax.programs.parts import Part


def described(value: Any) -> str:
    """A short description of a value for an error message: `float32[2,2]`, `the float 3.0`, `the function cfg`, `a Sampler`."""
    if of_torch(value):
        return _of_torch(value)
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


def of_torch(value: Any) -> bool:
    """Whether a value is a tensor, a module or a dtype of PyTorch, which is not imported for that."""
    return any(str(kind.__module__).partition(".")[0] == "torch" for kind in type(value).__mro__)


def _of_torch(value: Any) -> str:
    """The description of a value of PyTorch, with what to use instead of a tensor."""
    if not hasattr(value, "numpy"):
        return f"the PyTorch object {type(value).__name__}"
    kind = f"{str(value.dtype).removeprefix('torch.')}[{','.join(map(str, value.shape))}]"
    return f"a torch.Tensor {kind}: use jnp.asarray(x.numpy())"


def shown(value: Any) -> Any:
    """The value for an error message, or its description if the value is long. Of parameters, only the names are shown."""
    if isinstance(value, dict) and any(hasattr(leaf, "dtype") for leaf in jax.tree.leaves([*value.values()])):
        return f"a dictionary of {', '.join(map(repr, value))}"
    if isinstance(value, type) or getattr(value, "size", 1) > 8 or (not isinstance(value, str) and len(str(value)) > 200):
        return described(value)
    return value


def check_takes(function: Any, name: str, *what: str, **named: Any) -> None:
    """Checks that a function accepts these arguments. A function without a signature passes.

    Args:
      function: The function.
      name: The name of the function in the error message.
      *what: The names of the positional arguments.
      **named: The keyword arguments.

    Raises:
      TypeError: If the function does not accept them. The message lists both argument lists.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*what, **named)
    except TypeError:
        given, taken = ", ".join([*what, *(f"{key}=" for key in named)]), ", ".join(signature.parameters)
        raise TypeError(f"{name} must take ({given}), but {described(function)} takes ({taken}){call_it(function)}.") from None


@contextlib.contextmanager
def noting(name: str, **given: Any) -> Iterator[None]:
    """Adds a note to an error that a user's function raises: its name and its arguments."""
    try:
        yield
    except Exception as error:
        words = ", ".join(f"{argument} {jax.tree.map(described, value)}" for argument, value in given.items()).replace("'", "")
        error.add_note(f"This was raised by {name}, called with {words}.")
        if isinstance(error, jax.errors.TracerBoolConversionError):
            error.add_note("Its arguments are traced: use jnp.where(level.ratio > 1, a, b) instead of if.")
        if isinstance(error, TypeError | AttributeError) and "Prediction" in str(error):
            error.add_note(
                "Predictions can be added, subtracted and scaled. Any other function takes x0: jnp.tanh(c.x0 - u.x0)."
            )
        if isinstance(error, jax.errors.TracerArrayConversionError) or "must be Tensor, not" in str(error):
            error.add_note("It must be JAX code, because it is traced: use jax.numpy in place of NumPy and PyTorch.")
        if "NoiseLevel" in str(error) and isinstance(error, TypeError | AttributeError):
            error.add_note("It receives a noise level: use level.t for the time, level.ratio for sigma / alpha.")
        if type(error).__name__ == "TraceContextError":
            error.add_note("A module that changes when called (dropout, batch norm) is not a pure function; use module.eval().")
        raise


def warn(message: str) -> None:
    """Warns at the line that called this library."""
    frame, depth = sys._getframe(1), 2
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in ("guidance_jax", "jaxtyping", "jax"):
        frame, depth = frame.f_back, depth + 1
    warnings.warn(message, stacklevel=depth)


def article(name: str) -> str:
    """A name with its article. An abbreviation is pronounced letter by letter: an MLP, but a UNet and a Moment."""
    return f"{'an' if name[0] in ('AEFHILMNORSX' if name[1:2].isupper() else 'AEIOaeio') else 'a'} {name}"


def call_it(value: object) -> str:
    """The hint to call a function of this library whose result is expected; empty for any other value."""
    if not inspect.isfunction(value) or (value.__module__ or "").partition(".")[0] != "guidance_jax":
        return ""
    # A function of a docstring's example has the module's name too, so look it up in the module.
    own = getattr(sys.modules.get(value.__module__), value.__name__, None) is value
    return f": call it, {value.__name__}(...)" if own else ""
