"""Published networks, with weights from the published files and the outputs of the published code.

Each family is a file of NNX modules whose attributes have the published names. A module computes in the dtype of its
parameters, float32 or bfloat16. `networks.from_nnx` turns it into a pure function.
"""

from guidance_jax.pretrained import adm, autoencoder, clip, dit, schedulers, text_to_image, tokens, unet
from guidance_jax.pretrained.files import Tensor, from_arrays, open_weights
from guidance_jax.pretrained.weights import abstract, fully_sharded, load, parameter_count, published

__all__ = [
    "Tensor",
    "abstract",
    "adm",
    "autoencoder",
    "clip",
    "dit",
    "from_arrays",
    "fully_sharded",
    "load",
    "open_weights",
    "parameter_count",
    "published",
    "schedulers",
    "text_to_image",
    "tokens",
    "unet",
]
