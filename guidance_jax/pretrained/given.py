"""What a person can give a text-to-image model wrongly, told before anything is computed."""

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import ArrayLike

from guidance_jax.arrays import concrete
from guidance_jax.checks.old import check_keys
from guidance_jax.checks.old import check_array, check_count, check_numbers, told
from guidance_jax.checks.traced import insist

SLACK = 1e-3
"""How far beyond [-1, 1] rounding may bring an image."""
IMAGES = "images are in [-1, 1]: pixels / 127.5 - 1"


def text_list(texts: Any) -> Sequence[str | None]:
    """The prompts, each a string or None.

    Raises:
      TypeError: if they are none: a string is a sequence of strings too, of one letter each.
      ValueError: if there is none.
    """
    if isinstance(texts, str | bytes):
        raise TypeError(f"texts must be a list of prompts, got {told(texts)}; use [...] for one.")
    if isinstance(texts, Mapping | Set) or not isinstance(texts, Iterable) or getattr(texts, "ndim", 1) != 1:
        raise TypeError(f"texts must be a list of prompts, got {told(texts)}.")
    texts = [str(text) if isinstance(text, str) else text for text in texts]
    if not texts:
        raise ValueError("texts must be at least one prompt, got none; None in the list is no text at all.")
    for i, text in enumerate(texts):
        if not (text is None or isinstance(text, str)):
            raise TypeError(f"texts[{i}] must be a string, or None for no text at all, got {told(text)}.")
        try:
            (text or "").encode()
        except UnicodeEncodeError as error:
            told_of = f"texts[{i}] holds half of a pair of code units at {error.start}, which is no text"
            raise ValueError(f"{told_of}; decode it as UTF-8 or UTF-16.") from None
    return texts


def check_dtype(dtype: Any) -> None:
    """Raises unless it is one that parameters can have.

    Raises:
      TypeError: if it is none.
      ValueError: if it is another one.
    """
    try:
        kind = jnp.dtype(dtype)
    except TypeError:
        raise TypeError(f"dtype must be float32 or bfloat16, got {told(dtype)}.") from None
    if kind not in (jnp.float32, jnp.bfloat16):
        raise ValueError(f"dtype must be float32 or bfloat16, got {kind}.")


def params_of(params: Any, name: str) -> Any:
    """The parameters of a part.

    Raises:
      TypeError: if they are not the model's.
    """
    if not isinstance(params, Mapping) or name not in params:
        got = f"the names {', '.join(map(str, params))}" if isinstance(params, Mapping) else told(params)
        raise TypeError(f"params must hold the parameters of all parts, {name} among them, got {got}; use model.params.")
    return params[name]


def check_prompts(prompts: Any, encoders: int) -> None:
    """Raises unless they are tokenised prompts for so many encoders.

    Raises:
      TypeError: if they are something else.
      ValueError: if they are of another model.
    """
    ids, given = (getattr(prompts, name, None) for name in ("ids", "given"))
    if not isinstance(ids, tuple) or given is None:
        raise TypeError(f"prompts must be Prompts, got {told(prompts)}; use model.tokenize([...]).")
    if len(ids) != encoders or any(each.ndim != 2 or each.shape[:1] != given.shape for each in ids):
        shapes = ", ".join(str(each.shape) for each in ids)
        raise ValueError(
            f"prompts must hold ids [B, L] for each of {encoders} encoders and given [B], got ids {shapes} and given "
            f"{given.shape}; use this model's tokenize."
        )


def check_side(side: Any, own: int | None, name: str, factor: int) -> int:
    """A side of images in pixels, the model's own where None.

    Raises:
      TypeError: if it is no integer.
      ValueError: if it is below 1, or no multiple of the factor, or the model has none of its own.
    """
    if side is None:
        if own is None:
            raise ValueError(f"the model's files do not tell the size that it was trained for; give {name}, in pixels.")
        return own
    check_count(side, name)
    if side % factor:
        near = max(factor, factor * round(side / factor))
        raise ValueError(f"{name}: {side} pixels do not divide into squares of {factor}, the latents' pixels; use {near}.")
    return int(side)


def check_sizes(sizes: Any, numbers: int, batch: int) -> None:
    """Raises unless sizes are `[n]` or `[B, n]`, for a model that is told them.

    Raises:
      TypeError: if they are no numbers.
      ValueError: if they have another shape, are not finite, or the model is told none.
    """
    if sizes is None:
        return
    if not numbers:
        raise ValueError("sizes are told to XL alone, and this model is another; leave them out.")
    sizes = list(sizes) if isinstance(sizes, tuple) else sizes
    check_numbers(sizes, "sizes")
    if jnp.shape(jnp.asarray(sizes)) not in ((numbers,), (batch, numbers), (1, numbers)):
        raise ValueError(f"sizes must be [{numbers}] or [B, {numbers}] with B = {batch}, got the shape {jnp.shape(sizes)}.")
    if concrete(sizes) and not np.isfinite(np.asarray(sizes, np.float32)).all():
        raise ValueError(f"sizes must be finite, got {sizes}.")


def check_given(channels: Any, added: int) -> None:
    """Raises unless the channels beside the latents are as the network takes them, or left for later.

    Raises:
      TypeError: if they are no array of floating numbers.
      ValueError: if they have another shape.
    """
    if channels is None:
        return
    check_array(channels, "channels", jnp.floating, "floating numbers, [B, h, w, c]")
    if channels.ndim != 4 or channels.shape[3] != added:
        what = f"[B, h, w, {added}], use painted(params, images, known)" if added else "None"
        raise ValueError(f"the network takes {added} channels beside the latents, got {told(channels)}; expected {what}.")


def check_condition(channels: Array | None, added: int, x: Array) -> None:
    """Raises unless a condition's channels are those that the network takes beside these latents.

    Raises:
      ValueError: telling both.
    """
    check_given(channels, added)
    if channels is None and added:
        raise ValueError(
            f"the network takes {added} channels beside the latents, got 0; use channels=painted(params, images, known)."
        )
    if channels is not None and channels.shape[1:3] != x.shape[1:3]:
        raise ValueError(f"channels {told(channels)} are of another size than the latents, {told(x)}; use images of one size.")


def check_latents(x: Any, channels: int) -> None:
    """Raises unless they are latents, `[B, h, w, channels]`.

    Raises:
      TypeError: if they are no array of floating numbers.
      ValueError: if they have another shape.
    """
    check_array(x, "the latents x", jnp.floating, f"floating numbers, [B, h, w, {channels}]")
    if x.ndim != 4 or x.shape[3] != channels or 0 in x.shape:
        raise ValueError(f"the latents x must be [B, h, w, {channels}], got {told(x)}; use sample(..., model.latents()).")


def check_tile(tile: Any) -> None:
    """Raises unless the side of a tile is None or at least 1.

    Raises:
      TypeError: if it is no integer.
      ValueError: if it is below 1.
    """
    if tile is not None:
        check_count(tile, "tile")


def check_images(images: Any, channels: int, keys: Any = None) -> None:
    """Raises unless they are images in [-1, 1], where that is known, and keys one for each.

    Raises:
      TypeError: if they are no array of floating numbers.
      ValueError: if they have another shape, or values that are no image's.
    """
    check_array(images, "images", jnp.floating, f"floating numbers, [B, H, W, {channels}]; {IMAGES}")
    if images.ndim != 4 or images.shape[3] != channels or not len(images):
        raise ValueError(f"images must be [B, H, W, {channels}], got {told(images)}; use image[None] for one.")
    if concrete(images):
        values = np.asarray(images, np.float32)
        if not (abs(values) <= 1 + SLACK).all():
            low, high = values.min(), values.max()
            span = f"values from {low:g} to {high:g}" if np.isfinite([low, high]).all() else "NaN or infinite values"
            raise ValueError(f"images must be in [-1, 1], got {span}; {IMAGES}, and jnp.clip what resizing brought beyond.")
    else:
        insist(lambda: (abs(images) <= 1 + SLACK).all(), f"images must be in [-1, 1] and finite; {IMAGES}.")
    if keys is not None:
        check_keys(keys)
        if len(keys) != len(images):
            raise ValueError(f"keys must be one for each image, B = {len(images)}, got {len(keys)}; jax.random.split(key, B).")


def check_known(known: ArrayLike, images: Array | None = None) -> Array:
    """A mask of images as numbers, `[B, H, W, 1]`: of these images, where they are given.

    Raises:
      TypeError: if it is no array of numbers.
      ValueError: if it has another shape, or holds others than 0 and 1.
    """
    check_numbers(known, "known")
    shape = jnp.shape(known)
    if len(shape) != 4 or shape[3] != 1 or (images is not None and shape[1:3] != images.shape[1:3]):
        sized = "H, W" if images is None else "{}, {}".format(*images.shape[1:3])
        raise ValueError(
            f"known must be [B, {sized}, 1], got the shape {shape}; use mask[None, :, :, None] for one of two axes."
        )
    if images is not None and shape[0] not in (1, len(images)):
        raise ValueError(f"known must be one for each image, B = {len(images)}, got {shape[0]}.")
    if concrete(known):
        values = np.asarray(known)
        if not ((values == 0) | (values == 1)).all():
            raise ValueError(
                f"known must hold 0 and 1 alone, got values from {values.min():g} to {values.max():g}; use mask > 0.5."
            )
    else:
        values = jnp.asarray(known)
        insist(lambda: ((values == 0) | (values == 1)).all(), "known must hold 0 and 1 alone.")
    return jnp.asarray(known, jnp.float32)
