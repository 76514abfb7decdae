"""A text-to-image model as pure functions: texts to conditions, latents to images, and back."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from guidance_jax.base import Denoiser, NoiseLevel
from guidance_jax.checks.door import CLASSES, also, door
from guidance_jax.checks.kinds import Count, Keys, class_kind
from guidance_jax.denoisers import denoiser
from guidance_jax.noise import normal
from guidance_jax.pretrained import clip, unet
from guidance_jax.pretrained.autoencoder import AutoencoderConfig
from guidance_jax.pretrained.autoencoder_tiles import tiled
from guidance_jax.pretrained.checks import (
    Numbers,
    Texts,
    check_channels,
    check_images,
    check_known,
    check_latents,
    check_prompts,
    check_sides,
    check_sizes,
    params_of,
)
from guidance_jax.pretrained.schedulers import Scheduling
from guidance_jax.pretrained.tokens import Tokenize
from guidance_jax.schedules.spacings import Spacing


class Prompts(NamedTuple):
    """Texts as the encoders take them.

    Example:
      >>> gj.pretrained.text_to_image.Prompts((jnp.zeros((2, 77), int),), jnp.array([True, False])).ids[0].shape
      (2, 77)
    """

    ids: tuple[Int[Array, "b l"], ...]
    """For each encoder."""
    given: Bool[Array, "b"]
    """False where there is no text at all."""


class Condition(NamedTuple):
    """What the network is told of a sample.

    Example:
      >>> text = gj.pretrained.unet.Text(jnp.ones((2, 77, 768)))
      >>> gj.pretrained.text_to_image.Condition(text).channels is None
      True
    """

    text: unet.Text
    """The texts' states, and for XL what it is told besides."""
    channels: Float[Array, "b h w c"] | None = None
    """What an inpainting network takes beside the latents: `Model.painted`."""


CLASSES[Prompts] = class_kind(Prompts, "use model.tokenize([...]).")
CLASSES[Condition] = class_kind(Condition, "model.encode(params, prompts) makes it.")

LATENTS = also(lambda self, x: check_latents(x, self.latent.latent_channels))
IMAGES = also(lambda self, images, keys: check_images(images, self.latent.in_channels, keys))
IMAGE_SIDES = also(lambda self, images: check_sides(self.size, self.factor, *images.shape[1:3]))


class Model(NamedTuple):
    """A text-to-image model: pure functions, and their parameters.

    Each function takes the parameters, so that they are arguments of the caller's jitted program and not its constants.

    Raises:
      ValueError: Of its methods, if sides do not divide into the latents' pixels, images are not in [-1, 1], shapes do not fit,
        a network of inpainting is told nothing of what to paint, or another one is.
      TypeError: Of its methods, if something is of another kind than it must be: one string for a list of prompts, say.
    """

    params: dict[str, Any]
    """Of the parts: unet, vae, text_encoder, text_encoder_2."""
    unet: Callable[..., Array]
    """`(params["unet"], x [B, h, w, C], t [B], Text) -> [B, h, w, 4]`."""
    encoders: Mapping[str, Callable[..., clip.Encoded]]
    """By the names of their parameters: `(params, ids [B, L]) -> Encoded`."""
    vae: tuple[Callable[..., Any], Callable[..., Array]]
    """The autoencoder's two ways: `(params["vae"], images) -> (mean, log variance)`, `(params["vae"], z) -> images`."""
    tokenizers: tuple[Tokenize, ...]
    """One for each encoder."""
    scheduling: Scheduling
    """The schedule, what the network predicts, the published spacing."""
    latent: AutoencoderConfig
    """The autoencoder's configuration."""
    added: int
    """How many channels the network takes beside the latents: 5 for inpainting networks, otherwise 0."""
    size: tuple[int, int] | None
    """Height and width of the images that it was trained for, in pixels; None where its files do not tell."""
    sizes: int
    """How many numbers tell the size of an image: 6 for XL, 5 for its refiner, otherwise 0."""
    zeros: bool
    """Whether no text at all is told as zeros (XL), not as the empty text."""

    @door()
    def tokenize(self, texts: Texts, *, whole: bool = False) -> Prompts:
        """The tokens of texts: call it outside of jit, and give the program what it gives.

        Args:
          texts: Prompts. None is no text at all, as the published pipelines take it where no negative prompt is given: zeros
            for XL, and otherwise the same as the empty text.
          whole: Whether a text longer than the encoders' window, 77 tokens, is refused; otherwise its end is cut off, with a
            warning that says what.

        Raises:
          TypeError: If it is no list of strings and None: one prompt is a list of one, since each is a sample's own.
          ValueError: If there is none, or a text is too long and `whole`.
        """
        texts = [text if text is None else str(text) for text in texts]
        ids = tuple(jnp.asarray(tokenize(texts, whole=whole)) for tokenize in self.tokenizers)
        return Prompts(ids, jnp.asarray([text is not None for text in texts]))

    @door(
        also(lambda self, prompts: check_prompts(prompts, len(self.encoders))),
        also(lambda self, channels: check_channels(channels, self.added)),
        also(lambda self, sizes, prompts: check_sizes(sizes, self.sizes, len(prompts.given))),
        also(lambda self, height, width: check_sides(self.size or (0, 0), self.factor, height, width)),
    )
    def encode(
        self,
        params: Any,
        prompts: Prompts,
        height: Count | None = None,
        width: Count | None = None,
        *,
        sizes: Numbers | None = None,
        channels: Float[Array, "b h w c"] | None = None,
    ) -> Condition:
        """What the network is told of texts: a condition of `branches`.

        Args:
          params: Of the model.
          prompts: As `tokenize` gives them.
          height: Of the images in pixels, which XL is told; the model's own where None.
          width: Of the images, likewise.
          sizes: XL: `[6]` or `[B, 6]`, height and width of the original, top and left of the crop, height and width of the
            result, instead of `(height, width, 0, 0, height, width)`. For the refiner `[5]`: height and width, top and left,
            and the aesthetic score, 6 where not told; it was published with 2.5 for negative prompts.
          channels: What an inpainting network takes beside the latents, as `painted` gives it.

        Raises:
          TypeError: If prompts are not what `tokenize` gives.
          ValueError: If a side, sizes or channels are not what the network takes.
        """
        encoded = [
            encode(params_of(params, name), ids) for (name, encode), ids in zip(self.encoders.items(), prompts.ids, strict=True)
        ]
        if not self.sizes:
            return Condition(unet.Text(encoded[0].last), channels)
        states = jnp.concatenate([each.penultimate for each in encoded], axis=2)
        pooled = encoded[-1].pooled
        if self.zeros:
            states = jnp.where(prompts.given[:, None, None], states, 0)
            pooled = jnp.where(prompts.given[:, None], pooled, 0)
        if sizes is None:
            rows, columns = (side * self.factor for side in self.latents(height, width)[:2])
            sizes = (rows, columns, 0, 0, *((rows, columns) if self.sizes == 6 else (6,)))
        told = jnp.broadcast_to(jnp.asarray(sizes, jnp.float32), (len(pooled), self.sizes))
        return Condition(unet.Text(states, pooled, told), channels)

    def denoiser(self, params: Any) -> Denoiser:
        """The denoiser of latents, `(x [B, h, w, 4], level, Condition) -> Prediction`.

        Args:
          params: Of the model.

        Raises:
          TypeError: If params are not the model's; when called, if the condition is not what `encode` gives.
          ValueError: When called, if x are no latents, or the condition has other channels beside them than the network takes.
        """
        params = params_of(params, "unet")

        @door(
            also(lambda x: check_latents(x, self.latent.latent_channels)),
            also(lambda x, cond: check_channels(cond.channels, self.added, x)),
        )
        def network(x: Array, t: Array, cond: Condition) -> Array:
            beside = x if cond.channels is None else jnp.concatenate([x, cond.channels.astype(x.dtype)], axis=3)
            return self.unet(params, beside, t, cond.text)

        return denoiser(network, self.scheduling.predicts)

    def levels(self, steps: int, spacing: Spacing | None = None) -> NoiseLevel:
        """The path of a run, by the published spacing or another one.

        Args:
          steps: Of the sampler.
          spacing: One of `spacings`; the published one where None.
        """
        return self.scheduling.levels(steps, spacing)

    @door(also(lambda self, height, width: check_sides(self.size, self.factor, height, width)))
    def latents(self, height: Count | None = None, width: Count | None = None) -> tuple[int, int, int]:
        """The shape of the latents of an image.

        Args:
          height: Of the image in pixels; that which the model was trained for where None.
          width: Likewise.

        Raises:
          TypeError: If a side is no integer.
          ValueError: If a side is below 1, or does not divide into the latents' pixels, or none is given and the model's files
            do not tell.
        """
        sides = zip((height, width), self.size or (0, 0), strict=True)
        rows, columns = (int(own if side is None else side) // self.factor for side, own in sides)
        return rows, columns, self.latent.latent_channels

    @property
    def factor(self) -> int:
        """How many pixels a pixel of the latents is wide."""
        return self.latent.factor

    @door(LATENTS)
    def decode(self, params: Any, x: Float[Array, "b h w l"], *, tile: Count | None = None) -> Float[Array, "b H W c"]:
        """The images of latents, in [-1, 1], float32.

        Args:
          params: Of the model.
          x: Latents, as the denoiser knows them.
          tile: The side of overlapping tiles, in pixels of the latents, for images too large to be decoded whole.

        Raises:
          TypeError: If x is no array of floating numbers, or tile no integer.
          ValueError: If x are no latents, or tile is below 1.
        """
        decode = functools.partial(self.vae[1], params_of(params, "vae"))
        z = x / self.latent.scaling_factor + self.latent.shift_factor
        return jnp.clip((decode if tile is None else tiled(decode, tile, tile // 4))(z).astype(jnp.float32), -1, 1)

    @door(IMAGES, IMAGE_SIDES)
    def encode_image(self, params: Any, images: Float[Array, "b H W c"], keys: Keys | None = None) -> Float[Array, "b h w l"]:
        """The latents of images in [-1, 1], float32: where image-to-image starts, or what `inpaint` keeps.

        Args:
          params: Of the model.
          images: Their sides as `latents` takes them.
          keys: `[B]` PRNG keys, to draw from the autoencoder's law of the latents; its mean where None.

        Raises:
          TypeError: If images are of whole numbers, 0..255 say, or keys are none.
          ValueError: If images are not in [-1, 1], have other channels, or a side does not divide into the latents' pixels.
        """
        mean, log_variance = (moment.astype(jnp.float32) for moment in self.vae[0](params_of(params, "vae"), images))
        z = mean if keys is None else mean + jnp.exp(log_variance / 2) * normal(keys, mean)
        return (z - self.latent.shift_factor) * self.latent.scaling_factor

    @door(also(lambda known: check_known(known)))
    def mask(self, known: Numbers) -> Float[Array, "b h w 1"]:
        """A mask of images, `[B, H, W, 1]`, as one of latents, `[B, h, w, 1]`: 1 where they are known, for `inpaint`.

        A pixel of the latents is known if all of its pixels of the image are.

        Args:
          known: `[B, H, W, 1]`, 1 or True where the image is kept.

        Raises:
          TypeError: If it is no array of numbers.
          ValueError: If it holds others than 0 and 1, or a side does not divide into the latents' pixels.
        """
        known = jnp.asarray(known, jnp.float32)
        rows, columns, _ = self.latents(*known.shape[1:3])
        return known.reshape(len(known), rows, self.factor, columns, self.factor, 1).min((2, 4))

    @door(IMAGES, IMAGE_SIDES, also(lambda known, images: check_known(known, images)))
    def painted(
        self, params: Any, images: Float[Array, "b H W c"], known: Numbers, keys: Keys | None = None
    ) -> Float[Array, "b h w d"]:
        """What an inpainting network takes beside the latents: where to paint, and the latents of the rest.

        Args:
          params: Of the model.
          images: `[B, H, W, 3]` in [-1, 1].
          known: `[B, H, W, 1]`, 1 or True where the image is kept, 0 where it is painted anew.
          keys: As of `encode_image`.

        Raises:
          TypeError: If images are of whole numbers, or known no array of numbers.
          ValueError: If images are not in [-1, 1], known holds others than 0 and 1, their sizes differ, or a side does not
            divide into the latents' pixels.
        """
        known = jnp.asarray(known, jnp.float32)
        kept = self.encode_image(params, images * known, keys)
        return jnp.concatenate([1 - known[:, :: self.factor, :: self.factor], kept], axis=3)
