"""Discrete schedules of the DDPM family, whose networks are trained at whole steps."""

from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from guidance_jax.checks.door import part, rule
from guidance_jax.checks.kinds import Count, Known, KnownFromZero, Rates
from guidance_jax.schedules.schedule import Schedule


@part()
def discrete(betas: Rates) -> Schedule:
    """A schedule from the noise rates of its training steps.

    `alpha(t) = sqrt(prod over s <= t of (1 - beta_s))`, `sigma = sqrt(1 - alpha^2)`, t in 0..steps - 1. Between the steps,
    log(sigma / alpha) is interpolated linearly, so t may be fractional.

    Args:
      betas: The noise rates, `[steps]`, each in (0, 1).

    Raises:
      ValueError: If betas is not one-dimensional, or a rate is outside (0, 1).

    Example:
      >>> import numpy as np
      >>> gj.schedules.discrete(np.linspace(1e-4, 0.02, 1000)).steps
      1000

    Reference: Ho et al. 2020, arXiv:2006.11239.
    """
    log_alpha_squared = np.cumsum(np.log1p(-np.asarray(betas, np.float64)))
    return _interpolated(0.5 * (np.log(-np.expm1(log_alpha_squared)) - log_alpha_squared))


def _interpolated(log_ratios: np.ndarray) -> Schedule:
    """The discrete schedule with these values of `log(sigma / alpha)`, interpolated between its steps."""
    times = np.arange(len(log_ratios), dtype=np.float64)

    def alpha_sigma(t: Array) -> tuple[Array, Array]:
        doubled = 2 * jnp.interp(t, jnp.asarray(times, t.dtype), jnp.asarray(log_ratios, t.dtype))
        return jnp.sqrt(jax.nn.sigmoid(-doubled)), jnp.sqrt(jax.nn.sigmoid(doubled))

    def inverse(ratio: Array) -> Array:
        return jnp.interp(jnp.log(ratio), jnp.asarray(log_ratios, ratio.dtype), jnp.asarray(times, ratio.dtype))

    return Schedule(alpha_sigma, inverse, 0, len(log_ratios) - 1, steps=len(log_ratios))


@part()
def ddpm_linear(steps: Count = 1000, beta_min: Known = 1e-4, beta_max: Known = 0.02) -> Schedule:
    """The discrete schedule of DDPM, and of ADM on ImageNet: rates evenly spaced from beta_min to beta_max.

    `beta_s = (beta_min + s / (steps - 1) (beta_max - beta_min)) 1000 / steps`, s from 0 to steps - 1, as in ADM.

    Args:
      steps: The number of training steps.
      beta_min: The first rate of a schedule with 1,000 steps.
      beta_max: The last rate of a schedule with 1,000 steps.

    Raises:
      ValueError: If a rate is outside (0, 1).

    Example:
      >>> print(gj.schedules.ddpm_linear()(999).ratio.round(0))
      157.0

    Reference: Ho et al. 2020, arXiv:2006.11239.
    """
    return discrete(np.linspace(beta_min, beta_max, steps) * (1000 / steps))


@part()
def scaled_linear(steps: Count = 1000, beta_min: Known = 0.00085, beta_max: Known = 0.012) -> Schedule:
    """The discrete schedule of Stable Diffusion 1, 2 and XL: rates from beta_min to beta_max with evenly spaced square roots.

    `beta_s = (sqrt(beta_min) + s / (steps - 1) (sqrt(beta_max) - sqrt(beta_min)))^2`, s from 0 to steps - 1.

    Args:
      steps: The number of training steps.
      beta_min: The first rate.
      beta_max: The last rate.

    Raises:
      ValueError: If a rate is outside (0, 1).

    Example:
      >>> print(gj.schedules.scaled_linear()(999).ratio.round(2))
      14.61

    Reference: Rombach et al. 2022, arXiv:2112.10752 (released code).
    """
    return discrete(np.linspace(beta_min**0.5, beta_max**0.5, steps) ** 2)


@part()
def ddpm_cosine(steps: Count = 1000, offset: KnownFromZero = 0.008, beta_max: Known = 0.999) -> Schedule:
    """The discrete cosine schedule of improved DDPM.

    `alpha_bar(u) = cos^2((u + offset) / (1 + offset) pi / 2)`,
    `beta_t = min(1 - alpha_bar((t + 1) / steps) / alpha_bar(t / steps), beta_max)`.

    Args:
      steps: The number of training steps.
      offset: A small number that keeps the first rates above 0.
      beta_max: The maximum rate.

    Raises:
      ValueError: If a rate is outside (0, 1).

    Example:
      >>> print(gj.schedules.ddpm_cosine()(500).alpha.round(3))
      0.702

    Reference: Nichol & Dhariwal 2021, arXiv:2102.09672, equation 17.
    """
    u = np.arange(steps + 1) / steps
    alpha_bar = np.cos((u + offset) / (1 + offset) * np.pi / 2) ** 2
    return discrete(np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], beta_max))


TWO_STEPS = "schedule must be discrete, with at least two steps; use cosine(t_max=1.0) or flow() for continuous pure noise"


@part(rule(TWO_STEPS, lambda schedule: schedule.steps is not None and schedule.steps >= 2))
def zero_terminal_snr(schedule: Schedule) -> Schedule:
    """A discrete schedule rescaled to zero terminal SNR: alpha is 0 at the last step, and unchanged at the first step.

    `alpha'(t) = (alpha(t) - alpha(T)) alpha(0) / (alpha(0) - alpha(T))`, T the last step, `sigma' = sqrt(1 - alpha'^2)`.

    Use it with networks trained on it. They predict v or x0, since eps does not determine x0 at alpha = 0. Between the last two
    steps alpha / sigma is interpolated, since log(sigma / alpha) is infinite at the last step.

    Args:
      schedule: A discrete, variance-preserving schedule.

    Raises:
      ValueError: If the schedule is continuous, or has fewer than two steps.

    Example:
      >>> schedule = gj.schedules.zero_terminal_snr(gj.schedules.scaled_linear())
      >>> print(schedule(999).alpha, schedule(0).alpha == gj.schedules.scaled_linear()(0).alpha)
      0.0 True

    Reference: Lin et al. 2024, arXiv:2305.08891, algorithm 1.
    """
    last = cast(int, schedule.steps) - 1
    # Computed in float64 whatever the default precision: in float32, alpha near 1 does not determine sigma.
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        alpha, sigma = map(np.asarray, schedule.alpha_sigma(jnp.arange(last + 1, dtype=jnp.float64)))
    # 1 - alpha'^2 = sigma^2 + (alpha - alpha') (alpha + alpha'). `removed` below is alpha - alpha'.
    rescaled = (alpha - alpha[-1]) * (alpha[0] / (alpha[0] - alpha[-1]))
    removed = (alpha[0] - alpha) * (alpha[-1] / (alpha[0] - alpha[-1]))
    noise = np.sqrt(sigma**2 + removed * (alpha + rescaled))
    finite = _interpolated(np.log(noise[:-1] / rescaled[:-1]))

    def alpha_sigma(t: Array) -> tuple[Array, Array]:
        a, s = finite.alpha_sigma(t)
        share = jnp.clip(last - t, 0, 1)
        size = jnp.sqrt((share * a) ** 2 + s**2)
        return jnp.where(t > last - 1, share * a / size, a), jnp.where(t > last - 1, s / size, s)

    def inverse(ratio: Array) -> Array:
        highest = jnp.asarray(noise[-2] / rescaled[-2], ratio.dtype)
        return finite.inverse(jnp.minimum(ratio, highest)) + 1 - highest / jnp.maximum(ratio, highest)

    return Schedule(alpha_sigma, inverse, 0, last, steps=last + 1)
