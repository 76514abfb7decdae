"""Spacings: the times that a run visits. Each returns a function `(schedule, steps) -> t [steps]`, with decreasing t.

On a discrete schedule, `uniform`, `leading`, `trailing` and `quadratic` give whole training steps, as in the released samplers.
`karras` and `exponential` may give times between them, where the schedule interpolates. Times that are not traced are computed
in float64.

diffusers differs in two cases. Its Euler, Heun and LMS schedulers do not round `uniform`; `pretrained.schedulers` has this
version. Its DPM-Solver and UniPC schedulers round the times of `karras` and `exponential`.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import ArrayLike

from guidance_jax.checks.door import part, rule
from guidance_jax.checks.kinds import CountFromZero, Positive, Share, Spacing
from guidance_jax.checks.paths import check_bounds, check_steps
from guidance_jax.checks.traced import concrete
from guidance_jax.schedules.schedule import Schedule

__all__ = ["Spacing", "exponential", "karras", "leading", "quadratic", "trailing", "uniform"]


@part()
def uniform() -> Spacing:
    """Times evenly spaced from `t_max` to `t_min`, both included ("linspace" elsewhere).

    `t_i = t_max - i (t_max - t_min) / (steps - 1)`, i from 0 to steps - 1. On a discrete schedule they are rounded.

    Raises:
      ValueError: When called, if steps is more than a discrete schedule has.

    Example:
      >>> print(gj.spacings.uniform()(gj.schedules.ddpm_linear(), 4))
      [999. 666. 333.   0.]
    """

    def spacing(schedule: Schedule, steps: int) -> Array:
        check_steps(schedule, steps)
        least, most = _ends(schedule)
        if schedule.steps is None or steps == 1:
            return _evenly(least, most, np.linspace(1, 0, steps))
        return _times(np.linspace(least, most, steps).round()[::-1])

    return spacing


@part()
def leading(offset: CountFromZero = 0) -> Spacing:
    """Times evenly spaced from `t_min`, without `t_max`, as in DDIM and Stable Diffusion 1.

    `t_i = t_min + i (t_max - t_min) / steps`, i from steps - 1 to 0. On a discrete schedule of T training steps,
    `t_i = i floor(T / steps) + offset`.

    The first level is below the noise level of pure noise. The published samplers nevertheless start from pure noise.

    Args:
      offset: The number added to every training step of a discrete schedule (1 for Stable Diffusion).

    Raises:
      ValueError: When called, if steps is more than a discrete schedule has.

    Example:
      >>> print(gj.spacings.leading()(gj.schedules.ddpm_linear(), 4))
      [750. 500. 250.   0.]

    Reference: Song et al. 2021, arXiv:2010.02502; named in Lin et al. 2024, arXiv:2305.08891, table 2.
    """

    def spacing(schedule: Schedule, steps: int) -> Array:
        check_steps(schedule, steps)
        index = np.arange(steps - 1, -1, -1.0)
        if schedule.steps is None:
            return _evenly(*_ends(schedule), index / steps)
        return _times(index * (schedule.steps // steps) + offset)

    return spacing


@part()
def trailing() -> Spacing:
    """Times evenly spaced from `t_max`, without `t_min`. The last step goes from the last time to the clean data.

    `t_i = t_max - i (t_max - t_min) / steps`, i from 0 to steps - 1. On a discrete schedule of T training steps,
    `t_i = round(T - i T / steps) - 1`.

    Raises:
      ValueError: When called, if steps is more than a discrete schedule has.

    Example:
      >>> print(gj.spacings.trailing()(gj.schedules.ddpm_linear(), 4))
      [999. 749. 499. 249.]

    Reference: Lin et al. 2024, arXiv:2305.08891, table 2.
    """

    def spacing(schedule: Schedule, steps: int) -> Array:
        check_steps(schedule, steps)
        if schedule.steps is None:
            return _evenly(*_ends(schedule), 1 - np.arange(steps) / steps)
        # Computed by the stride, as in diffusers: multiples of the stride decide how halves are rounded.
        return _times(np.arange(schedule.steps, 0, -schedule.steps / steps)[:steps].round() - 1)

    return spacing


@part()
def quadratic(reach: Share = 1.0) -> Spacing:
    """Times evenly spaced in the square root of t, dense at low noise, as in DDIM on CIFAR-10.

    `t_i = t_min + c i^2`, i from 0 to steps - 1. On a discrete schedule `t_i = max(i, floor(c i^2))`, so that no time repeats.

    Args:
      reach: The share of `t_max` at which the run starts. DDIM's released code uses 0.8. Its paper starts close to the last
        time.

    Raises:
      ValueError: If reach is outside (0, 1].

    Example:
      >>> print(gj.spacings.quadratic()(gj.schedules.ddpm_linear(), 4))
      [999. 444. 111.   0.]

    Reference: Song et al. 2021, arXiv:2010.02502, appendix D.2.
    """

    def spacing(schedule: Schedule, steps: int) -> Array:
        check_steps(schedule, steps)
        index = np.arange(steps - 1, -1, -1)
        share = np.square(index / (steps - 1)) if steps > 1 else np.ones(1)
        if schedule.steps is None:
            return _evenly(*_ends(schedule), reach * share)
        # The small constant corrects whole numbers that rounding has made slightly smaller.
        whole = np.floor(min(reach * schedule.steps, schedule.steps - 1) * share + 1e-9)
        return _times(np.maximum(whole, index))

    return spacing


ORDER = "rho must come first, then sigma_min and sigma_max; use karras(sigma_min=0.1, sigma_max=10.0)"
KEPT = lambda rho, sigma_min, sigma_max: sigma_min is None or sigma_max is not None or (rho >= 1) | (sigma_min < 1)


@part(rule(ORDER, KEPT))
def karras(rho: Positive = 7.0, sigma_min: Positive | None = None, sigma_max: Positive | None = None) -> Spacing:
    """Times evenly spaced in `(sigma / alpha)^(1 / rho)`, dense at low noise.

    `r_i = (r_max^(1/rho) + i / (steps - 1) (r_min^(1/rho) - r_max^(1/rho)))^rho`, r = sigma / alpha.

    Args:
      rho: A larger rho is denser at low noise. 1 is even in `sigma / alpha`.
      sigma_min: The minimum `sigma / alpha`. None is the schedule's minimum.
      sigma_max: The maximum `sigma / alpha`. None is the schedule's maximum.

    Raises:
      ValueError: If `sigma_max` is None and the schedule's maximum `sigma / alpha` is infinite, or a bound is outside the
        levels of a discrete schedule. If sigma_min and sigma_max come first, as in k-diffusion.

    Example:
      >>> t = gj.spacings.karras()(gj.schedules.edm(), 5)
      >>> [f"{sigma:.3f}" for sigma in gj.schedules.edm()(t).sigma]
      ['80.000', '17.528', '2.515', '0.170', '0.002']

    Reference: Karras et al. 2022, arXiv:2206.00364, equation 5.
    """

    def spacing(schedule: Schedule, steps: int) -> Array:
        least, most = _bounds(schedule, sigma_min, sigma_max, "karras")
        root = 1 / _exact(rho)
        ramp = np.linspace(0, 1, steps)
        return schedule.inverse(_times((most**root + ramp * (least**root - most**root)) ** (1 / root)))

    return spacing


@part()
def exponential(sigma_min: Positive | None = None, sigma_max: Positive | None = None) -> Spacing:
    """Times evenly spaced in `log(sigma / alpha)`, and so in the log-SNR ("log-SNR" elsewhere).

    `r_i = r_max (r_min / r_max)^(i / (steps - 1))`, r = sigma / alpha. It is the limit of `karras` for infinite rho.

    Args:
      sigma_min: The minimum `sigma / alpha`. None is the schedule's minimum.
      sigma_max: The maximum `sigma / alpha`. None is the schedule's maximum.

    Raises:
      ValueError: If `sigma_max` is None and the schedule's maximum `sigma / alpha` is infinite, or a bound is outside the
        levels of a discrete schedule.

    Example:
      >>> t = gj.spacings.exponential(0.1, 10.0)(gj.schedules.edm(), 5)
      >>> [f"{sigma:.3f}" for sigma in gj.schedules.edm()(t).sigma]
      ['10.000', '3.162', '1.000', '0.316', '0.100']

    Reference: Lu et al. 2022, arXiv:2206.00927, section 4.1 (uniform in log-SNR); named in k-diffusion.
    """

    def spacing(schedule: Schedule, steps: int) -> Array:
        least, most = _bounds(schedule, sigma_min, sigma_max, "exponential")
        return schedule.inverse(_times(most * (least / most) ** np.linspace(0, 1, steps)))

    return spacing


def _bounds(schedule: Schedule, least: ArrayLike | None, most: ArrayLike | None, name: str) -> tuple[Any, Any]:
    """The minimum and maximum `sigma / alpha` of a path."""
    low, high = (_exact(schedule(end).ratio) for end in (schedule.t_min, schedule.t_max))
    r_min, r_max = (own if given is None else _exact(given) for own, given in ((low, least), (high, most)))
    check_bounds(name, schedule, (low, high), (r_min, r_max))
    return r_min, r_max


def _exact(value: ArrayLike) -> Any:
    """A known number as float64; a traced number in the default precision."""
    return np.asarray(value).astype(np.float64) if concrete(value) else jnp.asarray(value, jnp.result_type(float))


def _ends(schedule: Schedule) -> tuple[Any, Any]:
    """The times of minimum and maximum noise."""
    return _exact(schedule.t_min), _exact(schedule.t_max)


def _evenly(least: Any, most: Any, share: np.ndarray) -> Array:
    """The times at these shares of the way from minimum to maximum noise."""
    return _times((1 - share) * least + share * most)


def _times(t: Any) -> Array:
    dtype = jnp.result_type(float)
    return jnp.asarray(np.asarray(t, dtype) if concrete(t) else t, dtype)
