"""Samplers around samplers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import ArrayLike

from guidance_jax import scores
from guidance_jax.arrays import concrete
from guidance_jax.checks.old import per_sample
from guidance_jax.base import GuidedDenoiser, NoiseLevel, Sampler, State
from guidance_jax.checks.old import check_order, check_sampler, check_scalar
from guidance_jax.checks.old import check_callable, check_count, check_numbers, told
from guidance_jax.noise import apart, contraction, fold, normal
from guidance_jax.checks.traced import all_finite, insist


def recur(sampler: Sampler, times: int, low: ArrayLike = 0.0, high: ArrayLike = jnp.inf) -> Sampler:
    """Recurrence, or time travel: a step is taken, undone by fresh noise, and taken again.

    `x <- (alpha / alpha') x' + sigma sqrt(1 - q^2) z`, with `q = (sigma' / alpha') / (sigma / alpha)`, between two repetitions.

    It costs `times` steps' evaluations in every step inside the interval of `sigma / alpha`. A step from alpha = 0 or to
    sigma' = 0 is taken once.

    Args:
      sampler: whose steps are repeated; one that keeps no memory.
      times: how often a step is taken, at least 1, which changes nothing.
      low: of `sigma / alpha` at the step's beginning, `()`, excluded.
      high: likewise, included.

    Raises:
      ValueError: if times is below 1, or the sampler keeps a memory.

    Example:
      >>> denoise = denoiser(lambda x, t, cond: 0 * x + 3, predicts="x0")
      >>> path = levels(schedules.cosine(), 2, spacings.trailing())
      >>> keys = jax.random.split(jax.random.key(0), 1)
      >>> print(sample(keys, branches(denoise, cond=None), chain(), recur(ddim(), 3), path, (2,)))
      [[3. 3.]]

    Reference: Lugmayr et al. 2022, arXiv:2201.09865, algorithm 1; Bansal et al. 2023, arXiv:2302.07121.
    """
    check_sampler(sampler, "recur's sampler")
    check_count(times, "recur's times")
    check_scalar(low, "recur's low", -np.inf, np.inf)
    check_scalar(high, "recur's high", -np.inf, np.inf)
    check_order(low, high, "recur")

    def init(x: Array) -> Any:
        memory = sampler.init(x)
        if times > 1 and jax.tree.leaves(memory):
            raise ValueError(
                "recur repeats a step, and this sampler remembers the step before, which a repetition is not; recur samplers "
                "that keep no memory: ddim(), ddpm(), heun()."
            )
        return memory

    def step(denoise: GuidedDenoiser, state: State, level: NoiseLevel, next: NoiseLevel, keys: Array) -> State:
        q = contraction(level, next)
        inside = (level.ratio > jnp.asarray(low, q.dtype)) & (level.ratio <= jnp.asarray(high, q.dtype)) & (q > 0)

        def again(i: Array | int, state: State) -> State:
            # Each repetition draws with two keys of its own: 2 i - 1 renoises, 2 i is the sampler's.
            mine = [fold(keys, 2 * i - j) for j in (1, 0)]
            back = level.alpha / next.alpha * state.x + level.sigma * jnp.sqrt(1 - q**2) * normal(mine[0], state.x)
            return sampler.step(denoise, state._replace(x=back), level, next, mine[1])

        def repeat(state: State) -> State:
            return jax.lax.fori_loop(1, times, again, state)

        first = sampler.step(denoise, state, level, next, keys)
        return jax.lax.cond(inside, repeat, lambda state: state, first) if times > 1 else first

    return Sampler(init, step, schedule=sampler.schedule)


def inpaint(sampler: Sampler, known: ArrayLike, mask: ArrayLike) -> Sampler:
    """Inpainting by replacement: before and after every step, the known part of x is the known data, noised to the level.

    `x' <- m (alpha' known + sigma' z) + (1 - m) x'`, z fresh noise at both ends of each step; at sigma' = 0 known itself.

    The unknown part hears of the known one through the network alone, and is not drawn from the conditional law: `recur` it,
    `recur(inpaint(ddpm("large"), known, mask), 10)`, and it comes near. The sampler's own
    bias stays. Of data N(0, I) in 20 Karras steps of the cosine schedule, the unknown part has variance .59 by `ddpm()`, whose
    small variance is right for data of no spread, and 1.00 by `ddpm("large")`.

    Args:
      sampler: whose steps are so framed.
      known: the data, `[B, ...]` or broadcastable to that; what the mask leaves out is never read and may be NaN.
      mask: `[B, ...]` or broadcastable to that: 1 or True where the data are known, 0 where they are not. A fraction blends
        the two, for soft edges; its noise is then too small.

    Raises:
      ValueError: if known or mask do not broadcast to x, or a mask's value is outside [0, 1].
      TypeError: if known is an array that is not floating.

    Example:
      >>> denoise = denoiser(lambda x, t, cond: 0 * x + 3, predicts="x0")
      >>> path = levels(schedules.cosine(), 2, spacings.trailing())
      >>> keys = jax.random.split(jax.random.key(0), 1)
      >>> half = inpaint(ddpm(), known=jnp.array([1.0, jnp.nan]), mask=jnp.array([1, 0]))
      >>> print(sample(keys, branches(denoise, cond=None), chain(), half, path, (2,)))
      [[1. 3.]]

    Reference: Lugmayr et al. 2022, arXiv:2201.09865, equation 8 and algorithm 1.
    """
    check_sampler(sampler, "inpaint's sampler")
    check_numbers(known, "inpaint's known")
    if hasattr(known, "dtype") and not jnp.issubdtype(known.dtype, jnp.floating):  # pyright: ignore[reportAttributeAccessIssue]
        raise TypeError(f"inpaint's known has {told(known)}, but must be floating; scale images to [-1, 1] first.")
    check_numbers(mask, "inpaint's mask")
    if concrete(mask):
        values = np.asarray(mask).astype(np.float64)
        outside = values[~((values >= 0) & (values <= 1))]
        if outside.size:
            raise ValueError(f"inpaint's mask must be in [0, 1], 1 where the data are known, and has a value {outside[0]}.")
    if bad := _unknown(known, mask):
        raise ValueError(f"inpaint's known must be finite where the mask has it, got NaN or infinite values in {bad} places.")

    def replaced(state: State, level: NoiseLevel, keys: Array) -> State:
        x = state.x
        share, data = (_shaped(value, x, name) for value, name in ((mask, "mask"), (known, "known")))
        data = jnp.where(share > 0, data, 0)
        insist(lambda: all_finite(data), "inpaint's known has NaN or infinite values where the mask has it.")
        noisy = level.alpha * data + level.sigma * normal(keys, x)
        return state._replace(x=share * noisy + (1 - share) * x)

    def step(denoise: GuidedDenoiser, state: State, level: NoiseLevel, next: NoiseLevel, keys: Array) -> State:
        state = sampler.step(denoise, replaced(state, level, apart(keys, 1)), level, next, keys)
        return replaced(state, next, apart(keys, 2))

    return Sampler(sampler.init, step, schedule=sampler.schedule)


def _unknown(known: ArrayLike, mask: ArrayLike) -> int:
    """How many values that the mask has are known not to be finite."""
    if not concrete((known, mask)):
        return 0
    with np.errstate(over="ignore"):
        data, share = (np.asarray(value).astype(np.float32) for value in (known, mask))
    try:
        return int((~np.isfinite(data) & (share > 0)).sum())
    except ValueError:  # Their shapes are told where that of x is known.
        return 0


def _shaped(value: ArrayLike, x: Array, name: str) -> Array:
    value = jnp.asarray(value).astype(x.dtype)
    if value.ndim > x.ndim or any(size not in (1, n) for size, n in zip(value.shape[::-1], x.shape[::-1], strict=False)):
        raise ValueError(f"inpaint's {name} has shape {value.shape}, which does not broadcast to x, {x.shape}.")
    return jnp.broadcast_to(value, x.shape)


def post_step(sampler: Sampler, log_prob: scores.LogProb, scale: ArrayLike) -> Sampler:
    """Classifier guidance in its post-step form: after each step, x moves up the classifier's gradient there.

    `x' <- x' + scale grad log p(y | x')`, at the level where the step ends.

    Args:
      sampler: whose steps are followed.
      log_prob: `(x, level) -> [B]`: `scores.class_log_prob(classify, labels)`, or any other.
      scale: `()` or `[B]`, in the units of x squared; 0 changes nothing.

    Raises:
      ValueError: if scale is neither `()` nor `[B]`, or log_prob does not give `[B]`.

    Example:
      >>> log_prob = lambda x, level: -0.5 * ((x - 1) ** 2).sum(1)
      >>> denoise = denoiser(lambda x, t, cond: 0 * x + 3, predicts="x0")
      >>> path = levels(schedules.cosine(), 2, spacings.trailing())
      >>> keys = jax.random.split(jax.random.key(0), 1)
      >>> print(sample(keys, branches(denoise, cond=None), chain(), post_step(ddim(), log_prob, 0.5), path, (2,)))
      [[2. 2.]]
    """
    check_sampler(sampler, "post_step's sampler")
    check_callable(log_prob, "log_prob", scores.NOISY)

    def step(denoise: GuidedDenoiser, state: State, level: NoiseLevel, next: NoiseLevel, keys: Array) -> State:
        state = sampler.step(denoise, state, level, next, keys)
        gradient = scores.classifier_score(log_prob, state.x, next).astype(state.x.dtype)
        return state._replace(x=state.x + per_sample(scale, state.x, "post_step's scale") * gradient)

    return Sampler(sampler.init, step, schedule=sampler.schedule)
