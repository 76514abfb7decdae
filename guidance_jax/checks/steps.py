"""Argument validation for samplers."""

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from guidance_jax.checks.numbers import floating
from guidance_jax.checks.traced import concrete, demand
from guidance_jax.checks.words import described


def learned(share: Array | None) -> Array:
    """The variance that a network predicts. Raises an error if there is none."""
    if share is None:
        raise ValueError('ddpm: variance "learned" needs a network that predicts it; use gj.denoisers.learned_variance.')
    return share


def check_forgetful(memory: Any) -> None:
    """Raises an error if the sampler that `recur` repeats has a memory."""
    mend = "a sampler without memory: ddim(), ddpm(), heun()."
    demand(not jax.tree.leaves(memory), f"recur repeats each step, but this sampler remembers the step before; use {mend}")


def check_data(known: Any, where: str) -> None:
    """Raises an error if an array is not floating."""
    if hasattr(known, "dtype") and not floating(known):
        raise TypeError(f"{where} must be floating, got {described(known)}; scale images to [-1, 1] first.")


def check_known(known: Any, mask: Any) -> None:
    """Raises an error if known data inside the mask are not finite in float32."""
    data, share = (np.asarray(value) if concrete(value) else jnp.asarray(value) for value in (known, mask))
    bad = 0
    # If the shapes do not match, another check reports it, once the shape of x is known.
    with contextlib.suppress(TypeError, ValueError):
        bad = (~(abs(data) <= np.finfo(np.float32).max) & (share > 0)).sum()
    wanted = "inpaint: known must be finite inside the mask, got NaN or infinite values in {bad} places."
    demand(lambda: bad == 0, wanted, bad=bad)
