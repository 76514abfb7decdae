"""A small diffusion transformer, whose condition may ask for a perturbed forward pass."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from guidance_jax.networks.embeddings import LabelEmbedding, TimeEmbedding

zeros = nnx.initializers.zeros


class Perturbed(NamedTuple):
    """A condition that asks some samples' forward passes to be perturbed, in the blocks that the network names for it.

    Branches of one network share their structure: give the unperturbed ones the same fields, at False or 0.

    Example:
      >>> labels, no, yes = jnp.array([3, 1]), jnp.zeros(2, bool), jnp.ones(2, bool)
      >>> cond, weak = networks.Perturbed(labels, identity=no), networks.Perturbed(labels, identity=yes)
    """

    labels: Int[Array, "b"]
    identity: Bool[Array, "b"] | None = None
    """Each token attends to itself alone: PAG (arXiv:2403.17377)."""
    skip: Bool[Array, "b"] | None = None
    """The block does nothing: SLG."""
    blur: Float[Array, "b"] | None = None
    """The standard deviation, in tokens, of a Gaussian blur of the queries, infinite for their mean: SEG (arXiv:2408.00760)."""


class Block(nnx.Module):
    """Attention and a dense layer, each scaled, shifted and gated by the condition; the gates start at zero (adaLN-zero)."""

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs):
        self.heads = heads
        self.norm = nnx.LayerNorm(width, use_bias=False, use_scale=False, rngs=rngs)
        self.modulation = nnx.Linear(width, 6 * width, kernel_init=zeros, rngs=rngs)
        self.qkv = nnx.Linear(width, 3 * width, rngs=rngs)
        self.project = nnx.Linear(width, width, rngs=rngs)
        self.inner = nnx.Linear(width, 4 * width, rngs=rngs)
        self.outer = nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(
        self, h: Float[Array, "b n w"], c: Float[Array, "b w"], grid: tuple[int, int], told: Perturbed | None
    ) -> Float[Array, "b n w"]:
        parts = jnp.split(self.modulation(c)[:, None], 6, axis=2)
        shift_attention, scale_attention, gate_attention, shift, scale, gate = parts
        attended = h + gate_attention * self.attend(self.norm(h) * (1 + scale_attention) + shift_attention, grid, told)
        out = attended + gate * self.outer(jax.nn.gelu(self.inner(self.norm(attended) * (1 + scale) + shift)))
        return out if told is None or told.skip is None else jnp.where(told.skip[:, None, None], h, out)

    def attend(self, h: Float[Array, "b n w"], grid: tuple[int, int], told: Perturbed | None) -> Float[Array, "b n w"]:
        batch, count, width = h.shape
        q, k, v = jnp.split(self.qkv(h).reshape(batch, count, self.heads, -1), 3, axis=3)
        if told is not None and told.blur is not None:
            q = blur(q, grid, told.blur)
        out = jax.nn.dot_product_attention(q, k, v)
        if told is not None and told.identity is not None:
            out = jnp.where(told.identity[:, None, None, None], v, out)
        return self.project(out.reshape(batch, count, width))


def blur(q: Float[Array, "b n h d"], grid: tuple[int, int], deviation: Float[Array, "b"]) -> Float[Array, "b n h d"]:
    """A Gaussian blur over the grid of tokens, each sample's its own; none at 0, the mean at infinity."""

    def weights(side: int) -> Array:
        distance = (jnp.arange(side)[:, None] - jnp.arange(side)[None]).astype(q.dtype)[None] ** 2
        spread = deviation.astype(q.dtype)[:, None, None]
        return jax.nn.softmax(-jnp.where(distance == 0, 0, distance / (2 * spread**2)), axis=2)

    rows, columns = (weights(side) for side in grid)
    image = q.reshape(len(q), *grid, *q.shape[2:])
    return jnp.einsum("bij,bkl,bjlhd->bikhd", rows, columns, image).reshape(q.shape)


class DiT(nnx.Module):
    """A diffusion transformer with labels, for images `[B, H, W, C]`.

    Args:
      shape: `(H, W, C)` of one image; H and W are multiples of the patch.
      classes: the number of classes; the label `classes` is the null label.
      width: of a token; a multiple of the heads.
      blocks: the number of transformer blocks.
      heads: the number of attention heads.
      patch: the side of the square that makes a token.
      perturbed: the blocks that a `Perturbed` condition perturbs; None is the middle one.
      time_scale: 1,000 where t is in [0, 1], 1 where it is in 0..999.
      rngs: for the parameters.

    Raises:
      ValueError: if the image does not divide into patches, or the width into heads, or there is no such block.

    Example:
      >>> network = networks.DiT((8, 8, 1), classes=10, width=32, blocks=1, heads=2, rngs=nnx.Rngs(0))
      >>> print(network(jnp.ones((5, 8, 8, 1)), jnp.ones(5), jnp.zeros(5, int)).shape)
      (5, 8, 8, 1)

    Reference: Peebles & Xie 2023, arXiv:2212.09748.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: int,
        width: int = 192,
        blocks: int = 6,
        heads: int = 3,
        patch: int = 2,
        time_scale: float = 1000.0,
        perturbed: Sequence[int] | None = None,
        *,
        rngs: nnx.Rngs,
    ):
        height, across, channels = shape
        if height % patch or across % patch:
            raise ValueError(f"an image of {height} x {across} does not divide into patches of {patch} x {patch}.")
        if width % heads:
            raise ValueError(f"a width of {width} does not divide into {heads} heads.")
        if perturbed is not None and not set(perturbed) <= set(range(blocks)):
            raise ValueError(f"perturbed must name blocks of 0..{blocks - 1}, got {tuple(perturbed)}.")
        self.perturbed = (blocks // 2,) if perturbed is None else tuple(perturbed)
        self.patch = patch
        features, tokens = patch * patch * channels, (height // patch) * (across // patch)
        self.embed = nnx.Linear(features, width, rngs=rngs)
        self.position = nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), (1, tokens, width)))
        self.time = TimeEmbedding(width, time_scale, rngs=rngs)
        self.label = LabelEmbedding(classes, width, rngs=rngs)
        self.blocks = nnx.List([Block(width, heads, rngs=rngs) for _ in range(blocks)])
        self.norm = nnx.LayerNorm(width, use_bias=False, use_scale=False, rngs=rngs)
        self.modulation = nnx.Linear(width, 2 * width, kernel_init=zeros, rngs=rngs)
        self.last = nnx.Linear(width, features, kernel_init=zeros, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b h w c"], t: Float[Array, "b"], cond: Int[Array, "b"] | Perturbed
    ) -> Float[Array, "b h w c"]:
        told = cond if isinstance(cond, Perturbed) else None
        batch, height, across, channels = x.shape
        p = self.patch
        rows, columns = height // p, across // p
        tokens = x.reshape(batch, rows, p, columns, p, channels).transpose(0, 1, 3, 2, 4, 5)
        h = self.embed(tokens.reshape(batch, rows * columns, p * p * channels)) + self.position[...]
        c = jax.nn.silu(self.time(t) + self.label(cond.labels if isinstance(cond, Perturbed) else cond))
        for i, block in enumerate(self.blocks):
            h = block(h, c, (rows, columns), told if i in self.perturbed else None)
        scale, shift = jnp.split(self.modulation(c)[:, None], 2, axis=2)
        out = self.last(self.norm(h) * (1 + scale) + shift).reshape(batch, rows, columns, p, p, channels)
        return out.transpose(0, 1, 3, 2, 4, 5).reshape(x.shape)
