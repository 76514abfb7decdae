"""Argument validation for published networks."""

import os
import re
from collections.abc import Callable, Collection, Mapping, Set
from typing import Annotated, Any, TypeVar

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from typing_extensions import TypeAliasType

from guidance_jax.checks.door import Kind
from guidance_jax.checks.numbers import check_finite, check_form, real
from guidance_jax.checks.traced import concrete, demand, insist
from guidance_jax.checks.words import described

SCALED = "pixels / 127.5 - 1 for pixels of 0..255"
BESIDE = "the network takes {added} channels beside the latents, got 0; use channels=painted(params, images, known)."
ENCODED = "prompts must hold ids [B, L] for each of {encoders} encoders and given [B], got ids {ids} and given {given}; {mend}"
HALF = "{text} holds half of a surrogate pair at {at}; decode it as UTF-8 or UTF-16."
POOLED = "pooled [B, p] and sizes [B, n] must have p + {waves} n = {added}, or be None if that is 0, got {pooled} and {sizes}."


def check_texts(texts: Any, where: str) -> None:
    """Raises unless there is at least one text, and each is a string or None."""
    demand(len(texts) > 0, f"{where} must hold at least one prompt, got none; use [None] for no text.")
    for i, text in enumerate(texts):
        message = f"{where}[{i}] must be a string, or None for no text, got {{text}}."
        demand(text is None or isinstance(text, str), message, TypeError, text=described(text))
        half = re.search("[\ud800-\udfff]", text or "")
        demand(half is None, HALF, text=f"{where}[{i}]", at=half and half.start())


def is_several(texts: Any) -> bool:
    """Whether a value is a collection of texts. A string, bytes or a dictionary is not."""
    several = isinstance(texts, Collection) and getattr(texts, "ndim", 1) == 1
    return several and not isinstance(texts, str | bytes | Mapping | Set)


def _dtype(value: Any) -> Any:
    """The dtype that a value names, or None."""
    try:
        return jnp.dtype(value)
    except TypeError:
        return None


_TEXTS = Kind("a list of prompts", is_several, hint="use [...] for one.", also=check_texts)
Texts = TypeAliasType("Texts", Annotated[Any, _TEXTS])
"""Prompts. Each is a string, or None for no text."""
_DTYPE = Kind("float32 or bfloat16", lambda v: _dtype(v) is not None, lambda v: _dtype(v) in (jnp.float32, jnp.bfloat16))
Parameters = TypeAliasType("Parameters", Annotated[Any, _DTYPE])
"""The dtype of parameters."""
_PATH = Kind("a path", lambda value: isinstance(value, str | os.PathLike))
FilePath = TypeAliasType("FilePath", Annotated[str | os.PathLike[str], _PATH])
"""The path of a file or a directory."""
_is_mapping = lambda value: isinstance(value, Mapping)
_CONFIG = Kind(
    "a dictionary with _class_name",
    _is_mapping,
    lambda value: "_class_name" in value,
    hint="use json.loads(scheduler.to_json_string()), since scheduler.config has no _class_name.",
)
SchedulerConfig = TypeAliasType("SchedulerConfig", Annotated[Mapping[str, Any], _CONFIG])
"""A parsed `scheduler_config.json`."""
Module = TypeVar("Module", bound=nnx.Module)
_BUILD = Kind(
    "a function that makes a module",
    lambda value: callable(value) and not isinstance(value, nnx.Module),
    hint="use lambda rngs: UNet(config, rngs=rngs); for a directory, use gj.pretrained.text_to_image.load.",
)
Build = TypeAliasType("Build", Annotated[Callable[..., Module], _BUILD], type_params=(Module,))
"""A function that makes a module, or its class."""
_TENSORS = Kind("a dictionary of weights", _is_mapping, hint="use gj.pretrained.open_weights(file).")
Tensors = TypeAliasType("Tensors", Annotated[Mapping[str, Any], _TENSORS])
"""Weights by their names. They are not read."""
_ARRAYS = Kind("a dictionary of arrays", _is_mapping, hint='use {"bias": np.zeros(3)}.')
Arrays = TypeAliasType("Arrays", Annotated[Mapping[str, np.ndarray], _ARRAYS])
"""Arrays by their names."""
_NUMBERS = Kind("a real number or an array of them", lambda v: real(list(v) if isinstance(v, tuple) else v))
Numbers = TypeAliasType("Numbers", Annotated[Any, _NUMBERS])
"""Numbers in an array, a list or a tuple."""


def params_of(params: Any, name: str) -> Any:
    """The parameters of one part of a model. Raises if the model has no such part."""
    held, got = (
        isinstance(params, Mapping) and name in params,
        list(params) if isinstance(params, Mapping) else described(params),
    )
    demand(held, "params must hold the parameters of {name}, got {got}; use model.params.", TypeError, name=name, got=got)
    return params[name]


def check_prompts(prompts: Any, encoders: int) -> None:
    """Raises unless prompts have ids for `encoders` encoders."""
    ids, given = [each.shape for each in prompts.ids], prompts.given.shape
    right = len(ids) == encoders and all(len(shape) == 2 and shape[:1] == given for shape in ids)
    demand(right, ENCODED, encoders=encoders, ids=", ".join(map(str, ids)), given=given, mend="use this model's tokenize.")


def check_sides(own: tuple[int, int] | None, factor: int, height: int | None, width: int | None) -> None:
    """Raises unless the sides of images are multiples of `factor`. A side may be None if the model has its own."""
    for name, side in (("height", height), ("width", width)):
        known, near = own is not None or side is not None, max(factor, factor * round((side or 0) / factor))
        demand(known, f"the model's files do not state its training size; give {name}, in pixels.")
        message = f"{name} must be a multiple of {factor}, the pixels per latent, got {side} pixels; use {near}."
        demand((side or 0) % factor == 0, message)


def check_sizes(sizes: Any, numbers: int, batch: int) -> None:
    """Raises unless sizes are `[n]` or `[B, n]`, and the model takes sizes."""
    if sizes is not None:
        demand(numbers > 0, "sizes must be None for this model, because only XL takes them; leave them out.")
        shape, wanted = jnp.shape(sizes), ((numbers,), (batch, numbers), (1, numbers))
        demand(shape in wanted, f"sizes must be [{numbers}] or [B, {numbers}] with B = {batch}, got the shape {shape}.")
        check_finite(jnp.asarray(sizes, jnp.float32), "sizes")


def check_channels(channels: Any, added: int, x: Array | None = None) -> None:
    """Raises unless the channels beside the latents x are those that the network takes. Without x they may come later."""
    demand(channels is not None or not added or x is None, BESIDE, added=added)
    if channels is not None:
        sides = "h w" if x is None else f"{x.shape[1]} {x.shape[2]}"
        mend = "use painted(params, images, known)." if added else "expected None."
        check_form(
            channels, f"the network takes {added} channels beside the latents: channels", f"B {sides} {added}", hint=mend
        )


def check_latents(x: Any, channels: int) -> None:
    """Raises unless x are latents, `[B, h, w, channels]`."""
    check_form(x, "the latents x", f"B h w {channels}", hint="use sample(..., model.latents()).")


def check_images(images: Any, channels: int, keys: Any = None) -> None:
    """Raises unless images are `[B, H, W, channels]` in [-1, 1], with one key per image."""
    check_form(images, "images", f"B H W {channels}", hint=f"use image[None] for one, and {SCALED}.")
    count = len(images) if keys is None else len(keys)
    demand(count == len(images), f"keys must be one per image, B = {len(images)}, got {count}; use jax.random.split(key, B).")
    message = f"images must be in [-1, 1] and finite, got {{got}}; use {SCALED}, and jnp.clip after resizing."
    check_values(images, lambda x: abs(x) <= 1.001, message)  # Rounding may exceed 1 a little.


def check_known(known: Any, images: Array | None = None) -> None:
    """Raises unless a mask is `[B, H, W, 1]`, holds 0 and 1, and fits the images, if these are given."""
    shape, own = jnp.shape(known), jnp.shape(known if images is None else images)
    form = "B, H, W, 1" if images is None else "{} or 1, {}, {}, 1".format(*own[:3])
    right = len(shape) == 4 and shape[0] in (1, own[0]) and shape[1:] == (*own[1:3], 1)
    demand(right, f"known must be [{form}], got the shape {shape}; use mask[None, :, :, None] for a mask of two axes.")
    check_values(known, lambda x: (x == 0) | (x == 1), "known must hold only 0 and 1, got {got}; use mask > 0.5.")


def check_values(values: Any, right: Callable[[Any], Any], message: str) -> None:
    """Raises unless all values are right. The error shows their range if they are known."""
    if concrete(values):
        held = np.asarray(values, np.float32)
        demand(right(held), message, got=f"values from {held.min():g} to {held.max():g}")
    else:
        insist(lambda: right(jnp.asarray(values)), message, got="other values")


def check_factor(x: Array, factor: int) -> None:
    """Raises unless the sides of images can be halved as often as the network halves them."""
    right = x.shape[1] % factor == 0 and x.shape[2] % factor == 0
    demand(right, f"the sides of x must be multiples of {factor} for this network, got x of shape {x.shape}.")


def check_given(labels: Any, classes: int | None) -> None:
    """Raises if a network with classes gets no labels, or an unconditional network gets some."""
    demand((labels is None) == (classes is None), f"a network with num_classes={classes} got labels {described(labels)}.")


def check_text(x: Array, text: Any, config: Any) -> None:
    """Raises unless latents and text have the shapes that a text-to-image U-Net takes."""
    check_form(x, "x", f"B h w {config.in_channels}", hint="give latents, and for inpainting the channels beside them.")
    check_form(text.states, "text.states", f"B L {config.text}", hint="use the states of this model's encoder.")
    waves, added = config.size_waves, config.added
    pooled, sizes = (0 if part is None else part.shape[1] for part in (text.pooled, text.sizes))
    right = pooled + sizes * waves == added and (text.pooled is None) == (text.sizes is None)
    demand(right, POOLED, waves=waves, added=added, pooled=described(text.pooled), sizes=described(text.sizes))


def check_length(ids: Array, longest: int) -> None:
    """Raises if a text is longer than an encoder's window."""
    demand(ids.shape[1] <= longest, f"a text of {ids.shape[1]} tokens is longer than the encoder's window of {longest}.")


def check_enlarged(decoded: Any, shape: tuple[int, ...]) -> None:
    """Raises unless a decoder enlarges both sides of a tile alike."""
    right = decoded.shape[1] % shape[1] == 0 and decoded.shape[1] * shape[2] == decoded.shape[2] * shape[1]
    demand(right, f"tiled: decode must enlarge both sides alike, got {decoded.shape} from {shape}.")
