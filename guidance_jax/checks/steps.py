"""What samplers receive, and what the functions that move them return."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from guidance_jax.arrays import concrete
from guidance_jax.checks.traced import all_finite, insist
from guidance_jax.checks.words import told


def check_kernel(drawn: Any) -> None:
    """Raises unless a kernel returned a mean and a deviation.

    Raises:
      TypeError: telling what it returned.
    """
    if not isinstance(drawn, tuple) or len(drawn) != 2:
        raise TypeError(f"a kernel must return (mean, deviation), got {told(drawn)}; a deviation of 0.0 draws nothing.")


def learned(share: Array | None) -> Array:
    """The variance that a network predicts.

    Raises:
      ValueError: if it predicts none, naming what does.
    """
    if share is None:
        raise ValueError('ddpm: variance "learned" needs a network that predicts it: gj.denoisers.learned_variance.')
    return share


def check_forgetful(memory: Any) -> None:
    """Raises where the sampler that `recur` repeats keeps a memory.

    Raises:
      ValueError: naming samplers that keep none.
    """
    if jax.tree.leaves(memory):
        raise ValueError(
            "recur repeats a step, and this sampler remembers the step before, which a repetition is not; recur samplers "
            "that keep no memory: ddim(), ddpm(), heun()."
        )


def check_projected(projected: Any, x: Array) -> None:
    """Raises unless a projection of x returned an array like x.

    Raises:
      TypeError: if it is of another dtype, or no array.
      ValueError: if it has another shape.
    """
    if getattr(projected, "dtype", None) != x.dtype:
        raise TypeError(f"projected: project must return an array of {x.dtype}, as x is, got {told(projected)}.")
    if projected.shape != x.shape:
        raise ValueError(f"projected: project must return the shape of x, {x.shape}, got {projected.shape}.")


def check_data(known: Any, where: str) -> None:
    """Raises where an array is not of floating numbers."""
    if hasattr(known, "dtype") and not jnp.issubdtype(known.dtype, jnp.floating):
        raise TypeError(f"{where} must be floating, got {told(known)}; scale images to [-1, 1] first.")


def check_known(known: Any, mask: Any) -> None:
    """Raises where known data are known not to be finite, and the mask has them.

    Raises:
      ValueError: naming how many.
    """
    if not concrete((known, mask)):
        return
    with np.errstate(over="ignore"):
        data, share = (np.asarray(value).astype(np.float32) for value in (known, mask))
    try:
        bad = int((~np.isfinite(data) & (share > 0)).sum())
    except ValueError:  # Their shapes are told where that of x is known.
        return
    if bad:
        raise ValueError(f"inpaint: known must be finite where the mask has it, got NaN or infinite values in {bad} places.")


def check_framed(known: Array, mask: Array, x: Array) -> None:
    """Raises unless known data and their mask broadcast to x; insists that the data are finite where the mask has them.

    Raises:
      ValueError: naming the shapes.
    """
    for value, name in ((mask, "mask"), (known, "known")):
        if value.ndim > x.ndim or any(size not in (1, n) for size, n in zip(value.shape[::-1], x.shape[::-1], strict=False)):
            raise ValueError(f"inpaint: {name} has shape {value.shape}, which does not broadcast to x, {x.shape}.")
    there = lambda: all_finite(jnp.where(jnp.broadcast_to(mask, x.shape) > 0, jnp.broadcast_to(known, x.shape), 0))
    insist(there, "inpaint: known has NaN or infinite values where the mask has it.")


def check_some_ratio(ratios: tuple[Any, ...]) -> None:
    """Raises where `restart` has no noise level.

    Raises:
      ValueError: naming what they are.
    """
    if not ratios:
        raise ValueError("restart: ratios must hold at least one noise level, in sigma / alpha; restart(dpmpp_2m(), 0.3, 5.0).")
