"""ADM, the U-Net of "Diffusion models beat GANs", and its noise-aware classifier, with the published names."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from guidance_jax.checks.door import CLASSES, door, rule
from guidance_jax.checks.kinds import Count, Sizes, class_kind
from guidance_jax.networks.checks import check_batch
from guidance_jax.networks.embeddings import rows, waves
from guidance_jax.networks.layers import Dense
from guidance_jax.pretrained.adm_blocks import Attention, AttentionPool, Downsample, GroupNorm, Residual, Upsample, halved
from guidance_jax.pretrained.checks import check_factor, check_given
from guidance_jax.pretrained.layers import Conv, upsampled

__all__ = ["ADM", "CLASSIFIERS", "RELEASED", "ADMClassifier", "ADMConfig"]


def fits_heads(
    image_size: int,
    model_channels: int,
    channel_mult: tuple[int | float, ...],
    attention_resolutions: tuple[int, ...],
    num_heads: int,
    num_head_channels: int | None,
) -> bool:
    """Whether every width with attention, and the last one, divides into the heads."""
    each = num_heads if num_head_channels is None else num_head_channels
    widths = [int(mult * model_channels) for mult in channel_mult]
    attended = [width for i, width in enumerate(widths) if image_size >> i in attention_resolutions]
    return not any(width % each for width in [*attended, widths[-1]])


@door(
    rule(
        "image_size must halve evenly between the levels of channel_mult",
        lambda image_size, channel_mult: len(channel_mult) > 0 and image_size % 2 ** (len(channel_mult) - 1) == 0,
    ),
    rule(
        "channel_mult * model_channels must be multiples of the norms' 32 groups",
        lambda channel_mult, model_channels: all(int(each * model_channels) % 32 == 0 < each for each in channel_mult),
    ),
    rule("each width with attention must divide into the heads", fits_heads),
)
@dataclasses.dataclass(frozen=True)
class ADMConfig:
    """The sizes of a U-Net or a classifier, with the names of the released code. The defaults are the 256 x 256 model's.

    There is no field for dropout, because it does nothing in sampling.

    Args:
      image_size: The side of the training images, in pixels.
      model_channels: The unit of the widths, in channels.
      channel_mult: The width of each level in units of `model_channels`, the finest level first. Each level halves the image.
      num_res_blocks: The number of residual blocks per level on the way down; one more on the way up.
      attention_resolutions: The sides of the levels with attention, for images of side `image_size`.
      num_classes: The number of labels, None for an unconditional network; of a classifier, the number of logits.
      num_heads: The number of attention heads if `num_head_channels` is None.
      num_head_channels: The width of an attention head, in channels.
      in_channels: The channels of an image.
      learn_sigma: Whether the output also has the variance, in twice the channels. It has no effect on a classifier.
      use_scale_shift_norm: Whether time and label scale and shift the second norm. Otherwise they are added before it.
      resblock_updown: Whether residual blocks halve and double the images. Otherwise convolutions do.
      use_new_attention_order: Whether channels split into queries, keys and values first, and into heads second. Otherwise
        heads come first.

    Raises:
      ValueError: If the image cannot be halved once per level, or a width does not divide into the norms' groups and the heads.

    Example:
      >>> config = gj.pretrained.adm.RELEASED["adm-64"]
      >>> print(config.widths, config.heads(384))
      (192, 384, 576, 768) 6

    Reference: Dhariwal & Nichol 2021, arXiv:2105.05233; openai/guided-diffusion, README.md.
    """

    image_size: Count = 256
    model_channels: Count = 256
    channel_mult: tuple[int | float, ...] = (1, 1, 2, 2, 4, 4)
    num_res_blocks: Count = 2
    attention_resolutions: Sizes = (32, 16, 8)
    num_classes: Count | None = 1000
    num_heads: Count = 4
    num_head_channels: Count | None = 64
    in_channels: Count = 3
    learn_sigma: bool = True
    use_scale_shift_norm: bool = True
    resblock_updown: bool = True
    use_new_attention_order: bool = False

    @property
    def widths(self) -> tuple[int, ...]:
        """The channels of each level."""
        return tuple(int(mult * self.model_channels) for mult in self.channel_mult)

    def attends(self, level: int) -> bool:
        """Whether there is attention after `level` halvings of the image."""
        return self.image_size >> level in self.attention_resolutions

    def heads(self, width: int) -> int:
        """The number of attention heads.

        Args:
          width: The number of channels that the heads share.
        """
        return self.num_heads if self.num_head_channels is None else width // self.num_head_channels


CLASSES[ADMConfig] = class_kind(ADMConfig, 'use gj.pretrained.adm.RELEASED["adm-256"].')

RELEASED = {
    "adm-64": ADMConfig(64, 192, (1, 2, 3, 4), 3, use_new_attention_order=True),
    "adm-128": ADMConfig(128, channel_mult=(1, 1, 2, 3, 4), num_head_channels=None),
    "adm-256": ADMConfig(),
    "adm-256-uncond": ADMConfig(num_classes=None),
    "adm-512": ADMConfig(512, channel_mult=(0.5, 1, 1, 2, 2, 4, 4)),
}
"""The released U-Nets of ImageNet, from `64x64_diffusion.pt` to `512x512_diffusion.pt`. `adm-256-uncond` also fits those of
LSUN.
"""
CLASSIFIERS = {
    64: ADMConfig(64, 128, (1, 2, 3, 4), 4),
    128: ADMConfig(128, 128, (1, 1, 2, 3, 4)),
    256: ADMConfig(256, 128),
    512: ADMConfig(512, 128, (0.5, 1, 1, 2, 2, 4, 4)),
}
"""The released classifiers by the side of their images, from `64x64_classifier.pt` to `512x512_classifier.pt`."""


class ADM(nnx.Module):
    """`(x, t, labels) -> (eps, v)`, joined along the last axis as `denoisers.learned_variance` reads them; v gives the
    variance.

    Computation and output have the dtype of the parameters. H and W are multiples of `2 ** (len(channel_mult) - 1)`.

    Args:
      config: The sizes, one of `RELEASED` or your own.
      rngs: The random keys that initialise the parameters.

    Raises:
      ValueError: When called, if the sides of x are not such multiples, a label is out of range, labels are missing, or an
        unconditional network gets labels.

    Example:
      >>> from flax import nnx
      >>> sizes = {"num_classes": 10, "num_head_channels": 32}
      >>> config = gj.pretrained.adm.ADMConfig(16, 32, (1, 1), 1, (8,), **sizes)
      >>> network = gj.pretrained.adm.ADM(config, rngs=nnx.Rngs(0))
      >>> x, t, labels = jnp.zeros((2, 16, 16, 3)), jnp.full(2, 999.0), jnp.array([3, 1])
      >>> print(jax.eval_shape(network, x, t, labels).shape)
      (2, 16, 16, 6)

    Reference: Dhariwal & Nichol 2021, arXiv:2105.05233; openai/guided-diffusion, guided_diffusion/unet.py.
    """

    @door()
    def __init__(self, config: ADMConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.time_embed = nnx.List(time_embed(config, rngs))
        time = 4 * config.model_channels
        self.label_emb = None if config.num_classes is None else nnx.Embed(config.num_classes, time, rngs=rngs)
        down, kept = input_blocks(config, rngs)
        self.input_blocks = nnx.List(map(nnx.List, down))
        self.middle_block = nnx.List(middle_block(config, rngs))
        self.output_blocks = nnx.List(map(nnx.List, output_blocks(config, kept, rngs)))
        out = (1 + config.learn_sigma) * config.in_channels
        first = config.widths[0]
        self.out = nnx.List([GroupNorm(first, rngs=rngs), jax.nn.silu, Conv(first, out, rngs=rngs)])

    def __call__(
        self, x: Float[Array, "b h w c"], t: Float[Array, "b"], labels: Int[Array, "b"] | None = None
    ) -> Float[Array, "b h w d"]:
        """The prediction for x, in [-1, 1] if it is clean, at t in 0..999. labels are in 0..num_classes - 1, or None if
        unconditional.
        """
        check_factor(x, 2 ** (len(self.config.channel_mult) - 1))
        check_given(labels, self.config.num_classes)
        c = embedded(self.time_embed, t, self.config.model_channels)
        if self.label_emb is not None and labels is not None:
            table = self.label_emb.embedding[...]
            c = c + rows(table, labels, f"a network of {len(table)} classes")
        h, kept = x.astype(c.dtype), []
        for block in self.input_blocks:
            h = through(block, h, c)
            kept.append(h)
        h = through(self.middle_block, h, c)
        for block in self.output_blocks:
            h = through(block, jnp.concatenate([h, kept.pop()], axis=3), c)
        return through(self.out, h, c)


class ADMClassifier(nnx.Module):
    """`(x, t) -> logits [B, num_classes]`, in float32: the encoder half of the U-Net and an attention pool.

    It computes in the dtype of its parameters.

    Args:
      config: The sizes, one of `CLASSIFIERS` or your own.
      rngs: The random keys that initialise the parameters.

    Raises:
      ValueError: If the configuration has no classes or no `num_head_channels`; when called, if an image does not have the
        config's shape.

    Example:
      >>> from flax import nnx
      >>> sizes = {"num_classes": 10, "num_head_channels": 32}
      >>> config = gj.pretrained.adm.ADMConfig(16, 32, (1, 1), 1, (8,), **sizes)
      >>> classify = gj.pretrained.adm.ADMClassifier(config, rngs=nnx.Rngs(0))
      >>> print(jax.eval_shape(classify, jnp.zeros((2, 16, 16, 3)), jnp.full(2, 999.0)).shape)
      (2, 10)

    Reference: Dhariwal & Nichol 2021, arXiv:2105.05233, section 4; openai/guided-diffusion, guided_diffusion/unet.py.
    """

    @door(
        rule(
            "config must have num_classes and num_head_channels",
            lambda config: config.num_classes is not None and config.num_head_channels is not None,
        )
    )
    def __init__(self, config: ADMConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.time_embed = nnx.List(time_embed(config, rngs))
        self.input_blocks = nnx.List(map(nnx.List, input_blocks(config, rngs)[0]))
        self.middle_block = nnx.List(middle_block(config, rngs))
        pixels, width = (config.image_size >> (len(config.channel_mult) - 1)) ** 2, config.widths[-1]
        pool = AttentionPool(pixels, width, config.num_classes or 0, config.heads(width), rngs=rngs)
        self.out = nnx.List([GroupNorm(width, rngs=rngs), jax.nn.silu, pool])

    def __call__(self, x: Float[Array, "b h w c"], t: Float[Array, "b"]) -> Float[Array, "b k"]:
        size = self.config.image_size
        check_batch(x, (size, size, self.config.in_channels))
        c = embedded(self.time_embed, t, self.config.model_channels)
        h = x.astype(c.dtype)
        for block in self.input_blocks:
            h = through(block, h, c)
        return through(self.out, through(self.middle_block, h, c), c).astype(jnp.float32)


def time_embed(config: ADMConfig, rngs: nnx.Rngs) -> list[Any]:
    width = config.model_channels
    return [Dense(width, 4 * width, rngs=rngs), jax.nn.silu, Dense(4 * width, 4 * width, rngs=rngs)]


def embedded(layers: Iterable[Any], t: Float[Array, "b"], width: int) -> Float[Array, "b e"]:
    """The embedding of the time."""
    inner, activation, outer = layers
    return outer(activation(inner(waves(t, width).astype(inner.kernel[...].dtype))))


def through(layers: Iterable[Any], h: Array, c: Float[Array, "b e"]) -> Array:
    """The layers in sequence. Residual blocks also receive c."""
    for layer in layers:
        h = layer(h, c) if isinstance(layer, Residual) else layer(h)
    return h


def block(config: ADMConfig, width: int, level: int, rngs: nnx.Rngs) -> list[nnx.Module]:
    """A residual block from `width` channels to the level's width, followed by attention if the level has it."""
    out, time = config.widths[level], 4 * config.model_channels
    layers: list[nnx.Module] = [Residual(width, out, time, config.use_scale_shift_norm, rngs=rngs)]
    if config.attends(level):
        layers.append(Attention(out, config.heads(out), config.use_new_attention_order, rngs=rngs))
    return layers


def input_blocks(config: ADMConfig, rngs: nnx.Rngs) -> tuple[list[list[nnx.Module]], list[int]]:
    """The blocks of the way down, and the widths of their outputs."""
    width, time = config.widths[0], 4 * config.model_channels
    blocks: list[list[nnx.Module]] = [[Conv(config.in_channels, width, rngs=rngs)]]
    kept = [width]
    for level, out in enumerate(config.widths):
        for _ in range(config.num_res_blocks):
            blocks.append(block(config, width, level, rngs))
            width = out
            kept.append(out)
        if level + 1 < len(config.widths):
            halving = (
                Residual(out, out, time, config.use_scale_shift_norm, halved, rngs=rngs)
                if config.resblock_updown
                else Downsample(out, rngs=rngs)
            )
            blocks.append([halving])
            kept.append(out)
    return blocks, kept


def middle_block(config: ADMConfig, rngs: nnx.Rngs) -> list[nnx.Module]:
    width, time = config.widths[-1], 4 * config.model_channels
    first, last = (Residual(width, width, time, config.use_scale_shift_norm, rngs=rngs) for _ in range(2))
    return [first, Attention(width, config.heads(width), config.use_new_attention_order, rngs=rngs), last]


def output_blocks(config: ADMConfig, kept: list[int], rngs: nnx.Rngs) -> list[list[nnx.Module]]:
    """The blocks of the way up. Each also takes the output of a block of the way down, the last output first."""
    width, time = config.widths[-1], 4 * config.model_channels
    blocks = []
    for level, out in reversed(list(enumerate(config.widths))):
        for i in range(config.num_res_blocks + 1):
            layers = block(config, width + kept.pop(), level, rngs)
            width = out
            if level and i == config.num_res_blocks:
                layers.append(
                    Residual(out, out, time, config.use_scale_shift_norm, upsampled, rngs=rngs)
                    if config.resblock_updown
                    else Upsample(out, rngs=rngs)
                )
            blocks.append(layers)
    return blocks
