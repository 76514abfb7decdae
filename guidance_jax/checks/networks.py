"""What a network is called with."""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array

from guidance_jax.checks.numbers import check_form
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


def check_factor(x: Array, factor: int) -> None:
    """Raises unless the sides of images can be halved as often as a network does.

    Raises:
      ValueError: Naming the factor and the shape.
    """
    if x.shape[1] % factor or x.shape[2] % factor:
        raise ValueError(f"the sides of x must be multiples of {factor} for this network, got x of shape {x.shape}.")


def check_given(labels: Any, classes: int | None) -> None:
    """Raises where a network with classes gets no labels, or one without gets some.

    Raises:
      ValueError: Naming both.
    """
    if (labels is None) != (classes is None):
        raise ValueError(f"a network of num_classes={classes} got labels {labels}.")


def check_text(x: Array, text: Any, config: Any) -> None:
    """Raises unless latents and a text are as a U-Net of text-to-image models takes them.

    Raises:
      ValueError: Naming the part that is not, and its shape.
    """
    check_form(x, "x", f"B h w {config.in_channels}", hint="latents, and what inpainting adds.")
    check_form(text.states, "text.states", f"B L {config.text}", hint="the states of this model's encoder.")
    pooled, sizes = (0 if part is None else part.shape[1] for part in (text.pooled, text.sizes))
    if pooled + sizes * config.size_waves != config.added or (text.pooled is None) != (text.sizes is None):
        raise ValueError(
            f"pooled [B, p] and sizes [B, n] must make p + {config.size_waves} n = {config.added}, or be None where that is 0, "
            f"got {told(text.pooled)} and {told(text.sizes)}."
        )


def check_length(ids: Array, longest: int) -> None:
    """Raises where a text is longer than an encoder's window.

    Raises:
      ValueError: Naming both lengths.
    """
    if ids.shape[1] > longest:
        raise ValueError(f"a text of {ids.shape[1]} tokens is longer than the encoder's window of {longest}.")


def check_enlarged(decoded: Any, shape: tuple[int, ...]) -> None:
    """Raises unless a decoder enlarges both sides of a tile alike.

    Raises:
      ValueError: Naming both shapes.
    """
    if decoded.shape[1] % shape[1] or decoded.shape[1] * shape[2] != decoded.shape[2] * shape[1]:
        raise ValueError(f"tiled takes a decoder that enlarges both sides alike, but it made {decoded.shape} of {shape}.")
