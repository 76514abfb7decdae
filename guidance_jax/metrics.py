"""Fidelity and diversity of samples, as functions of their features `[N, D]`."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import ArrayLike, Float, Int

from guidance_jax.arrays import norm, sqrt


def accuracy(logits: Float[Array, "n c"], labels: Int[Array, "n"]) -> Float[Array, ""]:
    """The share of samples whose largest logit is that of their label.

    Args:
      logits: `[N, C]`.
      labels: `[N]`.

    Example:
      >>> print(metrics.accuracy(jnp.eye(4), jnp.array([0, 1, 2, 0])))
      0.75
    """
    return (logits.argmax(1) == labels).mean()


def precision_recall(
    real: Float[Array, "n d"], fake: Float[Array, "m d"], k: int = 3
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Fidelity and diversity: the share of samples near real data, and the share of real data near samples.

    A point is near a set if it lies no farther from one of its points than that point's k-th nearest neighbour in the set.

    Args:
      real: `[N, D]`, features of real data.
      fake: `[M, D]`, features of samples.
      k: the neighbour that sets a point's radius.

    Returns:
      precision and recall, each in [0, 1].

    Raises:
      ValueError: if a set has no k-th neighbour.

    Example:
      >>> real = jnp.arange(10.0)[:, None]
      >>> precision, recall = metrics.precision_recall(real, real[:5], k=1)
      >>> print(precision, recall)
      1.0 0.6

    Reference: Kynkaanniemi et al. 2019, arXiv:1904.06991.
    """
    if min(len(real), len(fake)) <= k:
        raise ValueError(f"k={k} neighbours need sets of more than {k} points, got {len(real)} and {len(fake)}.")

    def share_near(points: Array, others: Array) -> Array:
        radius = jnp.sort(_squared_distances(others, others), axis=1)[:, k]
        return (_squared_distances(points, others) <= radius[None]).any(1).mean()

    return share_near(fake, real), share_near(real, fake)


def frechet_distance(
    mean_a: Float[Array, "d"], cov_a: Float[Array, "d d"], mean_b: Float[Array, "d"], cov_b: Float[Array, "d d"]
) -> Float[Array, ""]:
    """The squared Frechet (2-Wasserstein) distance of two Gaussians; of Inception features' moments it is the FID.

    `|mean_a - mean_b|^2 + tr(A + B - 2 (A^(1/2) B A^(1/2))^(1/2))`; a covariance may be singular.

    Args:
      mean_a: `[D]`.
      cov_a: A, `[D, D]`, symmetric and positive semidefinite.
      mean_b: `[D]`.
      cov_b: B, likewise.

    Example:
      >>> print(metrics.frechet_distance(jnp.zeros(2), jnp.eye(2), jnp.array([3.0, 4.0]), 4 * jnp.eye(2)))
      27.0

    Reference: Heusel et al. 2017, arXiv:1706.08500, equation 6.
    """
    # One decomposition for both: several batched ones in a program can deadlock the CPU's threads in jaxlib 0.10.
    variances, axes = jnp.linalg.eigh(jnp.stack([cov_a, cov_b]))
    root_a, root_b = (axes * jnp.sqrt(jnp.maximum(variances, 0))[:, None]) @ axes.mT
    # Singular values of the product of roots, and not roots of eigenvalues, which would lose half of the digits near zero.
    cross = jnp.linalg.svd(root_a @ root_b, compute_uv=False)
    return ((mean_a - mean_b) ** 2).sum() + jnp.trace(cov_a) + jnp.trace(cov_b) - 2 * cross.sum()


def sliced_wasserstein(
    a: Float[Array, "n d"], b: Float[Array, "m d"], key: Array, *, projections: int = 128
) -> Float[Array, ""]:
    """The sliced 2-Wasserstein distance of two sets of samples: that of their projections on random lines.

    `sqrt(mean over lines of integral over u in [0, 1] of (quantile_a(u) - quantile_b(u))^2)`, exact for sets of any two sizes.

    It is never 0 for finite sets of the same law: the distance of two exact sets is its floor. Differentiable.

    Args:
      a: `[N, D]`.
      b: `[M, D]`.
      key: one PRNG key, of the lines; the same key, the same lines.
      projections: the number of lines.

    Example:
      >>> a = jax.random.normal(jax.random.key(0), (500, 2))
      >>> print(metrics.sliced_wasserstein(a, a + jnp.array([[3.0, 4.0]]), jax.random.key(1), projections=4096).round(1))
      3.5

    Reference: Bonneel et al. 2015, "Sliced and Radon Wasserstein barycenters of measures".
    """
    directions = jax.random.normal(key, (a.shape[1], projections), a.dtype)
    directions = directions / jnp.linalg.norm(directions, axis=0, keepdims=True)
    n, m = len(a), len(b)
    # Both quantile functions are constant between the multiples of 1 / n and 1 / m, here counted in parts of 1 / (n m).
    cuts = np.union1d(np.arange(n + 1, dtype=np.int64) * m, np.arange(m + 1, dtype=np.int64) * n)
    weights = jnp.asarray(np.diff(cuts) / (n * m), a.dtype)
    gap = jnp.sort(a @ directions, axis=0)[cuts[:-1] // m] - jnp.sort(b @ directions, axis=0)[cuts[:-1] // n]
    return sqrt((weights @ gap**2).mean())


def energy_distance(a: Float[Array, "n d"], b: Float[Array, "m d"]) -> Float[Array, ""]:
    """The energy distance of two laws, estimated without bias from samples of both; no parameter to choose.

    `2 E|a - b| - E|a - a'| - E|b - b'|` over pairs of different samples: 0 only for equal laws, and of either sign for finite
    sets of the same one. Differentiable.

    Args:
      a: `[N, D]`, at least two.
      b: `[M, D]`, likewise.

    Raises:
      ValueError: if a set has no pair.

    Example:
      >>> a, b = jax.random.normal(jax.random.key(0), (2, 1000, 2))
      >>> print(abs(metrics.energy_distance(a, b)) < 0.01, metrics.energy_distance(a, b + 1) > 0.5)
      True True

    Reference: Szekely & Rizzo 2013, "Energy statistics: a class of statistics based on distances".
    """
    return -_discrepancy(lambda x, others: norm(x[None] - others)[:, 0], a, b)


def mmd(a: Float[Array, "n d"], b: Float[Array, "m d"], bandwidth: ArrayLike) -> Float[Array, ""]:
    """The squared maximum mean discrepancy of two laws with a Gaussian kernel, estimated without bias from samples of both.

    `E k(a, a') + E k(b, b') - 2 E k(a, b)` over pairs of different samples, `k(x, y) = exp(-|x - y|^2 / (2 bandwidth^2))`: of
    either sign for finite sets of the same law. Differentiable.

    Args:
      a: `[N, D]`, at least two.
      b: `[M, D]`, likewise.
      bandwidth: the kernel's standard deviation, `()`.

    Raises:
      ValueError: if a set has no pair.

    Example:
      >>> a, b = jax.random.normal(jax.random.key(0), (2, 1000, 2))
      >>> print(abs(metrics.mmd(a, b, 1.0)) < 0.01, metrics.mmd(a, b + 1, 1.0) > 0.1)
      True True

    Reference: Gretton et al. 2012, "A kernel two-sample test", lemma 6.
    """
    width = jnp.asarray(bandwidth, a.dtype)
    return _discrepancy(lambda x, others: jnp.exp(-((x[None] - others) ** 2).sum(1) / (2 * width**2)), a, b)


def _discrepancy(kernel: Callable[[Array, Array], Array], a: Array, b: Array) -> Array:
    """`E k(a, a') + E k(b, b') - 2 E k(a, b)`, over pairs of different samples, for a `kernel(x [D], others [M, D]) -> [M]`."""
    if min(len(a), len(b)) < 2:
        raise ValueError(f"an average over pairs needs sets of at least 2 points, got {len(a)} and {len(b)}.")

    def total(points: Array, others: Array) -> Array:
        return jax.lax.map(lambda x: kernel(x, others).sum(), points).sum()

    def within(points: Array) -> Array:
        itself = jax.vmap(lambda x: kernel(x, x[None])[0])(points).sum()
        return (total(points, points) - itself) / (len(points) * (len(points) - 1))

    return within(a) + within(b) - 2 * total(a, b) / (len(a) * len(b))


def _squared_distances(a: Array, b: Array) -> Array:
    """`[N, M]`, by differences and not by the expanded square, so that equal points are at distance 0."""
    return jax.lax.map(lambda row: ((row[None] - b) ** 2).sum(1), a)
