"""What the published networks share beside `networks.layers`: layers that compute in the dtype of their parameters."""

import math

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


class Conv(nnx.Conv):
    """A convolution of images, padded as PyTorch does it: `padding` pixels on every side, half the kernel if not told.

    Args:
      width: of the input, in channels.
      out: of the output, in channels.
      kernel: the side of the kernel.
      stride: of the output's pixels.
      padding: on all sides, or `((above, below), (left, right))`.
      rngs: for the parameters.
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
        super().__init__(width, out, (kernel, kernel), strides=stride, padding=around, rngs=rngs)


class LayerNorm(nnx.LayerNorm):
    """A norm of the last axis, in float32, given back in the input's dtype."""

    def __init__(self, width: int, epsilon: float = 1e-5, *, rngs: nnx.Rngs):
        super().__init__(width, epsilon=epsilon, dtype=jnp.float32, rngs=rngs)

    def __call__(self, h: Float[Array, "... w"]) -> Float[Array, "... w"]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().__call__(h).astype(h.dtype)


def waves(t: Float[Array, "b"], width: int, *, sin_first: bool = False, shift: float = 0.0) -> Float[Array, "b w"]:
    """Sinusoids of the time in float32, `width` of them: cosines, then sines, of `t 10000^(-i / (half - shift))`.

    Args:
      t: the time as the network was trained with it, 0..999.
      width: even.
      sin_first: the sines before the cosines.
      shift: 1 reaches the lowest frequency, 1 / 10000, exactly.

    Reference: Ho et al. 2020, arXiv:2006.11239 (released code).
    """
    half = width // 2
    frequencies = jnp.exp(-math.log(10_000) * jnp.arange(half, dtype=jnp.float32) / (half - shift))
    angles = t.astype(jnp.float32)[:, None] * frequencies[None]
    parts = [jnp.cos(angles), jnp.sin(angles)]
    return jnp.concatenate(parts[::-1] if sin_first else parts, axis=1)


def upsampled(h: Float[Array, "b r s w"]) -> Float[Array, "b 2*r 2*s w"]:
    """Every pixel four times."""
    return h.repeat(2, axis=1).repeat(2, axis=2)
