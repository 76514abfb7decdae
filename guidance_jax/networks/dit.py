"""A diffusion transformer. Its condition is a label, optionally with tokens, and can perturb the forward pass."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from guidance_jax.checks.door import CLASSES, door, rule
from guidance_jax.checks.kinds import Compute, Count, CountFromZero, ImageShape, Places, class_kind
from guidance_jax.networks.checks import check_batch, check_tokens
from guidance_jax.networks.embeddings import LabelEmbedding, TimeEmbedding
from guidance_jax.networks.layers import (
    Dense,
    LayerNorm,
    RMSNorm,
    attention,
    call,
    in_heads,
    patchify,
    unpatchify,
    zeros,
)


@door(
    rule("shape must divide into squares of patch pixels", lambda shape, patch: shape[0] % patch == shape[1] % patch == 0),
    rule("width must divide into heads", lambda width, heads: width % heads == 0),
    rule(
        "perturbed must name blocks, counted from 0",
        lambda perturbed, blocks: perturbed is None or set(perturbed) <= set(range(blocks)),
    ),
)
@dataclasses.dataclass(frozen=True)
class DiTConfig:
    """All sizes of a diffusion transformer.

    `dataclasses.asdict` gives a dictionary for JSON, and `DiTConfig(**read)` reads it back.

    Args:
      shape: `(H, W, C)` of one image. H and W are multiples of `patch`.
      classes: The number of classes. The label `classes` is the null label.
      width: The width of each image token; a multiple of `heads`.
      blocks: The number of transformer blocks.
      heads: The number of attention heads.
      patch: The side of the square of pixels that makes one token.
      tokens: The width of each token of the condition, `Tokens.tokens`; 0 for a network that takes none.
      qk_norm: Whether queries and keys are normalised in each head (arXiv:2302.05442).
      perturbed: The blocks that a `Perturbed` condition perturbs, counted from 0; None for the middle one.
      time_scale: The factor of t: 1,000 for t in [0, 1], 1 for t in 0..999.
      dtype: The dtype of the dense layers, "float32" or "bfloat16". Parameters, norms, softmax and output are float32.
      remat: Whether a gradient recomputes the intermediate values of each block. This saves memory for a third more compute.

    Raises:
      ValueError: If the image does not divide into patches, the width does not divide into heads, `perturbed` names a block
        that does not exist, or the dtype is unknown.

    Example:
      >>> import dataclasses
      >>> config = gj.networks.DiTConfig((28, 28, 1), classes=10, width=64, heads=2, patch=4)
      >>> print(config.grid, dataclasses.asdict(config)["width"])
      (7, 7) 64
    """

    shape: ImageShape
    classes: CountFromZero
    width: Count = 192
    blocks: Count = 6
    heads: Count = 3
    patch: Count = 2
    tokens: CountFromZero = 0
    qk_norm: bool = False
    perturbed: Places | None = None
    time_scale: float = 1000.0
    dtype: Compute = "float32"
    remat: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        if self.perturbed is not None:
            object.__setattr__(self, "perturbed", tuple(self.perturbed))

    @property
    def grid(self) -> tuple[int, int]:
        """The rows and columns of image tokens."""
        return self.shape[0] // self.patch, self.shape[1] // self.patch


CLASSES[DiTConfig] = class_kind(DiTConfig, "use DiTConfig((28, 28, 1), classes=10).")


class Tokens(NamedTuple):
    """A condition of a label and tokens, for example of an encoded text.

    A sample whose mask is False everywhere has no tokens. That is the null condition of classifier-free guidance.

    Args:
      labels: `[B]`, the class labels; the null label for no class.
      tokens: `[B, L, E]`, the tokens. E is `tokens` of the network's config.
      mask: `[B, L]`, True where there is a token.

    Example:
      >>> mask = jnp.arange(7)[None] < jnp.array([[5], [7]])  # texts of five and of seven tokens
      >>> cond = gj.networks.Tokens(jnp.array([3, 1]), jnp.ones((2, 7, 16)), mask)
      >>> uncond = cond._replace(labels=jnp.full(2, 10), mask=jnp.zeros((2, 7), bool))
      >>> print(cond.mask.sum(1), uncond.mask.sum(1))
      [5 7] [0 0]
    """

    labels: Int[Array, "b"]
    tokens: Float[Array, "b l e"]
    mask: Bool[Array, "b l"]


class Perturbed(NamedTuple):
    """A condition that perturbs the forward pass of some samples, in the blocks that the network's config names.

    All branches of one network have the same structure: give unperturbed branches the same fields, as False or 0.

    Args:
      labels: The labels, `[B]`, or `Tokens`.
      identity: `[B]`, True where each token attends only to itself: PAG (arXiv:2403.17377). None for no sample.
      skip: `[B]`, True where the block returns its input: SLG. None for no sample.
      blur: `[B]`, the standard deviation, in tokens, of a Gaussian blur of the queries: SEG (arXiv:2408.00760). 0 is no blur,
        and infinity gives their mean. None for no sample.

    Example:
      >>> labels, no, yes = jnp.array([3, 1]), jnp.zeros(2, bool), jnp.ones(2, bool)
      >>> cond = gj.networks.Perturbed(labels, identity=no)
      >>> weak = gj.networks.Perturbed(labels, identity=yes)
      >>> print(cond.identity, weak.identity)
      [False False] [ True  True]
    """

    labels: Int[Array, "b"] | Tokens
    identity: Bool[Array, "b"] | None = None
    skip: Bool[Array, "b"] | None = None
    blur: Float[Array, "b"] | None = None


class Block(nnx.Module):
    """Attention and a dense layer. The condition scales, shifts and gates each; the gates start at zero (adaLN-zero).

    If the network takes tokens, the image's tokens attend to them between the two.
    """

    def __init__(self, config: DiTConfig, *, rngs: nnx.Rngs):
        width, dtype = config.width, jnp.dtype(config.dtype)
        self.heads, self.grid = config.heads, config.grid
        self.norm = LayerNorm(width, rngs=rngs)
        self.modulation = nnx.Linear(width, 6 * width, kernel_init=zeros, rngs=rngs)
        self.qkv = Dense(width, 3 * width, dtype=dtype, rngs=rngs)
        self.qk_norm = QKNorm(width // config.heads, rngs=rngs) if config.qk_norm else None
        self.project = Dense(width, width, dtype=dtype, rngs=rngs)
        self.cross = Cross(config, rngs=rngs) if config.tokens else None
        self.inner = Dense(width, 4 * width, dtype=dtype, rngs=rngs)
        self.outer = Dense(4 * width, width, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        h: Float[Array, "b n w"],
        c: Float[Array, "b w"],
        tokens: Float[Array, "b l w"] | None,
        mask: Bool[Array, "b l"] | None,
        perturbed: Perturbed | None,
    ) -> Float[Array, "b n w"]:
        parts = jnp.split(self.modulation(c)[:, None], 6, axis=2)
        shift_attention, scale_attention, gate_attention, shift, scale, gate = parts
        attended = self.attend((self.norm(h) * (1 + scale_attention) + shift_attention).astype(h.dtype), perturbed)
        out = h + gate_attention.astype(h.dtype) * attended
        if self.cross is not None and tokens is not None and mask is not None:
            out = out + self.cross(self.norm(out).astype(h.dtype), tokens, mask)
        inner = jax.nn.gelu(self.inner((self.norm(out) * (1 + scale) + shift).astype(h.dtype)))
        out = out + gate.astype(h.dtype) * self.outer(inner)
        return out if perturbed is None or perturbed.skip is None else jnp.where(perturbed.skip[:, None, None], h, out)

    def attend(self, h: Float[Array, "b n w"], perturbed: Perturbed | None) -> Float[Array, "b n w"]:
        q, k, v = in_heads(self.qkv(h), self.heads, 3)
        if self.qk_norm is not None:
            q, k = self.qk_norm(q, k)
        if perturbed is not None and perturbed.blur is not None:
            q = blur(q, self.grid, perturbed.blur)
        out = attention(q, k, v)
        if perturbed is not None and perturbed.identity is not None:
            out = jnp.where(perturbed.identity[:, None, None, None], v, out)
        return self.project(out.reshape(h.shape))


class QKNorm(nnx.Module):
    """Queries and keys with root mean square 1 in each head, up to learned scales. This keeps the logits bounded."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.query = RMSNorm(width, rngs=rngs)
        self.key = RMSNorm(width, rngs=rngs)

    def __call__(self, q: Float[Array, "b n heads d"], k: Float[Array, "b m heads d"]) -> tuple[Array, Array]:
        return self.query(q).astype(q.dtype), self.key(k).astype(k.dtype)


class Cross(nnx.Module):
    """Attention to the condition's tokens and to one learned token (PixArt). Without tokens, only the learned one is left."""

    def __init__(self, config: DiTConfig, *, rngs: nnx.Rngs):
        width, dtype = config.width, jnp.dtype(config.dtype)
        self.heads = config.heads
        self.null = nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), (1, 1, width)))
        self.query = Dense(width, width, dtype=dtype, rngs=rngs)
        self.key_value = Dense(width, 2 * width, dtype=dtype, rngs=rngs)
        self.qk_norm = QKNorm(width // config.heads, rngs=rngs) if config.qk_norm else None
        self.project = Dense(width, width, dtype=dtype, kernel_init=zeros, rngs=rngs)

    def __call__(
        self, h: Float[Array, "b n w"], tokens: Float[Array, "b l w"], mask: Bool[Array, "b l"]
    ) -> Float[Array, "b n w"]:
        batch, _, width = tokens.shape
        null = jnp.broadcast_to(self.null[...].astype(tokens.dtype), (batch, 1, width))
        (q,) = in_heads(self.query(h), self.heads, 1)
        k, v = in_heads(self.key_value(jnp.concatenate([null, tokens], axis=1)), self.heads, 2)
        if self.qk_norm is not None:
            q, k = self.qk_norm(q, k)
        seen = jnp.concatenate([jnp.ones((batch, 1), bool), mask], axis=1)
        return self.project(attention(q, k, v, seen[:, None]).reshape(h.shape))


def blur(q: Float[Array, "b n h d"], grid: tuple[int, int], deviation: Float[Array, "b"]) -> Float[Array, "b n h d"]:
    """A Gaussian blur over the grid of tokens, with one deviation per sample: 0 is no blur, infinity the mean."""

    def weights(side: int) -> Array:
        distance = (jnp.arange(side)[:, None] - jnp.arange(side)[None]).astype(q.dtype)[None] ** 2
        spread = deviation.astype(q.dtype)[:, None, None]
        return jax.nn.softmax(-jnp.where(distance == 0, 0, distance / (2 * spread**2)), axis=2)

    rows, columns = (weights(side) for side in grid)
    image = q.reshape(len(q), *grid, *q.shape[2:])
    return jnp.einsum("bij,bkl,bjlhd->bikhd", rows, columns, image).reshape(q.shape)


class DiT(nnx.Module):
    """A diffusion transformer with labels, for images `[B, H, W, C]`.

    The condition is labels `[B]`, `Tokens` if the config gives their width, or either of these in `Perturbed`.

    Args:
      config: The sizes of the network.
      rngs: The random keys that initialise the parameters.

    Raises:
      ValueError: When called, if an image does not have the config's shape, a label is out of range, or tokens do not have the
        config's width.

    Example:
      >>> from flax import nnx
      >>> config = gj.networks.DiTConfig((8, 8, 1), classes=10, width=32, blocks=1, heads=2)
      >>> network = gj.networks.DiT(config, rngs=nnx.Rngs(0))
      >>> print(jax.jit(network)(jnp.ones((5, 8, 8, 1)), jnp.ones(5), jnp.zeros(5, int)).shape)
      (5, 8, 8, 1)

    Reference: Peebles & Xie 2023, arXiv:2212.09748; attention to tokens is that of Chen et al. 2023, arXiv:2310.00426.
    """

    @door()
    def __init__(self, config: DiTConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.perturbed = (config.blocks // 2,) if config.perturbed is None else config.perturbed
        width, dtype = config.width, jnp.dtype(config.dtype)
        features = config.patch**2 * config.shape[2]
        self.embed = Dense(features, width, dtype=dtype, rngs=rngs)
        count = config.grid[0] * config.grid[1]
        self.position = nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), (1, count, width)))
        self.time = TimeEmbedding(width, config.time_scale, rngs=rngs)
        self.label = LabelEmbedding(config.classes, width, rngs=rngs)
        self.tokens = Dense(config.tokens, width, dtype=dtype, rngs=rngs) if config.tokens else None
        self.blocks = nnx.List([Block(config, rngs=rngs) for _ in range(config.blocks)])
        self.norm = LayerNorm(width, rngs=rngs)
        self.modulation = nnx.Linear(width, 2 * width, kernel_init=zeros, rngs=rngs)
        self.last = Dense(width, features, kernel_init=zeros, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b h w c"], t: Float[Array, "b"], cond: Int[Array, "b"] | Tokens | Perturbed
    ) -> Float[Array, "b h w c"]:
        check_batch(x, self.config.shape, t=t)
        perturbed = cond if isinstance(cond, Perturbed) else None
        given = cond.labels if isinstance(cond, Perturbed) else cond
        tokens, mask = self.read(given, len(x))
        dtype = jnp.dtype(self.config.dtype)
        squares = patchify(x.astype(dtype), self.config.patch)
        h = self.embed(squares.reshape(len(x), -1, squares.shape[3])) + self.position[...].astype(dtype)
        c = jax.nn.silu(self.time(t) + self.label(given.labels if isinstance(given, Tokens) else given))
        for i, block in enumerate(self.blocks):
            h = call(block, self.config.remat, h, c, tokens, mask, perturbed if i in self.perturbed else None)
        scale, shift = jnp.split(self.modulation(c)[:, None], 2, axis=2)
        return unpatchify(self.last(self.norm(h) * (1 + scale) + shift).reshape(squares.shape), self.config.patch)

    def read(self, given: Array | Tokens, batch: int) -> tuple[Array | None, Array | None]:
        """The condition's tokens at the network's width, and their mask.

        Args:
          given: Labels, or `Tokens` with them.
          batch: The number of samples, for a condition without tokens.

        Raises:
          ValueError: If the network takes no tokens, or tokens of another width.
        """
        check_tokens(given.tokens if isinstance(given, Tokens) else None, self.config.tokens)
        if self.tokens is None:
            return None, None
        dtype = jnp.dtype(self.config.dtype)
        if not isinstance(given, Tokens):
            return jnp.zeros((batch, 0, self.config.width), dtype), jnp.zeros((batch, 0), bool)
        return self.tokens(jnp.where(given.mask[:, :, None], given.tokens, 0).astype(dtype)), given.mask
