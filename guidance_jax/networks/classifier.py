"""A noise-aware classifier: the encoder half of a U-Net and an attention pool."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from guidance_jax.checks.door import door, rule
from guidance_jax.networks.embeddings import TimeEmbedding
from guidance_jax.networks.layers import Dense, GroupNorm, attention, in_heads
from guidance_jax.networks.unet import Down, UNetConfig, embedding


class AttentionPool(nnx.Module):
    """Attention from the mean token to itself and to all tokens, with learned positions.

    Args:
      tokens: The number of tokens.
      width: The width of each token; a multiple of `heads`.
      heads: The number of attention heads.
      dtype: The dtype of the dense layers.
      rngs: The random keys that initialise the parameters.
    """

    def __init__(self, tokens: int, width: int, heads: int, dtype: str, *, rngs: nnx.Rngs):
        self.heads = heads
        start = nnx.initializers.normal(width**-0.5)
        self.position = nnx.Param(start(rngs.params(), (1, tokens + 1, width)))
        self.query = Dense(width, width, dtype=jnp.dtype(dtype), rngs=rngs)
        self.key_value = Dense(width, 2 * width, dtype=jnp.dtype(dtype), rngs=rngs)
        self.project = Dense(width, width, dtype=jnp.dtype(dtype), rngs=rngs)

    def __call__(self, h: Float[Array, "b n w"]) -> Float[Array, "b w"]:
        mean = h.mean(1, keepdims=True, dtype=jnp.float32).astype(h.dtype)
        tokens = jnp.concatenate([mean, h], axis=1) + self.position[...].astype(h.dtype)
        (q,) = in_heads(self.query(tokens[:, :1]), self.heads, 1)
        k, v = in_heads(self.key_value(tokens), self.heads, 2)
        return self.project(attention(q, k, v).reshape(len(h), -1))


class UNetClassifier(nnx.Module):
    """A noise-aware classifier: logits `[B, classes]` of `(x_t, t)`.

    Args:
      config: The sizes of a U-Net. The classifier uses its encoder half and its middle block.
      rngs: The random keys that initialise the parameters.

    Raises:
      ValueError: If the coarsest width does not divide into heads; when called, if an image does not have the config's shape.

    Example:
      >>> from flax import nnx
      >>> config = gj.networks.UNetConfig((8, 8, 1), classes=10, widths=(8,))
      >>> classify = gj.networks.UNetClassifier(config, rngs=nnx.Rngs(0))
      >>> x, t = jnp.ones((5, 8, 8, 1)), jnp.ones(5)
      >>> print(jax.eval_shape(classify, x, t).shape, jax.eval_shape(classify.features, x, t).shape)
      (5, 10) (5, 8)

    Reference: Dhariwal & Nichol 2021, arXiv:2105.05233; the pooling is that of Radford et al. 2021, arXiv:2103.00020.
    """

    @door(rule("the last of config.widths must divide into config.heads", lambda config: config.widths[-1] % config.heads == 0))
    def __init__(self, config: UNetConfig, *, rngs: nnx.Rngs):
        rows, columns, width = config.levels[-1]
        self.time = TimeEmbedding(embedding(config), config.time_scale, rngs=rngs)
        self.down = Down(config, rngs=rngs)
        self.norm = GroupNorm(width, config.groups, rngs=rngs)
        self.pool = AttentionPool(rows * columns, width, config.heads, config.dtype, rngs=rngs)
        self.last = nnx.Linear(width, config.classes, rngs=rngs)

    def features(self, x: Float[Array, "b h w c"], t: Float[Array, "b"]) -> Float[Array, "b d"]:
        """The features of `x` at `t`, the input of the last dense layer: `[B, D]`, float32. D is the coarsest width."""
        h, _ = self.down(x, jax.nn.silu(self.time(t)))
        pooled = self.pool(jax.nn.silu(self.norm(h)).reshape(len(x), -1, h.shape[3]))
        return pooled.astype(jnp.float32)

    def __call__(self, x: Float[Array, "b h w c"], t: Float[Array, "b"]) -> Float[Array, "b k"]:
        return self.last(self.features(x, t))
