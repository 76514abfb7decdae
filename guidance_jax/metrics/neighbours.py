"""Fidelity and diversity by nearest neighbours."""

import functools

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from guidance_jax.kinds import check_count
from guidance_jax.metrics.pairs import Features, features, fold, squared_distances


def precision_recall(
    real: Float[Features, "n d"], fake: Float[Features, "m d"], k: int = 3
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Fidelity and diversity: the share of samples near real data, and the share of real data near samples.

    A point is near a set if it lies no farther from one of its points than that point's k-th nearest neighbour in the set:

    `precision = mean over f of any over r of |f - r| <= radius_k(r)`, `recall` with the sets exchanged.

    Args:
      real: `[N, D]`, features of real data.
      fake: `[M, D]`, features of samples.
      k: the neighbour that sets a point's radius; a point is no neighbour of itself, but its duplicates are.

    Returns:
      precision and recall, each in [0, 1]; NaN if features that could not be checked are not finite.

    Raises:
      ValueError: if a set has no k-th neighbour, the features differ in size, or are known and not finite.

    Example:
      >>> real = jnp.arange(10.0)[:, None]
      >>> precision, recall = metrics.precision_recall(real, real[:5], k=1)
      >>> print(precision, recall)
      1.0 0.6

    Reference: Kynkaanniemi et al. 2019, arXiv:1904.06991.
    """
    real, fake = features(real=real, fake=fake)
    check_count(k, "k", 0)
    if not 1 <= k < min(len(real), len(fake)):
        raise ValueError(f"k={k} neighbours need k >= 1 and sets of more than {k} points, got {len(real)} and {len(fake)}.")
    return _precision_recall(real, fake, k)


def density_coverage(
    real: Float[Features, "n d"], fake: Float[Features, "m d"], k: int = 5
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Fidelity and diversity by the neighbourhoods of real data alone, so that no stray sample enlarges what counts as near.

    `density = mean over f of (number of r with |f - r| <= radius_k(r)) / k`

    `coverage = mean over r of any over f of |f - r| <= radius_k(r)`

    Args:
      real: `[N, D]`, features of real data.
      fake: `[M, D]`, features of samples.
      k: the neighbour within the real data that sets a point's radius; a point is no neighbour of itself, its duplicates are.

    Returns:
      density, about 1 for samples of the data's law and above where they crowd where data are dense, and coverage, in [0, 1],
      for them about `1 - 2^-k` at N = M; NaN if features that could not be checked are not finite.

    Raises:
      ValueError: if the real data have no k-th neighbour, the features differ in size, or are known and not finite.

    Example:
      >>> real = jnp.arange(10.0)[:, None]
      >>> density, coverage = metrics.density_coverage(real, real[:5], k=1)
      >>> print(density.round(1), coverage)
      2.8 0.6

    Reference: Naeem et al. 2020, arXiv:2002.09797.
    """
    real, fake = features(real=real, fake=fake)
    check_count(k, "k", 0)
    if not 1 <= k < len(real):
        raise ValueError(f"k={k} neighbours need k >= 1 and real data of more than {k} points, got {len(real)}.")
    return _density_coverage(real, fake, k)


@functools.partial(jax.jit, static_argnums=2)
def _precision_recall(real: Array, fake: Array, k: int) -> tuple[Array, Array]:
    def share_near(points: Array, others: Array) -> Array:
        def near(found: Array, x: Array, others: tuple[Array, Array], counted: Array) -> Array:
            y, radius = others
            return found | ((squared_distances(x, y) <= radius[None]) & counted).any(1)

        return fold(near, False, points, (others, _squared_radii(others, k))).mean(dtype=real.dtype)

    known = jnp.isfinite(real).all() & jnp.isfinite(fake).all()
    return jnp.where(known, share_near(fake, real), jnp.nan), jnp.where(known, share_near(real, fake), jnp.nan)


@functools.partial(jax.jit, static_argnums=2)
def _density_coverage(real: Array, fake: Array, k: int) -> tuple[Array, Array]:
    def count(found: Array, points: tuple[Array, Array], y: Array, counted: Array) -> Array:
        x, radius = points
        return found + ((squared_distances(x, y) <= radius[:, None]) & counted).sum(1)

    within = fold(count, 0, (real, _squared_radii(real, k)), fake)
    known = jnp.isfinite(real).all() & jnp.isfinite(fake).all()
    # Per point first: the number of all pairs may be beyond int32.
    density = (within.astype(real.dtype) / len(fake)).sum() / k
    return jnp.where(known, density, jnp.nan), jnp.where(known, (within > 0).mean(dtype=real.dtype), jnp.nan)


def _squared_radii(points: Array, k: int) -> Array:
    """The squared distance of each point to its k-th nearest other, `[N]`."""

    def nearest(found: Array, x: Array, y: Array, counted: Array) -> Array:
        distances = jnp.where(counted, squared_distances(x, y), jnp.inf)
        return -jax.lax.top_k(-jnp.concatenate([found, distances], axis=1), k)[0]

    return fold(nearest, jnp.full(k, jnp.inf, points.dtype), points, points, itself=False)[:, k - 1]
