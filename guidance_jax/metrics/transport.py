"""The sliced Wasserstein distance."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.lax import Precision
from jaxtyping import Float

from guidance_jax.arrays import sqrt
from guidance_jax.checks.door import also, door
from guidance_jax.checks.kinds import Count, Key
from guidance_jax.metrics.checks import Features, check_sets
from guidance_jax.metrics.pairs import widened


@door(also(lambda a, b: check_sets(1, a=a, b=b)))
def sliced_wasserstein(a: Features, b: Features, key: Key, *, projections: Count = 128) -> Float[Array, ""]:
    """The sliced 2-Wasserstein distance between two sets of samples: that of their projections on random lines.

    `sqrt(mean over lines of integral over u in [0, 1] of (quantile_a(u) - quantile_b(u))^2)`, exact for sets of different
    sizes.

    It is above 0 even for two finite sets of one distribution. Compare it with the distance between two sets of real data.
    Differentiable.

    Args:
      a: `[N, D]`.
      b: `[M, D]`.
      key: One PRNG key, for the lines. The same key gives the same lines.
      projections: The number of lines.

    Raises:
      ValueError: If a set is empty, the sets differ in D, or known features are not finite.

    Example:
      >>> a, b = jax.random.normal(jax.random.key(0), (2, 1000, 2))
      >>> distance, key = jax.jit(gj.metrics.sliced_wasserstein), jax.random.key(1)
      >>> print(distance(a, b, key) < 0.1, distance(a, b + 1, key) > 0.9)
      True True

    Reference: Bonneel et al. 2015, "Sliced and Radon Wasserstein barycenters of measures".
    """
    a, b = widened(a, b)
    directions = jax.random.normal(key, (a.shape[1], projections), a.dtype)
    directions = directions / jnp.linalg.norm(directions, axis=0, keepdims=True)
    n, m = len(a), len(b)
    # Both quantile functions are constant between the multiples of 1 / n and 1 / m. The unit of `cuts` is 1 / (n m).
    cuts = np.union1d(np.arange(n + 1, dtype=np.int64) * m, np.arange(m + 1, dtype=np.int64) * n)
    weights = jnp.asarray(np.diff(cuts) / (n * m), a.dtype)
    a, b = (jnp.sort(jnp.matmul(x, directions, precision=Precision.HIGHEST), axis=0) for x in (a, b))
    gap = a[cuts[:-1] // m] - b[cuts[:-1] // n]
    return sqrt(jnp.matmul(weights, gap**2, precision=Precision.HIGHEST).mean())
