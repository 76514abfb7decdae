"""Residual multilayer perceptrons, for points and small images."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from guidance_jax.checks.door import door
from guidance_jax.checks.kinds import Count, CountFromZero, Sizes
from guidance_jax.networks.checks import check_batch
from guidance_jax.networks.embeddings import LabelEmbedding, TimeEmbedding


class Block(nnx.Module):
    """`h + W2 silu(W1 (norm(h) (1 + scale(c)) + shift(c)))`. W2 starts at zero."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.norm = nnx.LayerNorm(width, use_bias=False, use_scale=False, rngs=rngs)
        self.modulation = nnx.Linear(width, 2 * width, kernel_init=nnx.initializers.zeros, rngs=rngs)
        self.inner = nnx.Linear(width, width, rngs=rngs)
        self.outer = nnx.Linear(width, width, kernel_init=nnx.initializers.zeros, rngs=rngs)

    def __call__(self, h: Float[Array, "b w"], c: Float[Array, "b w"]) -> Float[Array, "b w"]:
        scale, shift = jnp.split(self.modulation(c), 2, axis=1)
        return h + self.outer(jax.nn.silu(self.inner(self.norm(h) * (1 + scale) + shift)))


class Trunk(nnx.Module):
    """Residual blocks between two dense layers."""

    def __init__(self, features: int, outputs: int, width: int, blocks: int, *, rngs: nnx.Rngs):
        self.first = nnx.Linear(features, width, rngs=rngs)
        self.blocks = nnx.List([Block(width, rngs=rngs) for _ in range(blocks)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.last = nnx.Linear(width, outputs, rngs=rngs)

    def __call__(self, x: Float[Array, "b d"], c: Float[Array, "b w"]) -> Float[Array, "b o"]:
        h = self.first(x)
        for block in self.blocks:
            h = block(h, c)
        return self.last(jax.nn.silu(self.norm(h)))


class MLP(nnx.Module):
    """A denoising network for data of a fixed shape, with labels.

    Args:
      shape: The shape of one sample.
      classes: The number of classes. The label `classes` is the null label.
      width: The width of the hidden layers.
      blocks: The number of residual blocks.
      time_scale: The factor of t: 1,000 for t in [0, 1], 1 for t in 0..999.
      rngs: The random keys that initialise the parameters.

    Raises:
      ValueError: If a size is below 1; when called, if an argument has the wrong shape or a label is out of range.

    Example:
      >>> from flax import nnx
      >>> network = gj.networks.MLP((2,), classes=3, width=8, blocks=1, rngs=nnx.Rngs(0))
      >>> print(jax.jit(network)(jnp.ones((5, 2)), jnp.ones(5), jnp.zeros(5, int)).shape)
      (5, 2)
    """

    @door()
    def __init__(
        self,
        shape: Sizes,
        classes: CountFromZero,
        width: Count = 256,
        blocks: Count = 4,
        time_scale: float = 1000.0,
        *,
        rngs: nnx.Rngs,
    ):
        features = math.prod(shape)
        self.time = TimeEmbedding(width, time_scale, rngs=rngs)
        self.label = LabelEmbedding(classes, width, rngs=rngs)
        self.trunk = Trunk(features, features, width, blocks, rngs=rngs)

    def __call__(self, x: Float[Array, "b ..."], t: Float[Array, "b"], labels: Int[Array, "b"]) -> Float[Array, "b ..."]:
        check_batch(x, self.trunk.first.in_features, t=t, labels=labels)
        c = jax.nn.silu(self.time(t) + self.label(labels))
        return self.trunk(x.reshape(len(x), -1), c).reshape(x.shape)


class MLPClassifier(nnx.Module):
    """A noise-aware classifier: logits `[B, classes]` of `(x_t, t)`.

    Args:
      shape: The shape of one sample.
      classes: The number of classes.
      width: The width of the hidden layers.
      blocks: The number of residual blocks.
      time_scale: The factor of t: 1,000 for t in [0, 1], 1 for t in 0..999.
      rngs: The random keys that initialise the parameters.

    Raises:
      ValueError: If a size is below 1; when called, if an argument has the wrong shape.

    Example:
      >>> from flax import nnx
      >>> classify = gj.networks.MLPClassifier((2,), classes=3, width=8, blocks=1, rngs=nnx.Rngs(0))
      >>> print(jax.jit(classify)(jnp.ones((5, 2)), jnp.ones(5)).shape)
      (5, 3)
    """

    @door()
    def __init__(
        self,
        shape: Sizes,
        classes: Count,
        width: Count = 256,
        blocks: Count = 4,
        time_scale: float = 1000.0,
        *,
        rngs: nnx.Rngs,
    ):
        self.time = TimeEmbedding(width, time_scale, rngs=rngs)
        self.trunk = Trunk(math.prod(shape), classes, width, blocks, rngs=rngs)

    def __call__(self, x: Float[Array, "b ..."], t: Float[Array, "b"]) -> Float[Array, "b c"]:
        check_batch(x, self.trunk.first.in_features, t=t)
        return self.trunk(x.reshape(len(x), -1), jax.nn.silu(self.time(t)))
