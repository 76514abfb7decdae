"""Noise levels for training, and noisy data."""

import jax
import jax.numpy as jnp
from jax import Array

from guidance_jax.arrays import at_least_float32, expand
from guidance_jax.base import NoiseLevel
from guidance_jax.checks.door import also, door
from guidance_jax.checks.kinds import (
    AtLevel,
    Count,
    Key,
    NonNegative,
    Number,
    Samples,
)
from guidance_jax.checks.paths import check_level
from guidance_jax.checks.training import check_continuous
from guidance_jax.schedules.schedule import Schedule


@door()
def noise_levels(key: Key, schedule: Schedule, n: Count) -> NoiseLevel:
    """Noise levels for a batch, with uniform t. They are stratified within the batch, to lower the variance of the loss.

    Args:
      key: One PRNG key.
      schedule: The noise schedule. From a discrete one, whole training steps are drawn.
      n: The number of levels, one per sample.

    Returns:
      A `NoiseLevel` of arrays `[n]`.

    Raises:
      ValueError: If key is not a single key, or n is below 1.

    Example:
      >>> print(gj.training.noise_levels(jax.random.key(0), gj.schedules.cosine(), 4).t.shape)
      (4,)

    Reference: Kingma et al. 2021, arXiv:2107.00630, appendix I.1.
    """
    u = (jax.random.uniform(key) + jnp.arange(n) / n) % 1
    if schedule.steps is None:
        return schedule(schedule.t_min + u * (schedule.t_max - schedule.t_min))
    return schedule(jnp.floor(u * schedule.steps))


@door(also(check_continuous))
def log_normal_levels(
    key: Key, schedule: Schedule, n: Count, *, mean: Number = -1.2, deviation: NonNegative = 1.2
) -> NoiseLevel:
    """Noise levels for a batch, with normal `log(sigma / alpha)`.

    They are stratified within the batch, and clipped to the range of the schedule.

    Args:
      key: One PRNG key.
      schedule: A continuous schedule.
      n: The number of levels, one per sample.
      mean: The mean of the logarithm, `()`. EDM uses -1.2.
      deviation: The standard deviation of the logarithm, `()`. EDM uses 1.2.

    Returns:
      A `NoiseLevel` of arrays `[n]`.

    Raises:
      ValueError: If the schedule is discrete, since its network is not trained between the steps.

    Example:
      >>> draw = lambda key: gj.training.log_normal_levels(key, gj.schedules.edm(), 1000)
      >>> level = jax.jit(draw)(jax.random.key(0))
      >>> print(jnp.log(level.sigma).mean().round(1), jnp.log(level.sigma).std().round(1))
      -1.2 1.2

    Reference: Karras et al. 2022, arXiv:2206.00364, table 1.
    """
    u = (jax.random.uniform(key) + jnp.arange(n) / n) % 1
    ratio = jnp.exp(jnp.asarray(mean) + jnp.asarray(deviation) * jax.scipy.special.ndtri(u))
    ends = schedule(jnp.asarray(schedule.t_min)).ratio, schedule(jnp.asarray(schedule.t_max)).ratio
    return schedule.at(jnp.clip(ratio, *ends))


@door()
def diffuse(key: Key, x0: Samples, level: AtLevel) -> tuple[Array, Array]:
    """Noisy data and the noise in it: `x = alpha x0 + sigma eps`.

    The noise is drawn in at least float32. x and eps have the dtype of x0.

    Args:
      key: One PRNG key.
      x0: The clean data, `[B, ...]`.
      level: The noise level, `()` or `[B]`.

    Returns:
      x and eps.

    Raises:
      ValueError: If key is not a single key, or the level is neither `()` nor `[B]`.

    Example:
      >>> level = gj.schedules.edm()(0.0)
      >>> x, eps = gj.training.diffuse(jax.random.key(0), jnp.zeros((1, 2)), level)
      >>> print((x == eps).all())
      True
    """
    x, eps, *_ = noised(key, x0, level)
    dtype = jax.dtypes.canonicalize_dtype(x0.dtype)
    return x.astype(dtype), eps.astype(dtype)


def noised(key: Array, x0: Array, level: NoiseLevel) -> tuple[Array, Array, Array, Array, Array]:
    """x, eps, x0, alpha and sigma, in shapes that broadcast, in at least float32."""
    check_level(level, x0)
    x0 = jnp.asarray(x0).astype(at_least_float32(x0.dtype))
    eps = jax.random.normal(key, x0.shape, x0.dtype)
    alpha, sigma = (expand(jnp.asarray(field, x0.dtype), x0) for field in (level.alpha, level.sigma))
    return alpha * x0 + sigma * eps, eps, x0, alpha, sigma
