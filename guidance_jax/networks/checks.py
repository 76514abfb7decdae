"""What a network is called with."""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array

from guidance_jax.checks.traced import demand
from guidance_jax.checks.words import described


def check_batch(x: Array, shape: Sequence[int] | int, **each: Array) -> None:
    """Raises unless x is `[B, *shape]`, or has so many numbers per sample, and each of the others is `[B]`."""
    own, wanted = (math.prod(x.shape[1:]), f"{shape} numbers") if isinstance(shape, int) else (x.shape[1:], shape)
    demand(own == shape, f"a network of samples of {wanted} got x of shape {x.shape}.")
    for name, value in each.items():
        message = f"{name} must be [B] = {x.shape[:1]}, one per sample of x, got {described(value)}."
        demand(jnp.shape(value) == x.shape[:1], message)


def check_tokens(tokens: Array | None, width: int) -> None:
    """Raises unless tokens are of the network's width, or none, where it takes none."""
    got = width if tokens is None else tokens.shape[2]
    demand(width or tokens is None, "this network takes no tokens: give DiTConfig(tokens=...) their width.")
    demand(got == width, f"a network of tokens of width {width} got tokens of width {got}.")


def check_params(params: Any) -> None:
    """Raises where a network's pure function gets x before its parameters."""
    wanted = "apply takes the parameters first, got {x}; bind them: lambda x, t, y: apply(params, x, t, y)."
    demand(not hasattr(params, "dtype"), wanted, TypeError, x=described(params))
