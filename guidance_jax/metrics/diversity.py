"""How many different samples a set holds, without any real data."""

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
from guidance_jax.checks.features import Features, check_directions
from guidance_jax.checks.numbers import number
from guidance_jax.metrics.pairs import widened

PositiveOrInfinite = TypeAliasType("PositiveOrInfinite", Annotated[float | int, number(low=0, high=math.inf, above=0)])
"""One positive number, possibly infinite."""


@door(also(check_directions))
def vendi(x: Features, *, order: PositiveOrInfinite = 1) -> Float[Array, ""]:
    """The effective number of different samples: 1 if all are the same, N if all are orthogonal.

    `exp(-sum p log p)`, p the eigenvalues of `K / N`, K the cosine similarities of the samples, `[N, N]`; of another order q
    `(sum p^q)^(1 / (1 - q))`.

    Those of the smaller of `K / N` and the `[D, D]` matrix of the same eigenvalues are taken, so it is never above D.

    Args:
      x: `[N, D]`, features. Cosines are those of the angles at the origin: of features that are all positive they are near 1.
      order: The order q > 0; the larger, the less rare samples count, up to `inf`, the share of the largest alone.

    Raises:
      ValueError: If order is not positive, or features are known and not finite, or all zero for a sample.

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
