"""Guidance whose scale depends on the frequency: over the spatial axes of `[B, T, C]`, `[B, H, W, C]`, ..."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array

from guidance_jax.base import Context, Guidance, Prediction
from guidance_jax.guidance.algebra import move, stateless
from guidance_jax.checks.old import check_numbers, told
from guidance_jax.scales import Scale, at

BINOMIAL = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)


def fdg(scales: Sequence[Scale] = (10.0, 5.0), *, cond: str = "cond", uncond: str = "uncond") -> Guidance:
    """Frequency-decoupled guidance: CFG with its own scale in each level of a Laplacian pyramid.

    `D = c + sum_l (scale_l - 1) L_l(c - u)`, the bands `L_l` summing to the identity.

    A level is halved by a 5-tap binomial filter, mirrored at the edges, and the mean of neighbours; doubled by linear
    interpolation and the same filter.

    Args:
      scales: of each level, from the highest frequencies to the lowest, `()` or `[B]`, or functions of the noise level; 1 is
        the conditional model.
      cond: the branch to go to.
      uncond: the branch to come from.

    Raises:
      ValueError: if a scale is neither `()` nor `[B]`, x has no spatial axes, or they do not halve that often.
      TypeError: if scales is no sequence.

    Example:
      >>> sorted(fdg((10.0, 5.0)).needs)
      ['cond', 'uncond']

    Reference: Sadat et al. 2025, arXiv:2506.19713, algorithm 1.
    """

    if not isinstance(scales, Sequence) or isinstance(scales, str):
        raise TypeError(f"fdg's scales must be of each level, (10.0, 5.0) say, got {told(scales)}.")
    if not scales:
        raise ValueError(f"fdg needs at least one scale, of the one level that is CFG, got {scales}.")

    def update(prediction: Prediction, context: Context) -> Prediction:
        c, band = context.branches[cond].x0, context.branches[cond].x0 - context.branches[uncond].x0
        axes, halvings = _spatial(c, "fdg"), 2 ** (len(scales) - 1)
        if any(c.shape[axis] % halvings or c.shape[axis] // halvings < (2 if halvings > 1 else 1) for axis in axes):
            raise ValueError(
                f"fdg with {len(scales)} levels halves every spatial axis {len(scales) - 1} times, down to 2 or more, but x "
                f"is {c.shape}."
            )
        bands = []
        for _ in scales[1:]:
            low = _halve(band, axes)
            bands.append(band - _double(low, axes))
            band = low
        bands.append(band)
        weights = [at(scale, context, "fdg's scale") - 1 for scale in scales]
        total = weights[-1] * bands[-1]
        for weight, high in zip(weights[-2::-1], bands[-2::-1], strict=True):
            total = weight * high + _double(total, axes)
        return move(prediction, prediction.x0 + (c - context.base.x0) + total, context.level)

    return stateless(update, (cond, uncond))


def fresca(
    scale: Scale,
    low: Scale = 1.0,
    high: Scale = 1.25,
    *,
    cutoff: float = 0.5,
    cond: str = "cond",
    uncond: str = "uncond",
) -> Guidance:
    """Frequency scaling: CFG by a difference whose low and high frequencies are scaled apart.

    `D = u + scale (low P d + high (d - P d))`, P keeping the frequencies below the cutoff along every spatial axis.

    Args:
      scale: `()` or `[B]`, or a function of the level.
      low: the factor of the low frequencies, likewise; with high = low = 1 this is CFG.
      high: the factor of the others, likewise.
      cutoff: as a share of the highest frequency, in (0, 1]; the released code counts 20 frequencies of 32 on either side.
      cond: the branch to go to.
      uncond: the branch to come from.

    Raises:
      ValueError: if a scale is neither `()` nor `[B]`, cutoff is outside (0, 1], or x has no spatial axes.

    Example:
      >>> sorted(fresca(7.5).needs)
      ['cond', 'uncond']

    Reference: Huang et al. 2025, arXiv:2504.02154, equation 7.
    """
    check_numbers(cutoff, "fresca's cutoff")
    if not 0 < cutoff <= 1:
        raise ValueError(f"fresca's cutoff must be in (0, 1], a share of the highest frequency, got {cutoff}.")

    def update(prediction: Prediction, context: Context) -> Prediction:
        u, d = context.branches[uncond].x0, context.branches[cond].x0 - context.branches[uncond].x0
        axes = _spatial(d, "fresca")
        passed = jnp.fft.fftn(d, axes=axes)
        for axis in axes:
            kept = jnp.abs(jnp.fft.fftfreq(d.shape[axis])) < cutoff / 2
            passed = passed * kept.astype(passed.dtype).reshape([-1 if a == axis else 1 for a in range(d.ndim)])
        lows = jnp.fft.ifftn(passed, axes=axes).real
        w, l, h = (at(s, context, f"fresca's {n}") for s, n in ((scale, "scale"), (low, "low"), (high, "high")))
        guided = u + w * (l * lows + h * (d - lows))
        return move(prediction, prediction.x0 + (guided - context.base.x0), context.level)

    return stateless(update, (cond, uncond))


def _spatial(x: Array, name: str) -> tuple[int, ...]:
    """The axes between the batch and the channels."""
    if x.ndim < 3:
        raise ValueError(f"{name} works on frequencies and needs [B, T, C] or [B, H, W, C], but x is {x.shape}.")
    return tuple(range(1, x.ndim - 1))


def _blur(x: Array, axes: tuple[int, ...]) -> Array:
    for axis in axes:
        padded = jnp.pad(x, [(2, 2) if a == axis else (0, 0) for a in range(x.ndim)], mode="reflect")
        taps = [w * jax.lax.slice_in_dim(padded, i, i + x.shape[axis], axis=axis) for i, w in enumerate(BINOMIAL)]
        x = functools.reduce(jnp.add, taps)
    return x


def _halve(x: Array, axes: tuple[int, ...]) -> Array:
    x = _blur(x, axes)
    for axis in axes:
        x = x.reshape(*x.shape[:axis], x.shape[axis] // 2, 2, *x.shape[axis + 1 :]).mean(axis + 1)
    return x


def _double(x: Array, axes: tuple[int, ...]) -> Array:
    shape = tuple(2 * n if axis in axes else n for axis, n in enumerate(x.shape))
    return _blur(jax.image.resize(x, shape, "linear"), axes)
