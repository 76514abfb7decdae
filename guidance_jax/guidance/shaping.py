"""Shapers: they change what sources have made of the base, and nothing where nothing guides.

`change` below is the prediction less the base, in x0. All sums are over one sample.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

from guidance_jax.arrays import divide, inner, norm, sqrt
from guidance_jax.base import Context, Guidance, Prediction
from guidance_jax.guidance.algebra import move, stateless
from guidance_jax.scales import Scale, at


def rescale(phi: Scale) -> Guidance:
    """Bring the spread of a guided prediction back toward the base prediction's.

    `x0 <- phi x0 std(base) / std(x0) + (1 - phi) x0`, std over all axes of one sample, with n - 1.

    Acts on x0; the paper, whose default is 0.7, acts on v. It asks for no branch: where nothing guides, nothing changes.

    Args:
      phi: in [0, 1], `()` or `[B]`, or a function of the level; 0 changes nothing, 1 restores the base's spread fully.

    Raises:
      ValueError: if phi is neither `()` nor `[B]`, or known and outside, or a sample has a single element, which has no spread.

    Example:
      >>> denoise = denoiser(lambda x, t, c: 0 * x + c, predicts="x0")  # it says what it is told
      >>> two = branches(denoise, cond=jnp.array([[1.0, -1.0]]), uncond=jnp.array([[0.0, 0.0]]))
      >>> path, keys = levels(schedules.flow(), 4, spacings.trailing()), jax.random.split(jax.random.key(0), 1)
      >>> print(sample(keys, two, chain(cfg(7.5), rescale(0.7)), ddim(), path, (2,)))
      [[ 2.95 -2.95]]

    Reference: Lin et al. 2024, arXiv:2305.08891, equations 15 and 16.
    """

    def update(prediction: Prediction, context: Context) -> Prediction:
        x0 = prediction.x0
        if x0[0].size < 2:
            raise ValueError(f"rescale needs at least two elements a sample to take their spread, but x is {x0.shape}.")
        share = at(phi, context, "rescale's phi", 0, 1)
        spread = _std(x0)
        # A sample without any spread has nothing to rescale.
        ratio = jnp.where(spread > 0, divide(_std(context.base.x0), spread), 1)
        return move(prediction, x0 * (share * ratio + (1 - share)), context.level)

    return stateless(update)


def momentum(beta: Scale) -> Guidance:
    """A running sum of changes: `m <- change + beta m`, and m takes the place of the change.

    The sum starts at the first evaluation that it meets, wherever a run or an interval begins.

    Args:
      beta: `()` or `[B]`, or a function of the level; 0 changes nothing, negative damps what persists.

    Raises:
      ValueError: if beta is neither `()` nor `[B]`.

    Example:
      >>> print(chain(cfg(4.0), momentum(-0.5)).init(jnp.ones((1, 2)))[1])
      [[0. 0.]]

    Reference: Sadat et al. 2024, arXiv:2410.02416, section 4.
    """

    def update(prediction: Prediction, total: Array, context: Context) -> tuple[Prediction, Array]:
        total = prediction.x0 - context.base.x0 + at(beta, context, "momentum's beta") * total
        return move(prediction, context.base.x0 + total, context.level), total

    return Guidance(frozenset(), jnp.zeros_like, update)


def clip_norm(most: Scale) -> Guidance:
    """The change, no longer than `most`: `change min(1, most / |change|)`.

    Args:
      most: `()` or `[B]`, or a function of the level; positive, infinite changes nothing.

    Raises:
      ValueError: if most is neither `()` nor `[B]`.

    Example:
      >>> denoise = denoiser(lambda x, t, c: 0 * x + c, predicts="x0")  # it says what it is told
      >>> two = branches(denoise, cond=jnp.array([[1.0, 1.0]]), uncond=jnp.array([[0.0, 1.0]]))
      >>> path, keys = levels(schedules.flow(), 4, spacings.trailing()), jax.random.split(jax.random.key(0), 1)
      >>> print(sample(keys, two, chain(cfg(4.0), clip_norm(2.5)), ddim(), path, (2,)))
      [[3.5 1. ]]

    Reference: Sadat et al. 2024, arXiv:2410.02416, section 4.
    """

    def formula(change: Array, context: Context) -> Array:
        r, length = at(most, context, "clip_norm's most", 0, jnp.inf), norm(change)
        return change * jnp.where(length > r, divide(r, length), 1)

    return _of_change(formula)


def project(eta: Scale = 0.0) -> Guidance:
    """The change without its part along the base: `change - (1 - eta) <change, base> / |base|^2 base`.

    Args:
      eta: the share that is kept of that part, `()` or `[B]`, or a function of the level; 1 changes nothing.

    Raises:
      ValueError: if eta is neither `()` nor `[B]`.

    Example:
      >>> denoise = denoiser(lambda x, t, c: 0 * x + c, predicts="x0")  # it says what it is told
      >>> two = branches(denoise, cond=jnp.array([[1.0, 0.0]]), uncond=jnp.array([[0.0, -1.0]]))
      >>> path, keys = levels(schedules.flow(), 4, spacings.trailing()), jax.random.split(jax.random.key(0), 1)
      >>> print(sample(keys, two, chain(cfg(4.0), project()), ddim(), path, (2,)))
      [[1. 3.]]

    Reference: Sadat et al. 2024, arXiv:2410.02416, section 4.
    """

    def formula(change: Array, context: Context) -> Array:
        base = context.base.x0
        along = divide(inner(change, base), inner(base, base)) * base
        return change - (1 - at(eta, context, "project's eta")) * along

    return _of_change(formula)


def amplify(scale: Scale) -> Guidance:
    """The change, times a number: `change <- scale change`.

    Args:
      scale: `()` or `[B]`, or a function of the level; 1 changes nothing.

    Raises:
      ValueError: if scale is neither `()` nor `[B]`.

    Example:
      >>> denoise = denoiser(lambda x, t, c: 0 * x + c, predicts="x0")  # it says what it is told
      >>> two = branches(denoise, cond=jnp.array([[1.0, 1.0]]), uncond=jnp.array([[0.0, 1.0]]))
      >>> path, keys = levels(schedules.flow(), 4, spacings.trailing()), jax.random.split(jax.random.key(0), 1)
      >>> print(sample(keys, two, chain(cfg(2.0), amplify(3.0)), ddim(), path, (2,)))
      [[4. 1.]]
    """
    return _of_change(lambda change, context: at(scale, context, "amplify's scale") * change)


def dynamic_threshold(percentile: Scale = 99.5, limit: Scale = 1.0) -> Guidance:
    """A guided x0, clipped to its own percentile and brought back to the range of the data.

    `x0 <- clip(x0, -s, s) limit / s`, s the percentile of |x0|, or limit where that is more.

    Args:
      percentile: in 0..100, `()` or `[B]`, or a function of the level.
      limit: the largest |x0| of the data, likewise; infinite changes nothing.

    Raises:
      ValueError: if percentile or limit is neither `()` nor `[B]`, or percentile is a share, in (0, 1].

    Example:
      >>> denoise = denoiser(lambda x, t, c: 0 * x + c, predicts="x0")  # it says what it is told
      >>> two = branches(denoise, cond=jnp.array([[1.0, 0.5]]), uncond=jnp.array([[0.0, 0.0]]))
      >>> path, keys = levels(schedules.flow(), 4, spacings.trailing()), jax.random.split(jax.random.key(0), 1)
      >>> print(sample(keys, two, chain(cfg(3.0), dynamic_threshold(100.0)), ddim(), path, (2,)))
      [[1.  0.5]]

    Reference: Saharia et al. 2022, arXiv:2205.11487, section 2.3; it also thresholds where nothing guides.
    """

    if isinstance(percentile, float) and 0 < percentile <= 1:
        raise ValueError(f"dynamic_threshold's percentile is in 0..100, 99.5 and not 0.995 say, got {percentile}.")

    def update(prediction: Prediction, context: Context) -> Prediction:
        x0, base = prediction.x0, context.base.x0
        share = at(percentile, context, "dynamic_threshold's percentile", 0, 100) / 100
        most = at(limit, context, "dynamic_threshold's limit", 0, jnp.inf, above=0)
        s = jnp.maximum(_quantile(jnp.abs(x0), share), most)
        unlimited = jnp.isinf(s)
        bounded = jnp.clip(x0, -s, s) * jnp.where(unlimited, 1, most / jnp.where(unlimited, 1, s))
        guided = (x0 != base).any(tuple(range(1, x0.ndim)), keepdims=True)
        return move(prediction, jnp.where(guided, bounded, x0), context.level)

    return stateless(update)


def _quantile(x: Array, share: Array) -> Array:
    """The quantile of each sample, linear between its elements, broadcastable."""
    ranked = jnp.sort(x.reshape(len(x), -1), axis=1)
    place = jnp.broadcast_to(share.reshape(-1), len(x)) * (ranked.shape[1] - 1)
    below = jnp.clip(jnp.floor(place), 0, ranked.shape[1] - 1).astype(jnp.int32)
    above = jnp.minimum(below + 1, ranked.shape[1] - 1)
    low, high = (jnp.take_along_axis(ranked, i[:, None], axis=1)[:, 0] for i in (below, above))
    return (low + (place - below.astype(place.dtype)) * (high - low)).reshape(-1, *[1] * (x.ndim - 1))


def _std(x: Array) -> Array:
    """The standard deviation of each sample, broadcastable."""
    return sqrt(x.var(tuple(range(1, x.ndim)), ddof=1, keepdims=True))


def _of_change(formula: Callable[[Array, Context], Array]) -> Guidance:
    """A shaper from its formula in the change of x0; eps follows."""

    def update(prediction: Prediction, context: Context) -> Prediction:
        change = formula(prediction.x0 - context.base.x0, context)
        return move(prediction, context.base.x0 + change, context.level)

    return stateless(update)
