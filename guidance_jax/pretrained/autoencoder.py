"""The autoencoder of latent diffusion, with diffusers' published names."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from guidance_jax.networks.layers import Dense, GroupNorm, attention
from guidance_jax.pretrained.autoencoder_tiles import tiled
from guidance_jax.pretrained.layers import Conv, upsampled
from guidance_jax.pretrained.settings import FLAG, LAYERS, NULL, NUMBER, POSITIVE, SIZE, TEXT, check_settings, either, several

__all__ = ["AutoencoderConfig", "AutoencoderKL", "autoencoder_config", "current_name", "tiled"]

OLDER = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""The names of the attention layers in older files, such as Stable Diffusion 1.5's, and their current names."""


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig:
    """The sizes of an autoencoder, with the names of its `config.json`. The defaults are Stable Diffusion's.

    The latents of a diffusion model are `(z - shift_factor) * scaling_factor`. `encode` and `decode` work on z.

    Args:
      in_channels: The channels of the images to encode.
      out_channels: The channels of the decoded images.
      latent_channels: The channels of z.
      block_out_channels: The channels at each level, the finest level first. Each level but the last halves the image.
      layers_per_block: The number of residual blocks per level on the way down; one more on the way up.
      norm_num_groups: The number of groups of channels in each norm; it divides every width.
      mid_block_add_attention: Whether the middle block has attention.
      use_quant_conv: Whether a dense layer per pixel follows the encoder.
      use_post_quant_conv: Whether a dense layer per pixel precedes the decoder.
      scaling_factor: The factor from z to the latents of a diffusion model.
      shift_factor: The number subtracted from z before it is scaled.

    Example:
      >>> gj.pretrained.autoencoder.AutoencoderConfig().block_out_channels
      (128, 256, 512, 512)

    Reference: Rombach et al. 2022, arXiv:2112.10752.
    """

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    mid_block_add_attention: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    scaling_factor: float = 0.18215
    shift_factor: float = 0.0

    @property
    def factor(self) -> int:
        """The side of an image in pixels, per pixel of z."""
        return 2 ** (len(self.block_out_channels) - 1)


LEFT_OUT = {"block_out_channels": (64,), "layers_per_block": 1}
"""The defaults of diffusers for settings that a `config.json` omits, where they are not Stable Diffusion's."""
SUPPORTED = {
    "_class_name": {"AutoencoderKL"},
    "down_block_types": {"DownEncoderBlock2D"},
    "up_block_types": {"UpDecoderBlock2D"},
    "act_fn": {"silu"},
    "latents_mean": {None},
    "latents_std": {None},
}
KINDS = {
    **dict.fromkeys(("in_channels", "out_channels", "latent_channels", "norm_num_groups"), SIZE),
    **dict.fromkeys(("mid_block_add_attention", "use_quant_conv", "use_post_quant_conv"), FLAG),
    **dict.fromkeys(("down_block_types", "up_block_types"), several(TEXT)),
    **dict.fromkeys(("_class_name", "act_fn"), TEXT),
    **dict.fromkeys(("latents_mean", "latents_std"), either(NULL, several(NUMBER, 1024))),
    "block_out_channels": several(SIZE),
    "layers_per_block": LAYERS,
    "scaling_factor": POSITIVE,
    "shift_factor": either(NUMBER, NULL),
}
"""The kind of each setting."""
WITHOUT_EFFECT = {"sample_size", "force_upcast"}
"""Settings that the caller decides here: tiling and precision."""


def autoencoder_config(published: Mapping[str, Any]) -> AutoencoderConfig:
    """The configuration that a `config.json` of diffusers' AutoencoderKL describes.

    Args:
      published: The parsed file.

    Raises:
      ValueError: If a setting is not supported. The error names it.

    Example:
      >>> gj.pretrained.autoencoder.autoencoder_config({"scaling_factor": 0.13025}).scaling_factor
      0.13025

    Reference: Rombach et al. 2022, arXiv:2112.10752; diffusers' autoencoder_kl.py.
    """
    fields = {field.name for field in dataclasses.fields(AutoencoderConfig)}
    check_settings(published, KINDS)
    for name, value in published.items():
        if name in SUPPORTED:
            values = set(value) if isinstance(value, list | tuple) else {value}
            if values - SUPPORTED[name]:
                raise ValueError(f"{name}={value!r} of an autoencoder is not supported, expected one of {SUPPORTED[name]}.")
        elif name not in fields | WITHOUT_EFFECT and not name.startswith("_"):
            raise ValueError(f"{name}={value!r} of an autoencoder is an unknown setting.")
    settings = LEFT_OUT | {name: value for name, value in published.items() if name in fields}
    return AutoencoderConfig(
        **settings
        | {"block_out_channels": tuple(settings["block_out_channels"]), "shift_factor": settings.get("shift_factor") or 0.0}
    )


def current_name(name: str) -> str:
    """The current name of a weight, from its name in a file of any version: `rename=current_name` of `pretrained.load`.

    Args:
      name: The name in the file.

    Example:
      >>> gj.pretrained.autoencoder.current_name("decoder.mid_block.attentions.0.proj_attn.weight")
      'decoder.mid_block.attentions.0.to_out.0.weight'

    Reference: Rombach et al. 2022, arXiv:2112.10752; the names, diffusers' modeling_utils.py.
    """
    if ".attentions." not in name:
        return name
    return ".".join(OLDER.get(part, part) for part in name.split("."))


class AutoencoderKL(nnx.Module):
    """Maps images `[B, H, W, 3]` in [-1, 1] to the mean and log variance of latents, and latents to images.

    Computation and output have the dtype of the parameters. H and W are multiples of `2 ** (len(block_out_channels) - 1)`.

    Args:
      config: The sizes of the network.
      rngs: The random keys that initialise the parameters.

    Example:
      >>> from flax import nnx
      >>> sizes = {"block_out_channels": (8, 8), "norm_num_groups": 4}
      >>> config = gj.pretrained.autoencoder.AutoencoderConfig(**sizes)
      >>> network = gj.pretrained.autoencoder.AutoencoderKL(config, rngs=nnx.Rngs(0))
      >>> mean, log_variance = jax.eval_shape(network.encode, jnp.zeros((1, 8, 12, 3)))
      >>> print(mean.shape, jax.eval_shape(network.decode, mean).shape)
      (1, 4, 6, 4) (1, 8, 12, 3)

    Reference: Rombach et al. 2022, arXiv:2112.10752; diffusers' autoencoder_kl.py.
    """

    def __init__(self, config: AutoencoderConfig, *, rngs: nnx.Rngs):
        latent = config.latent_channels
        self.encoder = Encoder(config, rngs=rngs)
        self.decoder = Decoder(config, rngs=rngs)
        self.quant_conv = Dense(2 * latent, 2 * latent, rngs=rngs) if config.use_quant_conv else None
        self.post_quant_conv = Dense(latent, latent, rngs=rngs) if config.use_post_quant_conv else None

    def encode(self, x: Float[Array, "b h w c"]) -> tuple[Float[Array, "b i j l"], Float[Array, "b i j l"]]:
        """The mean of the latents of images `x`, and the logarithm of their variance, clipped to [-30, 20]."""
        moments = self.encoder(x)
        if self.quant_conv is not None:
            moments = self.quant_conv(moments)
        mean, log_variance = jnp.split(moments, 2, axis=3)
        return mean, jnp.clip(log_variance, -30, 20)

    def decode(self, z: Float[Array, "b i j l"]) -> Float[Array, "b h w c"]:
        """The images of latents `z`, near [-1, 1] but not clipped."""
        z = z.astype(self.decoder.conv_in.kernel.dtype)
        return self.decoder(z if self.post_quant_conv is None else self.post_quant_conv(z))


class Encoder(nnx.Module):
    """Maps images to moments. Each level but the last halves the image."""

    def __init__(self, config: AutoencoderConfig, *, rngs: nnx.Rngs):
        widths, groups = config.block_out_channels, config.norm_num_groups
        self.conv_in = Conv(config.in_channels, widths[0], rngs=rngs)
        self.down_blocks = nnx.List(
            [
                DownBlock(before, width, config, last=i + 1 == len(widths), rngs=rngs)
                for i, (before, width) in enumerate(zip((widths[0], *widths[:-1]), widths, strict=True))
            ]
        )
        self.mid_block = MidBlock(widths[-1], config, rngs=rngs)
        self.conv_norm_out = GroupNorm(widths[-1], groups, rngs=rngs)
        self.conv_out = Conv(widths[-1], 2 * config.latent_channels, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j m"]:
        h = self.conv_in(x.astype(self.conv_in.kernel.dtype))
        for block in self.down_blocks:
            h = block(h)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(self.mid_block(h))))


class Decoder(nnx.Module):
    """Maps latents to images. Each level but the last doubles the image."""

    def __init__(self, config: AutoencoderConfig, *, rngs: nnx.Rngs):
        widths, groups = config.block_out_channels[::-1], config.norm_num_groups
        self.conv_in = Conv(config.latent_channels, widths[0], rngs=rngs)
        self.mid_block = MidBlock(widths[0], config, rngs=rngs)
        self.up_blocks = nnx.List(
            [
                UpBlock(before, width, config, last=i + 1 == len(widths), rngs=rngs)
                for i, (before, width) in enumerate(zip((widths[0], *widths[:-1]), widths, strict=True))
            ]
        )
        self.conv_norm_out = GroupNorm(widths[-1], groups, rngs=rngs)
        self.conv_out = Conv(widths[-1], config.out_channels, rngs=rngs)

    def __call__(self, z: Float[Array, "b i j l"]) -> Float[Array, "b h w c"]:
        h = self.mid_block(self.conv_in(z))
        for block in self.up_blocks:
            h = block(h)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(h)))


class DownBlock(nnx.Module):
    """Residual blocks, then a convolution that halves the image, padded below and on the right only."""

    def __init__(self, before: int, width: int, config: AutoencoderConfig, *, last: bool, rngs: nnx.Rngs):
        self.resnets = nnx.List(resnets(before, width, config.layers_per_block, config, rngs))
        halved = [] if last else [Resampling(width, stride=2, padding=((0, 1), (0, 1)), rngs=rngs)]
        self.downsamplers = nnx.List(halved)

    def __call__(self, h: Float[Array, "b r s v"]) -> Float[Array, "b i j w"]:
        for resnet in self.resnets:
            h = resnet(h)
        for halve in self.downsamplers:
            h = halve.conv(h)
        return h


class UpBlock(nnx.Module):
    """Residual blocks, one more than on the way down, then upsampling by 2 and a convolution."""

    def __init__(self, before: int, width: int, config: AutoencoderConfig, *, last: bool, rngs: nnx.Rngs):
        self.resnets = nnx.List(resnets(before, width, config.layers_per_block + 1, config, rngs))
        self.upsamplers = nnx.List([] if last else [Resampling(width, rngs=rngs)])

    def __call__(self, h: Float[Array, "b i j v"]) -> Float[Array, "b r s w"]:
        for resnet in self.resnets:
            h = resnet(h)
        for double in self.upsamplers:
            h = double.conv(upsampled(h))
        return h


class MidBlock(nnx.Module):
    """A residual block, attention over all pixels, and another residual block."""

    def __init__(self, width: int, config: AutoencoderConfig, *, rngs: nnx.Rngs):
        self.resnets = nnx.List(resnets(width, width, 2, config, rngs))
        attentive = config.mid_block_add_attention
        self.attentions = nnx.List([Attention(width, config.norm_num_groups, rngs=rngs)] if attentive else [])

    def __call__(self, h: Float[Array, "b r s w"]) -> Float[Array, "b r s w"]:
        h = self.resnets[0](h)
        for attend in self.attentions:
            h = attend(h)
        return self.resnets[1](h)


class Resampling(nnx.Module):
    """The convolution before or after a change of size, under its published name."""

    def __init__(self, width: int, *, rngs: nnx.Rngs, **shape: Any):
        self.conv = Conv(width, width, rngs=rngs, **shape)


def resnets(before: int, width: int, count: int, config: AutoencoderConfig, rngs: nnx.Rngs) -> list[nnx.Module]:
    """Residual blocks, the first of which changes the width."""
    return [Resnet(before if i == 0 else width, width, config.norm_num_groups, rngs=rngs) for i in range(count)]


class Resnet(nnx.Module):
    """`h + conv(silu(norm(conv(silu(norm(h))))))`. A dense layer is applied to the first h if the width changes."""

    def __init__(self, before: int, width: int, groups: int, *, rngs: nnx.Rngs):
        self.norm1 = GroupNorm(before, groups, rngs=rngs)
        self.conv1 = Conv(before, width, rngs=rngs)
        self.norm2 = GroupNorm(width, groups, rngs=rngs)
        self.conv2 = Conv(width, width, rngs=rngs)
        self.conv_shortcut = None if before == width else Dense(before, width, rngs=rngs)

    def __call__(self, h: Float[Array, "b r s v"]) -> Float[Array, "b r s w"]:
        change = self.conv1(jax.nn.silu(self.norm1(h)))
        change = self.conv2(jax.nn.silu(self.norm2(change)))
        return (h if self.conv_shortcut is None else self.conv_shortcut(h)) + change


class Attention(nnx.Module):
    """Attention over all pixels in one head, with a residual connection."""

    def __init__(self, width: int, groups: int, *, rngs: nnx.Rngs):
        self.group_norm = GroupNorm(width, groups, rngs=rngs)
        self.to_q = Dense(width, width, rngs=rngs)
        self.to_k = Dense(width, width, rngs=rngs)
        self.to_v = Dense(width, width, rngs=rngs)
        self.to_out = nnx.List([Dense(width, width, rngs=rngs)])

    def __call__(self, h: Float[Array, "b r s w"]) -> Float[Array, "b r s w"]:
        pixels = self.group_norm(h).reshape(len(h), -1, 1, h.shape[3])
        attended = attention(self.to_q(pixels), self.to_k(pixels), self.to_v(pixels))
        return h + self.to_out[0](attended.reshape(h.shape))
