"""Schedules of a continuous time. They run from a smallest to a largest `sigma / alpha` of about 0.002 to 80, the range of EDM
(arXiv:2206.00364), unless told otherwise."""

import jax.numpy as jnp
import numpy as np
from jax import Array

from guidance_jax.arrays import concrete, divide
from guidance_jax.checks.old import LARGEST
from guidance_jax.base import NoiseLevel, Scalar, Schedule
from guidance_jax.checks.old import check_order, check_scalar, check_schedule


def cosine(t_min: Scalar = 1e-3, t_max: Scalar = 0.992) -> Schedule:
    """The variance-preserving cosine schedule.

    `alpha = cos(pi t / 2)`, `sigma = sin(pi t / 2)`, t in [0, 1].

    Args:
      t_min: the time of least noise; its `sigma / alpha` is 0.0016.
      t_max: the time of most noise; its `sigma / alpha` is 79.6.

    Raises:
      ValueError: if an end is outside [0, 1], or t_min is not below t_max.

    Example:
      >>> level = schedules.cosine()(0.5)
      >>> print(level.alpha.round(4), level.sigma.round(4))
      0.7071 0.7071

    Reference: Salimans & Ho 2022, arXiv:2202.00512.
    """
    _check_ends("cosine", t_min, t_max, 1)

    def alpha_sigma(t: Array) -> tuple[Array, Array]:
        angle = t * (jnp.pi / 2)
        # Clipped for t = 1, where the cosine of a rounded pi / 2 is a little off zero, on either side.
        return jnp.where(t < 1, jnp.cos(angle), 0), jnp.sin(angle)

    return Schedule(alpha_sigma, lambda ratio: jnp.arctan(ratio) * (2 / jnp.pi), t_min, t_max)


def linear(beta_min: Scalar = 0.1, beta_max: Scalar = 20.0, t_min: Scalar = 1e-5, t_max: Scalar = 1.0) -> Schedule:
    """The variance-preserving SDE whose noise rate grows linearly.

    `log alpha = -t^2 (beta_max - beta_min) / 4 - t beta_min / 2`, `sigma = sqrt(1 - alpha^2)`, t in [0, 1].

    Args:
      beta_min: the rate at t = 0.
      beta_max: the rate at t = 1.
      t_min: the time of least noise.
      t_max: the time of most noise.

    Raises:
      ValueError: if a number is negative, or a least one is not below its largest.

    Example:
      >>> print(schedules.linear()(1.0).ratio.round(1))
      152.2

    Reference: Song et al. 2021, arXiv:2011.13456, equation 33.
    """
    _check_ends("linear", t_min, t_max)
    check_scalar(beta_min, "linear's beta_min")
    check_scalar(beta_max, "linear's beta_max")
    check_order(beta_min, beta_max, "linear", "beta_min must be below beta_max")

    def alpha_sigma(t: Array) -> tuple[Array, Array]:
        log_alpha = -0.25 * t**2 * (beta_max - beta_min) - 0.5 * t * beta_min
        return jnp.exp(log_alpha), jnp.sqrt(-jnp.expm1(2 * log_alpha))

    def inverse(ratio: Array) -> Array:
        minus_log_alpha = 0.5 * jnp.log1p(ratio**2)
        # The positive root of the quadratic, in the form that does not cancel for small t.
        return divide(4 * minus_log_alpha, beta_min + jnp.sqrt(beta_min**2 + 4 * (beta_max - beta_min) * minus_log_alpha))

    return Schedule(alpha_sigma, inverse, t_min, t_max)


def edm(sigma_min: Scalar = 0.002, sigma_max: Scalar = 80.0) -> Schedule:
    """The variance-exploding process of EDM: `alpha = 1`; the network is told `t = log(sigma) / 4`.

    Args:
      sigma_min: the smallest noise level before zero.
      sigma_max: the largest noise level.

    Raises:
      ValueError: if a sigma is not positive, or sigma_min is not below sigma_max.

    Example:
      >>> print(schedules.edm()(0.0).sigma)
      1.0

    Reference: Karras et al. 2022, arXiv:2206.00364, table 1.
    """
    check_scalar(sigma_min, "edm's sigma_min", above=0)
    check_scalar(sigma_max, "edm's sigma_max", above=0)
    check_order(sigma_min, sigma_max, "edm", "sigma_min must be below sigma_max")

    def time(sigma: Array) -> Array:
        return jnp.log(sigma) / 4

    def end(sigma: Scalar) -> Scalar:
        return float(np.log(np.float64(sigma)) / 4) if concrete(sigma) else time(jnp.asarray(sigma))

    return Schedule(lambda t: (jnp.ones_like(t), jnp.exp(4 * t)), time, end(sigma_min), end(sigma_max))


def flow(t_min: Scalar = 2e-3, t_max: Scalar = 1.0) -> Schedule:
    """Flow matching, rectified flow: `alpha = 1 - t`, `sigma = t`, t in [0, 1], noise at t = 1.

    At t = 1 alpha is 0 and `sigma / alpha` infinite; spacings in `sigma / alpha` want a `t_max` below 1.

    Args:
      t_min: the time of least noise.
      t_max: the time of most noise.

    Raises:
      ValueError: if an end is outside [0, 1], or t_min is not below t_max.

    Example:
      >>> print(schedules.flow()(0.75).ratio)
      3.0

    Reference: Lipman et al. 2023, arXiv:2210.02747.
    """
    _check_ends("flow", t_min, t_max, 1)

    def inverse(ratio: Array) -> Array:
        small = jnp.minimum(ratio, 1)
        return jnp.where(ratio < 1, small / (1 + small), 1 - 1 / (1 + ratio))

    return Schedule(lambda t: (1 - t, t), inverse, t_min, t_max)


def shift(schedule: Schedule, factor: Scalar) -> Schedule:
    """A schedule moved to more noise, for larger images: every `sigma / alpha` times a factor.

    `ratio'(t) = factor ratio(t)`: a log-SNR lower by `2 log(factor)` under any schedule, and under flow matching Stable
    Diffusion 3's `t' = factor t / (1 + (factor - 1) t)`.

    The network is told the time that this level has in the schedule itself, `t'`, as it was trained; `t` is what spacings space
    and what training draws evenly.

    Args:
      schedule: a continuous one.
      factor: above 1 for more noise, `()`; the ratio of the images' sides, or 3 for Stable Diffusion 3 at 1024.

    Raises:
      ValueError: if the schedule is discrete, or factor is no positive scalar.

    Example:
      >>> level = schedules.shift(schedules.flow(), 3.0)(0.5)
      >>> print(level.t, level.sigma, level.alpha)
      0.75 0.75 0.25

    Reference: Hoogeboom et al. 2023, arXiv:2301.11093; Esser et al. 2024, arXiv:2403.03206, equation 23.
    """
    check_schedule(schedule)
    if schedule.steps is not None:
        raise ValueError(
            f"shift moves a continuous schedule, and this one has {schedule.steps} steps, beyond whose last there is no noise "
            "level; give discrete(betas) the shifted rates."
        )
    check_scalar(factor, "shift's factor", above=0)

    def told(t: Array) -> Array:
        ratio = NoiseLevel(t, *schedule.alpha_sigma(t)).ratio
        finite = jnp.isfinite(ratio)
        moved = schedule.inverse(jnp.asarray(factor, t.dtype) * jnp.where(finite, ratio, 1))
        # Pure noise stays where it is.
        return jnp.where(finite, moved, t)

    def inverse(ratio: Array) -> Array:
        return schedule.inverse(ratio / jnp.asarray(factor, ratio.dtype))

    also = schedule.network_time or (lambda t: t)
    return Schedule(
        lambda t: schedule.alpha_sigma(told(t)), inverse, schedule.t_min, schedule.t_max, told=lambda t: also(told(t))
    )


def _check_ends(name: str, t_min: Scalar, t_max: Scalar, most: float | int = LARGEST) -> None:
    check_scalar(t_min, f"{name}'s t_min", most=most)
    check_scalar(t_max, f"{name}'s t_max", most=most)
    check_order(t_min, t_max, name, "t_min must be below t_max")
