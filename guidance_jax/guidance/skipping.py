"""Guidance that is asked for less often: its branches are not evaluated where they are not wanted."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.lax import Precision
from jaxtyping import ArrayLike

from guidance_jax.arrays import at_least_float32, concrete, divide, expand, inner, norm
from guidance_jax.checks.old import check_range
from guidance_jax.base import Context, Guidance, Prediction, Step
from guidance_jax.checks.old import check_finite, check_guidance, check_scalar
from guidance_jax.guidance.algebra import move, needed, only, wants
from guidance_jax.checks.old import check_array, check_count, check_numbers
from guidance_jax.scales import Scale, at


class Cache(NamedTuple):
    """What `reuse` remembers: the state within, the step that was evaluated last (-1: none), and its change of x0 and of eps.

    That of eps as the x0 that would move it, `-(sigma / alpha) change`, so that it holds at the next level too.
    """

    inner: Any
    last: Array
    x0: Array
    eps: Array


def reuse(guidance: Guidance, every: ArrayLike) -> Guidance:
    """A guidance that is evaluated in every k-th step only; between, its last change is made again.

    `D <- D + (g(D_j) - D_j)`, j the last step that was evaluated.

    Its branches are not evaluated between. The first step that it meets is evaluated, wherever a run or an interval begins.

    Args:
      guidance: what to evaluate less often.
      every: k, an integer `()`, at least 1; 1 changes nothing.

    Raises:
      ValueError: if every is no integer of at least 1.

    Example:
      >>> denoise = denoiser(lambda x, t, c: 0 * x + c, predicts="x0")  # it says what it is told
      >>> two = branches(denoise, cond=jnp.array([[1.0, 1.0]]), uncond=jnp.array([[0.0, 1.0]]))
      >>> path, keys = levels(schedules.flow(), 4, spacings.trailing()), jax.random.split(jax.random.key(0), 1)
      >>> print(evaluations(keys, two, reuse(cfg(3.0), every=2), ddim(), path, (2,)))
      6

    Reference: the difference's slow change is measured in Castillo et al. 2023, arXiv:2312.12487, section 5.
    """
    check_guidance(guidance, "reuse's guidance")
    check_numbers(every, "reuse's every")
    whole = jnp.shape(every) == () and jnp.issubdtype(jnp.result_type(every), jnp.integer)
    if not whole or (concrete(every) and np.asarray(every) < 1):
        raise ValueError(f"reuse's every must be an integer of at least 1, got {every}.")
    every = jnp.asarray(every)

    def fresh(cache: Cache, step: Step) -> Array:
        # All evaluations of a step are treated alike: its corrector finds its own number in `last`.
        return (cache.last < 0) | (step.number == cache.last) | (step.number >= cache.last + every.astype(jnp.int32))

    def init(x: Array) -> Cache:
        return Cache(guidance.init(x), jnp.full((), -1, jnp.int32), jnp.zeros_like(x), jnp.zeros_like(x))

    def update(prediction: Prediction, cache: Cache, context: Context) -> tuple[Prediction, Cache]:
        alpha, sigma = expand(context.level.alpha, context.x), expand(context.level.sigma, context.x)

        def anew(prediction: Prediction, cache: Cache) -> tuple[Prediction, Cache]:
            guided, inner = guidance.update(prediction, cache.inner, context)
            x0, eps = guided.x0 - prediction.x0, guided.eps - prediction.eps
            return guided, Cache(inner, context.step.number, x0, -divide(sigma, alpha) * eps)

        def again(prediction: Prediction, cache: Cache) -> tuple[Prediction, Cache]:
            eps = prediction.eps - divide(alpha, sigma) * cache.eps
            return prediction._replace(x0=prediction.x0 + cache.x0, eps=eps), cache

        return jax.lax.cond(fresh(cache, context.step), anew, again, prediction, cache)

    def wanted(cache: Cache, step: Step) -> dict[str, Any]:
        return only(fresh(cache, step), wants(guidance, cache.inner, step))

    return guidance._replace(init=init, update=update, wants=wanted)


@jax.custom_batching.custom_vmap
def _anyone(waiting: Array) -> Array:
    """Whether any sample waits; under `vmap`, whether any of the whole grid does, so that skipping stays a decision of one.

    No sample's result depends on it: those that do not wait ignore what is evaluated for the others.
    """
    return waiting.any()


@_anyone.def_vmap
def _anyone_of_all(axis_size: int, in_batched: list[bool], waiting: Array) -> tuple[Array, bool]:
    return _anyone(waiting.reshape(-1)), False


def adaptive(guidance: Guidance, threshold: ArrayLike = 0.991, *, cond: str = "cond", uncond: str = "uncond") -> Guidance:
    """A guidance that ends, for each sample, once the branches agree: from then on the conditional prediction is left.

    It ends after the first step in which `cos(c.eps, u.eps) > threshold`. Its branches are evaluated until it has ended for all
    samples, those of a `vmap` around included.

    Args:
      guidance: what is to end.
      threshold: of the cosine, `()`, 1 or above for never.
      cond: the conditional branch, the base best: another one is still evaluated beside the base after the end.
      uncond: the branch that is saved.

    Raises:
      ValueError: if threshold is no scalar.

    Example:
      >>> denoise = denoiser(lambda x, t, c: 0 * x + c, predicts="x0")  # it says what it is told
      >>> two = branches(denoise, cond=jnp.array([[1.0, 1.0]]), uncond=jnp.array([[0.0, 1.0]]))
      >>> path, keys = levels(schedules.flow(), 4, spacings.trailing()), jax.random.split(jax.random.key(0), 1)
      >>> print(evaluations(keys, two, adaptive(cfg(3.0), -1.0), ddim(), path, (2,)))
      5

    Reference: Castillo et al. 2023, arXiv:2312.12487, algorithm 1.
    """

    check_guidance(guidance, "adaptive's guidance")
    check_scalar(threshold, "adaptive's threshold", -jnp.inf, jnp.inf)
    own = needed(cond, uncond)

    def goes_on(last: Array, step: Step) -> Array:
        # A step is guided as a whole: its corrector too, where its first evaluation was the last.
        return (last < 0) | (last == step.number)

    def init(x: Array) -> tuple[Any, Array]:
        return guidance.init(x), jnp.full_like(x, -1, jnp.int32, shape=len(x))

    def update(prediction: Prediction, state: tuple[Any, Array], context: Context) -> tuple[Prediction, tuple[Any, Array]]:
        inside, last = state
        c, u, base = context.branches[cond], context.branches[uncond].eps, context.base
        # Rounding may put it above 1.
        cosine = jnp.minimum(divide(inner(c.eps, u), norm(c.eps) * norm(u)).reshape(-1), 1)
        guided, inside = guidance.update(prediction, inside, context)
        on = goes_on(last, context.step).reshape(-1, *[1] * (prediction.x0.ndim - 1))
        x0 = jnp.where(on, guided.x0, prediction.x0 + (c.x0 - base.x0))
        eps = jnp.where(on, guided.eps, prediction.eps + (c.eps - base.eps))
        # One of NaN, which no branch can mend, keeps nobody's branches alive.
        agree = (last < 0) & ((cosine > jnp.asarray(threshold, cosine.dtype)) | jnp.isnan(cosine))
        return prediction._replace(x0=x0, eps=eps), (inside, jnp.where(agree, context.step.number, last))

    def wanted(state: tuple[Any, Array], step: Step) -> dict[str, Any]:
        inside, last = state
        return only(_anyone(goes_on(last, step)), {uncond: True} | wants(guidance, inside, step)) | {cond: True}

    return guidance._replace(needs=guidance.needs | own, init=init, update=update, wants=wanted)


class History(NamedTuple):
    """The predictions of both branches in the last K steps and before them in this one, newest first, `[1 + K, B, ...]`."""

    cond: Array
    uncond: Array
    known: Array
    """How many steps there are."""
    number: Array
    """Of the newest."""


def linear_reuse(
    scale: Scale, coefficients: ArrayLike, every: int = 2, *, cond: str = "cond", uncond: str = "uncond"
) -> Guidance:
    """CFG whose unconditional prediction is, between, a linear function of past predictions.

    `u = a_0 c + sum_i (a_i c_i + b_i u_i)`, over the K last steps, newest first, each as its first evaluation was.

    The first K steps evaluate both branches, and so does every step whose number is divisible by k.

    Args:
      scale: `()` or `[B]`, or a function of the level; 1 is the conditional model.
      coefficients: `[1 + 2 K]`: `a_0, a_1 .. a_K, b_1 .. b_K`, or such a row a step, `[steps, 1 + 2 K]`, as of `fit_linear`.
      every: k, at least 1; 1 is CFG.
      cond: the branch to go to.
      uncond: the branch to come from.

    Raises:
      ValueError: if coefficients has another shape, or every is below 1.

    Example:
      >>> guidance = linear_reuse(3.0, jnp.array([1.0, -1.0, 1.0]))  # the last difference once more
      >>> sorted(guidance.needs)
      ['cond', 'uncond']

    Reference: Castillo et al. 2023, arXiv:2312.12487, section 5 (LinearAG), which acts on eps: `in_space`.
    """
    check_range(coefficients, "linear_reuse's coefficients")
    check_count(every, "linear_reuse's every")
    rows = jnp.asarray(coefficients)
    if rows.ndim not in (1, 2) or rows.shape[-1] < 3 or rows.shape[-1] % 2 == 0:
        raise ValueError(f"linear_reuse's coefficients must be [1 + 2 K] or [steps, 1 + 2 K], K at least 1, got {rows.shape}.")
    past = rows.shape[-1] // 2

    def before(history: History, step: Step) -> tuple[Array, Array]:
        """Whether this is the step's first evaluation, and how many steps are known before it."""
        first = history.number != step.number
        return first, jnp.where(first, history.known, history.known - 1)

    def fresh(history: History, step: Step) -> Array:
        return (before(history, step)[1] < past) | (step.number % every == 0)

    def init(x: Array) -> History:
        nothing = jnp.zeros_like(x, shape=(past + 1, *x.shape))
        return History(nothing, nothing, jnp.zeros((), jnp.int32), jnp.full((), -1, jnp.int32))

    def update(prediction: Prediction, history: History, context: Context) -> tuple[Prediction, History]:
        base, c, step = context.base.x0, context.branches[cond].x0, context.step
        row = (rows if rows.ndim == 1 else rows[jnp.minimum(step.number, len(rows) - 1)]).astype(c.dtype)
        first, known = before(history, step)
        older = lambda kept: jnp.where(first, kept[:-1], kept[1:])
        cs, us = older(history.cond), older(history.uncond)
        predicted = jnp.tensordot(row, jnp.concatenate([c[None], cs, us]), 1, precision=Precision.HIGHEST)
        u = jnp.where(fresh(history, step), context.branches[uncond].x0, predicted)
        guided = u + at(scale, context, "linear_reuse's scale") * (c - u)
        newest = lambda new, kept, old: jnp.where(first, jnp.concatenate([new[None], old]), kept)
        after = History(newest(c, history.cond, cs), newest(u, history.uncond, us), known + 1, step.number)
        return move(prediction, prediction.x0 + (guided - base), context.level), after

    def wanted(history: History, step: Step) -> dict[str, Any]:
        return {cond: True, uncond: fresh(history, step)}

    return Guidance(needed(cond, uncond), init, update, wanted)


def fit_linear(cond: Array, uncond: Array, past: int = 1) -> Array:
    """The coefficients of `linear_reuse` by least squares, a row a step, from recorded runs of CFG.

    The minimum of `sum over samples of |u - a_0 c - sum_i (a_i c_i + b_i u_i)|^2`.

    Args:
      cond: `[steps, N, ...]`, the conditional predictions of N samples along their paths.
      uncond: `[steps, N, ...]`, the unconditional ones.
      past: K, how many steps back to look.

    Returns:
      `[steps, 1 + 2 K]`; the first K rows are zero, for these steps are evaluated.

    Raises:
      ValueError: if the two were not recorded along one path, are known and not finite, or past is below 1 or as many as the
        steps.
      TypeError: if one is no array of floating numbers.

    Example:
      >>> c = jax.random.normal(jax.random.key(0), (3, 8, 2))
      >>> print(fit_linear(c, 2 * c).shape)
      (3, 3)

    Reference: Castillo et al. 2023, arXiv:2312.12487, section 5.
    """
    check_count(past, "fit_linear's past")
    for name, value in (("cond", cond), ("uncond", uncond)):
        check_array(value, f"fit_linear's {name}", jnp.floating, "floating numbers, [steps, N, ...]")
        check_finite(value, f"fit_linear's {name}")
    if cond.shape != uncond.shape:
        raise ValueError(
            f"cond and uncond must be recorded along one path, [steps, N, ...], got {cond.shape} and {uncond.shape}."
        )
    cond, uncond = (jnp.asarray(side, at_least_float32(side.dtype)) for side in (cond, uncond))
    if past >= len(cond):
        raise ValueError(f"past={past} steps to look back need more than that many steps, but there are {len(cond)} steps.")
    steps = len(cond)
    rows = [jnp.zeros(1 + 2 * past, jnp.result_type(cond))] * past
    for i in range(past, steps):
        known = [cond[i], *(cond[i - k] for k in range(1, past + 1)), *(uncond[i - k] for k in range(1, past + 1))]
        matrix = jnp.stack([part.reshape(-1) for part in known], axis=1)
        rows.append(jnp.linalg.lstsq(matrix, uncond[i].reshape(-1))[0])
    return jnp.stack(rows)
