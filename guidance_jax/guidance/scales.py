"""Guidance scales that depend on the noise level: functions of it that every method takes in place of a number.

`calibrated` follows a measurement. Each of the others spends the same guidance as a constant would: over the run of the
network's time, `w - 1` is the constant's on average. `progress` below is 0 at the most noise and 1 at the least, in that time.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from guidance_jax.arrays import expand
from guidance_jax.base import Context, NoiseLevel
from guidance_jax.checks.door import also, part
from guidance_jax.checks.kinds import AtLeastOne, Level, NonNegative, Number, PerSample, Scale
from guidance_jax.checks.numbers import check_shape
from guidance_jax.checks.values import check_curve
from guidance_jax.guidance.curves import CurveLike
from guidance_jax.schedules.schedule import Schedule

__all__ = ["Scale", "beta", "calibrated", "clamp_linear", "cosine", "linear", "power_cosine"]


def at(scale: Scale, context: Context) -> Array:
    """A scale at the level of x, broadcastable against x."""
    return per_sample(at_level(scale, context.level), context.x, getattr(scale, "where", "a scale"))


def per_sample(value: Any, x: Array, where: str) -> Array:
    """One number, `()`, or one per sample, `[B]`, broadcastable against x."""
    check_shape(value, x, where)
    return expand(jnp.asarray(value, x.dtype), x)


def at_level(scale: Any, level: NoiseLevel) -> Any:
    """A scale, or its value at a level where it is a function."""
    return scale(level) if callable(scale) else scale


def progress(schedule: Schedule, level: NoiseLevel) -> Array:
    """How much of the network's time is over: 0 at the schedule's most noise, 1 at its least."""
    return 1 - (level.t - schedule.t_min) / (schedule.t_max - schedule.t_min)


@part()
def linear(schedule: Schedule, scale: PerSample) -> Level:
    """Grows from no guidance to twice that of a constant: `w = 1 + (scale - 1) 2 progress`.

    Args:
      schedule: The schedule of the network.
      scale: The constant that it replaces, `()` or `[B]`.

    Raises:
      ValueError: If scale is not finite.

    Example:
      >>> schedule = schedules.flow()
      >>> print(scales.linear(schedule, 3.0)(schedule(0.5)).round(2))
      3.0

    Reference: Wang et al. 2024, arXiv:2404.13040, table 1; its omega is `scale - 1`.
    """
    return lambda level: 1 + (jnp.asarray(scale, level.t.dtype) - 1) * 2 * progress(schedule, level)


@part()
def clamp_linear(schedule: Schedule, scale: PerSample, min: PerSample) -> Level:
    """`linear`, but never below a least scale: `w = max(min, 1 + (scale - 1) 2 progress)`. The one that the paper recommends.

    Args:
      schedule: The schedule of the network.
      scale: The constant that `linear` replaces, `()` or `[B]`.
      min: The minimum scale, `()` or `[B]`.

    Raises:
      ValueError: If a scale is not finite.

    Example:
      >>> schedule = schedules.flow()
      >>> print(scales.clamp_linear(schedule, 3.0, min=2.0)(schedule(1.0)).round(2))
      2.0

    Reference: Wang et al. 2024, arXiv:2404.13040, section 5.
    """
    unclamped = linear(schedule, scale)
    return lambda level: jnp.maximum(jnp.asarray(min, level.t.dtype), unclamped(level))


@part()
def cosine(schedule: Schedule, scale: PerSample) -> Level:
    """Grows along half a period: `w = 1 + (scale - 1) (1 - cos(pi progress))`.

    Args:
      schedule: The schedule of the network.
      scale: The constant that it replaces, `()` or `[B]`.

    Raises:
      ValueError: If scale is not finite.

    Example:
      >>> schedule = schedules.flow()
      >>> print(scales.cosine(schedule, 3.0)(schedule(0.0)).round(2))
      5.0

    Reference: Wang et al. 2024, arXiv:2404.13040, table 1.
    """
    return power_cosine(schedule, scale, 1.0, normalise=2.0)


@part()
def power_cosine(schedule: Schedule, scale: PerSample, power: NonNegative, *, normalise: Number = 1.0) -> Level:
    """Guidance that comes late for a large power: `w = 1 + (scale - 1) normalise (1 - cos(pi progress^power)) / 2`.

    As published it is not normalised: it ends at `scale`, and on average guides less.

    Args:
      schedule: The schedule of the network.
      scale: The scale at the minimum noise, `()` or `[B]`.
      power: `()`; 4 in the paper's source.
      normalise: A factor of `scale - 1`, `()`.

    Raises:
      ValueError: If scale or normalise is not finite, or power is negative.

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


@part()
def beta(schedule: Schedule, scale: PerSample, a: AtLeastOne = 2.0, b: AtLeastOne = 2.0) -> Level:
    """Most guidance in the middle: `w = 1 + (scale - 1) Beta(progress; a, b)`, a density, whose mean is 1.

    Args:
      schedule: The schedule of the network.
      scale: The constant that it replaces, `()` or `[B]`.
      a: The first parameter of the Beta density, above 1, `()`.
      b: The second one; a = b is symmetric.

    Raises:
      ValueError: If scale is not finite, or a or b is below 1.

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


@part(also(check_curve))
def calibrated(curve: CurveLike, scale: PerSample, *, threshold: NonNegative = 0.0) -> Level:
    """The scale whose guidance samples, as far as posteriors are Gaussian, the law `p(x)^(1 - scale) p(x | y)^scale`.

    `w = scale / (rho + scale (1 - rho))`, which is `1 / w = 1 - rho + rho / scale`: 1 where rho is 0, and scale where rho is 1.

    It is the mean of a product of posteriors whose covariances are as rho to 1. Where the condition is open, rho is small and
    guidance off; w is never above `1 / (1 - rho)`, so the result forgives large scales.

    rho is linear in `log(sigma / alpha)` between the levels of the curve, and constant beyond them. A scale of 0 is the
    unconditional model. A negative one needs `rho > scale / (scale - 1)` at every level, as the law does on Gaussians. A known
    curve seldom has that: to go away from a condition, calibrate with `cond="uncond", uncond="cond"`, on unconditional samples.

    Args:
      curve: What `calibrate` measured, `curve.for_prompts` for prompts; or a `Curve` that is known.
      scale: `()` or `[B]`.
      threshold: The scale is 1 where it is this near to 1, `()`; `unless_one` then leaves out the unconditional branch.

    Raises:
      ValueError: If scale is not finite, threshold is negative, the curve is known and no curve, or `rho + scale (1 - rho)` is
        known and not positive; where it is traced, w is NaN.

    Example:
      >>> curve = Curve(ratio=jnp.array([0.1, 1.0, 10.0]), rho=jnp.array([1.0, 0.5, 0.0]))
      >>> print(scales.calibrated(curve, 4.0)(schedules.edm().at(jnp.array([0.01, 0.1, 1.0, 10.0]))))
      [4.  4.  1.6 1. ]

    Reference: Derived here; no publication of this form is known to us. Near it are learned scales (arXiv:2510.00815), decaying
    scales (arXiv:2603.08155), the interval (arXiv:2404.07724) and precision-weighted products (arXiv:2404.07593).
    """
    order = jnp.argsort(jnp.asarray(curve.ratio))
    known, rho = _log(jnp.asarray(curve.ratio)[order]), jnp.asarray(curve.rho)[order]

    def weight(level: NoiseLevel) -> Array:
        w, near, ratio = (jnp.asarray(value, level.sigma.dtype) for value in (scale, threshold, level.ratio))
        r = jnp.interp(_log(ratio), known.astype(ratio.dtype), rho.astype(ratio.dtype))
        below = r + w * (1 - r)
        w = jnp.where(below > 0, w / jnp.where(below > 0, below, 1), jnp.where(w == 0, 0, jnp.nan))
        return jnp.where(jnp.abs(w - 1) < near, 1, w)

    return weight


def _log(ratio: Array) -> Array:
    """Finite where there is no noise, and where there is nothing else."""
    return jnp.log(jnp.clip(ratio, 1e-9, 1e9))
