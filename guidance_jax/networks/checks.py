"""What a network is called with."""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array

from guidance_jax.checks.words import told


def check_batch(x: Array, shape: Sequence[int] | int, **each: Array) -> None:
    """Raises unless x is `[B, *shape]`, or has so many numbers per sample, and each of the others is `[B]`.

    Raises:
      ValueError: Naming the one that is not, and its shape.
    """
    if shape != (math.prod(x.shape[1:]) if isinstance(shape, int) else x.shape[1:]):
        wanted = f"{shape} numbers" if isinstance(shape, int) else shape
        raise ValueError(f"a network of samples of {wanted} got x of shape {x.shape}.")
    for name, value in each.items():
        if jnp.shape(value) != x.shape[:1]:
            raise ValueError(f"{name} has shape {jnp.shape(value)}, but must be [B] = {x.shape[:1]}, one per sample of x.")


def check_tokens(tokens: Array | None, width: int) -> None:
    """Raises unless tokens are of the network's width, or none, where it takes none.

    Raises:
      ValueError: Naming both widths.
    """
    if tokens is not None and not width:
        raise ValueError("this network takes no tokens: give DiTConfig(tokens=...) their width.")
    if tokens is not None and tokens.shape[2] != width:
        raise ValueError(f"a network of tokens of width {width} got tokens of width {tokens.shape[2]}.")


def check_params(params: Any) -> None:
    """Raises where a network's pure function gets x before its parameters.

    Raises:
      TypeError: Naming the argument.
    """
    if hasattr(params, "dtype"):
        raise TypeError(
            f"apply takes the parameters first, got {told(params)}; bind them: lambda x, t, y: apply(params, x, t, y)."
        )
