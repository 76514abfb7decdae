"""Argument validation for the reference networks."""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array

from guidance_jax.checks.traced import demand
from guidance_jax.checks.words import described


def check_batch(x: Array, shape: Sequence[int] | int, **each: Array) -> None:
    """Raises unless x is `[B, *shape]` and each of the others is `[B]`. An integer `shape` is a number of values per sample."""
    own, wanted = (math.prod(x.shape[1:]), f"{shape} numbers") if isinstance(shape, int) else (x.shape[1:], shape)
    demand(own == shape, f"the network takes samples of {wanted}, got x of shape {x.shape}.")
    for name, value in each.items():
        message = f"{name} must be [B] = {x.shape[:1]}, one per sample of x, got {described(value)}."
        demand(jnp.shape(value) == x.shape[:1], message)


def check_tokens(tokens: Array | None, width: int) -> None:
    """Raises unless tokens have the network's width. A network of width 0 takes none."""
    got = width if tokens is None else tokens.shape[2]
    demand(width or tokens is None, "this network takes no tokens; use DiTConfig(tokens=width) for one that does.")
    demand(got == width, f"the network takes tokens of width {width}, got tokens of width {got}.")


def check_params(params: Any) -> None:
    """Raises if `apply` receives an array in place of its parameters."""
    wanted = "apply takes the parameters first, got {x}; bind them: lambda x, t, y: apply(params, x, t, y)."
    demand(not hasattr(params, "dtype"), wanted, TypeError, x=described(params))
