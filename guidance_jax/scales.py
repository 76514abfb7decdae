"""Guidance scales that depend on the noise level: functions of it that every method takes in place of a number.

`calibrated` follows a measurement. Each of the others spends the same guidance as a constant would: over the run of the
network's time, `w - 1` is the constant's on average. `progress` below is 0 at the most noise and 1 at the least, in that time.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import ArrayLike
from typing_extensions import TypeAliasType

from guidance_jax.arrays import check_range, per_sample
from guidance_jax.base import Context, NoiseLevel, Schedule
from guidance_jax.checks import check_curve, check_scalar, check_schedule
from guidance_jax.curves import Calibration, Curve
from guidance_jax.kinds import check_takes, noting

__all__ = ["Scale", "beta", "calibrated", "clamp_linear", "cosine", "linear", "power_cosine"]

Scale = TypeAliasType("Scale", ArrayLike | Callable[[NoiseLevel], ArrayLike])
"""A number, one a sample, `[B]`, or a function of the noise level that gives either."""


def at(scale: Scale, context: Context, name: str, *bounds: float | int, above: float | int | None = None) -> Array:
    """A scale at the level of x, checked and broadcastable against x.

    Raises:
      ValueError: if its shape is neither `()` nor `[B]`, or it is known and not finite, or outside the bounds.
      TypeError: if it is no number, no array of them, and no function of the level.
    """
    return per_sample(at_level(scale, context.level, name), context.x, name, *bounds, above=above)


def at_level(scale: Any, level: NoiseLevel, name: str) -> Any:
    """A scale, or what it is at a level where it is a function."""
    if not callable(scale) or isinstance(scale, tuple):
        return scale
    check_takes(scale, name, "level")
    with noting(name, level=level):
        return scale(level)


def progress(schedule: Schedule, level: NoiseLevel) -> Array:
    """How much of the network's time is over: 0 at the schedule's most noise, 1 at its least."""
    return 1 - (level.t - schedule.t_min) / (schedule.t_max - schedule.t_min)


def linear(schedule: Schedule, scale: ArrayLike) -> Callable[[NoiseLevel], Array]:
    """Grows from no guidance to twice that of a constant: `w = 1 + (scale - 1) 2 progress`.

    Args:
      schedule: of the network.
      scale: the constant that it replaces, `()` or `[B]`.

    Raises:
      ValueError: if scale is not finite.

    Example:
      >>> schedule = schedules.flow()
      >>> print(scales.linear(schedule, 3.0)(schedule(0.5)).round(2))
      3.0

    Reference: Wang et al. 2024, arXiv:2404.13040, table 1; its omega is `scale - 1`.
    """
    check_schedule(schedule)
    check_range(scale, "linear's scale")
    return lambda level: 1 + (jnp.asarray(scale, level.t.dtype) - 1) * 2 * progress(schedule, level)


def clamp_linear(schedule: Schedule, scale: ArrayLike, least: ArrayLike) -> Callable[[NoiseLevel], Array]:
    """`linear`, but never below a least scale: `w = max(least, 1 + (scale - 1) 2 progress)`. The one that the paper recommends.

    Args:
      schedule: of the network.
      scale: the constant that `linear` replaces, `()` or `[B]`.
      least: the least scale, `()` or `[B]`.

    Raises:
      ValueError: if a scale is not finite.

    Example:
      >>> schedule = schedules.flow()
      >>> print(scales.clamp_linear(schedule, 3.0, least=2.0)(schedule(1.0)).round(2))
      2.0

    Reference: Wang et al. 2024, arXiv:2404.13040, section 5.
    """
    check_range(least, "clamp_linear's least")
    unclamped = linear(schedule, scale)
    return lambda level: jnp.maximum(jnp.asarray(least, level.t.dtype), unclamped(level))


def cosine(schedule: Schedule, scale: ArrayLike) -> Callable[[NoiseLevel], Array]:
    """Grows along half a period: `w = 1 + (scale - 1) (1 - cos(pi progress))`.

    Args:
      schedule: of the network.
      scale: the constant that it replaces, `()` or `[B]`.

    Raises:
      ValueError: if scale is not finite.

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

    Raises:
      ValueError: if scale or normalise is not finite, or power is negative.

    Example:
      >>> schedule = schedules.flow()
      >>> print(scales.power_cosine(schedule, 3.0, power=4.0)(schedule(0.0)).round(2))
      3.0

    Reference: Gao et al. 2023, arXiv:2303.14389; Wang et al. 2024, arXiv:2404.13040, section 5.
    """
    check_schedule(schedule)
    check_range(scale, "the scale")
    check_range(power, "power_cosine's power", 0)
    check_range(normalise, "power_cosine's normalise")

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

    Raises:
      ValueError: if scale is not finite, or a or b is below 1.

    Example:
      >>> schedule = schedules.flow()
      >>> print(scales.beta(schedule, 3.0)(schedule(0.5)).round(2))
      4.0

    Reference: Malarz et al. 2025, arXiv:2502.10574.
    """
    check_schedule(schedule)
    check_range(scale, "beta's scale")
    check_range(a, "beta's a", 1)
    check_range(b, "beta's b", 1)

    def weight(level: NoiseLevel) -> Array:
        w, p, q = (jnp.asarray(value, level.t.dtype) for value in (scale, a, b))
        return 1 + (w - 1) * jax.scipy.stats.beta.pdf(progress(schedule, level), p, q)

    return weight


def calibrated(curve: Curve | Calibration, scale: ArrayLike, *, threshold: ArrayLike = 0.0) -> Callable[[NoiseLevel], Array]:
    """The scale whose guidance samples, as far as posteriors are Gaussian, the law `p(x)^(1 - scale) p(x | y)^scale`.

    `w = scale / (rho + scale (1 - rho))`, which is `1 / w = 1 - rho + rho / scale`: 1 where rho is 0, and scale where rho is 1.

    It is the mean of a product of posteriors whose covariances are as rho to 1. Where the condition is open, rho is small and
    guidance off; w is never above `1 / (1 - rho)`, so the result forgives large scales.

    rho is linear in `log(sigma / alpha)` between the levels of the curve, and constant beyond them. A scale of 0 is the
    unconditional model. A negative one needs `rho > scale / (scale - 1)` at every level, as the law does on Gaussians. A known
    curve seldom has that: to go away from a condition, calibrate with `cond="uncond", uncond="cond"`, on unconditional samples.

    Args:
      curve: of `calibrate`, `curve.for_prompts` for prompts; or a `Curve` that is known.
      scale: `()` or `[B]`.
      threshold: w is 1 where it is this near to 1, `()`; `unless_one` then leaves out the unconditional branch.

    Raises:
      ValueError: if scale is not finite, threshold is negative, the curve is known and no curve, or `rho + scale (1 - rho)` is
        known and not positive; where it is traced, w is NaN.

    Example:
      >>> curve = Curve(ratio=jnp.array([0.1, 1.0, 10.0]), rho=jnp.array([1.0, 0.5, 0.0]))
      >>> print(scales.calibrated(curve, 4.0)(schedules.edm().at(jnp.array([0.01, 0.1, 1.0, 10.0]))))
      [4.  4.  1.6 1. ]

    Reference: Derived here; no publication of this form is known to us. Near it are learned scales (arXiv:2510.00815), decaying
    scales (arXiv:2603.08155), the interval (arXiv:2404.07724) and precision-weighted products (arXiv:2404.07593).
    """
    check_range(scale, "calibrated's scale")
    check_scalar(threshold, "calibrated's threshold")
    check_curve(curve, scale)
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
