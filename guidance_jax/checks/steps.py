"""What samplers receive."""

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from guidance_jax.checks.numbers import floating
from guidance_jax.checks.traced import concrete, demand
from guidance_jax.checks.words import told


def learned(share: Array | None) -> Array:
    """The variance that a network predicts."""
    if share is None:
        raise ValueError('ddpm: variance "learned" needs a network that predicts it: gj.denoisers.learned_variance.')
    return share


def check_forgetful(memory: Any) -> None:
    """Raises where the sampler that `recur` repeats keeps a memory."""
    mend = "which a repetition is not; recur samplers that keep no memory: ddim(), ddpm(), heun()."
    demand(not jax.tree.leaves(memory), f"recur repeats a step, and this sampler remembers the step before, {mend}")


def check_data(known: Any, where: str) -> None:
    """Raises where an array is not of floating numbers."""
    if hasattr(known, "dtype") and not floating(known):
        raise TypeError(f"{where} must be floating, got {told(known)}; scale images to [-1, 1] first.")


def check_known(known: Any, mask: Any) -> None:
    """Raises where known data are not finite in float32, and the mask has them."""
    data, share = (np.asarray(value) if concrete(value) else jnp.asarray(value) for value in (known, mask))
    bad = 0
    with contextlib.suppress(TypeError, ValueError):  # Shapes that do not fit are told where that of x is known.
        bad = (~(abs(data) <= np.finfo(np.float32).max) & (share > 0)).sum()
    wanted = "inpaint: known must be finite where the mask has it, got NaN or infinite values in {bad} places."
    demand(lambda: bad == 0, wanted, bad=bad)
