"""Guidance scales that depend on the noise level: functions of it that every method takes in place of a number.

Each spends the same guidance as a constant would: over the run of the network's time, `w - 1` is the constant's on average.
`progress` below is 0 at the most noise and 1 at the least, in the network's own time.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import ArrayLike

from guidance_jax.arrays import per_sample
from guidance_jax.base import Context, NoiseLevel, Schedule

Scale = ArrayLike | Callable[[NoiseLevel], ArrayLike]
"""A number, one a sample, `[B]`, or a function of the noise level that gives either."""


def at(scale: Scale, context: Context, name: str) -> Array:
    """A scale at the level of x, checked and broadcastable against x.

    Raises:
      ValueError: if its shape is neither `()` nor `[B]`.
    """
    return per_sample(scale(context.level) if callable(scale) else scale, context.x, name)


def progress(schedule: Schedule, level: NoiseLevel) -> Array:
    """How much of the network's time is over: 0 at the schedule's most noise, 1 at its least."""
    return 1 - (level.t - schedule.t_min) / (schedule.t_max - schedule.t_min)


def linear(schedule: Schedule, scale: ArrayLike) -> Callable[[NoiseLevel], Array]:
    """Grows from no guidance to twice that of a constant: `w = 1 + (scale - 1) 2 progress`.

    Args:
      schedule: of the network.
      scale: the constant that it replaces, `()` or `[B]`.

    Example:
      >>> schedule = schedules.flow()
      >>> print(scales.linear(schedule, 3.0)(schedule(0.5)).round(2))
      3.0

    Reference: Wang et al. 2024, arXiv:2404.13040, table 1; its omega is `scale - 1`.
    """
    return lambda level: 1 + (jnp.asarray(scale, level.t.dtype) - 1) * 2 * progress(schedule, level)


def clamp_linear(schedule: Schedule, scale: ArrayLike, least: ArrayLike) -> Callable[[NoiseLevel], Array]:
    """`linear`, but never below a least scale: `max(least, w)`. The one that the paper recommends.

    Args:
      schedule: of the network.
      scale: the constant that `linear` replaces, `()` or `[B]`.
      least: the least scale, `()` or `[B]`.

    Example:
      >>> schedule = schedules.flow()
      >>> print(scales.clamp_linear(schedule, 3.0, least=2.0)(schedule(1.0)).round(2))
      2.0

    Reference: Wang et al. 2024, arXiv:2404.13040, section 5.
    """
    return lambda level: jnp.maximum(jnp.asarray(least, level.t.dtype), linear(schedule, scale)(level))


def cosine(schedule: Schedule, scale: ArrayLike) -> Callable[[NoiseLevel], Array]:
    """Grows along half a period: `w = 1 + (scale - 1) (1 - cos(pi progress))`.

    Args:
      schedule: of the network.
      scale: the constant that it replaces, `()` or `[B]`.

    Example:
      >>> schedule = schedules.flow()
      >>> print(scales.cosine(schedule, 3.0)(schedule(0.0)).round(2))
      5.0

    Reference: Wang et al. 2024, arXiv:2404.13040, table 1.
    """
    return power_cosine(schedule, scale, 1.0, normalise=2.0)


def power_cosine(
    schedule: Schedule, scale: ArrayLike, power: ArrayLike, *, normalise: ArrayLike = 1.0
) -> Callable[[NoiseLevel], Array]:
    """Guidance that comes late for a large power: `w = 1 + (scale - 1) normalise (1 - cos(pi progress^power)) / 2`.

    As published it is not normalised: it ends at `scale`, and on average guides less.

    Args:
      schedule: of the network.
      scale: at the least noise, `()` or `[B]`.
      power: `()`; 4 in the paper's source.
      normalise: a factor of `scale - 1`, `()`.

    Example:
      >>> schedule = schedules.flow()
      >>> print(scales.power_cosine(schedule, 3.0, power=4.0)(schedule(0.0)).round(2))
      3.0

    Reference: Gao et al. 2023, arXiv:2303.14389; Wang et al. 2024, arXiv:2404.13040, section 5.
    """

    def weight(level: NoiseLevel) -> Array:
        w, s, n = (jnp.asarray(value, level.t.dtype) for value in (scale, power, normalise))
        # The power's gradient at 0 would be that of log 0.
        late = jnp.where(progress(schedule, level) > 0, jnp.maximum(progress(schedule, level), 1e-12), 0) ** s
        return 1 + (w - 1) * n * (1 - jnp.cos(jnp.pi * late)) / 2

    return weight


def beta(schedule: Schedule, scale: ArrayLike, a: ArrayLike = 2.0, b: ArrayLike = 2.0) -> Callable[[NoiseLevel], Array]:
    """Most guidance in the middle: `w = 1 + (scale - 1) Beta(progress; a, b)`, a density, whose mean is 1.

    Args:
      schedule: of the network.
      scale: the constant that it replaces, `()` or `[B]`.
      a: of the Beta density, above 1, `()`.
      b: likewise; a = b is symmetric.

    Example:
      >>> schedule = schedules.flow()
      >>> print(scales.beta(schedule, 3.0)(schedule(0.5)).round(2))
      4.0

    Reference: Malarz et al. 2025, arXiv:2502.10574.
    """

    def weight(level: NoiseLevel) -> Array:
        w, p, q = (jnp.asarray(value, level.t.dtype) for value in (scale, a, b))
        return 1 + (w - 1) * jax.scipy.stats.beta.pdf(progress(schedule, level), p, q)

    return weight
