"""Weights of particles: the effective sample size, and systematic resampling."""

from typing import Annotated

import jax
import jax.numpy as jnp
from jax import Array
from typing_extensions import TypeAliasType

from guidance_jax.arrays import at_least_float32
from guidance_jax.checks.door import door
from guidance_jax.checks.kinds import Key, array_kind

LogWeights = TypeAliasType("LogWeights", Annotated[Array, array_kind("floating numbers, [..., N]", jnp.floating)])
"""Logarithms of weights, `[..., N]`, normalised or not. -inf is a weight of 0."""


@door()
def effective_size(log_weights: LogWeights) -> Array:
    """The effective sample size over the last axis, `(sum w)^2 / sum w^2`.

    Args:
      log_weights: `[..., N]`, normalised or not.

    Returns:
      `[...]`, in 1..N; 0 if all weights are 0.

    Example:
      >>> weights = jnp.array([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
      >>> print(jax.jit(gj.particles.effective_size)(jnp.log(weights)))
      [2. 1. 0.]

    Reference: Kong et al. 1994, "Sequential imputations and Bayesian missing data problems".
    """
    wide = log_weights.astype(at_least_float32(log_weights.dtype))
    dead = (wide == -jnp.inf).all(-1)
    some = jnp.where(dead[..., None], 0, wide)
    return jnp.where(dead, 0, jnp.exp(2 * jax.nn.logsumexp(some, axis=-1) - jax.nn.logsumexp(2 * some, axis=-1)))


@door()
def systematic(key: Key, log_weights: LogWeights) -> Array:
    """Systematic resampling of N particles from one uniform number: the particle that replaces each one, `[N]`.

    Place i takes the first k with `sum over j <= k of w_j >= (i + u) / N`, with u in [0, 1) and weights that sum to 1.

    A particle of weight w is taken `floor(N w)` or `ceil(N w)` times, and never if w is 0. If all weights are 0, each particle
    keeps its place.

    Args:
      key: One PRNG key.
      log_weights: `[N]`, normalised or not. -inf is a weight of 0.

    Example:
      >>> weights = jnp.array([0.5, 0.0, 0.25, 0.25])
      >>> print(jax.jit(gj.particles.systematic)(jax.random.key(0), jnp.log(weights)))
      [0 0 2 3]

    Reference: Kitagawa 1996, doi:10.1080/10618600.1996.10474692.
    """
    n = len(log_weights)
    wide = log_weights.astype(at_least_float32(log_weights.dtype))
    dead = (wide == -jnp.inf).all()
    weights = jax.nn.softmax(jnp.where(dead, 0, wide))
    total = jnp.cumsum(weights)
    # The sums round differently, so make sure that a weight of 0 adds nothing.
    share = jax.lax.cummax(jnp.where(weights > 0, total / total[-1], 0))
    at = (jnp.arange(n, dtype=total.dtype) + jax.random.uniform(key, (), total.dtype)) / n
    # u may be 0, and a place may round to 1, so clip to the first and last particle whose weight is not 0.
    first, last = jnp.searchsorted(share, 0, side="right"), jnp.searchsorted(share, 1)
    return jnp.clip(jnp.searchsorted(share, at), first, last)
