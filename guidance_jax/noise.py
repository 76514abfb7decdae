"""Noise, each sample's from its own key, and from the level at which it is drawn.

A run draws its start by the key alone, and what it draws in a step by the key and the level at which the step begins, so that
a run which is cut at any level and goes on there draws what the whole run does. Each purpose has a stream of its own.
"""

import math

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import ArrayLike, Float

from guidance_jax.arrays import at_least_float32, expand
from guidance_jax.base import NoiseLevel, Step
from guidance_jax.checks.door import door
from guidance_jax.checks.kinds import Keys
from guidance_jax.checks.paths import check_level
from guidance_jax.checks.running import check_start
from guidance_jax.checks.steps import learned
from guidance_jax.checks.values import check_generator

START = 0
SAMPLER, GUIDANCE, DATA, IMAGE = (2**31 + i for i in range(4))
"""The streams: what starts a run, moves it, guides it, noises data; and all of a run on the end of a path."""


def normal(keys: Array, x: Array | jax.ShapeDtypeStruct) -> Array:
    """Standard normal noise shaped as x, each sample's from its own key, drawn in at least float32.

    Drawn flat: the numbers are the same, and compiling is up to four times as fast.
    """
    check_generator(keys)
    size, dtype = math.prod(x.shape[1:]), jax.dtypes.canonicalize_dtype(x.dtype)
    drawn = jax.vmap(lambda key: jax.random.normal(key, (size,), at_least_float32(dtype)))(keys)
    return drawn.reshape(x.shape).astype(dtype)


@door()
def diffuse(keys: Keys, x0: Float[Array, "b ..."], level: NoiseLevel) -> Float[Array, "b ..."]:
    """Data noised to a level, where an image-to-image run starts: `x = alpha x0 + sigma z`.

    Each sample's z comes from its own key and the level, and is none of the numbers that a run draws from these same keys. So a
    run on the end of a path, as `schedules.strength` and `schedules.below` make it, may have them too, even where x0 is what a
    run of the whole path made of them. Where x0 is what another run on such an end made, or the path was cut by hand, it needs
    other keys: `jax.vmap(jax.random.fold_in, (0, None))(keys, 1)`.

    Args:
      keys: `[B]` PRNG keys, one per sample.
      x0: `[B, ...]`, the data.
      level: The level at which the run starts, scalar or `[B]`: `path[0]`.

    Raises:
      ValueError: If x0 does not have one sample per key, or the level is neither `()` nor `[B]`.

    Example:
      >>> path = gj.schedules.strength(gj.levels(gj.schedules.edm(), 10, gj.spacings.karras()), 0.5)
      >>> keys = jax.random.split(jax.random.key(0), 2)
      >>> x = gj.diffuse(keys, jnp.ones((2, 3)), path[0])
      >>> one = gj.branches(gj.denoiser(lambda x, t, cond: x, predicts="x0"), cond=None)
      >>> print(gj.sample(keys, one, gj.chain(), gj.ddim(), path, x).shape)
      (2, 3)

    Reference: Meng et al. 2022, arXiv:2108.01073, algorithm 1.
    """
    check_start(keys, level, x0)
    check_level(level, x0)
    x0 = jnp.asarray(x0)
    wide = x0.astype(at_least_float32(x0.dtype))
    z = normal(at_level(keys, level, DATA), wide)
    alpha, sigma = (expand(jnp.asarray(field, wide.dtype), wide) for field in (level.alpha, level.sigma))
    return (alpha * wide + sigma * z).astype(x0.dtype)


def fold(keys: Array, number: ArrayLike) -> Array:
    """Other keys, `[B]`, for each number, `()` or `[B]`."""
    data = jnp.asarray(number, jnp.uint32)
    return jax.vmap(jax.random.fold_in, in_axes=(0, 0 if data.ndim else None))(keys, data)


def apart(keys: Array, number: int) -> Array:
    """Keys, `[B]`, apart from those that a sampler folds with its small numbers."""
    return fold(keys, 2**32 - 1 - number)


def at_level(keys: Array, level: NoiseLevel, stream: int) -> Array:
    """The keys, `[B]`, by which a stream is drawn at a level, `()` or `[B]`; in float64 those of the level in float32."""
    keys = fold(keys, stream)
    for field in (level.alpha, level.sigma):
        known = jax.lax.stop_gradient(jnp.asarray(field).astype(jnp.float32))
        keys = fold(keys, jax.lax.bitcast_convert_type(known, jnp.uint32))
    return keys


def contraction(level: NoiseLevel, next: NoiseLevel) -> Array:
    """`q = (sigma' / alpha') / (sigma / alpha)`, in [0, 1): how far a step goes; 0 from alpha = 0 or to sigma' = 0."""
    return (next.sigma * level.alpha) / (level.sigma * next.alpha)


def ancestral(variance: str, share: Array | None, level: NoiseLevel, next: NoiseLevel) -> Array:
    """`s / sqrt(1 - q^2)`, s the deviation of `ddpm(variance)`, whose docstring has the three; 0 where sigma' is.

    Raises:
      ValueError: If it is learned and no share of the logarithm between small and large is predicted.
    """
    if variance == "small":
        return next.sigma
    noisy = next.sigma > 0
    large = level.sigma * jnp.hypot(next.alpha, next.sigma) / jnp.hypot(level.alpha, level.sigma)
    if variance == "large":
        return jnp.where(noisy, large, 0)
    share = learned(share)
    log_small, log_large = jnp.log(jnp.where(noisy, next.sigma, 1)), jnp.log(large)
    return jnp.where(noisy, jnp.exp(log_small + share * (log_large - log_small)), 0)


def step_keys(step: Step) -> Array:
    """Keys of this step, `[B]`, for a guidance that draws: the same in all evaluations of the step, and never the sampler's."""
    check_generator(step.keys)
    return at_level(step.keys, step.level if step.drawn is None else step.drawn, GUIDANCE)
