"""Shapers: guidances that modify the change which the sources of a chain have made. Where guidance is off, they do nothing.

In the formulae, `change` is the x0 of the prediction minus the x0 of the base. All sums are over one sample.
"""

from collections.abc import Callable
from typing import Annotated

import jax.numpy as jnp
from jax import Array
from jaxtyping import ArrayLike
from typing_extensions import TypeAliasType

from guidance_jax.arrays import at_least_float32, divide, inner, norm, sqrt
from guidance_jax.base import Context, Prediction
from guidance_jax.checks.door import part, rule
from guidance_jax.checks.kinds import BoundScale, FractionScale, Level, Scale, scale_kind
from guidance_jax.checks.outcomes import check_spread
from guidance_jax.guidance.formula import follow, stateless
from guidance_jax.guidance.scales import at
from guidance_jax.interfaces import Guidance

Percentile = TypeAliasType("Percentile", Annotated[ArrayLike | Level, scale_kind("a percentile", low=0, high=100)])
"""As `Scale`, in [0, 100]."""
Limit = TypeAliasType("Limit", Annotated[ArrayLike | Level, scale_kind(low=0, high=jnp.inf, above=0)])
"""As `Scale`, positive. Infinity means no limit."""


@part()
def rescale(fraction: FractionScale) -> Guidance:
    """Rescale a guided prediction towards the standard deviation of the base prediction.

    `x0 <- fraction x0 std(base) / std(x0) + (1 - fraction) x0`. std is over all axes of one sample, with n - 1.

    It is made for images, or other samples of many entries. In a sample of few entries the deviation can come close to 0, and
    the result then becomes arbitrarily large: x0 = (1.5, 1.501) has std 0.0007. For points in the plane use `clip_norm`.

    It acts on x0. The paper acts on v: use `in_space("v", rescale(0.7))`. It needs no branch. Where guidance is off, it changes
    nothing. A sample whose entries are equal up to rounding is not rescaled.

    Args:
      fraction: 0 changes nothing. 1 fully restores the standard deviation of the base. The paper uses 0.7.

    Raises:
      ValueError: If fraction is neither `()` nor `[B]`, or outside [0, 1]. When called, if a sample has only one element.

    Example:
      >>> denoise = gj.denoiser(lambda x, t, c: 0 * x + c, predicts="x0")  # predicts its condition
      >>> two = gj.branches(denoise, cond=jnp.array([[1.0, -1.0]]), uncond=jnp.array([[0.0, 0.0]]))
      >>> path = gj.levels(gj.schedules.flow(), 4, gj.spacings.trailing())
      >>> keys = jax.random.split(jax.random.key(0), 1)
      >>> print(gj.sample(keys, two, gj.chain(gj.cfg(7.5), gj.rescale(0.7)), gj.ddim(), path, (2,)))
      [[ 2.95 -2.95]]

    Reference: Lin et al. 2024, arXiv:2305.08891, equations 15 and 16.
    """

    def update(d: Prediction, context: Context) -> Array:
        check_spread(d.x0)
        phi, spread = at(fraction, context), _std(d.x0)
        # A constant sample cannot be rescaled. Rounding of its mean leaves a deviation of a few units in the last place.
        rounding = 8 * float(jnp.finfo(at_least_float32(d.x0.dtype)).eps) * _largest(d.x0)
        ratio = jnp.where(spread > rounding, divide(_std(context.base.x0), spread), 1)
        return d.x0 * (phi * ratio + (1 - phi))

    return stateless(update, shapes=True)


@part()
def momentum(beta: Scale) -> Guidance:
    """Replace the change by its weighted running sum.

    `m <- change + beta m`, `change <- m`

    The sum starts at the first evaluation of the run. Inside `during`, it starts at the first evaluation in the interval.

    Args:
      beta: The weight of the past. 0 changes nothing. A negative number damps persistent changes.

    Raises:
      ValueError: If beta is neither `()` nor `[B]`, or not finite.

    Example:
      >>> print(gj.chain(gj.cfg(4.0), gj.momentum(-0.5)).init(jnp.ones((1, 2)))[1])
      [[0. 0.]]

    Reference: Sadat et al. 2024, arXiv:2410.02416, section 4.
    """

    def update(d: Prediction, m: Array, context: Context) -> tuple[Prediction, Array]:
        change = d.x0 - context.base.x0
        m = change + at(beta, context) * m
        return follow(context.base.x0 + m, d, context.level), m

    return Guidance(frozenset(), jnp.zeros_like, update, shapes=True)


@part()
def clip_norm(max_norm: BoundScale) -> Guidance:
    """Clip the norm of the change.

    `change <- change min(1, max_norm / |change|)`

    Args:
      max_norm: The maximum norm, in the units of x0. Infinity changes nothing.

    Raises:
      ValueError: If max_norm is neither `()` nor `[B]`, or negative.

    Example:
      >>> denoise = gj.denoiser(lambda x, t, c: 0 * x + c, predicts="x0")  # predicts its condition
      >>> two = gj.branches(denoise, cond=jnp.array([[1.0, 1.0]]), uncond=jnp.array([[0.0, 1.0]]))
      >>> path = gj.levels(gj.schedules.flow(), 4, gj.spacings.trailing())
      >>> keys = jax.random.split(jax.random.key(0), 1)
      >>> guidance = gj.chain(gj.cfg(4.0), gj.clip_norm(2.5))
      >>> print(gj.sample(keys, two, guidance, gj.ddim(), path, (2,)))
      [[3.5 1. ]]

    Reference: Sadat et al. 2024, arXiv:2410.02416, section 4.
    """

    def formula(change: Array, base: Array, r: Array) -> Array:
        length = norm(change)
        return change * jnp.where(length > r, divide(r, length), 1)

    return _shaper(formula, r=max_norm)


@part()
def project(eta: Scale = 0.0) -> Guidance:
    """Remove the component of the change parallel to the base.

    `change <- change - (1 - eta) <change, base> / |base|^2 base`

    Args:
      eta: The fraction of the parallel component that is kept. 1 changes nothing.

    Raises:
      ValueError: If eta is neither `()` nor `[B]`, or not finite.

    Example:
      >>> denoise = gj.denoiser(lambda x, t, c: 0 * x + c, predicts="x0")  # predicts its condition
      >>> two = gj.branches(denoise, cond=jnp.array([[1.0, 0.0]]), uncond=jnp.array([[0.0, -1.0]]))
      >>> path = gj.levels(gj.schedules.flow(), 4, gj.spacings.trailing())
      >>> keys = jax.random.split(jax.random.key(0), 1)
      >>> print(gj.sample(keys, two, gj.chain(gj.cfg(4.0), gj.project()), gj.ddim(), path, (2,)))
      [[1. 3.]]

    Reference: Sadat et al. 2024, arXiv:2410.02416, section 4.
    """

    def formula(change: Array, base: Array, eta: Array) -> Array:
        parallel = divide(inner(change, base), inner(base, base)) * base
        return change - (1 - eta) * parallel

    return _shaper(formula, eta=eta)


@part()
def amplify(scale: Scale) -> Guidance:
    """Multiply the change by a number.

    `change <- scale change`

    Args:
      scale: The factor. 1 changes nothing.

    Raises:
      ValueError: If scale is neither `()` nor `[B]`, or not finite.

    Example:
      >>> denoise = gj.denoiser(lambda x, t, c: 0 * x + c, predicts="x0")  # predicts its condition
      >>> two = gj.branches(denoise, cond=jnp.array([[1.0, 1.0]]), uncond=jnp.array([[0.0, 1.0]]))
      >>> path = gj.levels(gj.schedules.flow(), 4, gj.spacings.trailing())
      >>> keys = jax.random.split(jax.random.key(0), 1)
      >>> print(gj.sample(keys, two, gj.chain(gj.cfg(2.0), gj.amplify(3.0)), gj.ddim(), path, (2,)))
      [[4. 1.]]
    """
    return _shaper(lambda change, base, w: w * change, w=scale)


@part(
    rule(
        "percentile must be in 0..100, 99.5 and not 0.995",
        lambda percentile: not (isinstance(percentile, float) and 0 < percentile <= 1),
    )
)
def dynamic_threshold(percentile: Percentile = 99.5, limit: Limit = 1.0) -> Guidance:
    """Dynamic thresholding: clip x0 to a percentile of its absolute values, and rescale it to the range of the data.

    `x0 <- clip(x0, -s, s) limit / s`, where s is the maximum of limit and the percentile of |x0|. Where guidance is off, it
    changes nothing.

    Args:
      percentile: The percentile, in 0..100.
      limit: The maximum |x0| of the data. Infinity changes nothing.

    Raises:
      ValueError: If percentile or limit is neither `()` nor `[B]`, or out of range, or percentile is a number in (0, 1].

    Example:
      >>> denoise = gj.denoiser(lambda x, t, c: 0 * x + c, predicts="x0")  # predicts its condition
      >>> two = gj.branches(denoise, cond=jnp.array([[1.0, 0.5]]), uncond=jnp.array([[0.0, 0.0]]))
      >>> path = gj.levels(gj.schedules.flow(), 4, gj.spacings.trailing())
      >>> keys = jax.random.split(jax.random.key(0), 1)
      >>> guidance = gj.chain(gj.cfg(3.0), gj.dynamic_threshold(100.0))
      >>> print(gj.sample(keys, two, guidance, gj.ddim(), path, (2,)))
      [[1.  0.5]]

    Reference: Saharia et al. 2022, arXiv:2205.11487, section 2.3. The paper also thresholds where guidance is off.
    """

    def update(d: Prediction, context: Context) -> Array:
        most = at(limit, context)
        s = jnp.maximum(_quantile(jnp.abs(d.x0), at(percentile, context) / 100), most)
        unlimited = jnp.isinf(s)
        bounded = jnp.clip(d.x0, -s, s) * jnp.where(unlimited, 1, most / jnp.where(unlimited, 1, s))
        # The comparison allows for rounding, so that `cfg(1.0)` counts as no guidance.
        guided = _largest(d.x0 - context.base.x0) > 64 * jnp.finfo(s.dtype).eps * _largest(context.base.x0)
        return jnp.where(guided, bounded, d.x0)

    return stateless(update, shapes=True)


def _shaper(formula: Callable[..., Array], **scales: Scale) -> Guidance:
    """A shaper from its formula, a function of the change of x0, the x0 of the base, and the scales, by name."""

    def update(d: Prediction, context: Context) -> Array:
        base, weights = context.base.x0, {name: at(scale, context) for name, scale in scales.items()}
        return base + formula(d.x0 - base, base, **weights)

    return stateless(update, shapes=True)


def _quantile(x: Array, share: Array) -> Array:
    """The quantile of each sample, interpolated linearly, broadcastable."""
    ranked = jnp.sort(x.reshape(len(x), -1), axis=1)
    place = jnp.broadcast_to(share.reshape(-1), len(x)) * (ranked.shape[1] - 1)
    below = jnp.clip(jnp.floor(place), 0, ranked.shape[1] - 1).astype(jnp.int32)
    above = jnp.minimum(below + 1, ranked.shape[1] - 1)
    low, high = (jnp.take_along_axis(ranked, i[:, None], axis=1)[:, 0] for i in (below, above))
    return (low + (place - below.astype(place.dtype)) * (high - low)).reshape(-1, *[1] * (x.ndim - 1))


def _largest(x: Array) -> Array:
    """The maximum |x| of each sample, broadcastable."""
    return jnp.abs(x).max(tuple(range(1, x.ndim)), keepdims=True)


def _std(x: Array) -> Array:
    """The standard deviation of each sample, broadcastable."""
    return sqrt(x.var(tuple(range(1, x.ndim)), ddof=1, keepdims=True))
