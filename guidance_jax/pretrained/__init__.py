"""Published networks: their weights read from the published files, their outputs those of the published code.

Each family is a file of NNX modules whose attributes bear the published names. A module computes in the dtype of its
parameters, float32 or bfloat16; `networks.from_nnx` makes a pure function of it.
"""

from guidance_jax.pretrained import adm as adm
from guidance_jax.pretrained import autoencoder as autoencoder
from guidance_jax.pretrained import clip as clip
from guidance_jax.pretrained import dit as dit
from guidance_jax.pretrained import schedulers as schedulers
from guidance_jax.pretrained import text_to_image as text_to_image
from guidance_jax.pretrained import tokens as tokens
from guidance_jax.pretrained import unet as unet
from guidance_jax.pretrained.files import Tensor, from_arrays, open_weights
from guidance_jax.pretrained.weights import abstract, fully_sharded, load, parameter_count

__all__ = [
    "Tensor",
    "abstract",
    "from_arrays",
    "fully_sharded",
    "load",
    "open_weights",
    "parameter_count",
]
