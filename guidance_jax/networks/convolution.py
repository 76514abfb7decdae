"""Convolutions whose gradient is as fast within a scan as outside."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero


def conv_general_dilated(
    lhs: Array, rhs: Array, window_strides: Sequence[int], padding: Any, *, dimension_numbers: Any = None, **options: Any
) -> Array:
    """`jax.lax.conv_general_dilated` with a gradient in `lhs` that runs at full speed on CPUs, also within loops.

    Inside a scan, XLA for CPUs convolves several times slower unless the kernel has the axis order `HWIO` in memory. The
    gradient in `lhs` is a convolution with the input and output axes of the kernel swapped. This function therefore swaps these
    axes in memory before it takes the derivative, `conv(dx, kernel)`. The transpose of this derivative, which is the gradient,
    then has its kernel in the order `HWIO` if the convolution has, as in Flax. Values and derivatives of any order are the
    same.

    Args:
      lhs: The images, `[B, H, W, C]` with the `dimension_numbers` of Flax, or any other layout of `jax.lax`.
      rhs: The kernel, `[h, w, C, D]` with the `dimension_numbers` of Flax.
      window_strides: The strides of the output.
      padding: The padding of the input.
      dimension_numbers: The layouts of input, kernel and output.
      **options: The other options of `jax.lax.conv_general_dilated`.

    Returns:
      The convolution, as from `jax.lax.conv_general_dilated`.

    Example:
      >>> from flax import nnx
      >>> from flax import nnx
      >>> convolve = gj.networks.conv_general_dilated
      >>> layer = nnx.Conv(3, 8, (3, 3), conv_general_dilated=convolve, rngs=nnx.Rngs(0))
      >>> print(layer(jnp.ones((2, 5, 7, 3))).shape)
      (2, 5, 7, 8)
    """
    numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    outward, inward, *spatial = numbers.rhs_spec
    swapped = lax.ConvDimensionNumbers(numbers.lhs_spec, (inward, outward, *spatial), numbers.out_spec)
    of_lax = functools.partial(lax.conv_general_dilated, window_strides=window_strides, padding=padding, **options)

    @jax.custom_jvp
    def convolve(x: Array, kernel: Array) -> Array:
        return of_lax(x, kernel, dimension_numbers=numbers)

    def derivative(primals: tuple[Array, Array], tangents: tuple[Any, Any]) -> tuple[Array, Any]:
        (x, kernel), (dx, dkernel) = primals, tangents
        parts = []
        if not isinstance(dx, SymbolicZero):
            parts.append(of_lax(dx, kernel.swapaxes(inward, outward), dimension_numbers=swapped))
        if not isinstance(dkernel, SymbolicZero):
            parts.append(of_lax(x, dkernel, dimension_numbers=numbers))
        return convolve(x, kernel), sum(parts)

    convolve.defjvp(derivative, symbolic_zeros=True)
    return convolve(lhs, rhs)
