"""What the published networks share beside `networks.layers`: layers that compute in the dtype of their parameters."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from guidance_jax.networks.convolution import conv_general_dilated


class Conv(nnx.Conv):
    """A convolution of images, padded as PyTorch does it: `padding` pixels on every side, half the kernel if not told.

    Args:
      width: Of the input, in channels.
      out: Of the output, in channels.
      kernel: The side of the kernel.
      stride: Of the output's pixels.
      padding: On all sides, or `((above, below), (left, right))`.
      rngs: For the parameters.
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
    """A norm of the last axis, in float32, given back in the input's dtype."""

    def __init__(self, width: int, epsilon: float = 1e-5, *, rngs: nnx.Rngs):
        super().__init__(width, epsilon=epsilon, dtype=jnp.float32, rngs=rngs)

    def __call__(self, h: Float[Array, "... w"]) -> Float[Array, "... w"]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().__call__(h).astype(h.dtype)


def upsampled(h: Float[Array, "b r s w"]) -> Float[Array, "b 2*r 2*s w"]:
    """Every pixel four times."""
    return h.repeat(2, axis=1).repeat(2, axis=2)
