"""CLIP's text encoders for diffusion models: transformers' CLIPTextModel, with its published names."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int
from typing_extensions import TypeAliasType

from guidance_jax.checks.door import CLASSES, door, rule
from guidance_jax.checks.kinds import Count, CountFromZero, choice, class_kind
from guidance_jax.networks.layers import Dense, attention
from guidance_jax.pretrained.checks import check_length
from guidance_jax.pretrained.layers import LayerNorm
from guidance_jax.pretrained.settings import LAYERS, NULL, POSITIVE, SIZE, TEXT, check_settings, either, several, whole

__all__ = ["IGNORED", "CLIPText", "CLIPTextConfig", "Encoded", "clip_text_config", "published_name"]


class Encoded(NamedTuple):
    """The outputs of the encoder.

    Args:
      last: `[B, L, D]`, the normalised states of the last layer. Stable Diffusion 1 and 2 use them.
      penultimate: `[B, L, D]`, the states before the last layer, not normalised. XL uses them.
      pooled: `[B, P]`, the last state of the token that ends the text, after the projection if the encoder has one.

    Example:
      >>> tokens, pooled = jnp.ones((1, 77, 768)), jnp.ones((1, 768))
      >>> encoded = gj.pretrained.clip.Encoded(last=tokens, penultimate=tokens, pooled=pooled)
      >>> print(encoded.last.shape)
      (1, 77, 768)
    """

    last: Float[Array, "b l d"]
    penultimate: Float[Array, "b l d"]
    pooled: Float[Array, "b p"]


ACTIVATIONS = {
    "quick_gelu": lambda h: h * jax.nn.sigmoid(1.702 * h),
    "gelu": lambda h: jax.nn.gelu(h, approximate=False),
}
"""The activation functions by name. OpenAI's encoders use the first, OpenCLIP's the second."""
Activation = TypeAliasType("Activation", Annotated[str, choice(*ACTIVATIONS)])
"""The name of an activation function."""


@door(
    rule(
        "hidden_size must divide into num_attention_heads",
        lambda hidden_size, num_attention_heads: hidden_size % num_attention_heads == 0,
    )
)
@dataclasses.dataclass(frozen=True)
class CLIPTextConfig:
    """The sizes of an encoder, with the names of its `config.json`. The defaults are those of ViT-L/14 in Stable Diffusion 1.

    Args:
      vocab_size: The number of tokens in the vocabulary.
      hidden_size: The width of a token; a multiple of `num_attention_heads`.
      intermediate_size: The inner width of a layer's feed-forward network.
      num_hidden_layers: The number of layers.
      num_attention_heads: The number of attention heads per layer.
      max_position_embeddings: The maximum length of a text, in tokens.
      hidden_act: The activation function, "quick_gelu" in OpenAI's encoders and "gelu" in OpenCLIP's.
      layer_norm_eps: The number added to the variances of the norms.
      eos_token_id: The token that ends a text. 2 stands for the largest id in the text, as in files before 2023.
      projection_dim: The width of the projected embedding of a text; None if the encoder has no projection.

    Raises:
      ValueError: If the width does not divide into heads, or the activation function is unknown.

    Example:
      >>> config = gj.pretrained.clip.CLIPTextConfig(hidden_size=1024, num_attention_heads=16)
      >>> config.max_position_embeddings
      77

    Reference: Radford et al. 2021, arXiv:2103.00020.
    """

    vocab_size: Count = 49408
    hidden_size: Count = 768
    intermediate_size: Count = 3072
    num_hidden_layers: Count = 12
    num_attention_heads: Count = 12
    max_position_embeddings: Count = 77
    hidden_act: Activation = "quick_gelu"
    layer_norm_eps: float = 1e-5
    eos_token_id: CountFromZero = 2
    projection_dim: Count | None = None


CLASSES[CLIPTextConfig] = class_kind(CLIPTextConfig, "use gj.pretrained.clip.CLIPTextConfig().")
PUBLISHED_DEFAULTS = {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_attention_heads": 8,
    "projection_dim": 512,
    "eos_token_id": 49407,
}
"""The defaults of transformers for settings that a `config.json` omits, where they differ from ours."""
ARCHITECTURES = ("CLIPTextModel", "CLIPTextModelWithProjection")
KINDS = {
    **dict.fromkeys(("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "max_position_embeddings"), SIZE),
    "architectures": either(NULL, several(TEXT)),
    "eos_token_id": whole(0, 2**20),
    "hidden_act": TEXT,
    "layer_norm_eps": POSITIVE,
    "num_hidden_layers": LAYERS,
    "projection_dim": either(SIZE, NULL),
}
"""The kind of each setting."""


def clip_text_config(published: Mapping[str, Any]) -> CLIPTextConfig:
    """The configuration that a `config.json` of transformers' CLIPTextModel describes, with or without a projection.

    Settings of training (dropout, initialisation) and of tokens other than the last have no effect here.

    Args:
      published: The parsed file.

    Raises:
      ValueError: If it has another architecture, or a setting that is not supported.

    Example:
      >>> published = {"architectures": ["CLIPTextModelWithProjection"], "hidden_size": 1280}
      >>> published |= {"num_attention_heads": 20, "projection_dim": 1280, "hidden_act": "gelu"}
      >>> gj.pretrained.clip.clip_text_config(published).projection_dim
      1280

    Reference: transformers 5, "models/clip/configuration_clip.py".
    """
    check_settings(published, KINDS)
    architecture = (published.get("architectures") or ARCHITECTURES)[0]
    if architecture not in ARCHITECTURES:
        raise ValueError(f"the text encoder's architecture {architecture} is unknown, expected {' or '.join(ARCHITECTURES)}.")
    fields = {field.name for field in dataclasses.fields(CLIPTextConfig)}
    settings = {**PUBLISHED_DEFAULTS, **{name: value for name, value in published.items() if name in fields}}
    if architecture == ARCHITECTURES[0]:
        settings["projection_dim"] = None
    return CLIPTextConfig(**settings)


IGNORED = ("text_model.embeddings.position_ids", "embeddings.position_ids")
"""A table of 0, 1, 2, ... in older files: `ignored=IGNORED` of `pretrained.load`."""


def published_name(name: str) -> str:
    """The published name of a weight, from its name in a file of any version: `rename=published_name` of `pretrained.load`.

    transformers 5 and later omits the first part of the names if an encoder has no projection.

    Args:
      name: The name in the file.

    Example:
      >>> gj.pretrained.clip.published_name("final_layer_norm.bias")
      'text_model.final_layer_norm.bias'
    """
    return name if name.startswith(("text_model.", "text_projection.")) else f"text_model.{name}"


class CLIPText(nnx.Module):
    """A text encoder, `(ids [B, L]) -> Encoded`. It computes in the dtype of its parameters.

    Each token attends to itself and to earlier tokens.

    Args:
      config: The sizes of the encoder.
      rngs: The random keys that initialise the parameters.

    Raises:
      ValueError: When called, if a text is longer than the encoder's window.

    Example:
      >>> from flax import nnx
      >>> sizes = {"vocab_size": 10, "hidden_size": 8, "intermediate_size": 16}
      >>> sizes |= {"num_hidden_layers": 1, "num_attention_heads": 2}
      >>> config = gj.pretrained.clip.CLIPTextConfig(**sizes)
      >>> encode = gj.pretrained.clip.CLIPText(config, rngs=nnx.Rngs(0))
      >>> print(jax.eval_shape(encode, jnp.array([[8, 3, 5, 9]])).last.shape)
      (1, 4, 8)

    Reference: Radford et al. 2021, arXiv:2103.00020; transformers' models/clip/modeling_clip.py.
    """

    def __init__(self, config: CLIPTextConfig, *, rngs: nnx.Rngs):
        self.text_model = TextModel(config, rngs=rngs)
        width = config.projection_dim
        self.text_projection = Dense(config.hidden_size, width, use_bias=False, rngs=rngs) if width else None
        self.ends = config.eos_token_id

    def __call__(self, ids: Int[Array, "b l"]) -> Encoded:
        longest = self.text_model.embeddings.position_embedding.num_embeddings
        check_length(ids, longest)
        last, penultimate = self.text_model(ids)
        end = jnp.argmax(ids if self.ends == 2 else ids == self.ends, axis=1)
        pooled = jnp.take_along_axis(last, end[:, None, None], axis=1)[:, 0]
        return Encoded(last, penultimate, pooled if self.text_projection is None else self.text_projection(pooled))


class TextModel(nnx.Module):
    """Embeddings, layers and a norm. It returns the normalised last states, and the states before the last layer."""

    def __init__(self, config: CLIPTextConfig, *, rngs: nnx.Rngs):
        self.embeddings = Embeddings(config, rngs=rngs)
        self.encoder = Encoder(config, rngs=rngs)
        self.final_layer_norm = LayerNorm(config.hidden_size, config.layer_norm_eps, rngs=rngs)

    def __call__(self, ids: Int[Array, "b l"]) -> tuple[Float[Array, "b l d"], Float[Array, "b l d"]]:
        h = self.embeddings(ids)
        for layer in self.encoder.layers[:-1]:
            h = layer(h)
        return self.final_layer_norm(self.encoder.layers[-1](h)), h


class Embeddings(nnx.Module):
    """The sum of one vector per token and one per position."""

    def __init__(self, config: CLIPTextConfig, *, rngs: nnx.Rngs):
        self.token_embedding = nnx.Embed(config.vocab_size, config.hidden_size, rngs=rngs)
        self.position_embedding = nnx.Embed(config.max_position_embeddings, config.hidden_size, rngs=rngs)

    def __call__(self, ids: Int[Array, "b l"]) -> Float[Array, "b l d"]:
        # nnx.Embed would return the dtype of its initial table.
        tokens, places = self.token_embedding.embedding[...], self.position_embedding.embedding[...]
        return jnp.take(tokens, ids, axis=0) + places[None, : ids.shape[1]]


class Encoder(nnx.Module):
    """The layers, under their published name."""

    def __init__(self, config: CLIPTextConfig, *, rngs: nnx.Rngs):
        self.layers = nnx.List([Layer(config, rngs=rngs) for _ in range(config.num_hidden_layers)])


class Layer(nnx.Module):
    """Attention, then a feed-forward network, each with a residual connection."""

    def __init__(self, config: CLIPTextConfig, *, rngs: nnx.Rngs):
        self.layer_norm1 = LayerNorm(config.hidden_size, config.layer_norm_eps, rngs=rngs)
        self.self_attn = Attention(config.hidden_size, config.num_attention_heads, rngs=rngs)
        self.layer_norm2 = LayerNorm(config.hidden_size, config.layer_norm_eps, rngs=rngs)
        self.mlp = FeedForward(config, rngs=rngs)

    def __call__(self, h: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        h = h + self.self_attn(self.layer_norm1(h))
        return h + self.mlp(self.layer_norm2(h))


class Attention(nnx.Module):
    """Attention from each token to itself and to earlier tokens."""

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs):
        self.heads = heads
        self.q_proj = Dense(width, width, rngs=rngs)
        self.k_proj = Dense(width, width, rngs=rngs)
        self.v_proj = Dense(width, width, rngs=rngs)
        self.out_proj = Dense(width, width, rngs=rngs)

    def __call__(self, h: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        q, k, v = (project(h).reshape(*h.shape[:2], self.heads, -1) for project in (self.q_proj, self.k_proj, self.v_proj))
        return self.out_proj(attention(q, k, v, jnp.tri(h.shape[1], dtype=bool)[None]).reshape(h.shape))


class FeedForward(nnx.Module):
    """Two dense layers with an activation function between them."""

    def __init__(self, config: CLIPTextConfig, *, rngs: nnx.Rngs):
        self.activation = ACTIVATIONS[config.hidden_act]
        self.fc1 = Dense(config.hidden_size, config.intermediate_size, rngs=rngs)
        self.fc2 = Dense(config.intermediate_size, config.hidden_size, rngs=rngs)

    def __call__(self, h: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        return self.fc2(self.activation(self.fc1(h)))
