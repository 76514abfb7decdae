"""Means and covariances of features, and the Frechet distance of Gaussians."""

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
from guidance_jax.checks.kinds import array_kind, class_kind
from guidance_jax.metrics.checks import Features, check_gaussians, check_sets, features_kind
from guidance_jax.metrics.pairs import widened


class Moments(NamedTuple):
    """The number, mean and scatter of a set of features. `merge` combines the moments of its parts.

    Args:
      count: `()`, the number of points.
      mean: `[D]`, the mean of the points.
      scatter: `[D, D]`, the sum of `(x - mean) (x - mean)^T` over the points.

    Example:
      >>> found = gj.metrics.Moments(jnp.int32(3), jnp.zeros(2), 4 * jnp.eye(2))
      >>> print(found.covariance)
      [[2. 0.]
       [0. 2.]]
    """

    count: Int[Array, ""]  # pyright: ignore[reportIncompatibleMethodOverride]
    mean: Float[Array, "d"]
    scatter: Float[Array, "d d"]

    @property
    def covariance(self) -> Array:
        """`scatter / (count - 1)`, as in `np.cov` and in the reference code of the FID."""
        return self.scatter / (self.count.astype(self.scatter.dtype) - 1)

    @property
    def shape(self) -> tuple[Array, int]:
        """The shape of the features: the number of points, and D."""
        return self.count, len(self.mean)


CLASSES[Moments] = class_kind(Moments, "use gj.metrics.moments(x).")
Measured = TypeAliasType("Measured", Annotated[Float[Array | np.ndarray, "_ d"] | Moments, features_kind(Moments)])
"""A set of features, or its moments."""
_OF_GAUSSIAN = array_kind("floating numbers", jnp.floating)
Mean = TypeAliasType("Mean", Annotated[Float[Array, "d"], _OF_GAUSSIAN])
"""`[D]`."""
Covariance = TypeAliasType("Covariance", Annotated[Float[Array, "d d"], _OF_GAUSSIAN])
"""`[D, D]`."""


@door()
def moments(x: Features) -> Moments:
    """The moments of a set, in two passes: the mean is subtracted before the sums, so that float32 keeps its digits.

    `mean = sum x / N`, `scatter = sum (x - mean) (x - mean)^T`

    Args:
      x: `[N, D]`, features.

    Raises:
      ValueError: If the set is empty, or known features are not finite.

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
    """The moments of two parts together, for sets too large for one device, or that arrive in batches.

    `scatter = scatter_a + scatter_b + count_a count_b / count (mean_b - mean_a) (mean_b - mean_a)^T`

    Moments of count 0, all zeros, change nothing. They are a start for `functools.reduce` or `jax.lax.scan`.

    Args:
      a: Moments of features of size D.
      b: Moments of features of the same size.

    Example:
      >>> moments, merge = jax.jit(gj.metrics.moments), jax.jit(gj.metrics.merge)
      >>> a, b = moments(jnp.array([[0.0], [3.0]])), moments(jnp.array([[3.0], [6.0]]))
      >>> whole = merge(a, b)
      >>> print(whole.count, whole.mean, whole.covariance)
      4 [3.] [[6.]]

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
    """The Frechet distance of two sets of features, each replaced by the Gaussian of its mean and covariance: the formula of
    the FID.

    `|mean_real - mean_fake|^2 + tr(A + B - 2 (A^(1/2) B A^(1/2))^(1/2))`, A and B the covariances, over `N - 1`.

    For finite sets it is too large, by a term in 1 / N: compare only results of the same N and the same features. In float32
    the error is about 1e-5 of the covariances' traces, and 1e-3 if exactly one covariance is singular. For more digits, use
    float64 features inside `jax.enable_x64()`.

    Args:
      real: `[N, D]`, features of real data, or their moments.
      fake: `[M, D]`, features of samples, or their moments.

    Raises:
      ValueError: If a set has fewer than two points, the sets differ in D, or known features are not finite.

    Example:
      >>> real, fake = jax.random.normal(jax.random.key(0), (2, 1000, 2))
      >>> fid = jax.jit(gj.metrics.fid)
      >>> print(fid(real, fake) < 0.01, fid(real, fake + 1) > 1.9)
      True True

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
    """The squared Frechet (2-Wasserstein) distance of two Gaussians. For the moments of Inception features it is the FID.

    `|mean_a - mean_b|^2 + tr(A + B - 2 (A^(1/2) B A^(1/2))^(1/2))`. A covariance may be singular.

    Args:
      mean_a: `[D]`.
      cov_a: A, `[D, D]`, symmetric and positive semidefinite.
      mean_b: `[D]`.
      cov_b: B, `[D, D]`, symmetric and positive semidefinite.

    Raises:
      ValueError: If the means and covariances differ in D.
      TypeError: If an argument is not an array of floating numbers.

    Example:
      >>> a, b = jnp.zeros(2), jnp.array([3.0, 4.0])
      >>> print(jax.jit(gj.metrics.frechet_distance)(a, jnp.eye(2), b, 4 * jnp.eye(2)))
      27.0

    Reference: Heusel et al. 2017, arXiv:1706.08500, equation 6.
    """
    mean_a, cov_a, mean_b, cov_b = widened(mean_a, cov_a, mean_b, cov_b)
    # One decomposition for both: with jaxlib 0.10, several batched ones in a program can deadlock the CPU's threads.
    variances, axes = jnp.linalg.eigh(jnp.stack([cov_a, cov_b]))
    product = functools.partial(jnp.matmul, precision=Precision.HIGHEST)
    root_a, root_b = product(axes * jnp.sqrt(jnp.maximum(variances, 0))[:, None], axes.mT)
    # The singular values of the product of roots. Roots of eigenvalues would lose half of the digits near zero.
    cross = jnp.linalg.svd(product(root_a, root_b), compute_uv=False)
    return ((mean_a - mean_b) ** 2).sum() + jnp.trace(cov_a) + jnp.trace(cov_b) - 2 * cross.sum()
