"""The U-Net of Stable Diffusion 1, 2 and XL: diffusers' UNet2DConditionModel, with its published names."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from guidance_jax.checks.door import CLASSES, door, rule
from guidance_jax.checks.kinds import Count, CountFromZero, Places, Sizes, class_kind
from guidance_jax.networks.embeddings import waves
from guidance_jax.networks.layers import Dense, GroupNorm
from guidance_jax.pretrained.checks import check_text
from guidance_jax.pretrained.layers import Conv
from guidance_jax.pretrained.settings import FLAG, LAYERS, NUMBER, POSITIVE, SIZE, TEXT, check_settings, either, several
from guidance_jax.pretrained.unet_blocks import Down, Middle, Resampling, Residual, Transformer, Up

__all__ = ["Text", "UNet2DCondition", "UNetConditionConfig", "unet_condition_config"]


class Text(NamedTuple):
    """The conditions of the U-Net from a text.

    Args:
      states: `[B, L, D]`, the states of the text encoder, one per token.
      pooled: `[B, P]`, for XL: the second encoder's projected embedding of the whole text.
      sizes: `[B, N]`, for XL: height and width of the original, top and left of the crop, height and width of the result, in
        pixels. `text_to_image.Model.encode` has those of the refiner.

    Example:
      >>> gj.pretrained.unet.Text(jnp.ones((2, 77, 768))).pooled is None
      True
    """

    states: Float[Array, "b l d"]
    pooled: Float[Array, "b p"] | None = None
    sizes: Float[Array, "b n"] | None = None


@door(
    rule(
        "widths, depths and heads must hold one number per level",
        lambda widths, depths, heads: len(widths) == len(depths) == len(heads) > 0,
    ),
    rule("widths must divide into groups", lambda widths, groups: all(width % groups == 0 for width in widths)),
    rule(
        "the width of each level with transformers must divide into its heads",
        lambda widths, heads, depths, middle: (
            not any(
                depth and width % count
                for width, count, depth in zip(widths, heads, [*depths[:-1], depths[-1] + middle], strict=True)
            )
        ),
    ),
)
@dataclasses.dataclass(frozen=True)
class UNetConditionConfig:
    """The sizes of a U-Net. The defaults are Stable Diffusion 1.5's.

    Args:
      in_channels: The channels of the latents, plus those that inpainting adds.
      out_channels: The channels of the output.
      widths: The channels at each level, the finest level first.
      depths: The number of transformer blocks after each residual block, per level; 0 for none.
      middle: The number of transformer blocks in the middle.
      heads: The number of attention heads per level.
      blocks: The number of residual blocks per level on the way down; one more on the way up.
      text: The width of the text's states.
      added: The width of XL's additional conditions, the pooled text and the waves of the sizes together; 0 for none.
      size_waves: The width of the waves of each number in `Text.sizes`.
      groups: The number of groups of channels in each norm.
      epsilon: The number added to the variances of the group norms outside of transformers.
      sin_first: Whether the sines of the time's waves come before the cosines.
      shift: The shift of the waves' frequencies, as in `networks.embeddings.waves`.

    Raises:
      ValueError: If the levels' numbers do not fit each other, or a width does not divide into groups or heads.

    Example:
      >>> config = gj.pretrained.unet.UNetConditionConfig(in_channels=9)
      >>> print(config.widths, config.depths)
      (320, 640, 1280, 1280) (1, 1, 1, 0)

    Reference: Rombach et al. 2022, arXiv:2112.10752.
    """

    in_channels: Count = 4
    out_channels: Count = 4
    widths: Sizes = (320, 640, 1280, 1280)
    depths: Places = (1, 1, 1, 0)
    middle: CountFromZero = 1
    heads: Sizes = (8, 8, 8, 8)
    blocks: Count = 2
    text: Count = 768
    added: CountFromZero = 0
    size_waves: CountFromZero = 256
    groups: Count = 32
    epsilon: float = 1e-5
    sin_first: bool = False
    shift: float = 0.0

    def __post_init__(self) -> None:
        for name in ("widths", "depths", "heads"):
            object.__setattr__(self, name, tuple(getattr(self, name)))


CLASSES[UNetConditionConfig] = class_kind(UNetConditionConfig, "use gj.pretrained.unet.UNetConditionConfig().")

PLAIN, WITH_TEXT = ("DownBlock2D", "UpBlock2D"), ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D")
READ: dict[str, Any] = {
    "addition_embed_type": None,
    "addition_time_embed_dim": None,
    "attention_head_dim": 8,
    "block_out_channels": (320, 640, 1280, 1280),
    "cross_attention_dim": 1280,
    "down_block_types": (WITH_TEXT[0], WITH_TEXT[0], WITH_TEXT[0], PLAIN[0]),
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "norm_eps": 1e-5,
    "norm_num_groups": 32,
    "out_channels": 4,
    "projection_class_embeddings_input_dim": None,
    "transformer_layers_per_block": 1,
    "up_block_types": (PLAIN[1], WITH_TEXT[1], WITH_TEXT[1], WITH_TEXT[1]),
}
"""The settings that are read, and the defaults of diffusers."""
KINDS = {
    **dict.fromkeys(("in_channels", "out_channels", "norm_num_groups", "cross_attention_dim"), SIZE),
    **dict.fromkeys(("addition_time_embed_dim", "projection_class_embeddings_input_dim"), SIZE),
    **dict.fromkeys(("down_block_types", "up_block_types"), several(TEXT)),
    "freq_shift": NUMBER,
    "norm_eps": POSITIVE,
    "addition_embed_type": TEXT,
    "attention_head_dim": either(SIZE, several(SIZE)),
    "block_out_channels": several(SIZE),
    "flip_sin_to_cos": FLAG,
    "layers_per_block": either(LAYERS, several(LAYERS)),
    "transformer_layers_per_block": either(LAYERS, several(LAYERS)),
}
"""The kind of each setting."""
ONLY: dict[str, Any] = {
    "act_fn": "silu",
    "attention_type": "default",
    "center_input_sample": False,
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "mid_block_only_cross_attention": False,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "only_cross_attention": False,
    "resnet_out_scale_factor": 1,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "time_embedding_type": "positional",
}
"""Settings that must have this value. A setting in none of these tables must be null."""
WITHOUT_EFFECT = {"addition_embed_type_num_heads", "dropout", "sample_size", "upcast_attention", "use_linear_projection"}
"""Settings without effect: here one-pixel convolutions are always dense layers, and the softmax is always in float32."""


def unet_condition_config(published: Mapping[str, Any]) -> UNetConditionConfig:
    """The sizes of a published U-Net: Stable Diffusion 1.x, 2.x, XL and its refiner, and their inpainting variants.

    Args:
      published: The parsed `unet/config.json`. Settings that it omits have the defaults of diffusers.

    Raises:
      ValueError: If settings are not supported. The error names them and their values.

    Example:
      >>> published = {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20]}
      >>> print(gj.pretrained.unet.unet_condition_config(published).heads)
      (5, 10, 20, 20)

    Reference: diffusers 0.42, "models/unets/unet_2d_condition.py". What it calls attention_head_dim is the number of heads.
    """
    check_settings({name: value for name, value in published.items() if value is not None}, KINDS)
    settings = READ | ONLY | {name: _fixed(value) for name, value in published.items() if name[:1] != "_" and value is not None}
    down, levels = settings["down_block_types"], len(settings["block_out_channels"])
    heads, depths = (_each(settings[name], levels) for name in ("attention_head_dim", "transformer_layers_per_block"))
    added = settings["addition_embed_type"] is not None
    blocks = dict(zip((PLAIN[0], WITH_TEXT[0]), (PLAIN[1], WITH_TEXT[1]), strict=True))
    supported = {
        **{name: settings[name] == value for name, value in ONLY.items()},
        **{name: isinstance(settings[name], int) for name in ("layers_per_block", "cross_attention_dim", "norm_num_groups")},
        "attention_head_dim": all(isinstance(count, int) for count in heads),
        "transformer_layers_per_block": all(isinstance(depth, int) for depth in depths),
        "down_block_types": set(down) <= blocks.keys() and len(down) == levels,
        "up_block_types": settings["up_block_types"] == tuple(blocks.get(kind) for kind in reversed(down)),
        "addition_embed_type": settings["addition_embed_type"] in (None, "text_time"),
        "addition_time_embed_dim": (settings["addition_time_embed_dim"] is not None) == added,
        "projection_class_embeddings_input_dim": (settings["projection_class_embeddings_input_dim"] is not None) == added,
        **dict.fromkeys(settings.keys() - READ.keys() - ONLY.keys() - WITHOUT_EFFECT, False),
    }
    if not all(supported.values()):
        refused = ", ".join(f"{name}={settings[name]!r}" for name, fine in sorted(supported.items()) if not fine)
        raise ValueError(
            f"these settings of the U-Net's configuration are not supported: {refused}. Use those of Stable Diffusion "
            "1.x, 2.x or XL, with text as the only condition."
        )
    return UNetConditionConfig(
        in_channels=settings["in_channels"],
        out_channels=settings["out_channels"],
        widths=settings["block_out_channels"],
        depths=[depth if kind == WITH_TEXT[0] else 0 for depth, kind in zip(depths, down, strict=True)],
        middle=depths[-1],
        heads=heads,
        blocks=settings["layers_per_block"],
        text=settings["cross_attention_dim"],
        added=settings["projection_class_embeddings_input_dim"] or 0,
        size_waves=settings["addition_time_embed_dim"] or 0,
        groups=settings["norm_num_groups"],
        epsilon=float(settings["norm_eps"]),
        sin_first=not settings["flip_sin_to_cos"],
        shift=float(settings["freq_shift"]),
    )


def _fixed(value: Any) -> Any:
    """A tuple for a list of JSON."""
    return tuple(value) if isinstance(value, list) else value


def _each(value: Any, levels: int) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,) * levels


class Embedding(nnx.Module):
    """Two dense layers with SiLU between them."""

    def __init__(self, width: int, out: int, *, rngs: nnx.Rngs):
        self.linear_1 = Dense(width, out, rngs=rngs)
        self.linear_2 = Dense(out, out, rngs=rngs)

    def __call__(self, h: Float[Array, "b w"]) -> Float[Array, "b o"]:
        return self.linear_2(jax.nn.silu(self.linear_1(h)))


class UNet2DCondition(nnx.Module):
    """The U-Net of latent text-to-image models, for latents `[B, h, w, C]` of any size.

    Args:
      config: The sizes of the network.
      rngs: The random keys that initialise the parameters.

    Raises:
      ValueError: When called, if the latents have other channels, or the text has another width. Also if XL's additional
        conditions are missing, have another width, or are given to a network without them.

    Example:
      >>> from flax import nnx
      >>> sizes = dict(widths=(8, 8), depths=(1, 0), heads=(2, 2), text=8, groups=4)
      >>> config = gj.pretrained.unet.UNetConditionConfig(**sizes)
      >>> network = gj.pretrained.unet.UNet2DCondition(config, rngs=nnx.Rngs(0))
      >>> text = gj.pretrained.unet.Text(jnp.ones((2, 5, 8)))
      >>> x, t = jnp.ones((2, 7, 9, 4)), jnp.array([999.0, 0.0])
      >>> print(jax.eval_shape(network, x, t, text).shape)
      (2, 7, 9, 4)

    Reference: Rombach et al. 2022, arXiv:2112.10752; Podell et al. 2023, arXiv:2307.01952 (XL).
    """

    @door()
    def __init__(self, config: UNetConditionConfig, *, rngs: nnx.Rngs):
        self.config = config
        widths, time, last = config.widths, 4 * config.widths[0], len(config.widths) - 1

        def residual(width: int, out: int) -> Residual:
            return Residual(width, out, time, config.groups, config.epsilon, rngs=rngs)

        def transformers(level: int, count: int) -> list[Transformer]:
            width, heads, depth = widths[level], config.heads[level], config.depths[level]
            made = range(count if depth else 0)
            return [Transformer(width, depth, config.text, heads, config.groups, rngs=rngs) for _ in made]

        self.conv_in = Conv(config.in_channels, widths[0], rngs=rngs)
        self.time_embedding = Embedding(widths[0], time, rngs=rngs)
        self.add_embedding = Embedding(config.added, time, rngs=rngs) if config.added else None
        kept, down, up = [widths[0]], [], []
        for level, width in enumerate(widths):
            resnets = [residual(kept[-1] if i == 0 else width, width) for i in range(config.blocks)]
            halving = [Resampling(width, 2, rngs=rngs)] if level < last else []
            down.append(Down(resnets, transformers(level, config.blocks), halving))
            kept += [width] * (len(resnets) + len(halving))
        self.down_blocks = nnx.List(down)
        middle = Transformer(widths[-1], config.middle, config.text, config.heads[-1], config.groups, rngs=rngs)
        self.mid_block = Middle([residual(widths[-1], widths[-1]) for _ in range(2)], [middle])
        before = widths[-1]
        for level, width in reversed(list(enumerate(widths))):
            inputs = [(before if i == 0 else width) + kept.pop() for i in range(config.blocks + 1)]
            doubling = [Resampling(width, rngs=rngs)] if level else []
            up.append(Up([residual(i, width) for i in inputs], transformers(level, config.blocks + 1), doubling))
            before = width
        self.up_blocks = nnx.List(up)
        self.conv_norm_out = GroupNorm(widths[0], config.groups, config.epsilon, rngs=rngs)
        self.conv_out = Conv(widths[0], config.out_channels, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"], t: Float[Array, "b"], text: Text) -> Float[Array, "b h w o"]:
        check_text(x, text, self.config)
        dtype = self.conv_in.kernel[...].dtype
        c = jax.nn.silu(self._embedded(t, text, dtype))
        states = text.states.astype(dtype)
        h = self.conv_in(x.astype(dtype))
        kept = [h]
        for down in self.down_blocks:
            kept += down(kept[-1], c, states)
        h = self.mid_block(kept[-1], c, states)
        for up in self.up_blocks:
            h = up(h, c, states, kept)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(h)))

    def _embedded(self, t: Float[Array, "b"], text: Text, dtype: Any) -> Float[Array, "b e"]:
        """The embedding of the time, and of XL's pooled text and sizes."""
        waved = lambda values, width: waves(values, width, sin_first=self.config.sin_first, shift=self.config.shift).astype(
            dtype
        )
        c = self.time_embedding(waved(t, self.config.widths[0]))
        if self.add_embedding is None or text.pooled is None or text.sizes is None:
            return c
        sizes = waved(text.sizes.reshape(-1), self.config.size_waves).reshape(len(text.sizes), -1)
        return c + self.add_embedding(jnp.concatenate([text.pooled.astype(dtype), sizes], axis=1))
