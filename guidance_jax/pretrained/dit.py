"""The diffusion transformers of latents that Peebles and Xie released: their weights by the published names."""

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
"""Depth, width and heads of each."""
REDUCTION = 8
"""Of the images by the autoencoder."""


@door(
    rule("input_size must divide into patches of patch_size", lambda input_size, patch_size: input_size % patch_size == 0),
    rule(
        "hidden_size must divide into num_heads, and by 4",
        lambda hidden_size, num_heads: hidden_size % num_heads == hidden_size % 4 == 0,
    ),
)
@dataclasses.dataclass(frozen=True)
class DiTConfig:
    """A transformer's sizes, by the names of the published constructor; the defaults are those of DiT-XL/2 at 256 x 256.

    Raises:
      ValueError: If the latents do not divide into patches, or the width into heads and sinusoids.

    Example:
      >>> gj.pretrained.dit.DiTConfig(input_size=64).grid
      32

    Reference: Peebles & Xie 2023, arXiv:2212.09748.
    """

    input_size: Count = 32
    """The side of the latents."""
    patch_size: Count = 2
    """The side of what becomes a token."""
    in_channels: Count = 4
    """Of the latents."""
    hidden_size: Count = 1152
    """The width of a token."""
    depth: Count = 28
    """The number of blocks."""
    num_heads: Count = 16
    """Of each attention."""
    mlp_ratio: float = 4.0
    """The inner width of a block's dense layers, in widths."""
    num_classes: Count = 1000
    """The null label is the one after them."""
    learn_sigma: bool = True
    """Whether the output has the reverse step's variance too, in as many channels again."""

    @property
    def grid(self) -> int:
        """Tokens along a side."""
        return self.input_size // self.patch_size


CLASSES[DiTConfig] = class_kind(DiTConfig, 'gj.pretrained.dit.dit_config("DiT-XL/2", 256) is one.')


@door(
    rule(
        "name must be DiT-S, B, L or XL, a slash, and 2, 4 or 8, as DiT-XL/2",
        lambda name: re.fullmatch("(DiT-)?(S|B|L|XL)/[248]", name),
    ),
    rule("image_size must divide by 8", lambda image_size: image_size % REDUCTION == 0),
)
def dit_config(name: str = "DiT-XL/2", image_size: Count = 256) -> DiTConfig:
    """The configuration of a published transformer. Weights were released of DiT-XL/2, at 256 and at 512.

    Args:
      name: DiT-S, B, L or XL, and the side of its patches, 2, 4 or 8.
      image_size: The side of the images, in pixels, eight times that of the latents.

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
    """The averaged weights, `ema.`, of a file that holds those in training too; a released file, of one set, as it is.

    The checkpoints of the published training script hold the script's arguments besides, and are refused when they are
    opened: in PyTorch, save their "ema" alone.

    Args:
      tensors: As `open_weights` gives them.

    Returns:
      The tensors of one set, by the names of the network.

    Example:
      >>> tensors = gj.pretrained.from_arrays({"model.pos_embed": np.zeros((1, 4, 8)), "ema.pos_embed": np.ones((1, 4, 8))})
      >>> list(gj.pretrained.dit.averaged(tensors))
      ['pos_embed']

    Reference: Peebles & Xie 2023, arXiv:2212.09748; facebookresearch/DiT, download.py.
    """
    chosen = {name.removeprefix("ema."): tensor for name, tensor in tensors.items() if name.startswith("ema.")}
    return chosen or dict(tensors)


class DiT(nnx.Module):
    """Noisy latents, the time and a label to the noise, and to the reverse step's variance in as many channels again.

    It computes in the dtype of its parameters and answers in it. Its outputs are those of `denoisers.learned_variance` with
    `predicts="eps"` on `schedules.ddpm_linear()`. The published sampling guides the first three of the four channels alone,
    `on_channels(cfg(4.0), 3)`; plain `cfg` guides all of them.

    Args:
      config: Its sizes.
      rngs: For the parameters.

    Raises:
      ValueError: When called, if latents are not of the config's size, or a label is outside.

    Example:
      >>> config = gj.pretrained.dit.DiTConfig(input_size=8, hidden_size=16, depth=1, num_heads=2, num_classes=10)
      >>> network = gj.pretrained.dit.DiT(config, rngs=nnx.Rngs(0))
      >>> print(network(jnp.ones((3, 8, 8, 4)), jnp.full(3, 999.0), jnp.array([3, 7, 10])).shape)
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
        told = self.t_embedder(waves(t, WAVES).astype(position.dtype)) + self.y_embedder(labels)
        c = jax.nn.silu(told)
        for block in self.blocks:
            h = block(h, c)
        out = self.final_layer(h, c)
        return unpatchify(out.reshape(len(x), config.grid, config.grid, -1), config.patch_size)


class PatchEmbedder(nnx.Module):
    """Squares of pixels as tokens."""

    def __init__(self, config: DiTConfig, *, rngs: nnx.Rngs):
        patch = config.patch_size
        self.proj = Conv(config.in_channels, config.hidden_size, patch, patch, 0, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b n d"]:
        h = self.proj(x)
        return h.reshape(len(h), -1, h.shape[3])


class TimeEmbedder(nnx.Module):
    """Two dense layers, of sinusoids of the time."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.mlp = nnx.List([Dense(WAVES, width, rngs=rngs), jax.nn.silu, Dense(width, width, rngs=rngs)])

    def __call__(self, h: Float[Array, "b w"]) -> Float[Array, "b d"]:
        for layer in self.mlp:
            h = layer(h)
        return h


class LabelEmbedder(nnx.Module):
    """A table of the classes and the null label. A label outside gives NaN; where labels are known it raises."""

    def __init__(self, classes: int, width: int, *, rngs: nnx.Rngs):
        self.classes = classes
        self.embedding_table = nnx.Embed(classes + 1, width, rngs=rngs)

    def __call__(self, labels: Int[Array, "b"]) -> Float[Array, "b d"]:
        return rows(self.embedding_table.embedding[...], labels, f"a DiT of {self.classes} classes and the null label")


class Block(nnx.Module):
    """Attention, then two dense layers; before each a norm shifted and scaled by the condition, after it a gate by it."""

    def __init__(self, config: DiTConfig, *, rngs: nnx.Rngs):
        width = config.hidden_size
        self.norm = LayerNorm(width, rngs=rngs)
        self.attn = Attention(width, config.num_heads, rngs=rngs)
        self.mlp = MLP(width, int(width * config.mlp_ratio), rngs=rngs)
        self.adaLN_modulation = nnx.List([jax.nn.silu, Dense(width, 6 * width, rngs=rngs)])

    def __call__(self, h: Float[Array, "b n d"], c: Float[Array, "b d"]) -> Float[Array, "b n d"]:
        """The condition is activated already, as it is alike for every block."""
        parts = jnp.split(self.adaLN_modulation[1](c)[:, None], 6, axis=2)
        shift_attention, scale_attention, gate_attention, shift, scale, gate = parts
        h = h + gate_attention * self.attn(modulated(self.norm(h), shift_attention, scale_attention))
        return h + gate * self.mlp(modulated(self.norm(h), shift, scale))


class Attention(nnx.Module):
    """Of every token to every other; queries, keys and values by one layer."""

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs):
        self.heads = heads
        self.qkv = Dense(width, 3 * width, rngs=rngs)
        self.proj = Dense(width, width, rngs=rngs)

    def __call__(self, h: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        parts = self.qkv(h).reshape(*h.shape[:2], 3, self.heads, -1)
        q, k, v = (parts[:, :, i] for i in range(3))
        return self.proj(attention(q, k, v).reshape(h.shape))


class MLP(nnx.Module):
    """Two dense layers with a GELU between them, by its approximation with tanh."""

    def __init__(self, width: int, inner: int, *, rngs: nnx.Rngs):
        self.fc1 = Dense(width, inner, rngs=rngs)
        self.fc2 = Dense(inner, width, rngs=rngs)

    def __call__(self, h: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        return self.fc2(jax.nn.gelu(self.fc1(h), approximate=True))


class FinalLayer(nnx.Module):
    """Tokens to the pixels of their squares."""

    def __init__(self, width: int, out: int, *, rngs: nnx.Rngs):
        self.norm = LayerNorm(width, rngs=rngs)
        self.linear = Dense(width, out, rngs=rngs)
        self.adaLN_modulation = nnx.List([jax.nn.silu, Dense(width, 2 * width, rngs=rngs)])

    def __call__(self, h: Float[Array, "b n d"], c: Float[Array, "b d"]) -> Float[Array, "b n out"]:
        shift, scale = jnp.split(self.adaLN_modulation[1](c)[:, None], 2, axis=2)
        return self.linear(modulated(self.norm(h), shift, scale))


def modulated(h: Float[Array, "b n d"], shift: Float[Array, "b 1 d"], scale: Float[Array, "b 1 d"]) -> Float[Array, "b n d"]:
    """Scaled from 1 and shifted, in the dtype of the shift."""
    return h.astype(shift.dtype) * (1 + scale) + shift


def positions(grid: int, width: int) -> Float[Array, "1 n d"]:
    """What the tokens are told of their places before a file tells them: sinusoids of the column, then of the row."""
    quarter = width // 4
    frequencies = jnp.exp(-math.log(10_000) * jnp.arange(quarter, dtype=jnp.float32) / quarter)
    angles = jnp.arange(grid, dtype=jnp.float32)[:, None] * frequencies[None]
    side = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)
    rows, columns = side.repeat(grid, axis=0), jnp.tile(side, (grid, 1))
    return jnp.concatenate([columns, rows], axis=1)[None]
