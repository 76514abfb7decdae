"""Spacings: which times a run of so many steps visits. Each gives a function `(schedule, steps) -> t [steps]`, decreasing.

On a discrete schedule the first four give whole training steps, as the released models were sampled; the others may
fall between them, where the schedule interpolates. Known times are computed in float64, whatever the run's precision is.
diffusers' Euler, Heun and LMS schedulers do not round `uniform`, and its DPM-Solver and UniPC schedulers round the times of
`karras` and `exponential`: `pretrained.schedulers` has the former.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from guidance_jax.arrays import concrete
from guidance_jax.base import Scalar, Schedule
from guidance_jax.checks.old import check_order, check_scalar
from guidance_jax.checks.old import check_count

__all__ = ["Spacing", "exponential", "karras", "leading", "quadratic", "trailing", "uniform"]

Spacing = Callable[[Schedule, int], Array]
"""`(schedule, steps) -> t [steps]`, decreasing."""


def uniform() -> Spacing:
    """Evenly from `t_max` to `t_min`, both visited ("linspace" elsewhere).

    `t_i = t_max - i (t_max - t_min) / (steps - 1)`, i from 0 to steps - 1; rounded on a discrete schedule.

    Raises:
      ValueError: when called, if a discrete schedule has fewer steps than are asked for.

    Example:
      >>> print(spacings.uniform()(schedules.ddpm_linear(), 4))
      [999. 666. 333.   0.]
    """

    def spacing(schedule: Schedule, steps: int) -> Array:
        _check_steps(schedule, steps)
        least, most = _ends(schedule)
        if schedule.steps is None or steps == 1:
            return _evenly(least, most, np.linspace(1, 0, steps))
        return _times(np.linspace(least, most, steps).round()[::-1])

    return spacing


def leading(offset: int = 0) -> Spacing:
    """Evenly up from `t_min`, stopping a stride short of the end, as DDIM and Stable Diffusion 1 were sampled.

    `t_i = t_min + i (t_max - t_min) / steps`, i from steps - 1 to 0; on a discrete schedule of T training steps
    `t_i = i floor(T / steps) + offset`.

    A run so spaced starts below the noise level of pure noise; the published samplers start from pure noise all the same.

    Args:
      offset: added to every training step of a discrete schedule (1 for Stable Diffusion).

    Raises:
      ValueError: when called, if a discrete schedule has fewer steps than are asked for.

    Example:
      >>> print(spacings.leading()(schedules.ddpm_linear(), 4))
      [750. 500. 250.   0.]

    Reference: Song et al. 2021, arXiv:2010.02502; named in Lin et al. 2024, arXiv:2305.08891, table 2.
    """
    check_count(offset, "leading's offset", 0)

    def spacing(schedule: Schedule, steps: int) -> Array:
        _check_steps(schedule, steps)
        index = np.arange(steps - 1, -1, -1.0)
        if schedule.steps is None:
            return _evenly(*_ends(schedule), index / steps)
        return _times(index * (schedule.steps // steps) + offset)

    return spacing


def trailing() -> Spacing:
    """Evenly down from `t_max`, stopping a stride short of the end: the last step goes from there to the clean data.

    `t_i = t_max - i (t_max - t_min) / steps`, i from 0 to steps - 1; on a discrete schedule of T training steps
    `t_i = round(T - i T / steps) - 1`.

    Raises:
      ValueError: when called, if a discrete schedule has fewer steps than are asked for.

    Example:
      >>> print(spacings.trailing()(schedules.ddpm_linear(), 4))
      [999. 749. 499. 249.]

    Reference: Lin et al. 2024, arXiv:2305.08891, table 2.
    """

    def spacing(schedule: Schedule, steps: int) -> Array:
        _check_steps(schedule, steps)
        if schedule.steps is None:
            return _evenly(*_ends(schedule), 1 - np.arange(steps) / steps)
        # By the stride, as diffusers does: where a half is rounded, multiples of it decide.
        return _times(np.arange(schedule.steps, 0, -schedule.steps / steps)[:steps].round() - 1)

    return spacing


def quadratic(reach: float = 1.0) -> Spacing:
    """Evenly in the square root of t, dense where there is little noise, as DDIM was sampled on CIFAR-10.

    `t_i = t_min + c i^2`, i from 0 to steps - 1; on a discrete schedule `t_i = floor(c i^2)`, but at least i, so that none
    repeats.

    Args:
      reach: the share of `t_max` at which the run starts; DDIM's released code has 0.8, its paper a time close to the last.

    Raises:
      ValueError: if reach is outside (0, 1].

    Example:
      >>> print(spacings.quadratic()(schedules.ddpm_linear(), 4))
      [999. 444. 111.   0.]

    Reference: Song et al. 2021, arXiv:2010.02502, appendix D.2.
    """
    if not 0 < reach <= 1:
        raise ValueError(f"quadratic's reach must be in (0, 1], got {reach}.")

    def spacing(schedule: Schedule, steps: int) -> Array:
        _check_steps(schedule, steps)
        index = np.arange(steps - 1, -1, -1)
        share = np.square(index / (steps - 1)) if steps > 1 else np.ones(1)
        if schedule.steps is None:
            return _evenly(*_ends(schedule), reach * share)
        # A little above, for the whole numbers that rounding puts below themselves.
        whole = np.floor(min(reach * schedule.steps, schedule.steps - 1) * share + 1e-9)
        return _times(np.maximum(whole, index))

    return spacing


def karras(rho: Scalar = 7.0, sigma_min: Scalar | None = None, sigma_max: Scalar | None = None) -> Spacing:
    """Evenly in `(sigma / alpha)^(1 / rho)`, dense where there is little noise.

    `r_i = (r_max^(1/rho) + i / (steps - 1) (r_min^(1/rho) - r_max^(1/rho)))^rho`, r = sigma / alpha.

    Args:
      rho: the larger, the denser near the data; 1 is even in `sigma / alpha`.
      sigma_min: the smallest `sigma / alpha` visited; the schedule's own where None.
      sigma_max: the largest `sigma / alpha` visited; the schedule's own where None.

    Raises:
      ValueError: if the schedule's largest `sigma / alpha` is infinite and none is given, or what is given is beyond the
        levels of a discrete schedule.

    Example:
      >>> t = spacings.karras()(schedules.edm(), 5)
      >>> [f"{sigma:.3f}" for sigma in schedules.edm()(t).sigma]
      ['80.000', '17.528', '2.515', '0.170', '0.002']

    Reference: Karras et al. 2022, arXiv:2206.00364, equation 5.
    """
    check_scalar(rho, "karras's rho", above=0)
    _check_given(sigma_min, sigma_max, "karras")

    def spacing(schedule: Schedule, steps: int) -> Array:
        least, most = _bounds(schedule, sigma_min, sigma_max, "karras")
        root = 1 / _exact(rho)
        ramp = np.linspace(0, 1, steps)
        return schedule.inverse(_times((most**root + ramp * (least**root - most**root)) ** (1 / root)))

    return spacing


def exponential(sigma_min: Scalar | None = None, sigma_max: Scalar | None = None) -> Spacing:
    """Evenly in `log(sigma / alpha)`, and so in the log-SNR, whatever the schedule ("log-SNR" elsewhere).

    `r_i = r_max (r_min / r_max)^(i / (steps - 1))`, r = sigma / alpha: `karras` of an infinite rho.

    Args:
      sigma_min: the smallest `sigma / alpha` visited; the schedule's own where None.
      sigma_max: the largest `sigma / alpha` visited; the schedule's own where None.

    Raises:
      ValueError: if the schedule's largest `sigma / alpha` is infinite and none is given, or what is given is beyond the
        levels of a discrete schedule.

    Example:
      >>> t = spacings.exponential(0.1, 10.0)(schedules.edm(), 5)
      >>> [f"{sigma:.3f}" for sigma in schedules.edm()(t).sigma]
      ['10.000', '3.162', '1.000', '0.316', '0.100']

    Reference: Lu et al. 2022, arXiv:2206.00927, section 4.1 (uniform in log-SNR); named in k-diffusion.
    """
    _check_given(sigma_min, sigma_max, "exponential")

    def spacing(schedule: Schedule, steps: int) -> Array:
        least, most = _bounds(schedule, sigma_min, sigma_max, "exponential")
        if concrete(least) and not least > 0:
            raise ValueError(
                "exponential spacing needs a smallest sigma / alpha above 0, but the schedule's t_min has sigma = 0; give "
                "exponential(sigma_min=0.002), or the schedule a larger t_min."
            )
        return schedule.inverse(_times(most * (least / most) ** np.linspace(0, 1, steps)))

    return spacing


def _check_given(least: Scalar | None, most: Scalar | None, name: str) -> None:
    for value, end in ((least, "sigma_min"), (most, "sigma_max")):
        if value is not None:
            check_scalar(value, f"{name}'s {end}", above=0)


def _bounds(schedule: Schedule, least: Scalar | None, most: Scalar | None, name: str) -> tuple[Any, Any]:
    """The smallest and the largest `sigma / alpha` of a path."""
    low, high = (_exact(schedule(end).ratio) for end in (schedule.t_min, schedule.t_max))
    r_min, r_max = (own if given is None else _exact(given) for own, given in ((low, least), (high, most)))
    if concrete(r_max) and not np.isfinite(r_max):
        raise ValueError(
            f"{name} spacing needs a finite largest sigma / alpha, but the schedule's t_max has alpha = 0; "
            f"give {name}(sigma_max=80.0), or the schedule a smaller t_max."
        )
    if schedule.steps is not None:
        _check_within(f"{name}'s sigma_min", r_min, low, r_min < 0.999 * low)
        _check_within(f"{name}'s sigma_max", r_max, high, r_max > 1.001 * high)
    check_order(r_min, r_max, f"{name} spacing", "its sigma_min must be below its sigma_max, or the schedule's")
    return r_min, r_max


def _check_within(name: str, value: Any, own: Any, beyond: Any) -> None:
    if concrete(beyond) and beyond:
        raise ValueError(f"{name}={value:.4g} is beyond the levels of this discrete schedule, which end at {own:.4g}.")


def _check_steps(schedule: Schedule, steps: int) -> None:
    if schedule.steps is not None and steps > schedule.steps:
        raise ValueError(
            f"{steps} steps of a discrete schedule that has {schedule.steps} training steps: at most "
            f"{schedule.steps} of them can be visited."
        )


def _exact(value: Scalar) -> Any:
    """A number as float64, where it is known; else traced, in the run's precision."""
    return np.asarray(value).astype(np.float64) if concrete(value) else jnp.asarray(value, jnp.result_type(float))


def _ends(schedule: Schedule) -> tuple[Any, Any]:
    """The times of least and of most noise."""
    return _exact(schedule.t_min), _exact(schedule.t_max)


def _evenly(least: Any, most: Any, share: np.ndarray) -> Array:
    """The times at these shares of the way from the least noise to the most."""
    return _times((1 - share) * least + share * most)


def _times(t: Any) -> Array:
    dtype = jnp.result_type(float)
    return jnp.asarray(np.asarray(t, dtype) if concrete(t) else t, dtype)
