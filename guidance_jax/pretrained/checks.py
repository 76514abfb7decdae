"""What published networks and text-to-image models receive, checked before anything is computed."""

import os
import re
from collections.abc import Collection, Mapping, Set
from typing import Annotated, Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import ArrayLike
from typing_extensions import TypeAliasType

from guidance_jax.arrays import concrete
from guidance_jax.checks.door import Kind
from guidance_jax.checks.numbers import check_finite, check_form, real
from guidance_jax.checks.traced import insist
from guidance_jax.checks.words import told

SLACK = 1e-3
"""How far beyond [-1, 1] rounding may bring an image."""
IMAGES = "images are in [-1, 1]: pixels / 127.5 - 1"


def check_texts(texts: Any) -> None:
    """Raises unless texts are a list of prompts, each a string or None.

    Raises:
      TypeError: If they are none: a string is a sequence of strings too, of one letter each.
      ValueError: If there is none, or one is no text.
    """
    several = isinstance(texts, Collection) and getattr(texts, "ndim", 1) == 1
    if not several or isinstance(texts, str | bytes | Mapping | Set):
        raise TypeError(f"texts must be a list of prompts, got {told(texts)}; use [...] for one.")
    if not len(texts):
        raise ValueError("texts must be at least one prompt, got none; None in the list is no text at all.")
    for i, text in enumerate(texts):
        if not (text is None or isinstance(text, str)):
            raise TypeError(f"texts[{i}] must be a string, or None for no text at all, got {told(text)}.")
        if half := re.search("[\ud800-\udfff]", text or ""):
            what = f"texts[{i}] holds half of a pair of code units at {half.start()}, which is no text"
            raise ValueError(f"{what}; decode it as UTF-8 or UTF-16.")


def _held(value: Any) -> Any:
    """The dtype that a value names, or None."""
    try:
        return jnp.dtype(value)
    except TypeError:
        return None


Texts = TypeAliasType("Texts", Annotated[Any, Kind("a list of prompts", lambda v: True, also=lambda v, where: check_texts(v))])
"""Prompts, each a string, or None for no text at all."""
_DTYPE = Kind("float32 or bfloat16", lambda v: _held(v) is not None, lambda v: _held(v) in (jnp.float32, jnp.bfloat16))
Parameters = TypeAliasType("Parameters", Annotated[Any, _DTYPE])
"""The dtype of parameters."""
FilePath = TypeAliasType(
    "FilePath", Annotated[str | os.PathLike[str], Kind("a path", lambda v: isinstance(v, str | os.PathLike))]
)
"""Of a file or a directory."""
_NUMBERS = Kind("a real number or an array of them", lambda v: real(list(v) if isinstance(v, tuple) else v))
Numbers = TypeAliasType("Numbers", Annotated[Any, _NUMBERS])
"""Numbers, in an array, a list or a tuple."""


def params_of(params: Any, name: str) -> Any:
    """The parameters of a part.

    Raises:
      TypeError: If they are not the model's.
    """
    if not isinstance(params, Mapping) or name not in params:
        got = f"the names {', '.join(map(str, params))}" if isinstance(params, Mapping) else told(params)
        raise TypeError(f"params must hold the parameters of all parts, {name} among them, got {got}; use model.params.")
    return params[name]


def check_prompts(prompts: Any, encoders: int) -> None:
    """Raises unless prompts have ids for so many encoders.

    Raises:
      ValueError: If they are of another model.
    """
    if len(prompts.ids) != encoders or any(each.ndim != 2 or each.shape[:1] != prompts.given.shape for each in prompts.ids):
        shapes = ", ".join(str(each.shape) for each in prompts.ids)
        raise ValueError(
            f"prompts must hold ids [B, L] for each of {encoders} encoders and given [B], got ids {shapes} and given "
            f"{prompts.given.shape}; use this model's tokenize."
        )


def check_sides(own: tuple[int, int] | None, factor: int, height: int | None, width: int | None) -> None:
    """Raises unless sides of images are multiples of the latents' pixels, or left to the model.

    Raises:
      ValueError: If one is no multiple, or the model has none of its own.
    """
    for name, side in (("height", height), ("width", width)):
        if side is None and own is None:
            raise ValueError(f"the model's files do not tell the size that it was trained for; give {name}, in pixels.")
        if side is not None and side % factor:
            near = max(factor, factor * round(side / factor))
            raise ValueError(f"{name}: {side} pixels do not divide into squares of {factor}, the latents' pixels; use {near}.")


def check_either_side(own: tuple[int, int] | None, factor: int, height: int | None, width: int | None) -> None:
    """As `check_sides`, where a side is given."""
    if height is not None or width is not None:
        check_sides(own, factor, height, width)


def check_sizes(sizes: Any, numbers: int, batch: int) -> None:
    """Raises unless sizes are `[n]` or `[B, n]`, for a model that is told them.

    Raises:
      ValueError: If they have another shape, are not finite, or the model is told none.
    """
    if sizes is None:
        return
    if not numbers:
        raise ValueError("sizes are told to XL alone, and this model is another; leave them out.")
    shape = jnp.asarray(sizes).shape
    if shape not in ((numbers,), (batch, numbers), (1, numbers)):
        raise ValueError(f"sizes must be [{numbers}] or [B, {numbers}] with B = {batch}, got the shape {shape}.")
    check_finite(jnp.asarray(sizes, jnp.float32), "sizes")


def check_channels(channels: Any, added: int) -> None:
    """Raises unless the channels beside the latents are as the network takes them, or left for later.

    Raises:
      TypeError: If they are no array of floating numbers.
      ValueError: If they have another shape.
    """
    if channels is not None:
        what = "use painted(params, images, known)." if added else "expected None."
        check_form(channels, f"the network takes {added} channels beside the latents: channels", f"B h w {added}", hint=what)


def check_condition(channels: Array | None, added: int, x: Array) -> None:
    """Raises unless a condition's channels are those that the network takes beside these latents.

    Raises:
      ValueError: Naming both.
    """
    check_channels(channels, added)
    if channels is None and added:
        raise ValueError(
            f"the network takes {added} channels beside the latents, got 0; use channels=painted(params, images, known)."
        )
    if channels is not None and channels.shape[1:3] != x.shape[1:3]:
        raise ValueError(f"channels {told(channels)} are of another size than the latents, {told(x)}; use images of one size.")


def check_latents(x: Any, channels: int) -> None:
    """Raises unless they are latents, `[B, h, w, channels]`."""
    check_form(x, "the latents x", f"B h w {channels}", hint="use sample(..., model.latents()).")


def check_images(images: Any, channels: int, keys: Any = None) -> None:
    """Raises unless they are images in [-1, 1], where that is known, and keys one for each.

    Raises:
      TypeError: If they are no array of floating numbers.
      ValueError: If they have another shape, or values that are no image's.
    """
    check_form(images, "images", f"B H W {channels}", hint=f"use image[None] for one; {IMAGES}.")
    if keys is not None and len(keys) != len(images):
        raise ValueError(f"keys must be one for each image, B = {len(images)}, got {len(keys)}; jax.random.split(key, B).")
    insist(lambda: (abs(images) <= 1 + SLACK).all(), f"images must be in [-1, 1] and finite; {IMAGES}.")
    values = np.asarray(images, np.float32) if concrete(images) else np.zeros(1)
    if not (abs(values) <= 1 + SLACK).all():
        low, high = values.min(), values.max()
        span = f"values from {low:g} to {high:g}" if np.isfinite([low, high]).all() else "NaN or infinite values"
        raise ValueError(f"images must be in [-1, 1], got {span}; {IMAGES}, and jnp.clip what resizing brought beyond.")


def check_known(known: ArrayLike, images: Array | None = None) -> None:
    """Raises unless a mask of images is `[B, H, W, 1]`, of 0 and 1: of these images, where they are given.

    Raises:
      TypeError: If it is no array of numbers.
      ValueError: If it has another shape, or holds others than 0 and 1.
    """
    shape, own = jnp.shape(known), jnp.shape(known) if images is None else images.shape
    if len(shape) != 4 or shape[3] != 1 or shape[1:3] != own[1:3]:
        sized = "H, W" if images is None else "{}, {}".format(*own[1:3])
        raise ValueError(
            f"known must be [B, {sized}, 1], got the shape {shape}; use mask[None, :, :, None] for one of two axes."
        )
    if shape[0] not in (1, own[0]):
        raise ValueError(f"known must be one for each image, B = {own[0]}, got {shape[0]}.")
    insist(lambda: ((jnp.asarray(known) == 0) | (jnp.asarray(known) == 1)).all(), "known must hold 0 and 1 alone.")
    values = np.asarray(known) if concrete(known) else np.zeros(1)
    if not ((values == 0) | (values == 1)).all():
        raise ValueError(
            f"known must hold 0 and 1 alone, got values from {values.min():g} to {values.max():g}; use mask > 0.5."
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
