"""Convolutions whose gradient is as fast within a scan as it is outside."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero


def conv_general_dilated(
    lhs: Array, rhs: Array, window_strides: Sequence[int], padding: Any, *, dimension_numbers: Any = None, **options: Any
) -> Array:
    """`jax.lax.conv_general_dilated`, with a gradient in `lhs` that XLA for CPUs runs at its full speed within loops too.

    The derivative in `lhs`, `conv(dx, kernel)`, is taken with the kernel's axes for input and output swapped in memory, so that
    its transpose, the gradient, has them in the order `HWIO` where the convolution has it, as Flax's have. XLA puts no others
    into that order within the body of a scan, and convolves them several times slower: so it was with guidance by the gradient
    of a convolutional network. Values and derivatives, of any order, are the same.

    Args:
      lhs: Images, `[B, H, W, C]` where `dimension_numbers` are Flax's, or of any other shape that lax takes.
      rhs: The kernel, then `[h, w, C, D]`.
      window_strides: Of the output.
      padding: Of the input.
      dimension_numbers: Which axis is what.
      **options: The others.

    Example:
      >>> own = nnx.Conv(3, 8, (3, 3), conv_general_dilated=gj.networks.conv_general_dilated, rngs=nnx.Rngs(0))
      >>> print(own(jnp.ones((2, 5, 7, 3))).shape)
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
