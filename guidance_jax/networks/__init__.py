"""Reference networks in Flax NNX, and adapters from a Flax module to a pure function.

A denoising network takes `(x [B, ...], t [B], labels [B])`. The label `classes` is the null label: it means no condition. A
classifier takes `(x, t)`. One frozen dataclass holds all sizes of a network for images.
"""

from guidance_jax.networks.adapters import from_linen, from_nnx
from guidance_jax.networks.classifier import UNetClassifier
from guidance_jax.networks.convolution import conv_general_dilated
from guidance_jax.networks.dit import DiT, DiTConfig, Perturbed, Tokens
from guidance_jax.networks.mlp import MLP, MLPClassifier
from guidance_jax.networks.unet import UNet, UNetConfig

__all__ = [
    "MLP",
    "DiT",
    "DiTConfig",
    "MLPClassifier",
    "Perturbed",
    "Tokens",
    "UNet",
    "UNetClassifier",
    "UNetConfig",
    "conv_general_dilated",
    "from_linen",
    "from_nnx",
]
