"""Fidelity and diversity from nearest neighbours."""

import functools
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float
from typing_extensions import TypeAliasType

from guidance_jax.checks.door import also, door
from guidance_jax.checks.kinds import Count
from guidance_jax.metrics.checks import Features, check_known, check_sets, features_kind
from guidance_jax.metrics.pairs import fold, squared_distances, widened


class Neighbours(NamedTuple):
    """A set with the distances between its points, computed once for many comparisons.

    Args:
      points: `[N, D]`, the features.
      nearest: `[N, K]`, the squared distances from each point to its nearest other points, in increasing order.

    Example:
      >>> known = gj.metrics.Neighbours(jnp.array([[0.0], [3.0]]), jnp.array([[9.0], [9.0]]))
      >>> print(gj.metrics.precision_recall(known, jnp.array([[1.0], [8.0]]), k=1)[0])
      0.5
    """

    points: Float[Array, "n d"]
    nearest: Float[Array, "n k"]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the points."""
        return self.points.shape


Near = TypeAliasType("Near", Annotated[Float[Array | np.ndarray, "_ d"] | Neighbours, features_kind(Neighbours)])
"""A set of features, or its neighbours."""


@door(also(lambda x, k: check_sets(k + 1, f" for k={k} neighbours", x=x)))
def neighbours(x: Features, k: Count = 5) -> Neighbours:
    """The nearest neighbours within a set, computed once for many comparisons.

    `nearest_ij = j-th smallest |x_i - x_l|^2 over l != i`

    Args:
      x: `[N, D]`, features.
      k: The number of neighbours per point: at least the largest k of the metrics that follow. A point is not its own
        neighbour, but its duplicates are.

    Raises:
      ValueError: If the set has no k-th neighbour, or known features are not finite.

    Example:
      >>> real, fake = jax.random.normal(jax.random.key(0), (2, 1000, 2))
      >>> known = gj.metrics.neighbours(real)
      >>> print(gj.metrics.density_coverage(known, fake) == gj.metrics.density_coverage(real, fake))
      True
    """
    (x,) = widened(x)
    return Neighbours(x, _nearest(x, k))


@door(
    also(lambda real, fake, k: check_sets(k + 1, f" for k={k} neighbours", real=real, fake=fake)),
    also(lambda real, fake, k: check_known(k, real=real, fake=fake)),
)
def precision_recall(real: Near, fake: Near, k: Count = 3) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Fidelity and diversity: the share of samples near real data, and the share of real data near samples.

    A point is near a set if it is within the radius of any point of the set. The radius is that point's distance to its k-th
    nearest neighbour in the set:

    `precision = mean over f of any over r of |f - r| <= radius_k(r)`, `recall` with the sets exchanged.

    Args:
      real: `[N, D]`, features of real data, or their `neighbours`.
      fake: `[M, D]`, features of samples, or their `neighbours`.
      k: The number of the neighbour that sets a point's radius. A point is not its own neighbour, but its duplicates are.

    Returns:
      precision and recall, each in [0, 1]; NaN if traced features are not finite.

    Raises:
      ValueError: If a set has no k-th neighbour, precomputed neighbours are fewer than k, the sets differ in D, or known
        features are not finite.

    Example:
      >>> real = jnp.arange(10.0)[:, None]
      >>> precision, recall = gj.metrics.precision_recall(real, real[:5], k=1)
      >>> print(precision, recall)
      1.0 0.6

    Reference: Kynkaanniemi et al. 2019, arXiv:1904.06991.
    """
    points = widened(_points(real), _points(fake))
    return _precision_recall(*points, _squared_radii(real, points[0], k), _squared_radii(fake, points[1], k))


@door(
    also(lambda real, k: check_sets(k + 1, f" for k={k} neighbours", real=real)),
    also(lambda real, fake: check_sets(1, real=real, fake=fake)),
    also(lambda real, k: check_known(k, real=real)),
)
def density_coverage(real: Near, fake: Features, k: Count = 5) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Fidelity and diversity from the radii of real data only, so that outliers among the samples have no effect on the radii.

    `density = mean over f of (number of r with |f - r| <= radius_k(r)) / k`

    `coverage = mean over r of any over f of |f - r| <= radius_k(r)`

    Args:
      real: `[N, D]`, features of real data, or their `neighbours`.
      fake: `[M, D]`, features of samples.
      k: The number of the neighbour that sets a point's radius. A point is not its own neighbour, but its duplicates are.

    Returns:
      density and coverage; NaN if traced features are not finite. For samples of the data's distribution, density is about 1.
        It is higher if samples are concentrated where data are dense. Coverage is in [0, 1], and for such samples about `1 -
        2^-k` at N = M.

    Raises:
      ValueError: If the real data have no k-th neighbour, precomputed neighbours are fewer than k, the sets differ in D, or
        known features are not finite.

    Example:
      >>> real = jnp.arange(10.0)[:, None]
      >>> density, coverage = gj.metrics.density_coverage(real, real[:5], k=1)
      >>> print(density.round(1), coverage)
      2.8 0.6

    Reference: Naeem et al. 2020, arXiv:2002.09797.
    """
    points, fake = widened(_points(real), fake)
    return _density_coverage(points, fake, _squared_radii(real, points, k), k)


def _points(x: Array | np.ndarray | Neighbours) -> Array | np.ndarray:
    return x.points if isinstance(x, Neighbours) else x


def _squared_radii(x: Array | np.ndarray | Neighbours, points: Array, k: int) -> Array:
    """The squared distance from each point to its k-th nearest other point, `[N]`."""
    nearest = x.nearest if isinstance(x, Neighbours) else _nearest(points, k)
    return nearest[:, k - 1]


@jax.jit
def _precision_recall(real: Array, fake: Array, real_radii: Array, fake_radii: Array) -> tuple[Array, Array]:
    def share_near(points: Array, others: Array, radii: Array) -> Array:
        def near(found: Array, x: Array, others: tuple[Array, Array], counted: Array) -> Array:
            y, radius = others
            return found | ((squared_distances(x, y) <= radius[None]) & counted).any(1)

        return fold(near, False, points, (others, radii)).mean(dtype=real.dtype)

    known = jnp.isfinite(real).all() & jnp.isfinite(fake).all()
    precision, recall = share_near(fake, real, real_radii), share_near(real, fake, fake_radii)
    return jnp.where(known, precision, jnp.nan), jnp.where(known, recall, jnp.nan)


@functools.partial(jax.jit, static_argnums=3)
def _density_coverage(real: Array, fake: Array, radii: Array, k: int) -> tuple[Array, Array]:
    def count(found: Array, points: tuple[Array, Array], y: Array, counted: Array) -> Array:
        x, radius = points
        return found + ((squared_distances(x, y) <= radius[:, None]) & counted).sum(1)

    within = fold(count, 0, (real, radii), fake)
    known = jnp.isfinite(real).all() & jnp.isfinite(fake).all()
    # Divides before the sum: the number of all pairs may exceed int32.
    density = (within.astype(real.dtype) / len(fake)).sum() / k
    return jnp.where(known, density, jnp.nan), jnp.where(known, (within > 0).mean(dtype=real.dtype), jnp.nan)


@functools.partial(jax.jit, static_argnums=1)
def _nearest(points: Array, k: int) -> Array:
    """The squared distances from each point to its k nearest other points, in increasing order, `[N, k]`."""

    def nearest(found: Array, x: Array, y: Array, counted: Array) -> Array:
        distances = jnp.where(counted, squared_distances(x, y), jnp.inf)
        return -jax.lax.top_k(-jnp.concatenate([found, distances], axis=1), k)[0]

    return fold(nearest, jnp.full(k, jnp.inf, points.dtype), points, points, itself=False)
