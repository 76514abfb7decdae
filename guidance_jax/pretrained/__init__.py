"""Published networks: their weights read from the published files, their outputs those of the published code.

Each family is a file of NNX modules whose attributes bear the published names. A module computes in the dtype of its
parameters, float32 or bfloat16; `networks.from_nnx` makes a pure function of it.
"""

from guidance_jax.pretrained.files import Tensor, from_arrays, open_weights
from guidance_jax.pretrained.weights import fully_sharded, load, parameter_count

__all__ = ["Tensor", "from_arrays", "fully_sharded", "load", "open_weights", "parameter_count"]
