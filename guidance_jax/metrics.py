"""Fidelity and diversity of samples, as functions of their features `[N, D]`."""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int


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


def _squared_distances(a: Array, b: Array) -> Array:
    """`[N, M]`, by differences and not by the expanded square, so that equal points are at distance 0."""
    return jax.lax.map(lambda row: ((row[None] - b) ** 2).sum(1), a)
