"""Shapers: they change what sources have made of the base, and nothing where nothing guides.

`change` in the formulae is the prediction less the base, in x0. All sums are over one sample.
"""

from collections.abc import Callable
from typing import Annotated

import jax.numpy as jnp
from jax import Array
from jaxtyping import ArrayLike
from typing_extensions import TypeAliasType

from guidance_jax.arrays import divide, inner, norm, sqrt
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
"""As `Scale`, positive, and infinite for no limit."""


@part()
def rescale(fraction: FractionScale) -> Guidance:
    """Bring the spread of a guided prediction back toward that of the base prediction.

    `x0 <- fraction x0 std(base) / std(x0) + (1 - fraction) x0`, std over all axes of one sample, with n - 1.

    It acts on x0; the paper acts on v, as `in_space("v", rescale(0.7))` does. It needs no branch: where nothing guides, nothing
    changes.

    Args:
      fraction: 0 changes nothing, 1 restores the spread of the base fully. The paper uses 0.7.

    Raises:
      ValueError: If fraction is neither `()` nor `[B]`, or outside [0, 1]; when called, if a sample has one element only, which
        has no spread.

    Example:
      >>> denoise = gj.denoiser(lambda x, t, c: 0 * x + c, predicts="x0")  # it predicts its condition
      >>> two = gj.branches(denoise, cond=jnp.array([[1.0, -1.0]]), uncond=jnp.array([[0.0, 0.0]]))
      >>> path, keys = gj.levels(gj.schedules.flow(), 4, gj.spacings.trailing()), jax.random.split(jax.random.key(0), 1)
      >>> print(gj.sample(keys, two, gj.chain(gj.cfg(7.5), gj.rescale(0.7)), gj.ddim(), path, (2,)))
      [[ 2.95 -2.95]]

    Reference: Lin et al. 2024, arXiv:2305.08891, equations 15 and 16.
    """

    def update(d: Prediction, context: Context) -> Array:
        check_spread(d.x0)
        phi, spread = at(fraction, context), _std(d.x0)
        # A sample without any spread has nothing to rescale.
        ratio = jnp.where(spread > 0, divide(_std(context.base.x0), spread), 1)
        return d.x0 * (phi * ratio + (1 - phi))

    return stateless(update, shapes=True)


@part()
def momentum(beta: Scale) -> Guidance:
    """A running sum of changes, in place of the change.

    `m <- change + beta m`, `change <- m`

    The sum starts at the first evaluation of a run, or of the interval that the guidance acts in.

    Args:
      beta: 0 changes nothing; a negative number damps what persists.

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
    """A change of bounded length.

    `change <- change min(1, max_norm / |change|)`

    Args:
      max_norm: The bound, in the units of x0; infinity changes nothing.

    Raises:
      ValueError: If max_norm is neither `()` nor `[B]`, or negative.

    Example:
      >>> denoise = gj.denoiser(lambda x, t, c: 0 * x + c, predicts="x0")  # it predicts its condition
      >>> two = gj.branches(denoise, cond=jnp.array([[1.0, 1.0]]), uncond=jnp.array([[0.0, 1.0]]))
      >>> path, keys = gj.levels(gj.schedules.flow(), 4, gj.spacings.trailing()), jax.random.split(jax.random.key(0), 1)
      >>> print(gj.sample(keys, two, gj.chain(gj.cfg(4.0), gj.clip_norm(2.5)), gj.ddim(), path, (2,)))
      [[3.5 1. ]]

    Reference: Sadat et al. 2024, arXiv:2410.02416, section 4.
    """

    def formula(change: Array, base: Array, r: Array) -> Array:
        length = norm(change)
        return change * jnp.where(length > r, divide(r, length), 1)

    return _shaper(formula, r=max_norm)


@part()
def project(eta: Scale = 0.0) -> Guidance:
    """The change without its part along the base.

    `change <- change - (1 - eta) <change, base> / |base|^2 base`

    Args:
      eta: The fraction of that part that is kept; 1 changes nothing.

    Raises:
      ValueError: If eta is neither `()` nor `[B]`, or not finite.

    Example:
      >>> denoise = gj.denoiser(lambda x, t, c: 0 * x + c, predicts="x0")  # it predicts its condition
      >>> two = gj.branches(denoise, cond=jnp.array([[1.0, 0.0]]), uncond=jnp.array([[0.0, -1.0]]))
      >>> path, keys = gj.levels(gj.schedules.flow(), 4, gj.spacings.trailing()), jax.random.split(jax.random.key(0), 1)
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
    """The change, times a number.

    `change <- scale change`

    Args:
      scale: 1 changes nothing.

    Raises:
      ValueError: If scale is neither `()` nor `[B]`, or not finite.

    Example:
      >>> denoise = gj.denoiser(lambda x, t, c: 0 * x + c, predicts="x0")  # it predicts its condition
      >>> two = gj.branches(denoise, cond=jnp.array([[1.0, 1.0]]), uncond=jnp.array([[0.0, 1.0]]))
      >>> path, keys = gj.levels(gj.schedules.flow(), 4, gj.spacings.trailing()), jax.random.split(jax.random.key(0), 1)
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
    """A guided x0, clipped to its own percentile and scaled back to the range of the data.

    `x0 <- clip(x0, -s, s) limit / s`, s the percentile of |x0|, or limit where that is more.

    Args:
      percentile: In 0..100.
      limit: The largest |x0| of the data; infinity changes nothing.

    Raises:
      ValueError: If percentile or limit is neither `()` nor `[B]`, or out of range, or percentile is a number in (0, 1].

    Example:
      >>> denoise = gj.denoiser(lambda x, t, c: 0 * x + c, predicts="x0")  # it predicts its condition
      >>> two = gj.branches(denoise, cond=jnp.array([[1.0, 0.5]]), uncond=jnp.array([[0.0, 0.0]]))
      >>> path, keys = gj.levels(gj.schedules.flow(), 4, gj.spacings.trailing()), jax.random.split(jax.random.key(0), 1)
      >>> print(gj.sample(keys, two, gj.chain(gj.cfg(3.0), gj.dynamic_threshold(100.0)), gj.ddim(), path, (2,)))
      [[1.  0.5]]

    Reference: Saharia et al. 2022, arXiv:2205.11487, section 2.3; it also thresholds where nothing guides.
    """

    def update(d: Prediction, context: Context) -> Array:
        most = at(limit, context)
        s = jnp.maximum(_quantile(jnp.abs(d.x0), at(percentile, context) / 100), most)
        unlimited = jnp.isinf(s)
        bounded = jnp.clip(d.x0, -s, s) * jnp.where(unlimited, 1, most / jnp.where(unlimited, 1, s))
        # Up to rounding: `cfg(1.0)` guides nothing.
        guided = _largest(d.x0 - context.base.x0) > 64 * jnp.finfo(s.dtype).eps * _largest(context.base.x0)
        return jnp.where(guided, bounded, d.x0)

    return stateless(update, shapes=True)


def _shaper(formula: Callable[..., Array], **scales: Scale) -> Guidance:
    """A shaper from its formula in the change of x0, the x0 of the base, and scales by name; eps follows."""

    def update(d: Prediction, context: Context) -> Array:
        base, weights = context.base.x0, {name: at(scale, context) for name, scale in scales.items()}
        return base + formula(d.x0 - base, base, **weights)

    return stateless(update, shapes=True)


def _quantile(x: Array, share: Array) -> Array:
    """The quantile of each sample, linear between its elements, broadcastable."""
    ranked = jnp.sort(x.reshape(len(x), -1), axis=1)
    place = jnp.broadcast_to(share.reshape(-1), len(x)) * (ranked.shape[1] - 1)
    below = jnp.clip(jnp.floor(place), 0, ranked.shape[1] - 1).astype(jnp.int32)
    above = jnp.minimum(below + 1, ranked.shape[1] - 1)
    low, high = (jnp.take_along_axis(ranked, i[:, None], axis=1)[:, 0] for i in (below, above))
    return (low + (place - below.astype(place.dtype)) * (high - low)).reshape(-1, *[1] * (x.ndim - 1))


def _largest(x: Array) -> Array:
    """The largest |x| of each sample, broadcastable."""
    return jnp.abs(x).max(tuple(range(1, x.ndim)), keepdims=True)


def _std(x: Array) -> Array:
    """The standard deviation of each sample, broadcastable."""
    return sqrt(x.var(tuple(range(1, x.ndim)), ddof=1, keepdims=True))
