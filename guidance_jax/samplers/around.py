"""Samplers around samplers."""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import ArrayLike

from guidance_jax import scores
from guidance_jax.arrays import per_sample
from guidance_jax.base import GuidedDenoiser, NoiseLevel, Sampler, State
from guidance_jax.noise import contraction, normal


def recur(sampler: Sampler, times: int, low: ArrayLike = 0.0, high: ArrayLike = jnp.inf) -> Sampler:
    """Recurrence, or time travel: a step is taken, undone by fresh noise, and taken again.

    `x <- (alpha / alpha') x' + sigma sqrt(1 - q^2) z`, with `q = (sigma' / alpha') / (sigma / alpha)`, between two repetitions.

    It costs `times` steps' evaluations in every step inside the interval of `sigma / alpha`. A step from alpha = 0 or to
    sigma' = 0 is taken once.

    Args:
      sampler: whose steps are repeated; one that keeps no memory.
      times: how often a step is taken, at least 1, which changes nothing.
      low: of `sigma / alpha` at the step's beginning, excluded.
      high: likewise, included.

    Raises:
      ValueError: if times is below 1.

    Example:
      >>> denoise = denoiser(lambda x, t, cond: 0 * x + 3, predicts="x0")
      >>> path = levels(schedules.cosine(), 2, spacings.trailing())
      >>> keys = jax.random.split(jax.random.key(0), 1)
      >>> print(sample(keys, branches(denoise, cond=None), chain(), recur(ddim(), 3), path, (2,)))
      [[3. 3.]]

    Reference: Lugmayr et al. 2022, arXiv:2201.09865, algorithm 1; Bansal et al. 2023, arXiv:2302.07121.
    """
    if times < 1:
        raise ValueError(f"recur's times must be at least 1, got {times}.")

    def step(denoise: GuidedDenoiser, state: State, level: NoiseLevel, next: NoiseLevel, keys: Array) -> State:
        q = contraction(level, next)
        inside = (level.ratio > jnp.asarray(low, q.dtype)) & (level.ratio <= jnp.asarray(high, q.dtype)) & (q > 0)

        def again(i: Array, state: State) -> State:
            # Each repetition draws with two keys of its own: 2 i - 1 renoises, 2 i is the sampler's.
            mine = [jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, 2 * i - j) for j in (1, 0)]
            back = level.alpha / next.alpha * state.x + level.sigma * jnp.sqrt(1 - q**2) * normal(mine[0], state.x)
            return sampler.step(denoise, state._replace(x=back), level, next, mine[1])

        def repeat(state: State) -> State:
            return jax.lax.fori_loop(1, times, again, state)

        first = sampler.step(denoise, state, level, next, keys)
        return jax.lax.cond(inside, repeat, lambda state: state, first) if times > 1 else first

    return Sampler(sampler.init, step)


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

    def step(denoise: GuidedDenoiser, state: State, level: NoiseLevel, next: NoiseLevel, keys: Array) -> State:
        state = sampler.step(denoise, state, level, next, keys)
        gradient = scores.classifier_score(log_prob, state.x, next).astype(state.x.dtype)
        return state._replace(x=state.x + per_sample(scale, state.x, "post_step's scale") * gradient)

    return Sampler(sampler.init, step)
