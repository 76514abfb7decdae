"""Gaussian noise and PRNG keys: each sample draws with its own key, at each noise level and for each purpose separately.

The initial noise depends only on the key. The noise of a step depends on the key and on the level where the step begins. So a
run that is interrupted and continued draws the same noise as the whole run. Each purpose has a separate stream.
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
"""The streams: initial noise, samplers, guidances, noisy data, and everything in a run on a `PathEnd`."""
INNER = 3
"""The number by which the inner steps of a sampler are `apart`."""


def normal(keys: Array, x: Array | jax.ShapeDtypeStruct) -> Array:
    """Standard normal noise with the shape and dtype of x. Each sample draws with its own key, in at least float32.

    It is drawn as vectors. The numbers are the same, and compilation is up to four times as fast.
    """
    check_generator(keys)
    size, dtype = math.prod(x.shape[1:]), jax.dtypes.canonicalize_dtype(x.dtype)
    drawn = jax.vmap(lambda key: jax.random.normal(key, (size,), at_least_float32(dtype)))(keys)
    return drawn.reshape(x.shape).astype(dtype)


@door()
def diffuse(keys: Keys, x0: Float[Array, "b ..."], level: NoiseLevel) -> Float[Array, "b ..."]:
    """Data noised to a level, the start of an image-to-image run: `x = alpha x0 + sigma z`.

    z depends on the sample's key and on the level. It is independent of all numbers that a run draws with the same keys.

    A run on the end of a path, from `schedules.strength` or `schedules.below`, may use the same keys. This holds even if a run
    of the whole path with these keys made x0. If another run on such an end made x0, or the path was cut by hand, use new keys:
    `jax.vmap(jax.random.fold_in, (0, None))(keys, 1)`.

    Args:
      keys: `[B]` PRNG keys, one per sample.
      x0: The data, `[B, ...]`.
      level: The level at which the run starts, `()` or `[B]`: `path[0]`.

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
    """New keys, `[B]`, from keys and a number, `()` or `[B]`."""
    data = jnp.asarray(number, jnp.uint32)
    return jax.vmap(jax.random.fold_in, in_axes=(0, 0 if data.ndim else None))(keys, data)


def apart(keys: Array, number: int) -> Array:
    """New keys, `[B]`, that differ from those which samplers fold with small numbers."""
    return fold(keys, 2**32 - 1 - number)


def at_level(keys: Array, level: NoiseLevel, stream: int) -> Array:
    """The keys, `[B]`, of a stream at a level, `()` or `[B]`, rounded to float32, so that float64 gives the same keys."""
    keys = fold(keys, stream)
    for field in (level.alpha, level.sigma):
        known = jax.lax.stop_gradient(jnp.asarray(field).astype(jnp.float32))
        keys = fold(keys, jax.lax.bitcast_convert_type(known, jnp.uint32))
    return keys


def contraction(level: NoiseLevel, next: NoiseLevel) -> Array:
    """The ratio `q = (sigma' / alpha') / (sigma / alpha)` of a step, in [0, 1). It is 0 from alpha = 0 and to sigma' = 0."""
    return (next.sigma * level.alpha) / (level.sigma * next.alpha)


def ancestral(variance: str, share: Array | None, level: NoiseLevel, next: NoiseLevel) -> Array:
    """`s / sqrt(1 - q^2)`, where s is the standard deviation of `ddpm(variance)`. It is 0 where sigma' is 0.

    Args:
      variance: "small", "large" or "learned".
      share: `prediction.variance`, `[B, ...]`: where log s lies between small (0) and large (1). Only "learned" needs it.
      level: The level where the step begins.
      next: The level where the step ends.

    Raises:
      ValueError: If variance is "learned" and share is None.
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
    """Keys of this step, `[B]`, for a guidance that draws. All evaluations of a step share them. The sampler's keys differ."""
    check_generator(step.keys)
    return at_level(step.keys, step.level if step.drawn is None else step.drawn, GUIDANCE)
