"""Layers that the published networks share beside `networks.layers`. They compute in the dtype of their parameters."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from guidance_jax.networks.convolution import conv_general_dilated


class Conv(nnx.Conv):
    """A convolution of images with the padding of PyTorch: `padding` pixels on every side, by default half the kernel.

    Args:
      width: The channels of the input.
      out: The channels of the output.
      kernel: The side of the kernel.
      stride: The stride of the output.
      padding: The padding on all sides, or `((above, below), (left, right))`.
      rngs: The random keys that initialise the parameters.
    """

    def __init__(
        self,
        width: int,
        out: int,
        kernel: int = 3,
        stride: int = 1,
        padding: int | tuple[tuple[int, int], tuple[int, int]] | None = None,
        *,
        rngs: nnx.Rngs,
    ):
        each = kernel // 2 if padding is None else padding
        around = each if isinstance(each, tuple) else ((each, each), (each, each))
        how = {"strides": stride, "padding": around, "conv_general_dilated": conv_general_dilated}
        super().__init__(width, out, (kernel, kernel), **how, rngs=rngs)


class LayerNorm(nnx.LayerNorm):
    """A layer norm over the last axis, in float32. Its output has the input's dtype."""

    def __init__(self, width: int, epsilon: float = 1e-5, *, rngs: nnx.Rngs):
        super().__init__(width, epsilon=epsilon, dtype=jnp.float32, rngs=rngs)

    def __call__(self, h: Float[Array, "... w"]) -> Float[Array, "... w"]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().__call__(h).astype(h.dtype)


def upsampled(h: Float[Array, "b r s w"]) -> Float[Array, "b 2*r 2*s w"]:
    """Each pixel repeated as a square of 2 x 2."""
    return h.repeat(2, axis=1).repeat(2, axis=2)
