"""The published networks at full size, with random weights that are made quickly in their dtype."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from guidance_jax import networks, pretrained

POOL = 1_000_003
"""The number of different random values of one scale. A prime, so that rows of a weight differ."""


def described(build: Callable[[nnx.Rngs], nnx.Module], dtype: str) -> tuple[Callable[..., Any], Any]:
    """A network as `apply(params, *inputs)`, and the shapes of its parameters in a dtype. Nothing is initialised.

    Args:
      build: Makes the module from random keys.
      dtype: The dtype of the parameters.
    """
    apply, shapes = networks.from_nnx(pretrained.abstract(build))
    return apply, jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), shapes)


def count(shapes: Any) -> int:
    """The number of parameters."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def drawn(shapes: Any, seed: int = 0) -> Any:
    """Random parameters: normal weights over the square root of the inputs, gains 1 and biases 0.

    The values of a weight repeat after `POOL` numbers. 860 million different ones would take longer to draw than the network
    takes to sample.

    Args:
      shapes: Shapes and dtypes of the parameters, from `described`.
      seed: The seed of the values.
    """
    normal = np.random.default_rng(seed).standard_normal(POOL, np.float32)
    pools: dict[Any, np.ndarray] = {}

    def values(path: tuple[Any, ...], leaf: Any) -> jax.Array:
        if len(leaf.shape) < 2:
            return jnp.full(leaf.shape, path[-1] != "bias", leaf.dtype)
        scale = 1 / math.sqrt(math.prod(leaf.shape[:-1]))
        if (scale, leaf.dtype) not in pools:
            pools[scale, leaf.dtype] = (scale * normal).astype(leaf.dtype)
        return jnp.asarray(np.resize(pools[scale, leaf.dtype], leaf.shape))

    leaves = [(path, one.replace(values(path, one.get_value()))) for path, one in nnx.to_flat_state(shapes)]
    return nnx.from_flat_state(leaves)
