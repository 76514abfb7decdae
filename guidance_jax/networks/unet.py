"""A convolutional U-Net with attention, and its configuration, which the classifier shares."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from guidance_jax.checks.door import CLASSES, door, rule
from guidance_jax.checks.kinds import Compute, Count, ImageShape, Places, Sizes, class_kind
from guidance_jax.networks.checks import check_batch
from guidance_jax.networks.convolution import conv_general_dilated
from guidance_jax.networks.embeddings import LabelEmbedding, TimeEmbedding
from guidance_jax.networks.layers import (
    Dense,
    GroupNorm,
    attention,
    call,
    in_heads,
    patchify,
    unpatchify,
    zeros,
)

Conv = functools.partial(nnx.Conv, kernel_size=(3, 3), conv_general_dilated=conv_general_dilated)


@door(
    rule("shape must divide into squares of patch pixels", lambda shape, patch: shape[0] % patch == shape[1] % patch == 0),
    rule("widths must have at least one level", lambda widths: len(widths) > 0),
    rule("widths must be multiples of groups", lambda widths, groups: all(width % groups == 0 for width in widths)),
    rule(
        "shape / patch must halve evenly between the levels of widths",
        lambda shape, patch, widths: all(side // patch % 2 ** (len(widths) - 1) == 0 for side in shape[:2]),
    ),
    rule("attention must name levels, counted from 0", lambda attention, widths: set(attention) <= set(range(len(widths)))),
    rule(
        "each width with attention must divide into heads",
        lambda widths, attention, heads: all(widths[level] % heads == 0 for level in attention),
    ),
)
@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """All sizes of a U-Net.

    `dataclasses.asdict` gives a dictionary for JSON, and `UNetConfig(**read)` reads it back.

    Args:
      shape: `(H, W, C)` of one image. H and W are multiples of `patch`, and then halve evenly between the levels.
      classes: The number of classes. The label `classes` is the null label.
      widths: The channels at each level, the finest level first; multiples of `groups`.
      blocks: The number of residual blocks per level, on the way down and on the way up.
      attention: The levels, counted from 0, with attention over all pixels after each block.
      heads: The number of attention heads, also in the classifier's pool.
      patch: The side of the square of pixels that becomes one pixel of the finest level. 2 quarters the number of pixels.
      groups: The number of groups of channels in each norm.
      time_scale: The factor of t: 1,000 for t in [0, 1], 1 for t in 0..999.
      dtype: The dtype of convolutions and dense layers, "float32" or "bfloat16". Parameters, norms and output are float32.
      remat: Whether a gradient recomputes the intermediate values of each block. This saves memory for a third more compute.

    Raises:
      ValueError: If the image does not divide into patches or does not halve evenly, or a width does not divide into groups or
        heads. Also if a level of `attention` does not exist, or the dtype is unknown.

    Example:
      >>> import dataclasses
      >>> config = gj.networks.UNetConfig((28, 28, 1), classes=10, widths=(16, 32), patch=2)
      >>> print(config.levels, dataclasses.asdict(config)["widths"])
      [(14, 14, 16), (7, 7, 32)] (16, 32)
    """

    shape: ImageShape
    classes: Count
    widths: Sizes = (64, 128)
    blocks: Count = 1
    attention: Places = ()
    heads: Count = 4
    patch: Count = 1
    groups: Count = 8
    time_scale: float = 1000.0
    dtype: Compute = "float32"
    remat: bool = False

    def __post_init__(self) -> None:
        for name in ("shape", "widths", "attention"):
            object.__setattr__(self, name, tuple(getattr(self, name)))

    @property
    def levels(self) -> list[tuple[int, int, int]]:
        """The rows, columns and channels of each level."""
        rows, columns = (side // self.patch for side in self.shape[:2])
        return [(rows >> i, columns >> i, width) for i, width in enumerate(self.widths)]


CLASSES[UNetConfig] = class_kind(UNetConfig, "use UNetConfig((28, 28, 1), classes=10).")


class Residual(nnx.Module):
    """Two convolutions with a residual connection. The condition scales and shifts the input of the second."""

    def __init__(self, inputs: int, outputs: int, config: UNetConfig, *, rngs: nnx.Rngs):
        dtype = jnp.dtype(config.dtype)
        self.norm1 = GroupNorm(inputs, config.groups, rngs=rngs)
        self.conv1 = Conv(inputs, outputs, dtype=dtype, rngs=rngs)
        self.modulation = nnx.Linear(embedding(config), 2 * outputs, rngs=rngs)
        self.norm2 = GroupNorm(outputs, config.groups, rngs=rngs)
        self.conv2 = Conv(outputs, outputs, dtype=dtype, kernel_init=zeros, rngs=rngs)
        self.skip = Dense(inputs, outputs, dtype=dtype, rngs=rngs)

    def __call__(self, h: Float[Array, "b h w i"], c: Float[Array, "b e"]) -> Float[Array, "b h w o"]:
        scale, shift = jnp.split(self.modulation(c), 2, axis=1)
        inner = self.conv1(jax.nn.silu(self.norm1(h)))
        return self.skip(h) + self.conv2(jax.nn.silu(self.norm2(inner, scale, shift)))


class Attention(nnx.Module):
    """Self-attention over all pixels, with a residual connection."""

    def __init__(self, width: int, config: UNetConfig, *, rngs: nnx.Rngs):
        dtype = jnp.dtype(config.dtype)
        self.heads = config.heads
        self.norm = GroupNorm(width, config.groups, rngs=rngs)
        self.qkv = Dense(width, 3 * width, dtype=dtype, rngs=rngs)
        self.project = Dense(width, width, dtype=dtype, kernel_init=zeros, rngs=rngs)

    def __call__(self, h: Float[Array, "b h w i"]) -> Float[Array, "b h w i"]:
        batch, rows, columns, width = h.shape
        q, k, v = in_heads(self.qkv(self.norm(h)).reshape(batch, rows * columns, 3 * width), self.heads, 3)
        return h + self.project(attention(q, k, v).reshape(h.shape))


class Block(nnx.Module):
    """A residual block, followed by attention if its level has it."""

    def __init__(self, inputs: int, outputs: int, level: int, config: UNetConfig, *, rngs: nnx.Rngs):
        self.residual = Residual(inputs, outputs, config, rngs=rngs)
        self.attention = Attention(outputs, config, rngs=rngs) if level in config.attention else None

    def __call__(self, h: Float[Array, "b h w i"], c: Float[Array, "b e"]) -> Float[Array, "b h w o"]:
        h = self.residual(h, c)
        return h if self.attention is None else self.attention(h)


class Down(nnx.Module):
    """The encoder half of a U-Net. It returns the output of the middle block, and the outputs of the others, coarsest last."""

    def __init__(self, config: UNetConfig, *, rngs: nnx.Rngs):
        self.config = config
        width = config.widths[0]
        self.first = Conv(config.patch**2 * config.shape[2], width, dtype=jnp.dtype(config.dtype), rngs=rngs)
        blocks = []
        for level, outputs in enumerate(config.widths):
            for _ in range(config.blocks):
                blocks.append(Block(width, outputs, level, config, rngs=rngs))
                width = outputs
        self.blocks = nnx.List(blocks)
        self.middle = Block(width, width, len(config.widths) - 1, config, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"], c: Float[Array, "b e"]) -> tuple[Float[Array, "b r s d"], list[Array]]:
        config, kept = self.config, []
        check_batch(x, config.shape)
        h = self.first(patchify(x.astype(jnp.dtype(config.dtype)), config.patch))
        for i, block in enumerate(self.blocks):
            h = call(block, config.remat, halve(h) if i and i % config.blocks == 0 else h, c)
            kept.append(h)
        return call(self.middle, config.remat, h, c), kept


class UNet(nnx.Module):
    """A convolutional U-Net with labels, for images `[B, H, W, C]`.

    Args:
      config: The sizes of the network.
      rngs: The random keys that initialise the parameters.

    Raises:
      ValueError: When called, if an image does not have the config's shape or a label is out of range.

    Example:
      >>> from flax import nnx
      >>> config = gj.networks.UNetConfig((8, 8, 1), classes=10, widths=(8, 8))
      >>> network = gj.networks.UNet(config, rngs=nnx.Rngs(0))
      >>> print(jax.jit(network)(jnp.ones((5, 8, 8, 1)), jnp.ones(5), jnp.zeros(5, int)).shape)
      (5, 8, 8, 1)

    Reference: Ho et al. 2020, arXiv:2006.11239, appendix B; the scale and shift are those of Dhariwal & Nichol 2021,
      arXiv:2105.05233.
    """

    @door()
    def __init__(self, config: UNetConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.time = TimeEmbedding(embedding(config), config.time_scale, rngs=rngs)
        self.label = LabelEmbedding(config.classes, embedding(config), rngs=rngs)
        self.down = Down(config, rngs=rngs)
        up, h = [], config.widths[-1]
        for level, width in reversed(list(enumerate(config.widths))):
            for i in range(config.blocks):
                outputs = config.widths[max(level - 1, 0)] if i == config.blocks - 1 else width
                up.append(Block(h + width, outputs, level, config, rngs=rngs))
                h = outputs
        self.up = nnx.List(up)
        self.norm = GroupNorm(h, config.groups, rngs=rngs)
        self.last = Conv(h, config.patch**2 * config.shape[2], kernel_init=zeros, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"], t: Float[Array, "b"], labels: Int[Array, "b"]) -> Float[Array, "b h w c"]:
        check_batch(x, self.config.shape, t=t, labels=labels)
        c = jax.nn.silu(self.time(t) + self.label(labels))
        h, kept = self.down(x, c)
        for i, block in enumerate(self.up):
            h = double(h) if i and i % self.config.blocks == 0 else h
            h = call(block, self.config.remat, jnp.concatenate([h, kept[-1 - i]], axis=3), c)
        return unpatchify(self.last(jax.nn.silu(self.norm(h)).astype(jnp.float32)), self.config.patch)


def embedding(config: UNetConfig) -> int:
    """The width of the embedding of time and label."""
    return 4 * config.widths[0]


def halve(h: Float[Array, "b h w c"]) -> Float[Array, "b h//2 w//2 c"]:
    """The mean of each square of 2 x 2 pixels."""
    batch, height, across, channels = h.shape
    return h.reshape(batch, height // 2, 2, across // 2, 2, channels).mean((2, 4))


def double(h: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w c"]:
    """Each pixel repeated as a square of 2 x 2."""
    return h.repeat(2, axis=1).repeat(2, axis=2)
