"""How guidances combine: one after the other, side by side, in an interval of noise levels."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import ArrayLike

from guidance_jax.arrays import concrete, divide, expand
from guidance_jax.base import Context, Guidance, NoiseLevel, Prediction


def stateless(update: Callable[[Prediction, Context], Prediction], needs: Iterable[str] = ()) -> Guidance:
    """A guidance that remembers nothing, from its formula alone.

    Args:
      update: `(prediction, context) -> prediction`.
      needs: the names of the branches it reads.

    Example:
      >>> halve = stateless(lambda prediction, context: prediction._replace(x0=prediction.x0 / 2))
      >>> sorted(halve.needs)
      []
    """
    return Guidance(frozenset(needs), lambda x: (), lambda prediction, state, context: (update(prediction, context), state))


def chain(*parts: Guidance) -> Guidance:
    """One guidance after another: each acts on what those before it made of the base prediction. `chain()` guides nothing.

    Args:
      *parts: sources, which add to the prediction, and shapers, which change what is there so far.

    Example:
      >>> guidance = chain(cfg(3.0), rescale(0.7))
      >>> sorted(guidance.needs)
      ['cond', 'uncond']
    """

    def update(prediction: Prediction, states: tuple[Any, ...], context: Context) -> tuple[Prediction, tuple[Any, ...]]:
        after = []
        for part, state in zip(parts, states, strict=True):
            prediction, state = part.update(prediction, state, context)
            after.append(state)
        return prediction, tuple(after)

    return _together(parts, update)


def add(*parts: Guidance) -> Guidance:
    """Guidances side by side: each sees the same prediction, and what each of them changes is added up.

    Unlike in a `chain`, no part's shapers act on what another one added.

    Args:
      *parts: guidances, chains among them.

    Example:
      >>> guidance = add(cfg(2.0), chain(cfg(2.0, cond="style"), rescale(0.7)))
      >>> sorted(guidance.needs)
      ['cond', 'style', 'uncond']
    """

    def update(prediction: Prediction, states: tuple[Any, ...], context: Context) -> tuple[Prediction, tuple[Any, ...]]:
        x0, eps, after = prediction.x0, prediction.eps, []
        for part, state in zip(parts, states, strict=True):
            guided, state = part.update(prediction, state, context)
            x0, eps = x0 + (guided.x0 - prediction.x0), eps + (guided.eps - prediction.eps)
            after.append(state)
        return prediction._replace(x0=x0, eps=eps), tuple(after)

    return _together(parts, update)


def during(guidance: Guidance, low: ArrayLike, high: ArrayLike = jnp.inf) -> Guidance:
    """A guidance in the interval `low < sigma / alpha <= high` only; elsewhere its branches are not even evaluated.

    A step is inside if the level at which it begins is, and all evaluations of a step are treated alike, so a run whose
    levels include `low` and `high` switches exactly there, at no loss of order.

    Args:
      guidance: what to confine.
      low: the lower bound in `sigma / alpha`, `()`, excluded.
      high: the upper bound in `sigma / alpha`, `()`, included.

    Raises:
      ValueError: if a bound is no scalar, or low is not below high.

    Example:
      >>> guidance = during(cfg(3.0), 0.19, 1.61)
      >>> bool(guidance.wants((), schedules.edm()(0.0))["uncond"])
      True

    Reference: Kynkaanniemi et al. 2024, arXiv:2404.07724.
    """
    for name, bound in {"low": low, "high": high}.items():
        if jnp.shape(bound) != ():
            raise ValueError(f"during's {name} has shape {jnp.shape(bound)}, but must be a scalar; vmap for several.")
    if concrete((low, high)) and not np.asarray(low) < np.asarray(high):
        raise ValueError(f"during(guidance, {low}, {high}) is empty: low must be below high, both in sigma / alpha.")

    def inside(level: NoiseLevel) -> Array:
        ratio = level.ratio
        return (ratio > jnp.asarray(low, ratio.dtype)) & (ratio <= jnp.asarray(high, ratio.dtype))

    def update(prediction: Prediction, state: Any, context: Context) -> tuple[Prediction, Any]:
        return jax.lax.cond(
            inside(context.start),
            lambda prediction, state: guidance.update(prediction, state, context),
            lambda prediction, state: (prediction, state),
            prediction,
            state,
        )

    def wanted(state: Any, start: NoiseLevel) -> dict[str, Any]:
        now = inside(start)
        return {name: now if always is True else now & always for name, always in wants(guidance, state, start).items()}

    return Guidance(guidance.needs, guidance.init, update, wanted)


def wants(guidance: Guidance, state: Any, start: NoiseLevel) -> dict[str, Any]:
    """Which of its branches a guidance wants in the step that begins at `start`: `{name: True or a boolean scalar}`."""
    return dict.fromkeys(guidance.needs, True) if guidance.wants is None else guidance.wants(state, start)


def move(prediction: Prediction, x0: Array, level: NoiseLevel) -> Prediction:
    """The prediction with another x0, its eps moved along so that `alpha x0 + sigma eps` stays what it was."""
    ratio = expand(divide(level.alpha, level.sigma), x0)
    return prediction._replace(x0=x0, eps=prediction.eps - ratio * (x0 - prediction.x0))


def _together(parts: tuple[Guidance, ...], update: Callable[..., Any]) -> Guidance:
    """Several guidances as one: the states side by side, a branch wanted where any part wants it."""

    def either(a: Any, b: Any) -> Any:
        return True if a is True or b is True else a if a is b else a | b

    def wanted(states: tuple[Any, ...], start: NoiseLevel) -> dict[str, Any]:
        union: dict[str, Any] = {}
        for part, state in zip(parts, states, strict=True):
            for name, now in wants(part, state, start).items():
                union[name] = either(union[name], now) if name in union else now
        return union

    needs = functools.reduce(frozenset.union, (part.needs for part in parts), frozenset[str]())
    return Guidance(needs, lambda x: tuple(part.init(x) for part in parts), update, wanted)
