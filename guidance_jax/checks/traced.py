"""Checks of values that are known only when the program runs: asked for by `checked`, and otherwise not in it."""

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

from guidance_jax.checks.words import shown, told

_asked = jax.make_user_context(False)
"""A part of what `jax.jit` remembers a program by: a function that is already compiled without the checks is traced anew."""


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function whose traced values are checked as it runs, by `jax.experimental.checkify`: slower, to find out what is wrong.

    Where this library checks a value that is known, and inside of `jit` cannot, the check becomes a part of the program: that
    levels decrease, labels lie in range, scales and x are finite, and that x is after each step, which is told by its number.

    Args:
      function: that calls this library, jitted or not, of arrays alone: what is static is bound, `lambda x: f(6, x)`. This is
        the outermost transformation; not under another `jit`.

    Returns:
      The same, jitted, which raises the first error that its values made. Without `checked` none of this is in a program.

    Raises:
      TypeError: if it is no function.
      jax.experimental.checkify.JaxRuntimeError: when called, with what the check tells.

    Example:
      >>> generate = jax.jit(lambda scale: sample(keys, two, cfg(scale), ddim(), path, (1,)))
      >>> mixture = oracles.GaussianMixture(jnp.array([[-2.0], [2.0]]), jnp.ones((2, 1, 1)), jnp.ones(2), jnp.arange(2))
      >>> two = branches(mixture.denoise, cond=jnp.array([0, 1]), uncond=jnp.array([-1, -1]))
      >>> keys, path = jax.random.split(jax.random.key(0), 2), levels(schedules.edm(), 2, spacings.karras())
      >>> print(checked(generate)(2.0).shape)
      (2, 1)
      >>> checked(generate)(jnp.nan)  # doctest: +IGNORE_EXCEPTION_DETAIL
      Traceback (most recent call last):
      JaxRuntimeError: cfg's scale must be finite, got nan.

    Reference: the documentation of JAX, "The `checkify` transformation".
    """

    wanted = "checked: function must be a function, got {got}; use checked(generate)(scale)."
    demand(callable(function), wanted, TypeError, got=told(function))

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
    """Whether no value is NaN or infinite."""
    return jnp.isfinite(x).all()


def demand(holds: Any, message: str, error: type[Exception] = ValueError, **values: Any) -> None:
    """Raises unless something holds: at once where it is known, in a program that is `checked` where it is traced.

    Args:
      holds: A bool, an array of them, or a function that returns one. The function is called only where the values are known,
        or the program is checked.
      message: What is wrong, with places for the values: `"x must be [B, {size}], got {x}."`.
      error: What is raised.
      **values: What the message shows.
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
    """A check of traced values, in a program that is `checked`; elsewhere nothing, and `right` is not even called.

    Args:
      right: gives a boolean scalar.
      message: what is raised, with places for the values: `"the scale must be finite, got {scale}."`.
      **values: what the message tells: arrays, or anything that is known.
    """
    if _asked.value:
        for name, value in values.items():
            if concrete(value):
                message = message.replace(f"{{{name}}}", str(value).replace("{", "{{").replace("}", "}}"))
        traced = {name: jax.tree.map(jnp.asarray, value) for name, value in values.items() if not concrete(value)}
        checkify.check(jnp.all(jnp.asarray(right())), message, **traced)


def concrete(value: object) -> bool:
    """Whether every leaf of `value` is known now and here, so that its values can be checked."""
    return all(
        not isinstance(leaf, Tracer) and (not isinstance(leaf, Array) or leaf.is_fully_addressable)
        for leaf in jax.tree.leaves(value)
    )


def known_now(value: object) -> contextlib.AbstractContextManager[Any]:
    """Within it, what is computed from a known value is computed at once, and not in the program that is being traced."""
    return jax.ensure_compile_time_eval() if concrete(value) else contextlib.nullcontext()
