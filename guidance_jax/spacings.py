"""Spacings: which times a run of so many steps visits. Each gives a function `(schedule, steps) -> t [steps]`, decreasing.

On a discrete schedule the first four give whole training steps, as the released models were sampled; the others may
fall between them, where the schedule interpolates. diffusers' Euler, Heun and LMS schedulers do not round `uniform`, and its
DPM-Solver and UniPC schedulers round the times of `karras` and `exponential`: `pretrained.schedulers` has the former.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import Array

from guidance_jax.arrays import concrete
from guidance_jax.base import Scalar, Schedule
from guidance_jax.checks import check_order, check_scalar
from guidance_jax.kinds import check_count

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
        t = jnp.linspace(schedule.t_max, schedule.t_min, steps, dtype=jnp.result_type(float))
        return t if schedule.steps is None else jnp.round(t)

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
        index = jnp.arange(steps - 1, -1, -1, dtype=jnp.result_type(float))
        if schedule.steps is None:
            return schedule.t_min + index * (schedule.t_max - schedule.t_min) / steps
        return index * (schedule.steps // steps) + offset

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
        index = jnp.arange(steps, dtype=jnp.result_type(float))
        if schedule.steps is None:
            return schedule.t_max - index * (schedule.t_max - schedule.t_min) / steps
        return jnp.round(schedule.steps - index * schedule.steps / steps) - 1

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
            share = jnp.asarray(reach * share, jnp.result_type(float))
            return schedule.t_min + share * (schedule.t_max - schedule.t_min)
        # A little above, for the whole numbers that rounding puts below themselves.
        whole = np.floor(min(reach * schedule.steps, schedule.steps - 1) * share + 1e-9)
        return jnp.asarray(np.maximum(whole, index), jnp.result_type(float))

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
        ramp = jnp.linspace(0, 1, steps, dtype=jnp.result_type(float))
        root = 1 / jnp.asarray(rho, ramp.dtype)
        ratio = (most**root + ramp * (least**root - most**root)) ** (1 / root)
        return schedule.inverse(ratio)

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
        least, most = map(jnp.log, _bounds(schedule, sigma_min, sigma_max, "exponential"))
        ramp = jnp.linspace(0, 1, steps, dtype=jnp.result_type(float))
        return schedule.inverse(jnp.exp(most + ramp * (least - most)))

    return spacing


def _check_given(least: Scalar | None, most: Scalar | None, name: str) -> None:
    for value, end in ((least, "sigma_min"), (most, "sigma_max")):
        if value is not None:
            check_scalar(value, f"{name}'s {end}", above=0)


def _bounds(schedule: Schedule, least: Scalar | None, most: Scalar | None, name: str) -> tuple[Array, Array]:
    """The smallest and the largest `sigma / alpha` of a path."""
    least, most = (
        schedule(end).ratio if given is None else jnp.asarray(given, jnp.result_type(float))
        for end, given in ((schedule.t_min, least), (schedule.t_max, most))
    )
    if concrete(most) and not np.isfinite(np.asarray(most)):
        raise ValueError(
            f"{name} spacing needs a finite largest sigma / alpha, but the schedule's t_max has alpha = 0; "
            f"give {name}(sigma_max=80.0), or the schedule a smaller t_max."
        )
    if schedule.steps is not None:
        least_own, most_own = schedule(schedule.t_min).ratio, schedule(schedule.t_max).ratio
        _check_within(f"{name}'s sigma_min", least, least_own, least < 0.999 * least_own)
        _check_within(f"{name}'s sigma_max", most, most_own, most > 1.001 * most_own)
    check_order(least, most, f"{name} spacing", "its sigma_min must be below its sigma_max, or the schedule's")
    return least, most


def _check_within(name: str, value: Array, own: Array, beyond: Array) -> None:
    if concrete(beyond) and beyond:
        raise ValueError(f"{name}={value:.4g} is beyond the levels of this discrete schedule, which end at {own:.4g}.")


def _check_steps(schedule: Schedule, steps: int) -> None:
    if schedule.steps is not None and steps > schedule.steps:
        raise ValueError(
            f"{steps} steps of a discrete schedule that has {schedule.steps} training steps: at most "
            f"{schedule.steps} of them can be visited."
        )
