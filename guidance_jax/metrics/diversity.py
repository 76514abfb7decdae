"""The diversity of a set of samples, without real data."""

import functools
import math
from typing import Annotated

import jax
import jax.numpy as jnp
from jax import Array
from jax.lax import Precision
from jaxtyping import Float
from typing_extensions import TypeAliasType

from guidance_jax.checks.door import also, door
from guidance_jax.checks.numbers import number
from guidance_jax.metrics.checks import Features, check_directions
from guidance_jax.metrics.pairs import widened

PositiveOrInfinite = TypeAliasType("PositiveOrInfinite", Annotated[float | int, number(low=0, high=math.inf, above=0)])
"""A positive number, possibly infinite."""


@door(also(check_directions))
def vendi(x: Features, *, order: PositiveOrInfinite = 1) -> Float[Array, ""]:
    """The Vendi score, the effective number of different samples: 1 if all are the same, N if all are orthogonal.

    `exp(-sum p log p)`, where p are the eigenvalues of `K / N`, and K `[N, N]` holds the cosine similarities of the samples.
    For an order q other than 1, `(sum p^q)^(1 / (1 - q))`.

    The eigenvalues are those of the smaller of `K / N` and the `[D, D]` matrix with the same nonzero eigenvalues. The score
    never exceeds D.

    Args:
      x: `[N, D]`, features. Similarities are cosines of angles at the origin, so they are near 1 if all features are positive.
      order: The order q > 0. The larger it is, the less rare samples count. At `inf` the score is 1 / the largest p.

    Raises:
      ValueError: If order is not positive, or known features are not finite or are all zero for a sample.

    Example:
      >>> print(gj.metrics.vendi(jnp.eye(5)).round(3), gj.metrics.vendi(jnp.ones((5, 3))).round(3))
      5.0 1.0

    References: Friedman & Dieng 2022, arXiv:2210.02410; orders, Pasarkar & Dieng 2023, arXiv:2310.12952.
    """
    return _vendi(*widened(x), order)


@functools.partial(jax.jit, static_argnums=1)
def _vendi(x: Array, order: float | int) -> Array:
    x = x / jnp.abs(x).max(1, keepdims=True)
    x = x / jnp.linalg.norm(x, axis=1, keepdims=True)
    smaller = (x.T, x) if x.shape[1] <= len(x) else (x, x.T)
    p = jnp.maximum(jnp.linalg.eigvalsh(jnp.matmul(*smaller, precision=Precision.HIGHEST)), 0)
    p = p / p.sum()
    if order == 1:
        return jnp.exp(jax.scipy.special.entr(p).sum())
    if order == jnp.inf:
        return 1 / p.max()
    return (p**order).sum() ** (1 / (1 - order))
