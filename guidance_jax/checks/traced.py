"""Checks of traced values. Only a `checked` program contains them."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.experimental import checkify

from guidance_jax.checks.words import described, shown

_asked = jax.make_user_context(False)
"""Part of the key of `jax.jit`'s cache. A function that is already compiled without checks is traced again."""


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function whose traced values are checked when it runs, by `jax.experimental.checkify`. It is slower: use it to debug.

    Outside of `jit`, this library checks known values. Inside of `jit` it cannot, so the checks become part of the program:

    - Levels decrease.
    - Labels are in range.
    - Scales and x are finite.
    - x is finite after each step. The error reports the number of the step.

    A program without `checked` contains none of these checks.

    Args:
      function: A function of arrays that calls this library, jitted or not. Bind static arguments: `lambda x: f(6, x)`.
        `checked` must be the outermost transformation, so do not use it inside another `jit`.

    Returns:
      The same function, jitted. It raises the first error that its checks find.

    Raises:
      TypeError: If function is not a function.
      jax.experimental.checkify.JaxRuntimeError: When called, if a check fails.

    Example:
      >>> denoise = gj.denoiser(lambda x, t, c: 0 * x + c, predicts="x0")  # predicts its condition
      >>> two = gj.branches(denoise, cond=jnp.array([[1.0, 1.0]]), uncond=jnp.array([[0.0, 1.0]]))
      >>> path = gj.levels(gj.schedules.flow(), 4, gj.spacings.trailing())
      >>> keys = jax.random.split(jax.random.key(0), 1)
      >>> @jax.jit
      ... def generate(scale):
      ...     return gj.sample(keys, two, gj.cfg(scale), gj.ddim(), path, (2,))
      >>> print(gj.checked(generate)(3.0))
      [[3. 1.]]
      >>> gj.checked(generate)(jnp.nan)  # doctest: +IGNORE_EXCEPTION_DETAIL
      Traceback (most recent call last):
      JaxRuntimeError: cfg's scale must be finite, got nan.

    Reference: the documentation of JAX, "The `checkify` transformation".
    """

    wanted = "checked: function must be a function, got {got}; use checked(generate)(scale)."
    demand(callable(function), wanted, TypeError, got=described(function))

    def traced(*arguments: Any, **named: Any) -> Any:
        with _asked(True):
            return function(*arguments, **named)

    program = jax.jit(checkify.checkify(traced, errors=checkify.user_checks))

    @functools.wraps(function)
    def run(*arguments: Any, **named: Any) -> Any:
        error, result = program(*arguments, **named)
        error.throw()
        return result

    return run


def all_finite(x: Array) -> Array:
    """Whether all values are finite."""
    return jnp.isfinite(x).all()


def demand(holds: Any, message: str, error: type[Exception] = ValueError, **values: Any) -> None:
    """Raises an error unless a condition holds. Known values are checked now, traced values in a `checked` program.

    Args:
      holds: A bool, an array of bools, or a function that returns one of these. The function is called only if the values are
        known, or the program is `checked`.
      message: The error message, a format string: `"x must be [B, {size}], got {x}."`.
      error: The type of the error.
      **values: The values of the format string.

    Raises:
      Exception: Of the type `error`, if the condition does not hold.
    """
    if callable(holds):
        if not concrete(values):
            insist(holds, message, **values)
            return
        with jax.ensure_compile_time_eval():
            holds = np.asarray(holds())
    if not np.all(holds):
        raise error(message.format(**{name: shown(value) for name, value in values.items()}))


def insist(right: Callable[[], Any], message: str, **values: Any) -> None:
    """Checks traced values in a `checked` program. In other programs it does nothing and does not call `right`.

    Args:
      right: Returns a bool, or an array of bools.
      message: The error message, a format string: `"the scale must be finite, got {scale}."`.
      **values: The values of the format string: arrays, or known values of any type.
    """
    if _asked.value:
        for name, value in values.items():
            if concrete(value):
                message = message.replace(f"{{{name}}}", str(value).replace("{", "{{").replace("}", "}}"))
        traced = {name: jax.tree.map(jnp.asarray, value) for name, value in values.items() if not concrete(value)}
        checkify.check(jnp.all(jnp.asarray(right())), message, **traced)


def concrete(value: object) -> bool:
    """Whether the values of all leaves are known now, on this process, so that they can be checked."""
    return all(
        not isinstance(leaf, Tracer) and (not isinstance(leaf, Array) or leaf.is_fully_addressable)
        for leaf in jax.tree.leaves(value)
    )


def known_now(value: object) -> contextlib.AbstractContextManager[Any]:
    """A context in which results of a known value are computed now, instead of in the traced program."""
    return jax.ensure_compile_time_eval() if concrete(value) else contextlib.nullcontext()
