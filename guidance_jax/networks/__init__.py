"""Reference networks in Flax NNX, and the adapters from a module to a pure function.

A denoising network is called as `(x [B, ...], t [B], labels [B])`; the null label, `classes`, stands for no condition. A
classifier is called as `(x, t)`. A network for images is built of one frozen dataclass that holds all its sizes.
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
