"""The latent diffusion transformers of Peebles and Xie, with the published names."""

import dataclasses
import math
import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from guidance_jax.checks.door import CLASSES, door, rule
from guidance_jax.checks.kinds import Count, class_kind
from guidance_jax.networks.checks import check_batch
from guidance_jax.networks.embeddings import rows, waves
from guidance_jax.networks.layers import Dense, LayerNorm, attention, unpatchify
from guidance_jax.pretrained.files import Tensor
from guidance_jax.pretrained.layers import Conv

__all__ = ["DiT", "DiTConfig", "averaged", "dit_config"]

WAVES = 256
SIZES = {"S": (12, 384, 6), "B": (12, 768, 12), "L": (24, 1024, 16), "XL": (28, 1152, 16)}
"""The depth, width and number of heads of each size."""
REDUCTION = 8
"""The factor by which the autoencoder reduces the side of an image."""


@door(
    rule("input_size must divide into patches of patch_size", lambda input_size, patch_size: input_size % patch_size == 0),
    rule(
        "hidden_size must divide into num_heads, and by 4",
        lambda hidden_size, num_heads: hidden_size % num_heads == hidden_size % 4 == 0,
    ),
)
@dataclasses.dataclass(frozen=True)
class DiTConfig:
    """The sizes of a transformer, with the names of the published constructor. The defaults are DiT-XL/2's at 256 x 256.

    Args:
      input_size: The side of the latents, in pixels.
      patch_size: The side of the square of pixels that makes one token.
      in_channels: The channels of the latents.
      hidden_size: The width of a token; a multiple of `num_heads` and of 4.
      depth: The number of blocks.
      num_heads: The number of heads per attention.
      mlp_ratio: The inner width of a block's dense layers, in units of `hidden_size`.
      num_classes: The number of classes. The label `num_classes` is the null label.
      learn_sigma: Whether the output also has the variance of the reverse step, in twice the channels.

    Raises:
      ValueError: If the latents do not divide into patches, or the width does not divide into heads and by 4.

    Example:
      >>> gj.pretrained.dit.DiTConfig(input_size=64).grid
      32

    Reference: Peebles & Xie 2023, arXiv:2212.09748.
    """

    input_size: Count = 32
    patch_size: Count = 2
    in_channels: Count = 4
    hidden_size: Count = 1152
    depth: Count = 28
    num_heads: Count = 16
    mlp_ratio: float = 4.0
    num_classes: Count = 1000
    learn_sigma: bool = True

    @property
    def grid(self) -> int:
        """The number of tokens along a side."""
        return self.input_size // self.patch_size


CLASSES[DiTConfig] = class_kind(DiTConfig, 'use gj.pretrained.dit.dit_config("DiT-XL/2", 256).')


@door(
    rule(
        "name must be DiT-S, B, L or XL, a slash, and 2, 4 or 8, such as DiT-XL/2",
        lambda name: re.fullmatch("(DiT-)?(S|B|L|XL)/[248]", name),
    ),
    rule("image_size must divide by 8", lambda image_size: image_size % REDUCTION == 0),
)
def dit_config(name: str = "DiT-XL/2", image_size: Count = 256) -> DiTConfig:
    """The configuration of a published transformer. Weights were released for DiT-XL/2, at 256 and 512 pixels.

    Args:
      name: DiT-S, B, L or XL, and the side of its patches, 2, 4 or 8.
      image_size: The side of the images, in pixels: eight times that of the latents.

    Raises:
      ValueError: If there is no such transformer, or the latents do not divide into its patches.

    Example:
      >>> config = gj.pretrained.dit.dit_config("DiT-XL/2", 512)
      >>> print(config.depth, config.hidden_size, config.grid**2)
      28 1152 1024

    Reference: Peebles & Xie 2023, arXiv:2212.09748, table 1.
    """
    size, _, patch = name.removeprefix("DiT-").partition("/")
    depth, width, heads = SIZES[size]
    return DiTConfig(image_size // REDUCTION, int(patch), hidden_size=width, depth=depth, num_heads=heads)


def averaged(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The averaged weights, `ema.`, of a file that also holds the trained ones. A file with one set is returned as it is.

    The checkpoints of the published training script also hold the script's arguments, so `open_weights` refuses them. In
    PyTorch, save only their "ema".

    Args:
      tensors: The result of `open_weights`.

    Returns:
      The tensors of one set, by the names of the network.

    Example:
      >>> import numpy as np
      >>> import numpy as np
      >>> values = {"model.pos_embed": np.zeros((1, 4, 8)), "ema.pos_embed": np.ones((1, 4, 8))}
      >>> list(gj.pretrained.dit.averaged(gj.pretrained.from_arrays(values)))
      ['pos_embed']

    Reference: Peebles & Xie 2023, arXiv:2212.09748; facebookresearch/DiT, download.py.
    """
    chosen = {name.removeprefix("ema."): tensor for name, tensor in tensors.items() if name.startswith("ema.")}
    return chosen or dict(tensors)


class DiT(nnx.Module):
    """Maps noisy latents, the time and a label to the noise, and to the variance of the reverse step in as many further
    channels.

    Computation and output have the dtype of the parameters. The outputs are those of `denoisers.learned_variance` with
    `predicts="eps"` on `schedules.ddpm_linear()`. The published sampling guides only the first three of the four channels,
    `on_channels(cfg(4.0), 3)`. Plain `cfg` guides all of them.

    Args:
      config: The sizes of the network.
      rngs: The random keys that initialise the parameters.

    Raises:
      ValueError: When called, if latents do not have the config's size, or a label is out of range.

    Example:
      >>> from flax import nnx
      >>> sizes = {"hidden_size": 16, "depth": 1, "num_heads": 2, "num_classes": 10}
      >>> config = gj.pretrained.dit.DiTConfig(input_size=8, **sizes)
      >>> network = gj.pretrained.dit.DiT(config, rngs=nnx.Rngs(0))
      >>> x, t, labels = jnp.ones((3, 8, 8, 4)), jnp.full(3, 999.0), jnp.array([3, 7, 10])
      >>> print(jax.eval_shape(network, x, t, labels).shape)
      (3, 8, 8, 8)

    Reference: Peebles & Xie 2023, arXiv:2212.09748; facebookresearch/DiT, models.py.
    """

    @door()
    def __init__(self, config: DiTConfig, *, rngs: nnx.Rngs):
        self.config = config
        width, patch = config.hidden_size, config.patch_size
        out = config.in_channels * (1 + config.learn_sigma)
        self.x_embedder = PatchEmbedder(config, rngs=rngs)
        self.t_embedder = TimeEmbedder(width, rngs=rngs)
        self.y_embedder = LabelEmbedder(config.num_classes, width, rngs=rngs)
        self.pos_embed = nnx.Param(positions(config.grid, width))
        self.blocks = nnx.List([Block(config, rngs=rngs) for _ in range(config.depth)])
        self.final_layer = FinalLayer(width, patch * patch * out, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"], t: Float[Array, "b"], labels: Int[Array, "b"]) -> Float[Array, "b h w out"]:
        config = self.config
        check_batch(x, (config.input_size, config.input_size, config.in_channels))
        position = self.pos_embed[...]
        h = self.x_embedder(x.astype(position.dtype)) + position
        embedded = self.t_embedder(waves(t, WAVES).astype(position.dtype)) + self.y_embedder(labels)
        c = jax.nn.silu(embedded)
        for block in self.blocks:
            h = block(h, c)
        out = self.final_layer(h, c)
        return unpatchify(out.reshape(len(x), config.grid, config.grid, -1), config.patch_size)


class PatchEmbedder(nnx.Module):
    """Turns squares of pixels into tokens."""

    def __init__(self, config: DiTConfig, *, rngs: nnx.Rngs):
        patch = config.patch_size
        self.proj = Conv(config.in_channels, config.hidden_size, patch, patch, 0, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b n d"]:
        h = self.proj(x)
        return h.reshape(len(h), -1, h.shape[3])


class TimeEmbedder(nnx.Module):
    """Two dense layers on sinusoids of the time."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.mlp = nnx.List([Dense(WAVES, width, rngs=rngs), jax.nn.silu, Dense(width, width, rngs=rngs)])

    def __call__(self, h: Float[Array, "b w"]) -> Float[Array, "b d"]:
        for layer in self.mlp:
            h = layer(h)
        return h


class LabelEmbedder(nnx.Module):
    """A table of the classes and the null label. A label outside raises if it is known, and gives NaN if it is traced."""

    def __init__(self, classes: int, width: int, *, rngs: nnx.Rngs):
        self.classes = classes
        self.embedding_table = nnx.Embed(classes + 1, width, rngs=rngs)

    def __call__(self, labels: Int[Array, "b"]) -> Float[Array, "b d"]:
        return rows(self.embedding_table.embedding[...], labels, f"a DiT of {self.classes} classes and the null label")


class Block(nnx.Module):
    """Attention, then two dense layers. The condition shifts and scales the norm before each, and gates the output of each."""

    def __init__(self, config: DiTConfig, *, rngs: nnx.Rngs):
        width = config.hidden_size
        self.norm = LayerNorm(width, rngs=rngs)
        self.attn = Attention(width, config.num_heads, rngs=rngs)
        self.mlp = MLP(width, int(width * config.mlp_ratio), rngs=rngs)
        self.adaLN_modulation = nnx.List([jax.nn.silu, Dense(width, 6 * width, rngs=rngs)])

    def __call__(self, h: Float[Array, "b n d"], c: Float[Array, "b d"]) -> Float[Array, "b n d"]:
        """The condition already has its activation, which all blocks share."""
        parts = jnp.split(self.adaLN_modulation[1](c)[:, None], 6, axis=2)
        shift_attention, scale_attention, gate_attention, shift, scale, gate = parts
        h = h + gate_attention * self.attn(modulated(self.norm(h), shift_attention, scale_attention))
        return h + gate * self.mlp(modulated(self.norm(h), shift, scale))


class Attention(nnx.Module):
    """Attention over all tokens. One layer computes queries, keys and values."""

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs):
        self.heads = heads
        self.qkv = Dense(width, 3 * width, rngs=rngs)
        self.proj = Dense(width, width, rngs=rngs)

    def __call__(self, h: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        parts = self.qkv(h).reshape(*h.shape[:2], 3, self.heads, -1)
        q, k, v = (parts[:, :, i] for i in range(3))
        return self.proj(attention(q, k, v).reshape(h.shape))


class MLP(nnx.Module):
    """Two dense layers with a GELU between them, in its tanh approximation."""

    def __init__(self, width: int, inner: int, *, rngs: nnx.Rngs):
        self.fc1 = Dense(width, inner, rngs=rngs)
        self.fc2 = Dense(inner, width, rngs=rngs)

    def __call__(self, h: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        return self.fc2(jax.nn.gelu(self.fc1(h), approximate=True))


class FinalLayer(nnx.Module):
    """Turns tokens into the pixels of their squares."""

    def __init__(self, width: int, out: int, *, rngs: nnx.Rngs):
        self.norm = LayerNorm(width, rngs=rngs)
        self.linear = Dense(width, out, rngs=rngs)
        self.adaLN_modulation = nnx.List([jax.nn.silu, Dense(width, 2 * width, rngs=rngs)])

    def __call__(self, h: Float[Array, "b n d"], c: Float[Array, "b d"]) -> Float[Array, "b n out"]:
        shift, scale = jnp.split(self.adaLN_modulation[1](c)[:, None], 2, axis=2)
        return self.linear(modulated(self.norm(h), shift, scale))


def modulated(h: Float[Array, "b n d"], shift: Float[Array, "b 1 d"], scale: Float[Array, "b 1 d"]) -> Float[Array, "b n d"]:
    """`h * (1 + scale) + shift`, in the dtype of the shift."""
    return h.astype(shift.dtype) * (1 + scale) + shift


def positions(grid: int, width: int) -> Float[Array, "1 n d"]:
    """The initial position embedding of the tokens: sinusoids of the column, then of the row. A file replaces it."""
    quarter = width // 4
    frequencies = jnp.exp(-math.log(10_000) * jnp.arange(quarter, dtype=jnp.float32) / quarter)
    angles = jnp.arange(grid, dtype=jnp.float32)[:, None] * frequencies[None]
    side = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)
    rows, columns = side.repeat(grid, axis=0), jnp.tile(side, (grid, 1))
    return jnp.concatenate([columns, rows], axis=1)[None]
