"""Noise schedules, and the path of noise levels that a sampler walks.

A schedule maps the network's own time to `(alpha, sigma)`. The continuous ones run from a smallest to a largest
`sigma / alpha` of about 0.002 to 80, the range of EDM (arXiv:2206.00364), unless told otherwise.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from guidance_jax.arrays import concrete
from guidance_jax.base import NoiseLevel, Scalar, Schedule
from guidance_jax.checks import check_levels


def cosine(t_min: Scalar = 1e-3, t_max: Scalar = 0.992) -> Schedule:
    """The variance-preserving cosine schedule.

    `alpha = cos(pi t / 2)`, `sigma = sin(pi t / 2)`, t in [0, 1].

    Args:
      t_min: the time of least noise; its `sigma / alpha` is 0.0016.
      t_max: the time of most noise; its `sigma / alpha` is 79.6.

    Example:
      >>> level = schedules.cosine()(0.5)
      >>> print(level.alpha.round(4), level.sigma.round(4))
      0.7071 0.7071

    Reference: Salimans & Ho 2022, arXiv:2202.00512.
    """

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

    Example:
      >>> print(schedules.linear()(1.0).ratio.round(1))
      152.2

    Reference: Song et al. 2021, arXiv:2011.13456, equation 33.
    """

    def alpha_sigma(t: Array) -> tuple[Array, Array]:
        log_alpha = -0.25 * t**2 * (beta_max - beta_min) - 0.5 * t * beta_min
        return jnp.exp(log_alpha), jnp.sqrt(-jnp.expm1(2 * log_alpha))

    def inverse(ratio: Array) -> Array:
        minus_log_alpha = 0.5 * jnp.log1p(ratio**2)
        # The positive root of the quadratic, in the form that does not cancel for small t.
        return 4 * minus_log_alpha / (beta_min + jnp.sqrt(beta_min**2 + 4 * (beta_max - beta_min) * minus_log_alpha))

    return Schedule(alpha_sigma, inverse, t_min, t_max)


def discrete(betas: np.ndarray) -> Schedule:
    """A schedule given by the noise rates of its training steps, as networks of the DDPM family were trained.

    `alpha(t) = sqrt(prod over s <= t of (1 - beta_s))`, `sigma = sqrt(1 - alpha^2)`, t in 0..steps - 1. Between the
    steps log(sigma / alpha) is interpolated, so that spacings may ask for fractional t, and no t comes twice.

    Args:
      betas: `[steps]`, each in (0, 1).

    Raises:
      ValueError: if betas is not one-dimensional or a rate is outside (0, 1).

    Example:
      >>> schedules.discrete(np.linspace(1e-4, 0.02, 1000)).steps
      1000

    Reference: Ho et al. 2020, arXiv:2006.11239.
    """
    betas = np.asarray(betas, np.float64)
    if betas.ndim != 1 or not ((betas > 0) & (betas < 1)).all():
        raise ValueError(f"betas must be one-dimensional with every rate in (0, 1), got shape {betas.shape}: {betas}.")
    log_alpha_squared = np.cumsum(np.log1p(-betas))
    log_ratios = 0.5 * (np.log(-np.expm1(log_alpha_squared)) - log_alpha_squared)
    times = np.arange(len(betas), dtype=np.float64)

    def alpha_sigma(t: Array) -> tuple[Array, Array]:
        doubled = 2 * jnp.interp(t, jnp.asarray(times, t.dtype), jnp.asarray(log_ratios, t.dtype))
        return jnp.sqrt(jax.nn.sigmoid(-doubled)), jnp.sqrt(jax.nn.sigmoid(doubled))

    def inverse(ratio: Array) -> Array:
        return jnp.interp(jnp.log(ratio), jnp.asarray(log_ratios, ratio.dtype), jnp.asarray(times, ratio.dtype))

    return Schedule(alpha_sigma, inverse, 0, len(betas) - 1, steps=len(betas))


def ddpm_linear(steps: int = 1000, beta_min: float = 1e-4, beta_max: float = 0.02) -> Schedule:
    """The discrete schedule of DDPM and of ADM on ImageNet: `steps` rates from beta_min to beta_max, evenly.

    As in ADM, the default rates are for 1,000 steps and scale with `1000 / steps`.

    Args:
      steps: the number of training steps.
      beta_min: the first rate, at 1,000 steps.
      beta_max: the last rate, at 1,000 steps.

    Example:
      >>> print(schedules.ddpm_linear()(999).ratio.round(0))
      157.0

    Reference: Ho et al. 2020, arXiv:2006.11239.
    """
    return discrete(np.linspace(beta_min, beta_max, steps) * (1000 / steps))


def ddpm_cosine(steps: int = 1000, offset: float = 0.008, beta_max: float = 0.999) -> Schedule:
    """The discrete cosine schedule of improved DDPM.

    `alpha_bar(u) = cos^2((u + offset) / (1 + offset) pi / 2)`,
    `beta_t = min(1 - alpha_bar((t + 1) / steps) / alpha_bar(t / steps), beta_max)`.

    Args:
      steps: the number of training steps.
      offset: keeps the first rates from vanishing.
      beta_max: the largest rate.

    Example:
      >>> print(schedules.ddpm_cosine()(500).alpha.round(3))
      0.702

    Reference: Nichol & Dhariwal 2021, arXiv:2102.09672, equation 17.
    """
    u = np.arange(steps + 1) / steps
    alpha_bar = np.cos((u + offset) / (1 + offset) * np.pi / 2) ** 2
    return discrete(np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], beta_max))


def edm(sigma_min: Scalar = 0.002, sigma_max: Scalar = 80.0) -> Schedule:
    """The variance-exploding process of EDM: `alpha = 1`; the network is told `t = log(sigma) / 4`.

    Args:
      sigma_min: the smallest noise level before zero.
      sigma_max: the largest noise level.

    Example:
      >>> print(schedules.edm()(0.0).sigma)
      1.0

    Reference: Karras et al. 2022, arXiv:2206.00364, table 1.
    """

    def time(sigma: Array) -> Array:
        return jnp.log(sigma) / 4

    t_min, t_max = (time(jnp.asarray(sigma, jnp.result_type(float))) for sigma in (sigma_min, sigma_max))
    return Schedule(lambda t: (jnp.ones_like(t), jnp.exp(4 * t)), time, t_min, t_max)


def flow(t_min: Scalar = 2e-3, t_max: Scalar = 1.0) -> Schedule:
    """Flow matching, rectified flow: `alpha = 1 - t`, `sigma = t`, t in [0, 1], noise at t = 1.

    At t = 1 alpha is 0 and `sigma / alpha` infinite; spacings in `sigma / alpha` want a `t_max` below 1.

    Args:
      t_min: the time of least noise.
      t_max: the time of most noise.

    Example:
      >>> print(schedules.flow()(0.75).ratio)
      3.0

    Reference: Lipman et al. 2023, arXiv:2210.02747.
    """
    return Schedule(lambda t: (1 - t, t), lambda ratio: 1 - 1 / (1 + ratio), t_min, t_max)


def levels(schedule: Schedule, steps: int, spacing: Callable[[Schedule, int], Array]) -> NoiseLevel:
    """The path of a run: `steps` noise levels by a spacing, from the most noise to the least, and then the clean data.

    Args:
      schedule: the noise schedule.
      steps: the number of steps the sampler takes.
      spacing: one of `spacings`; `(schedule, steps) -> t`, decreasing, `[steps]`.

    Returns:
      A `NoiseLevel` of arrays `[steps + 1]`; the last has alpha 1 and sigma 0.

    Raises:
      ValueError: if the noise does not strictly decrease along the path, as when a discrete schedule is asked for more
        steps than it has.

    Example:
      >>> path = levels(schedules.edm(), 3, spacings.karras())
      >>> [f"{sigma:.3f}" for sigma in path.sigma]
      ['80.000', '2.515', '0.002', '0.000']
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}.")
    path = schedule(spacing(schedule, steps))
    if path.t.shape != (steps,):
        raise ValueError(f"the spacing gave times of shape {path.t.shape}, but must give [steps] = ({steps},).")
    clean = NoiseLevel(path.t[-1:], jnp.ones_like(path.alpha[-1:]), jnp.zeros_like(path.sigma[-1:]))
    path = jax.tree.map(lambda *parts: jnp.concatenate(parts), path, clean)
    check_levels(path)
    return path


def reverse(path: NoiseLevel) -> NoiseLevel:
    """The path from data to noise, for inversion: a path turned round, without the clean end.

    The run starts at its least noise and takes the data for what stands there. Only deterministic samplers go this way.

    Args:
      path: `[steps + 1]`, as `levels` makes it.

    Returns:
      The path turned round, `[steps]`; `[steps + 1]` where its last level is known to have some noise.

    Example:
      >>> path = schedules.reverse(levels(schedules.edm(), 3, spacings.karras()))
      >>> [f"{sigma:.3f}" for sigma in path.sigma]
      ['0.002', '2.515', '80.000']

    Reference: Song et al. 2021, arXiv:2010.02502, section 4.3.
    """
    noisy = path if concrete(path) and path.sigma[-1] > 0 else jax.tree.map(lambda field: field[:-1], path)
    return jax.tree.map(lambda field: field[::-1], noisy)
