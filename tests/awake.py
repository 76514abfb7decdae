"""Networks whose every layer has an effect.

Many layers start at zero, and JAX would compile an initialiser for each shape. So NumPy draws the parameters.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from guidance_jax import networks, pretrained


def drawn(params: Any, seed: int = 0, dtype: Any = jnp.float32) -> Any:
    """Parameters of the shapes of `params`, drawn by NumPy: gains around 1, biases around 0, kernels of unit gain."""
    rng = np.random.default_rng(seed)

    def draw(path: Any, leaf: Any) -> jax.Array:
        spread = 0.2 if len(leaf.shape) < 2 else np.prod(leaf.shape[:-1]) ** -0.5
        gain = any(getattr(key, "key", getattr(key, "name", "")) in ("gain", "scale") for key in path)
        return jnp.asarray(gain + spread * rng.normal(size=leaf.shape), dtype)

    return jax.tree_util.tree_map_with_path(draw, params)


def awake(build: Any, method: str = "__call__", dtype: Any = jnp.float32) -> tuple[Any, Any]:
    """The compiled function of the network `build(rngs=...)`, and drawn parameters."""
    apply, params = networks.from_nnx(pretrained.abstract(build), method)
    return jax.jit(apply), drawn(params, dtype=dtype)


def module(build: Any, dtype: Any = jnp.float32) -> Any:
    """The network `build(rngs=...)` with drawn parameters."""
    graph, state = nnx.split(pretrained.abstract(build))
    return nnx.merge(graph, drawn(state, dtype=dtype))
