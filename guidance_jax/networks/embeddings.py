"""Embeddings of the time and the label."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from guidance_jax.checks.values import check_labels

FREQUENCIES = 128


def waves(t: Float[Array, "b"], width: int, *, sin_first: bool = False, shift: float = 0.0) -> Float[Array, "b w"]:
    """Sinusoids of the time, in float32 or wider: cosines, then sines, of `t 10000^(-i / (half - shift))`, with `half = width /
    2`.

    Args:
      t: The time, scaled to 0..1000.
      width: The number of sinusoids, even.
      sin_first: Whether the sines come before the cosines.
      shift: 1 makes the lowest frequency exactly 1 / 10000.

    Reference: Ho et al. 2020, arXiv:2006.11239 (released code).
    """
    half, dtype = width // 2, jnp.promote_types(t.dtype, jnp.float32)
    frequencies = jnp.exp(-math.log(10_000) * jnp.arange(half, dtype=dtype) / (half - shift))
    angles = t.astype(dtype)[:, None] * frequencies[None]
    parts = [jnp.cos(angles), jnp.sin(angles)]
    return jnp.concatenate(parts[::-1] if sin_first else parts, axis=1)


def rows(table: Float[Array, "k w"], labels: Int[Array, "b"], what: str) -> Float[Array, "b w"]:
    """The rows of a table by label. A label outside the table raises if it is known, and gives NaN if it is traced."""
    check_labels(labels, len(table), what)
    return table.at[labels].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)


class TimeEmbedding(nnx.Module):
    """Sinusoids of the time with periods from 2 pi to 20,000 pi, then two dense layers (arXiv:2006.11239).

    Args:
      width: The width of the output.
      scale: The factor of t: 1,000 for t in [0, 1], 1 for t in 0..999.
      rngs: The random keys that initialise the parameters.
    """

    def __init__(self, width: int, scale: float, *, rngs: nnx.Rngs):
        self.scale = scale
        self.inner = nnx.Linear(FREQUENCIES, width, rngs=rngs)
        self.outer = nnx.Linear(width, width, rngs=rngs)

    def __call__(self, t: Float[Array, "b"]) -> Float[Array, "b w"]:
        return self.outer(jax.nn.silu(self.inner(waves(self.scale * t, FREQUENCIES))))


class LabelEmbedding(nnx.Module):
    """A table of `classes` labels and the null label, `classes`.

    A label outside the table raises if it is known, and gives NaN if it is traced.

    Args:
      classes: The number of classes.
      width: The width of the output.
      rngs: The random keys that initialise the parameters.
    """

    def __init__(self, classes: int, width: int, *, rngs: nnx.Rngs):
        self.classes = classes
        self.table = nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), (classes + 1, width)))

    def __call__(self, labels: Int[Array, "b"]) -> Float[Array, "b w"]:
        return rows(self.table[...], labels, f"a network of {self.classes} classes and the null label")
