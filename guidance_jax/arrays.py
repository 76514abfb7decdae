"""The few array operations that every layer shares."""

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jaxtyping import ArrayLike

from guidance_jax.kinds import check_numbers
from guidance_jax.traced import insist

LARGEST = sys.float_info.max


def concrete(value: object) -> bool:
    """Whether every leaf of `value` is known now and here, so that its values can be checked."""
    return all(
        not isinstance(leaf, Tracer) and (not isinstance(leaf, Array) or leaf.is_fully_addressable)
        for leaf in jax.tree.leaves(value)
    )


def check_range(
    value: object,
    name: str,
    least: float | int = -LARGEST,
    most: float | int = LARGEST,
    *,
    above: float | int | None = None,
    dtype: Any = None,
) -> None:
    """Raises where a value is no real number, or known and outside `least <= value <= most`, or not above a bound.

    It is checked as the run holds it: in float32 1e39 is infinite, and 1e-40 is 0.

    Args:
      value: a number or several.
      name: of the parameter, and of the function that it belongs to.
      least: the least value; the default is any that is finite.
      most: the greatest, likewise.
      above: a bound that no value may have.
      dtype: that the values are cast to; that of a new array where None.

    Raises:
      TypeError: if it is no number and no array of them.
      ValueError: telling the range, and the value.
    """
    check_numbers(value, name)
    words = "finite"
    if above is not None:
        words = f"above {above:g}" + (f" and at most {most:g}" if most < LARGEST else "")
    elif (least, most) != (-LARGEST, LARGEST):
        words = f"in [{least:g}, inf)" if most == LARGEST else f"in [{least:g}, {most:g}]"
    held = jnp.finfo(jnp.result_type(float) if dtype is None else dtype)

    def inside(given: Any) -> Any:
        right = abs(given) < np.inf if LARGEST in (most, -least) else given == given
        right = right if least == -LARGEST else right & (given >= least)
        right = right if most == LARGEST else right & (given <= most)
        right = right if above is None else right & (given > above)
        # Denormal numbers are flushed to 0.
        return (right & (given >= held.tiny) if above == 0 else right).all()

    if concrete(value):
        with np.errstate(over="ignore", under="ignore"):
            given = np.asarray(value).astype(held.dtype)
        exact = np.asarray(value).astype(np.float64)
        lost = np.isinf(given) & np.isfinite(exact)
        if lost.any() or not inside(given):
            lost = lost | ((abs(given) < held.tiny) & (exact != 0))
            held_as = f", in {held.dtype} as {np.where(abs(given) < held.tiny, 0, given)}" if lost.any() else ""
            raise ValueError(f"{name} must be {words}, got {value}{held_as}.")
        return
    given = jnp.asarray(value)
    insist(lambda: inside(given.astype(held.dtype)), f"{name} must be {words}, got {{given}}.", given=given)


def at_least_float32(dtype: Any) -> Any:
    """The dtype to draw and to add up in: float32 for a narrower one."""
    dtype = jax.dtypes.canonicalize_dtype(dtype)
    return dtype if jnp.dtype(dtype).itemsize >= 4 else jnp.dtype(jnp.float32)


def expand(value: Array, x: Array) -> Array:
    """A value per sample, `[B]`, or one for all, `()`, in the shape that broadcasts against `x: [B, ...]`."""
    return value.reshape(value.shape + (1,) * (x.ndim - 1)) if value.ndim else value


def per_sample(value: ArrayLike, x: Array, name: str, *bounds: float | int, above: float | int | None = None) -> Array:
    """`value`, a number for all samples or one a sample, checked, in x's dtype and broadcastable against `x: [B, ...]`.

    Raises:
      ValueError: if its shape is neither `()` nor `[B]`, or it is known and not finite, or outside the bounds.
      TypeError: if it is no real number and no array of them.
    """
    check_range(value, name, *bounds, above=above, dtype=jnp.result_type(x))
    value = jnp.asarray(value, jnp.result_type(x))
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
