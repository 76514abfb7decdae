"""A small convolutional U-Net."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from guidance_jax.networks.embeddings import LabelEmbedding, TimeEmbedding

GROUPS = 8


class Block(nnx.Module):
    """Two convolutions around a residual, the second one's input scaled and shifted by the condition."""

    def __init__(self, inputs: int, outputs: int, width: int, *, rngs: nnx.Rngs):
        self.norm1 = nnx.GroupNorm(inputs, num_groups=GROUPS, rngs=rngs)
        self.conv1 = nnx.Conv(inputs, outputs, (3, 3), rngs=rngs)
        self.modulation = nnx.Linear(width, 2 * outputs, rngs=rngs)
        self.norm2 = nnx.GroupNorm(outputs, num_groups=GROUPS, rngs=rngs)
        self.conv2 = nnx.Conv(outputs, outputs, (3, 3), kernel_init=nnx.initializers.zeros, rngs=rngs)
        self.skip = nnx.Linear(inputs, outputs, rngs=rngs)

    def __call__(self, h: Float[Array, "b h w i"], c: Float[Array, "b e"]) -> Float[Array, "b h w o"]:
        scale, shift = jnp.split(self.modulation(c)[:, None, None], 2, axis=3)
        inner = self.conv1(jax.nn.silu(self.norm1(h)))
        return self.skip(h) + self.conv2(jax.nn.silu(self.norm2(inner) * (1 + scale) + shift))


class UNet(nnx.Module):
    """A convolutional U-Net with labels, for images `[B, H, W, C]`; one block a resolution, down and up.

    Args:
      shape: `(H, W, C)` of one image; H and W halve evenly between the resolutions.
      classes: the number of classes; the label `classes` is the null label.
      widths: the channels at each resolution, multiples of 8.
      time_scale: 1,000 where t is in [0, 1], 1 where it is in 0..999.
      rngs: for the parameters.

    Raises:
      ValueError: if the image does not halve often enough, or a width is no multiple of 8.

    Example:
      >>> network = networks.UNet((8, 8, 1), classes=10, widths=(8, 16), rngs=nnx.Rngs(0))
      >>> print(network(jnp.ones((5, 8, 8, 1)), jnp.ones(5), jnp.zeros(5, int)).shape)
      (5, 8, 8, 1)

    Reference: Ho et al. 2020, arXiv:2006.11239, appendix B, without its attention.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: int,
        widths: Sequence[int] = (32, 64, 128),
        time_scale: float = 1000.0,
        *,
        rngs: nnx.Rngs,
    ):
        height, across, channels = shape
        halvings = 2 ** (len(widths) - 1)
        if height % halvings or across % halvings:
            raise ValueError(f"an image of {height} x {across} does not halve evenly {len(widths) - 1} times.")
        if any(width % GROUPS for width in widths):
            raise ValueError(f"widths must be multiples of {GROUPS}, got {tuple(widths)}.")
        embedding = 4 * widths[0]
        self.time = TimeEmbedding(embedding, time_scale, rngs=rngs)
        self.label = LabelEmbedding(classes, embedding, rngs=rngs)
        self.first = nnx.Conv(channels, widths[0], (3, 3), rngs=rngs)
        before = (widths[0], *widths[:-1])
        self.down = nnx.List([Block(i, o, embedding, rngs=rngs) for i, o in zip(before, widths, strict=True)])
        self.middle = Block(widths[-1], widths[-1], embedding, rngs=rngs)
        self.up = nnx.List([Block(2 * o, i, embedding, rngs=rngs) for i, o in zip(before, widths, strict=True)])
        self.norm = nnx.GroupNorm(widths[0], num_groups=GROUPS, rngs=rngs)
        self.last = nnx.Conv(widths[0], channels, (3, 3), kernel_init=nnx.initializers.zeros, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"], t: Float[Array, "b"], labels: Int[Array, "b"]) -> Float[Array, "b h w c"]:
        c = jax.nn.silu(self.time(t) + self.label(labels))
        h, kept = self.first(x), []
        for i, block in enumerate(self.down):
            h = block(halve(h) if i else h, c)
            kept.append(h)
        h = self.middle(h, c)
        for i, block in reversed(list(enumerate(self.up))):
            h = block(jnp.concatenate([h, kept[i]], axis=3), c)
            h = h.repeat(2, axis=1).repeat(2, axis=2) if i else h
        return self.last(jax.nn.silu(self.norm(h)))


def halve(h: Float[Array, "b h w c"]) -> Float[Array, "b h//2 w//2 c"]:
    """The mean of every 2 x 2 pixels."""
    batch, height, across, channels = h.shape
    return h.reshape(batch, height // 2, 2, across // 2, 2, channels).mean((2, 4))
