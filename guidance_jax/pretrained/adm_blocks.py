"""The blocks of ADM: residual blocks that may resample, attention in both published orders, and the classifier's pool.

Attributes have the published names. Where a published convolution has one pixel, a dense layer reads its weights.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from guidance_jax.networks.layers import Dense, attention, in_heads
from guidance_jax.networks.layers import GroupNorm as AnyGroupNorm
from guidance_jax.pretrained.layers import Conv, upsampled


class GroupNorm(AnyGroupNorm):
    """The published group norm, with 32 groups."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        super().__init__(width, 32, 1e-5, rngs=rngs)


def halved(h: Float[Array, "b r s w"]) -> Float[Array, "b rr ss w"]:
    """The mean of each square of 2 x 2 pixels."""
    batch, rows, columns, width = h.shape
    return h.reshape(batch, rows // 2, 2, columns // 2, 2, width).mean((2, 4))


def unchanged(h: Float[Array, "b r s w"]) -> Float[Array, "b r s w"]:
    return h


class Residual(nnx.Module):
    """Two convolutions with a residual connection. The embedding of time and label acts between them.

    Args:
      width: The channels of the input.
      out: The channels of the output.
      time: The width of the embedding.
      scale_shift: Whether the embedding scales and shifts the second norm, `norm(h) * (1 + scale) + shift`. Otherwise it is
        added before the norm.
      resample: `halved`, `upsampled` or `unchanged`, applied before the first convolution.
      rngs: The random keys that initialise the parameters.
    """

    def __init__(self, width: int, out: int, time: int, scale_shift: bool, resample: Any = unchanged, *, rngs: nnx.Rngs):
        self.scale_shift, self.resample = scale_shift, resample
        self.in_layers = nnx.List([GroupNorm(width, rngs=rngs), jax.nn.silu, Conv(width, out, rngs=rngs)])
        self.emb_layers = nnx.List([jax.nn.silu, Dense(time, (1 + scale_shift) * out, rngs=rngs)])
        self.out_layers = nnx.List([GroupNorm(out, rngs=rngs), jax.nn.silu, nnx.Dropout(0), Conv(out, out, rngs=rngs)])
        self.skip_connection = None if width == out else Dense(width, out, rngs=rngs)

    def __call__(self, h: Float[Array, "b r s i"], c: Float[Array, "b e"]) -> Float[Array, "b rr ss o"]:
        norm, activation, conv = self.in_layers
        inner = conv(self.resample(activation(norm(h))))
        embedded = self.emb_layers[1](self.emb_layers[0](c))
        norm, activation, _, conv = self.out_layers
        if self.scale_shift:
            inner = norm(inner, *jnp.split(embedded.astype(jnp.float32), 2, axis=1))
        else:
            inner = norm(inner + embedded[:, None, None])
        h = self.resample(h)
        return (h if self.skip_connection is None else self.skip_connection(h)) + conv(activation(inner))


class Attention(nnx.Module):
    """Attention over all pixels, with a residual connection.

    Args:
      width: The number of channels.
      heads: The number of heads; it divides `width`.
      new_order: Whether the channels of `qkv` split into queries, keys and values first, and into heads second. Otherwise heads
        come first.
      rngs: The random keys that initialise the parameters.
    """

    def __init__(self, width: int, heads: int, new_order: bool, *, rngs: nnx.Rngs):
        self.heads, self.new_order = heads, new_order
        self.norm = GroupNorm(width, rngs=rngs)
        self.qkv = Dense(width, 3 * width, rngs=rngs)
        self.proj_out = Dense(width, width, rngs=rngs)

    def __call__(self, h: Float[Array, "b r s w"]) -> Float[Array, "b r s w"]:
        qkv = self.qkv(self.norm(h)).reshape(h.shape[0], -1, 3 * h.shape[3])
        q, k, v = parts_of_heads(qkv, self.heads) if self.new_order else in_heads(qkv, self.heads, 3)
        return h + self.proj_out(attention(q, k, v).reshape(h.shape))


class AttentionPool(nnx.Module):
    """Attention from the mean of all pixels to itself and to all pixels.

    Args:
      pixels: The number of pixels.
      width: The number of channels.
      out: The width of the output.
      heads: The number of heads; it divides `width`.
      rngs: The random keys that initialise the parameters.

    Reference: Radford et al. 2021, arXiv:2103.00020, section 2.4.
    """

    def __init__(self, pixels: int, width: int, out: int, heads: int, *, rngs: nnx.Rngs):
        self.heads = heads
        self.positional_embedding = nnx.Param(nnx.initializers.normal(width**-0.5)(rngs.params(), (width, pixels + 1)))
        self.qkv_proj = Dense(width, 3 * width, rngs=rngs)
        self.c_proj = Dense(width, out, rngs=rngs)

    def __call__(self, h: Float[Array, "b r s w"]) -> Float[Array, "b o"]:
        pixels = h.reshape(h.shape[0], -1, h.shape[3])
        tokens = jnp.concatenate([pixels.mean(1, keepdims=True), pixels], axis=1)
        q, k, v = parts_of_heads(self.qkv_proj(tokens + self.positional_embedding[...].T[None]), self.heads)
        return self.c_proj(attention(q[:, :1], k, v).reshape(h.shape[0], -1))


class Downsample(nnx.Module):
    """A convolution that halves an image."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.op = Conv(width, width, stride=2, rngs=rngs)

    def __call__(self, h: Float[Array, "b r s w"]) -> Float[Array, "b rr ss w"]:
        return self.op(h)


class Upsample(nnx.Module):
    """Upsampling by 2, then a convolution."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.conv = Conv(width, width, rngs=rngs)

    def __call__(self, h: Float[Array, "b r s w"]) -> Float[Array, "b 2*r 2*s w"]:
        return self.conv(upsampled(h))


def parts_of_heads(qkv: Float[Array, "b n w"], heads: int) -> list[Float[Array, "b n heads d"]]:
    """Splits the last axis into queries, keys and values, and each of these into heads."""
    return [part.reshape(*part.shape[:2], heads, -1) for part in jnp.split(qkv, 3, axis=2)]
