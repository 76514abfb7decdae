"""The few array operations that every layer shares."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array


def at_least_float32(dtype: Any) -> Any:
    """The dtype to draw and to add up in: float32 for a narrower one."""
    dtype = jax.dtypes.canonicalize_dtype(dtype)
    return dtype if jnp.dtype(dtype).itemsize >= 4 else jnp.dtype(jnp.float32)


def expand(value: Array, x: Array) -> Array:
    """A value per sample, `[B]`, or one for all, `()`, in the shape that broadcasts against `x: [B, ...]`."""
    return value.reshape(value.shape + (1,) * (x.ndim - 1)) if value.ndim else value


def inner(a: Array, b: Array) -> Array:
    """The inner product of each sample, over all its axes, broadcastable."""
    return (a * b).sum(tuple(range(1, a.ndim)), keepdims=True)


def norm(a: Array) -> Array:
    """The Euclidean norm of each sample, over all its axes, broadcastable; its gradient at 0 is 0."""
    return sqrt(inner(a, a))


def divide(a: Array, b: Array) -> Array:
    """`a / b`, and 0 where b is 0; so are its gradients."""
    zero = b == 0
    return jnp.where(zero, 0, a / jnp.where(zero, 1, b))


def sqrt(a: Array) -> Array:
    """The square root, and 0 where `a` is 0 or a rounding below; so are its gradients."""
    positive = a > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, a, 1)), 0)
