"""Distances between two distributions: averages of a kernel over the pairs of samples of both."""

import functools
from collections.abc import Callable
from typing import Annotated

import jax
import jax.numpy as jnp
from jax import Array
from jax.lax import Precision
from jaxtyping import Float
from typing_extensions import TypeAliasType

from guidance_jax.arrays import sqrt
from guidance_jax.checks.door import also, door
from guidance_jax.checks.kinds import Key, Positive
from guidance_jax.checks.numbers import count
from guidance_jax.metrics.checks import Features, check_sets
from guidance_jax.metrics.pairs import fold, squared_distances, widened

Several = TypeAliasType("Several", Annotated[int, count(2)])
"""An integer, at least 2."""
PAIRS = also(lambda a, b: check_sets(2, a=a, b=b))


@door(PAIRS)
def energy_distance(a: Features, b: Features) -> Float[Array, ""]:
    """The energy distance between two distributions, estimated without bias from samples of both. It has no parameter.

    `2 E|a - b| - E|a - a'| - E|b - b'|` over pairs of different samples. Its expectation is 0 only for equal distributions. For
    finite sets of one distribution it can have either sign. Differentiable.

    Args:
      a: `[N, D]`, at least two samples.
      b: `[M, D]`, at least two samples.

    Raises:
      ValueError: If a set has fewer than two samples, the sets differ in D, or known features are not finite.

    Example:
      >>> a, b = jax.random.normal(jax.random.key(0), (2, 1000, 2))
      >>> print(gj.metrics.energy_distance(a, b) < 0.01, gj.metrics.energy_distance(a, b + 1) > 0.5)
      True True

    Reference: Szekely & Rizzo 2013, "Energy statistics: a class of statistics based on distances".
    """
    return _discrepancy(_minus_distance, *widened(a, b), ())


@door(PAIRS)
def mmd(a: Features, b: Features, bandwidth: Positive) -> Float[Array, ""]:
    """The squared maximum mean discrepancy between two distributions, with a Gaussian kernel, estimated without bias.

    `E k(a, a') + E k(b, b') - 2 E k(a, b)` over pairs of different samples, `k(x, y) = exp(-|x - y|^2 / (2 bandwidth^2))`. For
    finite sets of one distribution it can have either sign. Differentiable.

    Args:
      a: `[N, D]`, at least two samples.
      b: `[M, D]`, at least two samples.
      bandwidth: The kernel's standard deviation, `()`.

    Raises:
      ValueError: If a set has fewer than two samples, the sets differ in D, or known features are not finite.

    Example:
      >>> a, b = jax.random.normal(jax.random.key(0), (2, 1000, 2))
      >>> print(gj.metrics.mmd(a, b, 1.0) < 0.01, gj.metrics.mmd(a, b + 1, 1.0) > 0.1)
      True True

    Reference: Gretton et al. 2012, "A kernel two-sample test", lemma 6.
    """
    a, b = widened(a, b)
    return _discrepancy(_gaussian, a, b, jnp.asarray(bandwidth, a.dtype))


@door(also(lambda real, fake: check_sets(2, real=real, fake=fake)))
def kid(real: Features, fake: Features) -> Float[Array, ""]:
    """The squared maximum mean discrepancy with a cubic kernel, estimated without bias: the KID, for Inception features.

    `E k(r, r') + E k(f, f') - 2 E k(r, f)` over pairs of different samples, `k(x, y) = (x . y / D + 1)^3`. For finite sets of
    one distribution it can have either sign, and is 0 on average. Differentiable.

    Args:
      real: `[N, D]`, features of real data, at least two.
      fake: `[M, D]`, features of samples, at least two.

    Raises:
      ValueError: If a set has fewer than two points, the sets differ in D, or known features are not finite.

    Example:
      >>> real, fake = jax.random.normal(jax.random.key(0), (2, 1000, 2))
      >>> print(gj.metrics.kid(real, fake) < 0.1, gj.metrics.kid(real, fake + 1) > 1)
      True True

    Reference: Binkowski et al. 2018, arXiv:1801.01401.
    """
    return _discrepancy(_cubic, *widened(real, fake), ())


@door(also(lambda real, fake, size: check_sets(size, f" for size={size}", real=real, fake=fake)))
def kid_subsets(
    real: Features, fake: Features, key: Key, *, subsets: Several = 100, size: Several = 1000
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The KID as papers report it: the mean over random subsets, with its standard error.

    `mean of kid(r, f)`, `standard deviation of kid(r, f) / sqrt(subsets)`. r and f are drawn from the sets without replacement.

    The mean has the same expectation as `kid`, which has the smaller variance. The error covers only the draws. Subsets of one
    set overlap, so it says little about other sets of the same distribution.

    Args:
      real: `[N, D]`, features of real data.
      fake: `[M, D]`, features of samples.
      key: One PRNG key, for the subsets.
      subsets: The number of subsets.
      size: The number of points in each subset.

    Returns:
      the mean and its standard error.

    Raises:
      ValueError: If there are fewer than two subsets, a set has fewer than `size` points, the sets differ in D, or known
        features are not finite.

    Example:
      >>> real, fake = jax.random.normal(jax.random.key(0), (2, 1000, 2))
      >>> key = jax.random.key(1)
      >>> mean, error = gj.metrics.kid_subsets(real, fake + 1, key, subsets=10, size=100)
      >>> print(abs(mean - gj.metrics.kid(real, fake + 1)) < 4 * error)
      True

    Reference: Binkowski et al. 2018, arXiv:1801.01401, section 4.
    """
    return _kid_subsets(*widened(real, fake), jax.random.split(key, subsets), size)


@functools.partial(jax.jit, static_argnums=3)
def _kid_subsets(real: Array, fake: Array, keys: Array, size: int) -> tuple[Array, Array]:
    def one(key: Array) -> Array:
        sets = zip((real, fake), jax.random.split(key), strict=True)
        return _discrepancy(_cubic, *(jax.random.choice(draw, x, (size,), replace=False) for x, draw in sets), ())

    found = jax.lax.map(one, keys)
    return found.mean(), found.std(ddof=1) / len(keys) ** 0.5


def _minus_distance(a: Array, b: Array, _: tuple[()]) -> Array:
    return -sqrt(squared_distances(a, b))


def _gaussian(a: Array, b: Array, bandwidth: Array) -> Array:
    return jnp.exp(-squared_distances(a, b) / (2 * bandwidth**2))


def _cubic(a: Array, b: Array, _: tuple[()]) -> Array:
    return (jnp.matmul(a, b.T, precision=Precision.HIGHEST) / a.shape[1] + 1) ** 3


@functools.partial(jax.jit, static_argnums=0)
def _discrepancy(kernel: Callable[..., Array], a: Array, b: Array, parameters: Array | tuple[()]) -> Array:
    """`E k(a, a') + E k(b, b') - 2 E k(a, b)` over pairs of different samples, `k = kernel(a [S, D], b [T, D], parameters)`."""
    # A constant that is subtracted from all pairs cancels, and float32 sums the smaller rest with more digits.
    typical = jax.lax.stop_gradient(kernel(a[:1], b[:1], parameters))

    def mean(points: Array, others: Array, itself: bool) -> Array:
        def add(total: Array, x: Array, y: Array, counted: Array) -> Array:
            return total + jnp.where(counted, kernel(x, y, parameters) - typical, 0).sum(1)

        totals = fold(add, jnp.zeros((), a.dtype), points, others, itself=itself)
        return (totals / (len(others) - (not itself))).mean()

    return mean(a, a, False) + mean(b, b, False) - 2 * mean(a, b, True)
