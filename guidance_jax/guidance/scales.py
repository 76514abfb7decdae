"""Guidance scales that depend on the noise level. Every method accepts such a function in place of a number.

`calibrated` follows a measured curve. The others replace a constant scale. Over the network's time, their `w - 1` has the same
mean as the constant's, unless the docstring says otherwise. In the formulae, `progress` is 0 at maximum noise and 1 at minimum
noise, and linear in time.
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
    """One number, `()`, or one per sample, `[B]`, reshaped to broadcast against x."""
    check_shape(value, x, where)
    return expand(jnp.asarray(value, x.dtype), x)


def at_level(scale: Any, level: NoiseLevel) -> Any:
    """The value of a scale at a level; the scale itself if it is not a function."""
    return scale(level) if callable(scale) else scale


def progress(schedule: Schedule, level: NoiseLevel) -> Array:
    """The share of the network's time that has passed: 0 at the schedule's maximum noise, 1 at its minimum noise."""
    return 1 - (level.t - schedule.t_min) / (schedule.t_max - schedule.t_min)


@part()
def linear(schedule: Schedule, scale: PerSample) -> Level:
    """A scale that increases linearly from 1, with twice the guidance of the constant at the end.

    `w = 1 + (scale - 1) 2 progress`

    Args:
      schedule: The schedule of the network.
      scale: The constant scale that it replaces, `()` or `[B]`.

    Raises:
      ValueError: If scale is not finite.

    Example:
      >>> schedule = gj.schedules.flow()
      >>> print(gj.scales.linear(schedule, 3.0)(schedule(0.5)).round(2))
      3.0

    Reference: Wang et al. 2024, arXiv:2404.13040, table 1. Its omega is `scale - 1`.
    """
    return lambda level: 1 + (jnp.asarray(scale, level.t.dtype) - 1) * 2 * progress(schedule, level)


@part()
def clamp_linear(schedule: Schedule, scale: PerSample, min: PerSample) -> Level:
    """The scale of `linear`, with a lower bound. The paper recommends this one.

    `w = max(min, 1 + (scale - 1) 2 progress)`

    Args:
      schedule: The schedule of the network.
      scale: The constant scale that `linear` replaces, `()` or `[B]`.
      min: The minimum scale, `()` or `[B]`.

    Raises:
      ValueError: If a scale is not finite.

    Example:
      >>> schedule = gj.schedules.flow()
      >>> print(gj.scales.clamp_linear(schedule, 3.0, min=2.0)(schedule(1.0)).round(2))
      2.0

    Reference: Wang et al. 2024, arXiv:2404.13040, section 5.
    """
    unclamped = linear(schedule, scale)
    return lambda level: jnp.maximum(jnp.asarray(min, level.t.dtype), unclamped(level))


@part()
def cosine(schedule: Schedule, scale: PerSample) -> Level:
    """A scale that increases along half a period of a cosine: `w = 1 + (scale - 1) (1 - cos(pi progress))`.

    Args:
      schedule: The schedule of the network.
      scale: The constant scale that it replaces, `()` or `[B]`.

    Raises:
      ValueError: If scale is not finite.

    Example:
      >>> schedule = gj.schedules.flow()
      >>> print(gj.scales.cosine(schedule, 3.0)(schedule(0.0)).round(2))
      5.0

    Reference: Wang et al. 2024, arXiv:2404.13040, table 1.
    """
    return power_cosine(schedule, scale, 1.0, normalise=2.0)


@part()
def power_cosine(schedule: Schedule, scale: PerSample, power: NonNegative, *, normalise: Number = 1.0) -> Level:
    """A cosine scale with an exponent: a larger power moves guidance to a later time.

    `w = 1 + (scale - 1) normalise (1 - cos(pi progress^power)) / 2`

    With the published `normalise = 1` it ends at `scale`, and the mean of `w - 1` is below the constant's.

    Args:
      schedule: The schedule of the network.
      scale: The scale at the minimum noise, `()` or `[B]`.
      power: The exponent, `()`. The paper's source code uses 4.
      normalise: A factor of `scale - 1`, `()`.

    Raises:
      ValueError: If scale or normalise is not finite, or power is negative.

    Example:
      >>> schedule = gj.schedules.flow()
      >>> print(gj.scales.power_cosine(schedule, 3.0, power=4.0)(schedule(0.0)).round(2))
      3.0

    Reference: Gao et al. 2023, arXiv:2303.14389; Wang et al. 2024, arXiv:2404.13040, section 5.
    """

    def weight(level: NoiseLevel) -> Array:
        w, s, n = (jnp.asarray(value, level.t.dtype) for value in (scale, power, normalise))
        # The gradient of the power at 0 contains log 0, so progress is bounded away from 0.
        late = jnp.where(progress(schedule, level) > 0, jnp.maximum(progress(schedule, level), 1e-12), 0) ** s
        return 1 + (w - 1) * n * (1 - jnp.cos(jnp.pi * late)) / 2

    return weight


@part()
def beta(schedule: Schedule, scale: PerSample, a: AtLeastOne = 2.0, b: AtLeastOne = 2.0) -> Level:
    """A scale with its maximum in the middle of the run: `w = 1 + (scale - 1) Beta(progress; a, b)`.

    Beta is the probability density, which has mean 1 over `progress`.

    Args:
      schedule: The schedule of the network.
      scale: The constant scale that it replaces, `()` or `[B]`.
      a: The first parameter of the Beta density, at least 1, `()`.
      b: The second parameter, at least 1, `()`. With a = b the density is symmetric.

    Raises:
      ValueError: If scale is not finite, or a or b is below 1.

    Example:
      >>> schedule = gj.schedules.flow()
      >>> print(jax.jit(gj.scales.beta(schedule, 3.0))(schedule(0.5)).round(2))
      4.0

    Reference: Malarz et al. 2025, arXiv:2502.10574.
    """

    def weight(level: NoiseLevel) -> Array:
        w, p, q = (jnp.asarray(value, level.t.dtype) for value in (scale, a, b))
        return 1 + (w - 1) * jax.scipy.stats.beta.pdf(progress(schedule, level), p, q)

    return weight


@part(also(check_curve))
def calibrated(curve: CurveLike, scale: PerSample, *, threshold: NonNegative = 0.0) -> Level:
    """The scale that samples the law `p(x)^(1 - scale) p(x | y)^scale`, if the posteriors of x0 are Gaussian.

    `w = scale / (rho + scale (1 - rho))`, or equally `1 / w = 1 - rho + rho / scale`. w is 1 at rho = 0, and scale at rho = 1.

    The guided x0 is then the mean of the product of two Gaussian posteriors whose covariances have the ratio rho. At high noise
    rho is small, and w is near 1. For positive scales w is at most `1 / (1 - rho)`, so a large scale does less harm.

    rho is interpolated linearly in `log(sigma / alpha)`, and constant beyond the levels of the curve. A scale of 0 is the
    unconditional model. A negative scale needs `rho > scale / (scale - 1)` at every level, which few curves meet. To guide away
    from a condition, calibrate with `cond="uncond", uncond="cond"` on unconditional samples.

    Args:
      curve: The result of `calibrate` (for prompts, its `for_prompts`), or a known `Curve`.
      scale: The exponent of `p(x | y)` in the law, `()` or `[B]`.
      threshold: The scale is 1 where `|w - 1|` is below this, `()`. `unless_one` then skips the unconditional branch.

    Raises:
      ValueError: If scale is not finite, threshold is negative, curve is not a valid curve, or `rho + scale (1 - rho)` is not
        positive. If these are traced, w is NaN where the latter is not positive.

    Example:
      >>> curve = gj.Curve(ratio=jnp.array([0.1, 1.0, 10.0]), rho=jnp.array([1.0, 0.5, 0.0]))
      >>> level = gj.schedules.edm().at(jnp.array([0.01, 0.1, 1.0, 10.0]))
      >>> print(jax.jit(gj.scales.calibrated(curve, 4.0))(level))
      [4.  4.  1.6 1. ]

    Reference: Derived here; no publication of this form is known to us. Related are learned scales (arXiv:2510.00815), decaying
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
    """`log(sigma / alpha)`, clipped to be finite at sigma = 0 and at alpha = 0."""
    return jnp.log(jnp.clip(ratio, 1e-9, 1e9))
