"""Noise, each sample's from its own key, and the step of a sampler that it belongs to."""

import math

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from guidance_jax.arrays import expand
from guidance_jax.base import NoiseLevel, Step
from guidance_jax.checks import check_keys, check_level, check_start


def normal(keys: Array, x: Array | jax.ShapeDtypeStruct) -> Array:
    """Standard normal noise shaped as x, each sample's from its own key.

    Drawn flat: the numbers are the same, and compiling is up to four times as fast.
    """
    size, dtype = math.prod(x.shape[1:]), jax.dtypes.canonicalize_dtype(x.dtype)
    return jax.vmap(lambda key: jax.random.normal(key, (size,), dtype))(keys).reshape(x.shape)


def diffuse(keys: Array, x0: Float[Array, "b ..."], level: NoiseLevel) -> Float[Array, "b ..."]:
    """Data noised to a level, where an image-to-image run starts: `x = alpha x0 + sigma z`.

    Each sample's z comes from its own key, and is none of the numbers that a run draws from these same keys.

    Args:
      keys: `[B]` PRNG keys, which the run may be given too.
      x0: `[B, ...]`, the data.
      level: the level at which the run starts, scalar or `[B]`: `jax.tree.map(lambda field: field[0], path)`.

    Raises:
      ValueError: if x0 does not have a sample a key, or the level is neither `()` nor `[B]`.

    Example:
      >>> path = schedules.strength(levels(schedules.edm(), 10, spacings.karras()), 0.5)
      >>> keys = jax.random.split(jax.random.key(0), 2)
      >>> x = diffuse(keys, jnp.ones((2, 3)), jax.tree.map(lambda field: field[0], path))
      >>> denoise = denoiser(lambda x, t, cond: x, predicts="x0")
      >>> print(sample(keys, branches(denoise, cond=None), chain(), ddim(), path, x).shape)
      (2, 3)

    Reference: Meng et al. 2022, arXiv:2108.01073, algorithm 1.
    """
    check_keys(keys)
    check_start(keys, level, x0)
    check_level(level, x0)
    x0 = jnp.asarray(x0)
    z = normal(apart(keys, 0), x0)
    return expand(level.alpha, x0).astype(x0.dtype) * x0 + expand(level.sigma, x0).astype(x0.dtype) * z


def apart(keys: Array, number: int) -> Array:
    """Keys, `[B]`, apart from those that a run and its samplers fold with their small numbers, and from `step_keys`."""
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, jnp.uint32(2**32 - 1 - number))


def contraction(level: NoiseLevel, next: NoiseLevel) -> Array:
    """`q = (sigma' / alpha') / (sigma / alpha)`, in [0, 1): how far a step goes; 0 from alpha = 0 or to sigma' = 0."""
    return (next.sigma * level.alpha) / (level.sigma * next.alpha)


def ancestral(variance: str, share: Array | None, level: NoiseLevel, next: NoiseLevel) -> Array:
    """`s / sqrt(1 - q^2)`, s the deviation of `ddpm(variance)`, whose docstring has the three; 0 where sigma' is.

    Raises:
      ValueError: if it is learned and no share of the logarithm between small and large is predicted.
    """
    if variance == "small":
        return next.sigma
    noisy = next.sigma > 0
    large = level.sigma * jnp.hypot(next.alpha, next.sigma) / jnp.hypot(level.alpha, level.sigma)
    if variance == "large":
        return jnp.where(noisy, large, 0)
    if share is None:
        raise ValueError('variance="learned" needs a network that predicts it: gj.denoisers.learned_variance.')
    log_small, log_large = jnp.log(jnp.where(noisy, next.sigma, 1)), jnp.log(large)
    return jnp.where(noisy, jnp.exp(log_small + share * (log_large - log_small)), 0)


def step_keys(step: Step) -> Array:
    """Keys of this step, `[B]`, for a guidance that draws: the same in all evaluations of the step, and never the sampler's."""
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(step.keys, jnp.uint32(2**31) + step.number.astype(jnp.uint32))
