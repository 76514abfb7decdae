"""The array operations that all layers share."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array


def at_least_float32(dtype: Any) -> Any:
    """The dtype for draws and sums: float32, or the given dtype if it is wider."""
    dtype = jax.dtypes.canonicalize_dtype(dtype)
    return dtype if jnp.dtype(dtype).itemsize >= 4 else jnp.dtype(jnp.float32)


def expand(value: Array, x: Array) -> Array:
    """One value per sample, `[B]`, or one for all, `()`, reshaped to broadcast against `x: [B, ...]`."""
    return value.reshape(value.shape + (1,) * (x.ndim - 1)) if value.ndim else value


def inner(a: Array, b: Array) -> Array:
    """The inner product of each sample over all its axes, broadcastable."""
    return (a * b).sum(tuple(range(1, a.ndim)), keepdims=True)


def norm(a: Array) -> Array:
    """The Euclidean norm of each sample over all its axes, broadcastable. Its gradient at 0 is 0."""
    return sqrt(inner(a, a))


def divide(a: Array, b: Array) -> Array:
    """`a / b`, and 0 where b is 0. The gradients are 0 there too."""
    zero = b == 0
    return jnp.where(zero, 0, a / jnp.where(zero, 1, b))


def sqrt(a: Array) -> Array:
    """The square root, and 0 where `a` is 0 or negative by rounding. The gradients are 0 there too."""
    positive = a > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, a, 1)), 0)
