"""The few array operations that every layer shares."""

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer
from jaxtyping import ArrayLike


def concrete(value: object) -> bool:
    """Whether every leaf of `value` is known now, so that its values can be checked."""
    return not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(value))


def expand(value: Array, x: Array) -> Array:
    """A value per sample, `[B]`, or one for all, `()`, in the shape that broadcasts against `x: [B, ...]`."""
    return value.reshape(value.shape + (1,) * (x.ndim - 1)) if value.ndim else value


def per_sample(value: ArrayLike, x: Array, name: str) -> Array:
    """`value`, a number for all samples or one a sample, checked, in x's dtype and broadcastable against `x: [B, ...]`.

    Raises:
      ValueError: if its shape is neither `()` nor `[B]`.
    """
    value = jnp.asarray(value, x.dtype)
    if value.shape not in ((), x.shape[:1]):
        raise ValueError(
            f"{name} has shape {value.shape}, but must be () or [B] = {x.shape[:1]}: one number for all samples, or one "
            "a sample. For a grid of values, jax.vmap over them."
        )
    return expand(value, x)


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
