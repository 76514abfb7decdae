"""Guidance that skips network evaluations: reuse of past changes, adaptive stopping, and predicted unconditional branches."""

from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.lax import Precision
from jaxtyping import ArrayLike
from typing_extensions import TypeAliasType

from guidance_jax.arrays import at_least_float32, divide, expand, inner, norm
from guidance_jax.base import Context, Prediction, Step
from guidance_jax.checks.door import also, door, part
from guidance_jax.checks.kinds import Branch, Coefficients, Count, Period, Scale, array_kind
from guidance_jax.checks.numbers import number
from guidance_jax.checks.values import check_recorded
from guidance_jax.guidance.algebra import only, wants
from guidance_jax.guidance.formula import follow
from guidance_jax.guidance.scales import at
from guidance_jax.interfaces import Guidance

Cosine = TypeAliasType("Cosine", Annotated[ArrayLike, number("a bound on a cosine", -np.inf, np.inf)])
"""One number, possibly infinite."""
Recorded = TypeAliasType(
    "Recorded", Annotated[Array, array_kind("floating numbers, [steps, N, ...]", jnp.floating, finite=True)]
)
"""Predictions along a path, `[steps, N, ...]`."""


class Cache(NamedTuple):
    """The state of `reuse`.

    Args:
      inner: The state of the guidance that is reused.
      last: The number of the last evaluated step; -1 before the first.
      x0: The change of x0 in that step, `[B, ...]`.
      eps: The change of eps in that step, stored as `-(sigma / alpha) change`, so that it applies at other levels too.
    """

    inner: Any
    last: Array
    x0: Array
    eps: Array


@part()
def reuse(guidance: Guidance, every: Period) -> Guidance:
    """Evaluate a guidance only in every k-th step, and reuse its last change in the other steps.

    `D <- D + (g(D_j) - D_j)`, where j is the last evaluated step

    Its branches are not evaluated in the other steps. The first step of a run, or of an interval, is always evaluated.

    Args:
      guidance: The guidance to evaluate less often.
      every: The period k. 1 changes nothing.

    Raises:
      TypeError: If guidance is not a `Guidance`, or every is not an integer.
      ValueError: If every is below 1.

    Example:
      >>> denoise = gj.denoiser(lambda x, t, c: 0 * x + c, predicts="x0")  # predicts its condition
      >>> two = gj.branches(denoise, cond=jnp.array([[1.0, 1.0]]), uncond=jnp.array([[0.0, 1.0]]))
      >>> path = gj.levels(gj.schedules.flow(), 4, gj.spacings.trailing())
      >>> keys = jax.random.split(jax.random.key(0), 1)
      >>> print(gj.evaluations(keys, two, gj.reuse(gj.cfg(3.0), every=2), gj.ddim(), path, (2,)))
      6

    Reference: Castillo et al. 2023, arXiv:2312.12487, section 5, measures how slowly the difference changes.
    """

    def fresh(cache: Cache, step: Step) -> Array:
        # All evaluations of a step are treated alike: at the corrector, `last` is the number of the current step.
        due = step.number >= cache.last + jnp.asarray(every).astype(jnp.int32)
        return (cache.last < 0) | (step.number == cache.last) | due

    def init(x: Array) -> Cache:
        return Cache(guidance.init(x), jnp.full((), -1, jnp.int32), jnp.zeros_like(x), jnp.zeros_like(x))

    def update(d: Prediction, cache: Cache, context: Context) -> tuple[Prediction, Cache]:
        alpha, sigma = expand(context.level.alpha, context.x), expand(context.level.sigma, context.x)

        def anew(d: Prediction, cache: Cache) -> tuple[Prediction, Cache]:
            guided, inside = guidance.update(d, cache.inner, context)
            change = guided - d
            return guided, Cache(inside, context.step.number, change.x0, -divide(sigma, alpha) * change.eps)

        def again(d: Prediction, cache: Cache) -> tuple[Prediction, Cache]:
            return d + Prediction(cache.x0, -divide(alpha, sigma) * cache.eps), cache

        return jax.lax.cond(fresh(cache, context.step), anew, again, d, cache)

    def wanted(cache: Cache, step: Step) -> dict[str, Any]:
        return only(fresh(cache, step), wants(guidance, cache.inner, step))

    return guidance.replace(init=init, update=update, wants=wanted)


@jax.custom_batching.custom_vmap
def _anyone(waiting: Array) -> Array:
    """Whether any sample still waits. Under `vmap` the answer covers all mapped samples, so it stays one unbatched boolean.

    No result depends on other samples: samples that do not wait ignore the extra evaluations.
    """
    return waiting.any()


@_anyone.def_vmap
def _anyone_of_all(axis_size: int, in_batched: list[bool], waiting: Array) -> tuple[Array, bool]:
    return _anyone(waiting.reshape(-1)), False


@part()
def adaptive(guidance: Guidance, threshold: Cosine = 0.991, *, cond: Branch = "cond", uncond: Branch = "uncond") -> Guidance:
    """Stop a guidance for each sample once its branches agree. Afterwards only the conditional prediction is used.

    `D <- g(D)` up to the first step with `cos(c.eps, u.eps) > threshold`, inclusive; afterwards `D <- D + (c - base)`

    The unconditional branch is skipped once no sample of the batch, or of a surrounding `vmap`, needs it.

    Args:
      guidance: The guidance to stop.
      threshold: The threshold of the cosine. At 1 or above, guidance never stops.
      cond: The conditional branch. Make it the base: otherwise it is evaluated in addition to the base after the stop.
      uncond: The branch that is skipped after the stop.

    Raises:
      TypeError: If guidance is not a `Guidance`, or threshold is not a number.
      ValueError: If threshold is NaN, or not one number.

    Example:
      >>> denoise = gj.denoiser(lambda x, t, c: 0 * x + c, predicts="x0")  # predicts its condition
      >>> two = gj.branches(denoise, cond=jnp.array([[1.0, 1.0]]), uncond=jnp.array([[0.0, 1.0]]))
      >>> path = gj.levels(gj.schedules.flow(), 4, gj.spacings.trailing())
      >>> keys = jax.random.split(jax.random.key(0), 1)
      >>> print(gj.evaluations(keys, two, gj.adaptive(gj.cfg(3.0), -1.0), gj.ddim(), path, (2,)))
      5

    Reference: Castillo et al. 2023, arXiv:2312.12487, algorithm 1.
    """

    def goes_on(last: Array, step: Step) -> Array:
        # All evaluations of a step are guided alike: a corrector is still guided in the step where guidance stops.
        return (last < 0) | (last == step.number)

    def init(x: Array) -> tuple[Any, Array]:
        return guidance.init(x), jnp.full_like(x, -1, jnp.int32, shape=len(x))

    def update(d: Prediction, state: tuple[Any, Array], context: Context) -> tuple[Prediction, tuple[Any, Array]]:
        inside, last = state
        c, u = context[cond], context[uncond]
        # Rounding may make the cosine larger than 1.
        cosine = jnp.minimum(divide(inner(c.eps, u.eps), norm(c.eps) * norm(u.eps)).reshape(-1), 1)
        guided, inside = guidance.update(d, inside, context)
        ended = d + (c - context.base)
        on = expand(goes_on(last, context.step), d.x0)
        # A sample that is NaN must not keep the branches evaluated.
        agree = (last < 0) & ((cosine > jnp.asarray(threshold, cosine.dtype)) | jnp.isnan(cosine))
        after = d.replace(x0=jnp.where(on, guided.x0, ended.x0), eps=jnp.where(on, guided.eps, ended.eps))
        return after, (inside, jnp.where(agree, context.step.number, last))

    def wanted(state: tuple[Any, Array], step: Step) -> dict[str, Any]:
        inside, last = state
        return only(_anyone(goes_on(last, step)), {uncond: True} | wants(guidance, inside, step)) | {cond: True}

    return guidance.replace(needs=guidance.needs | {cond, uncond}, init=init, update=update, wants=wanted)


class History(NamedTuple):
    """The state of `linear_reuse`: the predictions of both branches in the current step and the last K steps, newest first.

    Args:
      cond: The conditional x0-predictions, `[1 + K, B, ...]`.
      uncond: The unconditional x0-predictions, `[1 + K, B, ...]`.
      known: The number of steps recorded so far.
      number: The number of the newest step; -1 before the first.
    """

    cond: Array
    uncond: Array
    known: Array
    number: Array


@part()
def linear_reuse(
    scale: Scale, coefficients: Coefficients, every: Count = 2, *, cond: Branch = "cond", uncond: Branch = "uncond"
) -> Guidance:
    """CFG whose unconditional prediction is replaced, in most steps, by a linear function of past predictions.

    `u = a_0 c + sum_i (a_i c_i + b_i u_i)`, a sum over the last K steps, newest first. Each past step counts by its first
    evaluation.

    Both branches are evaluated in the first K steps, and in every step whose number is divisible by k.

    Args:
      scale: 1 is the conditional model.
      coefficients: `a_0, a_1 .. a_K, b_1 .. b_K`, `[1 + 2 K]`; or one such row per step, `[steps, 1 + 2 K]`, from `fit_linear`.
      every: The period k. 1 is CFG.
      cond: The branch to move towards.
      uncond: The branch to move away from.

    Raises:
      TypeError: If coefficients are not numbers, or every is not an integer.
      ValueError: If scale is neither `()` nor `[B]`, coefficients has another shape, or every is below 1.

    Example:
      >>> guidance = gj.linear_reuse(3.0, jnp.array([1.0, -1.0, 1.0]))  # reuses the last difference
      >>> sorted(guidance.needs)
      ['cond', 'uncond']

    Reference: Castillo et al. 2023, arXiv:2312.12487, section 5 (LinearAG). The paper acts on eps: `in_space`.
    """
    rows = jnp.asarray(coefficients)
    past = rows.shape[-1] // 2

    def before(history: History, step: Step) -> tuple[Array, Array]:
        """Whether this is the first evaluation of the step, and the number of steps recorded before it."""
        first = history.number != step.number
        return first, jnp.where(first, history.known, history.known - 1)

    def fresh(history: History, step: Step) -> Array:
        return (before(history, step)[1] < past) | (step.number % every == 0)

    def init(x: Array) -> History:
        nothing = jnp.zeros_like(x, shape=(past + 1, *x.shape))
        return History(nothing, nothing, jnp.zeros((), jnp.int32), jnp.full((), -1, jnp.int32))

    def update(d: Prediction, history: History, context: Context) -> tuple[Prediction, History]:
        base, c, step = context.base.x0, context[cond].x0, context.step
        row = (rows if rows.ndim == 1 else rows[jnp.minimum(step.number, len(rows) - 1)]).astype(c.dtype)
        first, known = before(history, step)
        older = lambda kept: jnp.where(first, kept[:-1], kept[1:])
        cs, us = older(history.cond), older(history.uncond)
        predicted = jnp.tensordot(row, jnp.concatenate([c[None], cs, us]), 1, precision=Precision.HIGHEST)
        u = jnp.where(fresh(history, step), context[uncond].x0, predicted)
        guided = u + at(scale, context) * (c - u)
        newest = lambda new, kept, old: jnp.where(first, jnp.concatenate([new[None], old]), kept)
        after = History(newest(c, history.cond, cs), newest(u, history.uncond, us), known + 1, step.number)
        return follow(d.x0 + (guided - base), d, context.level), after

    def wanted(history: History, step: Step) -> dict[str, Any]:
        return {cond: True, uncond: fresh(history, step)}

    return Guidance(frozenset({cond, uncond}), init, update, wanted)


@door(also(lambda cond, uncond, past: check_recorded(cond, uncond, past)))
def fit_linear(cond: Recorded, uncond: Recorded, past: Count = 1) -> Array:
    """Fit the coefficients of `linear_reuse` to recorded runs of CFG by least squares, one row per step.

    They minimise `sum over samples of |u - a_0 c - sum_i (a_i c_i + b_i u_i)|^2`.

    Args:
      cond: The conditional predictions of N samples along their paths, `[steps, N, ...]`.
      uncond: The unconditional predictions, `[steps, N, ...]`.
      past: The number K of past steps that are used.

    Returns:
      `[steps, 1 + 2 K]`. The first K rows are zero, since both branches are evaluated in these steps.

    Raises:
      TypeError: If cond or uncond is not an array of floating numbers.
      ValueError: If they differ in shape or are not finite, or past is below 1 or not below the number of steps.

    Example:
      >>> c = jax.random.normal(jax.random.key(0), (3, 8, 2))
      >>> print(gj.fit_linear(c, 2 * c).shape)
      (3, 3)

    Reference: Castillo et al. 2023, arXiv:2312.12487, section 5.
    """
    cond, uncond = (jnp.asarray(side, at_least_float32(side.dtype)) for side in (cond, uncond))
    rows = [jnp.zeros(1 + 2 * past, jnp.result_type(cond))] * past
    for i in range(past, len(cond)):
        known = [cond[i], *(cond[i - k] for k in range(1, past + 1)), *(uncond[i - k] for k in range(1, past + 1))]
        matrix = jnp.stack([part.reshape(-1) for part in known], axis=1)
        rows.append(jnp.linalg.lstsq(matrix, uncond[i].reshape(-1))[0])
    return jnp.stack(rows)
