"""The blocks of ADM: residuals that may resample, attention in both published orders, and the classifier's attention pool.

Attributes bear the names of the published weights. Where a published convolution has one pixel, a dense layer reads it.
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
    """The published one: 32 groups."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        super().__init__(width, 32, 1e-5, rngs=rngs)


def halved(h: Float[Array, "b r s w"]) -> Float[Array, "b rr ss w"]:
    """The mean of every square of four pixels."""
    batch, rows, columns, width = h.shape
    return h.reshape(batch, rows // 2, 2, columns // 2, 2, width).mean((2, 4))


def unchanged(h: Float[Array, "b r s w"]) -> Float[Array, "b r s w"]:
    return h


class Residual(nnx.Module):
    """Two convolutions around a residual, told the time and label between them; `resample` acts before the first.

    Args:
      width: Of the input, in channels.
      out: Of the output, in channels.
      time: The width of what it is told.
      scale_shift: Whether it is told by a scale and a shift of the second norm, `norm(h) * (1 + scale) + shift`, or by a sum
        before it.
      resample: `halved`, `upsampled` or `unchanged`.
      rngs: For the parameters.
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
        told = self.emb_layers[1](self.emb_layers[0](c))
        norm, activation, _, conv = self.out_layers
        if self.scale_shift:
            inner = norm(inner, *jnp.split(told.astype(jnp.float32), 2, axis=1))
        else:
            inner = norm(inner + told[:, None, None])
        h = self.resample(h)
        return (h if self.skip_connection is None else self.skip_connection(h)) + conv(activation(inner))


class Attention(nnx.Module):
    """Attention among all pixels, around a residual.

    Args:
      width: In channels.
      heads: That they divide into.
      new_order: Whether the channels of `qkv` are queries, keys and values of all heads in turn, or heads in turn, each with
        its queries, keys and values.
      rngs: For the parameters.
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
    """What the mean of all pixels finds by attention to itself and to them.

    Args:
      pixels: How many.
      width: In channels.
      out: The width of the output.
      heads: That the channels divide into.
      rngs: For the parameters.

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
    """The convolution that halves an image."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.op = Conv(width, width, stride=2, rngs=rngs)

    def __call__(self, h: Float[Array, "b r s w"]) -> Float[Array, "b rr ss w"]:
        return self.op(h)


class Upsample(nnx.Module):
    """Every pixel four times, then a convolution."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.conv = Conv(width, width, rngs=rngs)

    def __call__(self, h: Float[Array, "b r s w"]) -> Float[Array, "b 2*r 2*s w"]:
        return self.conv(upsampled(h))


def parts_of_heads(qkv: Float[Array, "b n w"], heads: int) -> list[Float[Array, "b n heads d"]]:
    """Queries, keys and values one after the other, each of them in heads."""
    return [part.reshape(*part.shape[:2], heads, -1) for part in jnp.split(qkv, 3, axis=2)]
