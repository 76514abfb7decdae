"""Guidance with scales that depend on the spatial frequency, for `[B, T, C]`, `[B, H, W, C]`, ..."""

import functools
from collections.abc import Sequence
from typing import Annotated

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import ArrayLike
from typing_extensions import TypeAliasType

from guidance_jax.base import Context, Prediction
from guidance_jax.checks.door import part, rule
from guidance_jax.checks.kinds import Branch, Scale
from guidance_jax.checks.numbers import number
from guidance_jax.checks.outcomes import check_halvings, check_spatial
from guidance_jax.guidance.formula import stateless
from guidance_jax.guidance.scales import at
from guidance_jax.interfaces import Guidance

BINOMIAL = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)
Cutoff = TypeAliasType("Cutoff", Annotated[ArrayLike, number("a fraction of the highest frequency", high=1, above=0)])
"""One number in (0, 1]."""


@part(rule("scales must hold at least one scale; use cfg(scale) for one band", lambda scales: len(scales) > 0))
def fdg(scales: Sequence[Scale] = (10.0, 5.0), *, cond: Branch = "cond", uncond: Branch = "uncond") -> Guidance:
    """Frequency-decoupled guidance: CFG with one scale per level of a Laplacian pyramid.

    `D = c + sum_l (scale_l - 1) L_l(c - u)`. The sum of the bands `L_l` is the identity.

    Downsampling is a 5-tap binomial filter, mirrored at the edges, followed by the mean of neighbours. Upsampling is linear
    interpolation, followed by the same filter.

    Args:
      scales: One scale per level, from the highest frequencies to the lowest. 1 is the conditional model.
      cond: The branch to move towards.
      uncond: The branch to move away from.

    Raises:
      ValueError: If a scale is neither `()` nor `[B]`, or there is no scale. When called, if x has no spatial axes, or their
        sizes cannot be halved once per level after the first.
      TypeError: If scales is neither a list nor a tuple.

    Example:
      >>> sorted(gj.fdg((10.0, 5.0)).needs)
      ['cond', 'uncond']

    Reference: Sadat et al. 2025, arXiv:2506.19713, algorithm 1.
    """

    def update(d: Prediction, context: Context) -> Array:
        c, u = context[cond].x0, context[uncond].x0
        check_halvings(c, len(scales))
        weights = [at(scale, context) - 1 for scale in scales]
        bands = _pyramid(c - u, len(scales))
        total = weights[-1] * bands[-1]
        for weight, band in zip(weights[-2::-1], bands[-2::-1], strict=True):
            total = weight * band + _double(total)
        return d.x0 + (c - context.base.x0) + total

    return stateless(update, (cond, uncond))


@part()
def fresca(
    scale: Scale,
    low: Scale = 1.0,
    high: Scale = 1.25,
    *,
    cutoff: Cutoff = 0.5,
    cond: Branch = "cond",
    uncond: Branch = "uncond",
) -> Guidance:
    """Frequency scaling: CFG with separate factors for the low and high frequencies of the difference.

    `D = u + scale (low P d + high (d - P d))`. P keeps the frequencies below the cutoff along every spatial axis.

    Args:
      scale: With low = high = 1, a scale of 1 is the conditional model.
      low: The factor of the low frequencies. With low = high = 1 this is CFG.
      high: The factor of the high frequencies.
      cutoff: The cutoff as a fraction of the highest frequency, in (0, 1]. The released code keeps 20 of 32 frequencies on each
        side.
      cond: The branch to move towards.
      uncond: The branch to move away from.

    Raises:
      ValueError: If a scale is neither `()` nor `[B]`, or cutoff is outside (0, 1]. When called, if x has no spatial axes.

    Example:
      >>> sorted(gj.fresca(7.5).needs)
      ['cond', 'uncond']

    Reference: Huang et al. 2025, arXiv:2504.02154, equation 7.
    """

    def update(prediction: Prediction, context: Context) -> Array:
        c, u = context[cond].x0, context[uncond].x0
        check_spatial(c, "fresca")
        w, l, h = at(scale, context), at(low, context), at(high, context)
        d = c - u
        lows = _low_pass(d, cutoff)
        guided = u + w * (l * lows + h * (d - lows))
        return prediction.x0 + (guided - context.base.x0)

    return stateless(update, (cond, uncond))


def _low_pass(x: Array, cutoff: ArrayLike) -> Array:
    """x with only the frequencies below the cutoff, a fraction of the highest frequency, along every spatial axis."""
    axes = _spatial(x)
    passed = jnp.fft.fftn(x, axes=axes)
    for axis in axes:
        frequency = jnp.abs(jnp.fft.fftfreq(x.shape[axis]))
        kept = frequency < jnp.asarray(cutoff, frequency.dtype) / 2
        passed = passed * kept.astype(passed.dtype).reshape([-1 if a == axis else 1 for a in range(x.ndim)])
    return jnp.fft.ifftn(passed, axes=axes).real


def _pyramid(x: Array, levels: int) -> list[Array]:
    """A Laplacian pyramid, from the highest frequencies to the lowest."""
    bands = []
    for _ in range(levels - 1):
        low = _halve(x)
        bands.append(x - _double(low))
        x = low
    return [*bands, x]


def _spatial(x: Array) -> range:
    """The axes between the batch and the channels."""
    return range(1, x.ndim - 1)


def _blur(x: Array) -> Array:
    for axis in _spatial(x):
        padded = jnp.pad(x, [(2, 2) if a == axis else (0, 0) for a in range(x.ndim)], mode="reflect")
        taps = [w * jax.lax.slice_in_dim(padded, i, i + x.shape[axis], axis=axis) for i, w in enumerate(BINOMIAL)]
        x = functools.reduce(jnp.add, taps)
    return x


def _halve(x: Array) -> Array:
    x = _blur(x)
    for axis in _spatial(x):
        x = x.reshape(*x.shape[:axis], x.shape[axis] // 2, 2, *x.shape[axis + 1 :]).mean(axis + 1)
    return x


def _double(x: Array) -> Array:
    shape = tuple(2 * n if axis in _spatial(x) else n for axis, n in enumerate(x.shape))
    return _blur(jax.image.resize(x, shape, "linear"))
