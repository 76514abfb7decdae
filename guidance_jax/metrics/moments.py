"""Means and covariances of features, and the distance of two Gaussians that have them."""

import functools
from typing import Annotated, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.lax import Precision
from jaxtyping import Float, Int
from typing_extensions import TypeAliasType

from guidance_jax.arrays import divide
from guidance_jax.checks.door import CLASSES, also, door
from guidance_jax.checks.features import Features, check_gaussians, check_sets, features_kind
from guidance_jax.checks.kinds import array_kind, class_kind
from guidance_jax.metrics.pairs import widened


class Moments(NamedTuple):
    """What the Gaussian of a set needs; parts of a set give the whole one's by `merge`.

    Example:
      >>> found = gj.metrics.Moments(jnp.int32(3), jnp.zeros(2), 4 * jnp.eye(2))
      >>> print(found.covariance)
      [[2. 0.]
       [0. 2.]]
    """

    count: Int[Array, ""]  # pyright: ignore[reportIncompatibleMethodOverride]
    """The number of points."""
    mean: Float[Array, "d"]
    """`[D]`."""
    scatter: Float[Array, "d d"]
    """The sum of `(x - mean) (x - mean)^T` over the points, `[D, D]`."""

    @property
    def covariance(self) -> Array:
        """`scatter / (count - 1)`, as `np.cov` and the reference code of the FID have it."""
        return self.scatter / (self.count.astype(self.scatter.dtype) - 1)

    @property
    def shape(self) -> tuple[Array, int]:
        """That of the features: the number of points, and D."""
        return self.count, len(self.mean)


CLASSES[Moments] = class_kind(Moments, "gj.metrics.moments(x) makes one.")
Measured = TypeAliasType("Measured", Annotated[Float[Array | np.ndarray, "_ d"] | Moments, features_kind(Moments)])
"""A set of features, or its moments."""
_OF_GAUSSIAN = array_kind("floating numbers", jnp.floating)
Mean = TypeAliasType("Mean", Annotated[Float[Array, "d"], _OF_GAUSSIAN])
"""`[D]`."""
Covariance = TypeAliasType("Covariance", Annotated[Float[Array, "d d"], _OF_GAUSSIAN])
"""`[D, D]`."""


@door()
def moments(x: Features) -> Moments:
    """The moments of a set, in two passes: what is summed has its mean taken off, so that float32 keeps its digits.

    `mean = sum x / N`, `scatter = sum (x - mean) (x - mean)^T`

    Args:
      x: `[N, D]`, features.

    Raises:
      ValueError: If the set is empty, or is known and has values that are not finite.

    Example:
      >>> found = gj.metrics.moments(jnp.array([[0.0, 1.0], [2.0, 5.0]]))
      >>> print(found.count, found.mean, found.covariance)
      2 [1. 3.] [[2. 4.]
       [4. 8.]]
    """
    return _moments(x)


def _moments(x: Array | np.ndarray) -> Moments:
    (x,) = widened(x)
    first = x.mean(0)
    centred = x - first[None]
    rest = centred.mean(0)
    centred = centred - rest[None]
    return Moments(jnp.int32(len(x)), first + rest, jnp.matmul(centred.T, centred, precision=Precision.HIGHEST))


@door()
def merge(a: Moments, b: Moments) -> Moments:
    """The moments of two parts together: of sets that are too large for one device, or that come one batch after another.

    `scatter = scatter_a + scatter_b + count_a count_b / count (mean_b - mean_a) (mean_b - mean_a)^T`

    Moments of count 0, all zeros, change nothing: a start for `functools.reduce`, or for a `jax.lax.scan`.

    Args:
      a: Moments of `[D]`.
      b: Likewise.

    Example:
      >>> x = jax.random.normal(jax.random.key(0), (1000, 3)) + 100
      >>> whole, merged = gj.metrics.moments(x), gj.metrics.merge(gj.metrics.moments(x[:300]), gj.metrics.moments(x[300:]))
      >>> print(merged.count, jnp.allclose(whole.covariance, merged.covariance, atol=1e-5))
      1000 True

    Reference: Chan et al. 1983, "Algorithms for computing the sample variance".
    """
    dtype = a.mean.dtype
    count = a.count + b.count
    share = divide(b.count.astype(dtype), count.astype(dtype))
    gap = b.mean - a.mean
    between = a.count.astype(dtype) * share * gap[:, None] * gap[None]
    return Moments(count, a.mean + share * gap, a.scatter + b.scatter + between)


@door(also(lambda real, fake: check_sets(2, real=real, fake=fake)))
def fid(real: Measured, fake: Measured) -> Float[Array, ""]:
    """The Frechet distance of two sets of features, each taken for the Gaussian of its mean and covariance; the FID's formula.

    `|mean_real - mean_fake|^2 + tr(A + B - 2 (A^(1/2) B A^(1/2))^(1/2))`, A and B the covariances, over `N - 1`.

    Of finite sets it is too large, by a term in 1 / N: compare only numbers of the same N and the same features. In float32
    it is good to about 1e-5 of the covariances' traces, and to 1e-3 where one is singular and the other is not; inside
    `jax.enable_x64()`, on features of float64, it has no such limit.

    Args:
      real: Features of real data, `[N, D]`, or their moments.
      fake: Features of samples, likewise.

    Raises:
      ValueError: If a set has less than two points, or their features differ in size or are known and not finite.

    Example:
      >>> real, fake = jax.random.normal(jax.random.key(0), (2, 10_000, 2))
      >>> print(gj.metrics.fid(real, fake).round(2), gj.metrics.fid(real, gj.metrics.moments(fake + 1)).round(1))
      0.0 2.0

    Reference: Heusel et al. 2017, arXiv:1706.08500, equation 6.
    """
    a, b = (x if isinstance(x, Moments) else _moments(x) for x in (real, fake))
    return frechet_distance(a.mean, a.covariance, b.mean, b.covariance)


@door(also(check_gaussians))
def frechet_distance(
    mean_a: Mean,
    cov_a: Covariance,
    mean_b: Mean,
    cov_b: Covariance,
) -> Float[Array, ""]:
    """The squared Frechet (2-Wasserstein) distance of two Gaussians; of Inception features' moments it is the FID.

    `|mean_a - mean_b|^2 + tr(A + B - 2 (A^(1/2) B A^(1/2))^(1/2))`; a covariance may be singular.

    Args:
      mean_a: `[D]`.
      cov_a: A, `[D, D]`, symmetric and positive semidefinite.
      mean_b: `[D]`.
      cov_b: B, likewise.

    Raises:
      ValueError: If the means and covariances are not of one D.
      TypeError: If one is no array of floating numbers.

    Example:
      >>> print(gj.metrics.frechet_distance(jnp.zeros(2), jnp.eye(2), jnp.array([3.0, 4.0]), 4 * jnp.eye(2)))
      27.0

    Reference: Heusel et al. 2017, arXiv:1706.08500, equation 6.
    """
    mean_a, cov_a, mean_b, cov_b = widened(mean_a, cov_a, mean_b, cov_b)
    # One decomposition for both: several batched ones in a program can deadlock the CPU's threads in jaxlib 0.10.
    variances, axes = jnp.linalg.eigh(jnp.stack([cov_a, cov_b]))
    product = functools.partial(jnp.matmul, precision=Precision.HIGHEST)
    root_a, root_b = product(axes * jnp.sqrt(jnp.maximum(variances, 0))[:, None], axes.mT)
    # Singular values of the product of roots, and not roots of eigenvalues, which would lose half of the digits near zero.
    cross = jnp.linalg.svd(product(root_a, root_b), compute_uv=False)
    return ((mean_a - mean_b) ** 2).sum() + jnp.trace(cov_a) + jnp.trace(cov_b) - 2 * cross.sum()
