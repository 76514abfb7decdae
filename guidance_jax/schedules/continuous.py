"""Schedules with a continuous time. By default `sigma / alpha` is about 0.002 to 80, as in EDM (arXiv:2206.00364)."""

from typing import Annotated

import jax.numpy as jnp
import numpy as np
from jax import Array
from typing_extensions import TypeAliasType

from guidance_jax.arrays import divide
from guidance_jax.base import NoiseLevel, Scalar
from guidance_jax.checks.door import part, rule
from guidance_jax.checks.kinds import Positive
from guidance_jax.checks.numbers import number
from guidance_jax.checks.traced import concrete
from guidance_jax.schedules.schedule import Schedule

Time = TypeAliasType("Time", Annotated[Scalar, number(low=0, high=1)])
"""One time in [0, 1]."""
Rate = TypeAliasType("Rate", Annotated[Scalar, number(low=0)])
"""One number, not negative."""
Sigma = TypeAliasType("Sigma", Annotated[Scalar, number(above=0)])
"""One positive number."""

ENDS = rule("t_min must be below t_max", lambda t_min, t_max: t_min < t_max)


@part(ENDS)
def cosine(t_min: Time = 1e-3, t_max: Time = 0.992) -> Schedule:
    """The variance-preserving cosine schedule.

    `alpha = cos(pi t / 2)`, `sigma = sin(pi t / 2)`, t in [0, 1].

    Args:
      t_min: The time of minimum noise. At the default, `sigma / alpha` is 0.0016.
      t_max: The time of maximum noise. At the default, `sigma / alpha` is 79.6.

    Raises:
      ValueError: If an end is outside [0, 1], or t_min is not below t_max.

    Example:
      >>> level = gj.schedules.cosine()(0.5)
      >>> print(level.alpha.round(4), level.sigma.round(4))
      0.7071 0.7071

    Reference: Salimans & Ho 2022, arXiv:2202.00512.
    """

    def alpha_sigma(t: Array) -> tuple[Array, Array]:
        angle = t * (jnp.pi / 2)
        # Set to 0 at t = 1, where the cosine of a rounded pi / 2 is a small number of either sign.
        return jnp.where(t < 1, jnp.cos(angle), 0), jnp.sin(angle)

    return Schedule(alpha_sigma, lambda ratio: jnp.arctan(ratio) * (2 / jnp.pi), t_min, t_max)


@part(ENDS, rule("beta_min must be below beta_max", lambda beta_min, beta_max: beta_min < beta_max))
def linear(beta_min: Rate = 0.1, beta_max: Rate = 20.0, t_min: Rate = 1e-5, t_max: Rate = 1.0) -> Schedule:
    """The variance-preserving SDE whose noise rate grows linearly.

    `log alpha = -t^2 (beta_max - beta_min) / 4 - t beta_min / 2`, `sigma = sqrt(1 - alpha^2)`, t in [0, 1].

    "linear" in diffusers and DDPM is another schedule, `ddpm_linear`, with t in 0..999.

    Args:
      beta_min: The rate at t = 0.
      beta_max: The rate at t = 1.
      t_min: The time of minimum noise.
      t_max: The time of maximum noise.

    Raises:
      ValueError: If a number is negative, or a minimum is not below its maximum.

    Example:
      >>> print(gj.schedules.linear()(1.0).ratio.round(1))
      152.2

    Reference: Song et al. 2021, arXiv:2011.13456, equation 33.
    """

    def alpha_sigma(t: Array) -> tuple[Array, Array]:
        log_alpha = -0.25 * t**2 * (beta_max - beta_min) - 0.5 * t * beta_min
        return jnp.exp(log_alpha), jnp.sqrt(-jnp.expm1(2 * log_alpha))

    def inverse(ratio: Array) -> Array:
        minus_log_alpha = 0.5 * jnp.log1p(ratio**2)
        # The positive root of the quadratic, in a form without cancellation at small t.
        return divide(4 * minus_log_alpha, beta_min + jnp.sqrt(beta_min**2 + 4 * (beta_max - beta_min) * minus_log_alpha))

    return Schedule(alpha_sigma, inverse, t_min, t_max)


@part(rule("sigma_min must be below sigma_max", lambda sigma_min, sigma_max: sigma_min < sigma_max))
def edm(sigma_min: Sigma = 0.002, sigma_max: Sigma = 80.0) -> Schedule:
    """The variance-exploding process of EDM: `alpha = 1`. The network receives `t = log(sigma) / 4`.

    Args:
      sigma_min: The minimum noise level before zero.
      sigma_max: The maximum noise level.

    Raises:
      ValueError: If a sigma is not positive, or sigma_min is not below sigma_max.

    Example:
      >>> print(gj.schedules.edm()(0.0).sigma)
      1.0

    Reference: Karras et al. 2022, arXiv:2206.00364, table 1.
    """

    def time(sigma: Array) -> Array:
        return jnp.log(sigma) / 4

    def end(sigma: Scalar) -> Scalar:
        return float(np.log(np.float64(sigma)) / 4) if concrete(sigma) else time(jnp.asarray(sigma))

    return Schedule(lambda t: (jnp.ones_like(t), jnp.exp(4 * t)), time, end(sigma_min), end(sigma_max))


@part(ENDS)
def flow(t_min: Time = 2e-3, t_max: Time = 1.0) -> Schedule:
    """Flow matching and rectified flow: `alpha = 1 - t`, `sigma = t`, t in [0, 1], with noise at t = 1.

    At t = 1, alpha is 0 and `sigma / alpha` is infinite. Spacings in `sigma / alpha` need a `t_max` below 1.

    Args:
      t_min: The time of minimum noise.
      t_max: The time of maximum noise.

    Raises:
      ValueError: If an end is outside [0, 1], or t_min is not below t_max.

    Example:
      >>> print(gj.schedules.flow()(0.75).ratio)
      3.0

    Reference: Lipman et al. 2023, arXiv:2210.02747.
    """

    def inverse(ratio: Array) -> Array:
        small = jnp.minimum(ratio, 1)
        return jnp.where(ratio < 1, small / (1 + small), 1 - 1 / (1 + ratio))

    return Schedule(lambda t: (1 - t, t), inverse, t_min, t_max)


CONTINUOUS = "schedule must be continuous; for a discrete one, use discrete(betas) with the shifted rates"


@part(rule(CONTINUOUS, lambda schedule: schedule.steps is None))
def shift(schedule: Schedule, factor: Positive) -> Schedule:
    """A schedule with more noise, for larger images: every `sigma / alpha` is multiplied by a factor.

    `ratio'(t) = factor ratio(t)`. The log-SNR decreases by `2 log(factor)`. Under flow matching this is Stable Diffusion 3's
    `t' = factor t / (1 + (factor - 1) t)`.

    The network receives `t'`, the time of this level in the original schedule. Spacings and training use t.

    Args:
      schedule: A continuous schedule.
      factor: The factor, `()`. Above 1 it adds noise. It is the ratio of the image widths, or 3 for Stable Diffusion 3 at 1024.

    Raises:
      ValueError: If the schedule is discrete, or factor is not a positive scalar.

    Example:
      >>> level = gj.schedules.shift(gj.schedules.flow(), 3.0)(0.5)
      >>> print(level.t, level.sigma, level.alpha)
      0.75 0.75 0.25

    Reference: Hoogeboom et al. 2023, arXiv:2301.11093; Esser et al. 2024, arXiv:2403.03206, equation 23.
    """

    def trained(t: Array) -> Array:
        """The time in the original schedule."""
        ratio = NoiseLevel(t, *schedule.alpha_sigma(t)).ratio
        finite = jnp.isfinite(ratio)
        moved = schedule.inverse(jnp.asarray(factor, t.dtype) * jnp.where(finite, ratio, 1))
        # Pure noise keeps its time.
        return jnp.where(finite, moved, t)

    def inverse(ratio: Array) -> Array:
        return schedule.inverse(ratio / jnp.asarray(factor, ratio.dtype))

    network_time = schedule.network_time or (lambda t: t)
    return Schedule(
        lambda t: schedule.alpha_sigma(trained(t)),
        inverse,
        schedule.t_min,
        schedule.t_max,
        network_time=lambda t: network_time(trained(t)),
    )
