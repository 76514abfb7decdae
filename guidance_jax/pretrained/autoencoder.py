"""The autoencoder of latent diffusion: images to latents an eighth of their size and back, by diffusers' published names."""

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
"""What the attention's layers are called in older files, Stable Diffusion 1.5's among them."""


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig:
    """An autoencoder's sizes, by the names of its `config.json`; the defaults are Stable Diffusion's.

    A diffusion model's latents are `(z - shift_factor) * scaling_factor`: `encode` and `decode` speak of z alone.

    Example:
      >>> gj.pretrained.autoencoder.AutoencoderConfig().block_out_channels
      (128, 256, 512, 512)

    Reference: Rombach et al. 2022, arXiv:2112.10752.
    """

    in_channels: int = 3
    """Of the images that are encoded."""
    out_channels: int = 3
    """Of the images that are decoded."""
    latent_channels: int = 4
    """Of z."""
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    """The widths, from the image's size down; each but the last halves the size."""
    layers_per_block: int = 2
    """Residual blocks of each width on the way down; one more on the way up."""
    norm_num_groups: int = 32
    """Into which the norms divide every width."""
    mid_block_add_attention: bool = True
    """Whether there is attention at the latents' size."""
    use_quant_conv: bool = True
    """Whether a dense layer of each pixel follows the encoder."""
    use_post_quant_conv: bool = True
    """Whether one comes before the decoder."""
    scaling_factor: float = 0.18215
    """By which z is multiplied for a diffusion model."""
    shift_factor: float = 0.0
    """What is taken from z before that."""

    @property
    def factor(self) -> int:
        """How many pixels of an image a pixel of z is wide."""
        return 2 ** (len(self.block_out_channels) - 1)


LEFT_OUT = {"block_out_channels": (64,), "layers_per_block": 1}
"""What diffusers takes for a setting that a `config.json` leaves out, where that is not Stable Diffusion's."""
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
"""Of what they must be."""
WITHOUT_EFFECT = {"sample_size", "force_upcast"}
"""What is the caller's to decide here: tiling and precision."""


def autoencoder_config(published: Mapping[str, Any]) -> AutoencoderConfig:
    """The configuration that a `config.json` of diffusers' AutoencoderKL describes.

    Args:
      published: The file, parsed.

    Raises:
      ValueError: Naming a setting that is not supported.

    Example:
      >>> gj.pretrained.autoencoder.autoencoder_config({"scaling_factor": 0.13025}).scaling_factor
      0.13025

    Reference: Rombach et al. 2022, arXiv:2112.10752; diffusers' autoencoder_kl.py.
    """
    fields = {field.name for field in dataclasses.fields(AutoencoderConfig)}
    check_settings(published, KINDS)
    for name, value in published.items():
        if name in SUPPORTED:
            told = set(value) if isinstance(value, list | tuple) else {value}
            if told - SUPPORTED[name]:
                raise ValueError(f"an autoencoder with {name}={value!r} is not supported, only with {SUPPORTED[name]}.")
        elif name not in fields | WITHOUT_EFFECT and not name.startswith("_"):
            raise ValueError(f"the setting {name}={value!r} of an autoencoder is not known here.")
    settings = LEFT_OUT | {name: value for name, value in published.items() if name in fields}
    return AutoencoderConfig(
        **settings
        | {"block_out_channels": tuple(settings["block_out_channels"]), "shift_factor": settings.get("shift_factor") or 0.0}
    )


def current_name(name: str) -> str:
    """A weight's name in today's files, from one in any: `rename=current_name` of `pretrained.load`.

    Args:
      name: As in the file.

    Example:
      >>> gj.pretrained.autoencoder.current_name("decoder.mid_block.attentions.0.proj_attn.weight")
      'decoder.mid_block.attentions.0.to_out.0.weight'

    Reference: Rombach et al. 2022, arXiv:2112.10752; the names, diffusers' modeling_utils.py.
    """
    if ".attentions." not in name:
        return name
    return ".".join(OLDER.get(part, part) for part in name.split("."))


class AutoencoderKL(nnx.Module):
    """Images `[B, H, W, 3]` in [-1, 1] to the mean and log variance of latents, and latents to images.

    It computes in the dtype of its parameters and answers in it. H and W are multiples of `2 ** (len(block_out_channels) - 1)`.

    Args:
      config: Its sizes.
      rngs: For the parameters.

    Example:
      >>> config = gj.pretrained.autoencoder.AutoencoderConfig(block_out_channels=(8, 8), norm_num_groups=4)
      >>> network = gj.pretrained.autoencoder.AutoencoderKL(config, rngs=nnx.Rngs(0))
      >>> mean, log_variance = network.encode(jnp.zeros((1, 8, 12, 3)))
      >>> print(mean.shape, network.decode(mean).shape)
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
        """The mean of the latents of images `x` and the logarithm of their variance, which is kept in [-30, 20]."""
        moments = self.encoder(x)
        if self.quant_conv is not None:
            moments = self.quant_conv(moments)
        mean, log_variance = jnp.split(moments, 2, axis=3)
        return mean, jnp.clip(log_variance, -30, 20)

    def decode(self, z: Float[Array, "b i j l"]) -> Float[Array, "b h w c"]:
        """The images of latents `z`, near [-1, 1] but not clipped to it."""
        z = z.astype(self.decoder.conv_in.kernel.dtype)
        return self.decoder(z if self.post_quant_conv is None else self.post_quant_conv(z))


class Encoder(nnx.Module):
    """Images to moments, each of the widths but the last halving them."""

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
    """Latents to images, each of the widths but the first doubling them."""

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
    """Residual blocks, then half the size; padded below and on the right alone."""

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
    """Residual blocks, one more than on the way down, then twice the size."""

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
    """A residual block, attention over all pixels, another residual block."""

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
    """The convolution before or after a change of size, under the name it was published with."""

    def __init__(self, width: int, *, rngs: nnx.Rngs, **shape: Any):
        self.conv = Conv(width, width, rngs=rngs, **shape)


def resnets(before: int, width: int, count: int, config: AutoencoderConfig, rngs: nnx.Rngs) -> list[nnx.Module]:
    """Residual blocks, the first of which changes the width."""
    return [Resnet(before if i == 0 else width, width, config.norm_num_groups, rngs=rngs) for i in range(count)]


class Resnet(nnx.Module):
    """`h + conv(silu(norm(conv(silu(norm(h))))))`, the first h through a layer of its own where the width changes."""

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
    """Attention of every pixel to every other, in one head, added to what came in."""

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
