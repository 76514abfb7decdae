"""Reference networks in Flax NNX, and the adapters from a module to a pure function.

A denoising network is called as `(x [B, ...], t [B], labels [B])`; the null label, `classes`, stands for no condition.
"""

from guidance_jax.networks.adapters import from_linen, from_nnx
from guidance_jax.networks.dit import DiT, Perturbed
from guidance_jax.networks.mlp import MLP, MLPClassifier
from guidance_jax.networks.unet import UNet

__all__ = ["MLP", "DiT", "MLPClassifier", "Perturbed", "UNet", "from_linen", "from_nnx"]
