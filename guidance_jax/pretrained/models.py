"""A text-to-image model as pure functions: texts to conditions, latents to images, and images to latents."""

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

    Args:
      ids: `[B, L]` token ids per encoder.
      given: `[B]`, False for a prompt that is None.

    Example:
      >>> ids, given = jnp.zeros((2, 77), int), jnp.array([True, False])
      >>> gj.pretrained.text_to_image.Prompts((ids,), given).ids[0].shape
      (2, 77)
    """

    ids: tuple[Int[Array, "b l"], ...]
    given: Bool[Array, "b"]


class Condition(NamedTuple):
    """The condition of the network.

    Args:
      text: The states of the texts, and for XL its other conditions.
      channels: `[B, h, w, C]`, the channels beside the latents of an inpainting network, from `Model.painted`; otherwise None.

    Example:
      >>> text = gj.pretrained.unet.Text(jnp.ones((2, 77, 768)))
      >>> gj.pretrained.text_to_image.Condition(text).channels is None
      True
    """

    text: unet.Text
    channels: Float[Array, "b h w c"] | None = None


CLASSES[Prompts] = class_kind(Prompts, "use model.tokenize([...]).")
CLASSES[Condition] = class_kind(Condition, "use model.encode(params, prompts).")

LATENTS = also(lambda self, x: check_latents(x, self.latent.latent_channels))
IMAGES = also(lambda self, images, keys: check_images(images, self.latent.in_channels, keys))
IMAGE_SIDES = also(lambda self, images: check_sides(self.size, self.factor, *images.shape[1:3]))


class Model(NamedTuple):
    """A text-to-image model: pure functions and their parameters.

    Each function takes the parameters, so that they are arguments of the caller's jitted program and not constants in it.

    Args:
      params: The parameters by part: unet, vae, text_encoder, text_encoder_2.
      unet: The network, `(params["unet"], x [B, h, w, C], t [B], Text) -> [B, h, w, 4]`.
      encoders: The text encoders by the names of their parameters, `(params, ids [B, L]) -> Encoded`.
      vae: The encoder and the decoder of the autoencoder, `(params["vae"], images) -> (mean, log variance)` and
        `(params["vae"], z) -> images`.
      tokenizers: One tokeniser per encoder.
      scheduling: The schedule, the network's prediction, and the published spacing.
      latent: The configuration of the autoencoder.
      added: The number of channels that the network takes beside the latents: 5 for inpainting networks, otherwise 0.
      size: The height and width of the training images, in pixels; None if the files do not state them.
      sizes: The number of values that describe the size of an image: 6 for XL, 5 for its refiner, otherwise 0.
      zeros: Whether a prompt that is None has states of zeros, as in XL. Otherwise it is the empty text.

    Raises:
      ValueError: From its methods, if a side does not divide into the latents' pixels, images are not in [-1, 1], or shapes do
        not fit. Also if an inpainting network gets no channels from `painted`, or another network gets some.
      TypeError: From its methods, if an argument has the wrong type, such as one string for a list of prompts.
    """

    params: dict[str, Any]
    unet: Callable[..., Array]
    encoders: Mapping[str, Callable[..., clip.Encoded]]
    vae: tuple[Callable[..., Any], Callable[..., Array]]
    tokenizers: tuple[Tokenize, ...]
    scheduling: Scheduling
    latent: AutoencoderConfig
    added: int
    size: tuple[int, int] | None
    sizes: int
    zeros: bool

    @door()
    def tokenize(self, texts: Texts, *, whole: bool = False) -> Prompts:
        """The tokens of texts. Call it outside of jit, and pass the result to the jitted program.

        Args:
          texts: Prompts. None is no text, as in the published pipelines without a negative prompt: zeros for XL, and the empty
            text otherwise.
          whole: Whether a text longer than the encoders' window of 77 tokens raises. Otherwise its end is cut off, and a
            warning shows what was cut.

        Raises:
          TypeError: If texts are not a list of strings and None. Write one prompt as a list of one, because each sample has its
            own.
          ValueError: If there is no text, or `whole` is True and a text is too long.
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
        """The condition of texts, for `branches`.

        Args:
          params: The parameters of the model.
          prompts: The result of `tokenize`.
          height: The height of the images in pixels, a condition of XL. The default is the model's own.
          width: The width of the images in pixels, a condition of XL. The default is the model's own.
          sizes: For XL, `[6]` or `[B, 6]`: height and width of the original, top and left of the crop, height and width of the
            result. The default is `(height, width, 0, 0, height, width)`. For the refiner `[5]`: height and width, top and
            left, and the aesthetic score, 6 by default. It was published with 2.5 for negative prompts.
          channels: The channels that an inpainting network takes beside the latents, from `painted`.

        Raises:
          TypeError: If prompts are not the result of `tokenize`.
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
        values = jnp.broadcast_to(jnp.asarray(sizes, jnp.float32), (len(pooled), self.sizes))
        return Condition(unet.Text(states, pooled, values), channels)

    def denoiser(self, params: Any) -> Denoiser:
        """The denoiser of latents, `(x [B, h, w, 4], level, Condition) -> Prediction`.

        Args:
          params: The parameters of the model.

        Raises:
          TypeError: If params are not the model's; when called, if the condition is not a result of `encode`.
          ValueError: When called, if x are not latents, or the channels beside them are not those that the network takes.
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
          steps: The number of steps of the sampler.
          spacing: One of `spacings`. The default is the published spacing.
        """
        return self.scheduling.levels(steps, spacing)

    @door(also(lambda self, height, width: check_sides(self.size, self.factor, height, width)))
    def latents(self, height: Count | None = None, width: Count | None = None) -> tuple[int, int, int]:
        """The shape of the latents of an image.

        Args:
          height: The height of the image in pixels. The default is the model's training size.
          width: The width of the image in pixels. The default is the model's training size.

        Raises:
          TypeError: If a side is not an integer.
          ValueError: If a side is below 1 or does not divide into the latents' pixels, or is None and the model's files do not
            state a size.
        """
        sides = zip((height, width), self.size or (0, 0), strict=True)
        rows, columns = (int(own if side is None else side) // self.factor for side, own in sides)
        return rows, columns, self.latent.latent_channels

    @property
    def factor(self) -> int:
        """The side of an image in pixels, per pixel of the latents."""
        return self.latent.factor

    @door(LATENTS)
    def decode(self, params: Any, x: Float[Array, "b h w l"], *, tile: Count | None = None) -> Float[Array, "b H W c"]:
        """The images of latents, in [-1, 1], float32.

        Args:
          params: The parameters of the model.
          x: The latents of a sample.
          tile: The side of overlapping tiles, in pixels of the latents, for images too large to decode whole.

        Raises:
          TypeError: If x is not an array of floating numbers, or tile is not an integer.
          ValueError: If x are not latents, or tile is below 1.
        """
        decode = functools.partial(self.vae[1], params_of(params, "vae"))
        z = x / self.latent.scaling_factor + self.latent.shift_factor
        return jnp.clip((decode if tile is None else tiled(decode, tile, tile // 4))(z).astype(jnp.float32), -1, 1)

    @door(IMAGES, IMAGE_SIDES)
    def encode_image(self, params: Any, images: Float[Array, "b H W c"], keys: Keys | None = None) -> Float[Array, "b h w l"]:
        """The latents of images in [-1, 1], float32: the start of image-to-image, or the known part for `inpaint`.

        Args:
          params: The parameters of the model.
          images: The images, with sides that `latents` accepts.
          keys: `[B]` PRNG keys, to draw the latents from the autoencoder's distribution. None takes its mean.

        Raises:
          TypeError: If images are integers, such as 0..255, or keys are not PRNG keys.
          ValueError: If images are not in [-1, 1], have other channels, or a side does not divide into the latents' pixels.
        """
        mean, log_variance = (moment.astype(jnp.float32) for moment in self.vae[0](params_of(params, "vae"), images))
        z = mean if keys is None else mean + jnp.exp(log_variance / 2) * normal(keys, mean)
        return (z - self.latent.shift_factor) * self.latent.scaling_factor

    @door(also(lambda known: check_known(known)))
    def mask(self, known: Numbers) -> Float[Array, "b h w 1"]:
        """The mask `[B, h, w, 1]` of latents from a mask `[B, H, W, 1]` of images, for `inpaint`: 1 where the image is known.

        A pixel of the latents is known if all of its pixels of the image are known.

        Args:
          known: `[B, H, W, 1]`, 1 or True where the image is kept.

        Raises:
          TypeError: If known is not an array of numbers.
          ValueError: If it holds values other than 0 and 1, or a side does not divide into the latents' pixels.
        """
        known = jnp.asarray(known, jnp.float32)
        rows, columns, _ = self.latents(*known.shape[1:3])
        return known.reshape(len(known), rows, self.factor, columns, self.factor, 1).min((2, 4))

    @door(IMAGES, IMAGE_SIDES, also(lambda known, images: check_known(known, images)))
    def painted(
        self, params: Any, images: Float[Array, "b H W c"], known: Numbers, keys: Keys | None = None
    ) -> Float[Array, "b h w d"]:
        """The channels that an inpainting network takes beside the latents: the region to paint, and the latents of the rest.

        Args:
          params: The parameters of the model.
          images: `[B, H, W, 3]` in [-1, 1].
          known: `[B, H, W, 1]`, 1 or True where the image is kept, 0 where it is painted.
          keys: `[B]` PRNG keys, to draw the latents from the autoencoder's distribution. None takes its mean.

        Raises:
          TypeError: If images are integers, or known is not an array of numbers.
          ValueError: If images are not in [-1, 1], known holds values other than 0 and 1, their sizes differ, or a side does
            not divide into the latents' pixels.
        """
        known = jnp.asarray(known, jnp.float32)
        kept = self.encode_image(params, images * known, keys)
        return jnp.concatenate([1 - known[:, :: self.factor, :: self.factor], kept], axis=3)
