"""The blocks of UNet2DCondition: residual blocks, transformers over the pixels, and levels made of them.

Attributes have the names of diffusers' weights. Where a published convolution has one pixel, a dense layer reads its weights.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from guidance_jax.networks.layers import Dense, GroupNorm, attention
from guidance_jax.pretrained.layers import Conv, LayerNorm, upsampled


class Residual(nnx.Module):
    """Two convolutions with a residual connection. A projection of the time is added between them."""

    def __init__(self, width: int, out: int, time: int, groups: int, epsilon: float, *, rngs: nnx.Rngs):
        self.norm1 = GroupNorm(width, groups, epsilon, rngs=rngs)
        self.conv1 = Conv(width, out, rngs=rngs)
        self.time_emb_proj = Dense(time, out, rngs=rngs)
        self.norm2 = GroupNorm(out, groups, epsilon, rngs=rngs)
        self.conv2 = Conv(out, out, rngs=rngs)
        self.conv_shortcut = None if width == out else Dense(width, out, rngs=rngs)

    def __call__(self, h: Float[Array, "b r s i"], c: Float[Array, "b e"]) -> Float[Array, "b r s o"]:
        inner = self.conv1(jax.nn.silu(self.norm1(h))) + self.time_emb_proj(c)[:, None, None]
        inner = self.conv2(jax.nn.silu(self.norm2(inner)))
        return inner + (h if self.conv_shortcut is None else self.conv_shortcut(h))


class Attention(nnx.Module):
    """Attention from `h` to `states`, in heads."""

    def __init__(self, width: int, states: int, heads: int, *, rngs: nnx.Rngs):
        self.heads = heads
        self.to_q = Dense(width, width, use_bias=False, rngs=rngs)
        self.to_k = Dense(states, width, use_bias=False, rngs=rngs)
        self.to_v = Dense(states, width, use_bias=False, rngs=rngs)
        self.to_out = nnx.List([Dense(width, width, rngs=rngs)])

    def __call__(self, h: Float[Array, "b n w"], states: Float[Array, "b m d"]) -> Float[Array, "b n w"]:
        q, k, v = (x.reshape(*x.shape[:2], self.heads, -1) for x in (self.to_q(h), self.to_k(states), self.to_v(states)))
        return self.to_out[0](attention(q, k, v).reshape(h.shape))


class GEGLU(nnx.Module):
    """A dense layer, gated by the exact GELU of another.

    Reference: Shazeer 2020, arXiv:2002.05202.
    """

    def __init__(self, width: int, out: int, *, rngs: nnx.Rngs):
        self.proj = Dense(width, 2 * out, rngs=rngs)

    def __call__(self, h: Float[Array, "b n w"]) -> Float[Array, "b n o"]:
        value, gate = jnp.split(self.proj(h), 2, axis=2)
        return value * jax.nn.gelu(gate, approximate=False)


class FeedForward(nnx.Module):
    """GEGLU to four times the width, then a dense layer back."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.net = nnx.List([GEGLU(width, 4 * width, rngs=rngs), nnx.Dropout(0), Dense(4 * width, width, rngs=rngs)])

    def __call__(self, h: Float[Array, "b n w"]) -> Float[Array, "b n w"]:
        for layer in self.net:
            h = layer(h)
        return h


class TransformerBlock(nnx.Module):
    """Attention over the pixels, attention to the text, and a feed-forward network, each with a residual connection."""

    def __init__(self, width: int, text: int, heads: int, *, rngs: nnx.Rngs):
        self.norm1 = LayerNorm(width, rngs=rngs)
        self.attn1 = Attention(width, width, heads, rngs=rngs)
        self.norm2 = LayerNorm(width, rngs=rngs)
        self.attn2 = Attention(width, text, heads, rngs=rngs)
        self.norm3 = LayerNorm(width, rngs=rngs)
        self.ff = FeedForward(width, rngs=rngs)

    def __call__(self, h: Float[Array, "b n w"], text: Float[Array, "b m d"]) -> Float[Array, "b n w"]:
        among = self.norm1(h)
        h = h + self.attn1(among, among)
        h = h + self.attn2(self.norm2(h), text)
        return h + self.ff(self.norm3(h))


class Transformer(nnx.Module):
    """Transformer blocks over the pixels of an image, with a residual connection."""

    def __init__(self, width: int, depth: int, text: int, heads: int, groups: int, *, rngs: nnx.Rngs):
        self.norm = GroupNorm(width, groups, 1e-6, rngs=rngs)
        self.proj_in = Dense(width, width, rngs=rngs)
        self.transformer_blocks = nnx.List([TransformerBlock(width, text, heads, rngs=rngs) for _ in range(depth)])
        self.proj_out = Dense(width, width, rngs=rngs)

    def __call__(self, h: Float[Array, "b r s w"], text: Float[Array, "b m d"]) -> Float[Array, "b r s w"]:
        pixels = self.proj_in(self.norm(h).reshape(h.shape[0], -1, h.shape[3]))
        for block in self.transformer_blocks:
            pixels = block(pixels, text)
        return h + self.proj_out(pixels).reshape(h.shape)


class Resampling(nnx.Module):
    """The convolution that halves an image, or that follows its upsampling."""

    def __init__(self, width: int, stride: int = 1, *, rngs: nnx.Rngs):
        self.conv = Conv(width, width, stride=stride, rngs=rngs)

    def __call__(self, h: Float[Array, "b r s w"]) -> Float[Array, "b rr ss w"]:
        return self.conv(h)


class Level(nnx.Module):
    """The blocks of one level: residual blocks, each followed by a transformer if the level has them."""

    def __init__(self, resnets: list[Residual], attentions: list[Transformer]):
        self.resnets = nnx.List(resnets)
        self.attentions = nnx.List(attentions)

    def block(
        self, i: int, h: Float[Array, "b r s i"], c: Float[Array, "b e"], text: Float[Array, "b m d"]
    ) -> Float[Array, "b r s o"]:
        h = self.resnets[i](h, c)
        return self.attentions[i](h, text) if len(self.attentions) else h


class Down(Level):
    """A level on the way down. It ends with a halving, except for the last level."""

    def __init__(self, resnets: list[Residual], attentions: list[Transformer], halving: list[Resampling]):
        super().__init__(resnets, attentions)
        self.downsamplers = nnx.List(halving)

    def __call__(
        self, h: Float[Array, "b r s i"], c: Float[Array, "b e"], text: Float[Array, "b m d"]
    ) -> list[Float[Array, "b _ _ o"]]:
        """The outputs of each block and of the halving."""
        kept = []
        for i in range(len(self.resnets)):
            h = self.block(i, h, c, text)
            kept.append(h)
        for halve in self.downsamplers:
            kept.append(halve(kept[-1]))
        return kept


class Middle(Level):
    """The coarsest level: a residual block, a transformer, a residual block."""

    def __call__(
        self, h: Float[Array, "b r s w"], c: Float[Array, "b e"], text: Float[Array, "b m d"]
    ) -> Float[Array, "b r s w"]:
        return self.resnets[1](self.block(0, h, c, text), c)


class Up(Level):
    """A level on the way up. Each block also takes the last output in `kept`, from the way down."""

    def __init__(self, resnets: list[Residual], attentions: list[Transformer], doubling: list[Resampling]):
        super().__init__(resnets, attentions)
        self.upsamplers = nnx.List(doubling)

    def __call__(
        self,
        h: Float[Array, "b r s i"],
        c: Float[Array, "b e"],
        text: Float[Array, "b m d"],
        kept: list[Float[Array, "b _ _ _"]],
    ) -> Float[Array, "b rr ss o"]:
        """The upsampled image is cut to the size of the last output in `kept`, which is one pixel less if that side is odd."""
        for i in range(len(self.resnets)):
            h = self.block(i, jnp.concatenate([h, kept.pop()], axis=3), c, text)
        for after in self.upsamplers:
            rows, columns = kept[-1].shape[1:3]
            h = after(upsampled(h)[:, :rows, :columns])
        return h
