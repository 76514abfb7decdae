"""Samplers that wrap another sampler: recurrence, inpainting, post-step guidance, and projection."""

from collections.abc import Callable
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import ArrayLike
from typing_extensions import TypeAliasType

from guidance_jax import scores
from guidance_jax.arrays import expand
from guidance_jax.base import GuidedDenoiser, NoiseLevel, State
from guidance_jax.checks.door import Kind, also, part, rule
from guidance_jax.checks.kinds import Count, LogProb, Mask, PerSample, Ratio, function_kind
from guidance_jax.checks.numbers import check_broadcasts, check_shaped, real
from guidance_jax.checks.outcomes import ask
from guidance_jax.checks.steps import check_data, check_forgetful, check_known
from guidance_jax.interfaces import Sampler
from guidance_jax.noise import apart, contraction, fold, normal

Data = TypeAliasType("Data", Annotated[ArrayLike, Kind("a real number or an array of floating numbers", real, also=check_data)])
"""One number, or an array that broadcasts against x."""
Project = TypeAliasType(
    "Project", Annotated[Callable[[Array], Array], function_kind("x", hint="it is x [B, ...] -> x [B, ...].")]
)
"""`x [B, ...] -> x [B, ...]`."""


@part(rule("low must be below high", lambda low, high: low < high))
def recur(sampler: Sampler, times: Count, low: Ratio = 0.0, high: Ratio = jnp.inf) -> Sampler:
    """Recurrence, or time travel: repeat each step after moving x back with fresh noise.

    `x <- (alpha / alpha') x' + sigma sqrt(1 - q^2) z`, with `q = (sigma' / alpha') / (sigma / alpha)`, between two repetitions.

    Every step inside the interval costs `times` times the evaluations of one step. A step from alpha = 0 or to sigma' = 0 is
    not repeated.

    Args:
      sampler: The sampler whose steps are repeated. It must have no memory.
      times: The number of times that each step is taken. 1 changes nothing.
      low: The minimum `sigma / alpha` at the beginning of a repeated step, `()`, excluded.
      high: The maximum `sigma / alpha` at the beginning of a repeated step, `()`, included.

    Raises:
      ValueError: If times is below 1, low is not below high, or the sampler has a memory.

    Example:
      >>> denoise = gj.denoiser(lambda x, t, cond: 0 * x + 3, predicts="x0")
      >>> one = gj.branches(denoise, cond=None)
      >>> path = gj.levels(gj.schedules.cosine(), 2, gj.spacings.trailing())
      >>> keys = jax.random.split(jax.random.key(0), 1)
      >>> print(gj.sample(keys, one, gj.chain(), gj.recur(gj.ddim(), 3), path, (2,)))
      [[3. 3.]]

    Reference: Lugmayr et al. 2022, arXiv:2201.09865, algorithm 1; Bansal et al. 2023, arXiv:2302.07121.
    """
    if times == 1:
        return sampler

    def init(x: Array) -> Any:
        memory = sampler.init(x)
        check_forgetful(memory)
        return memory

    def step(denoise: GuidedDenoiser, state: State, level: NoiseLevel, next: NoiseLevel, keys: Array) -> State:
        q = contraction(level, next)
        inside = (level.ratio > jnp.asarray(low, q.dtype)) & (level.ratio <= jnp.asarray(high, q.dtype)) & (q > 0)

        def again(i: Array | int, state: State) -> State:
            # Each repetition uses two keys: 2 i - 1 for the noise that moves x back, 2 i for the sampler.
            mine = [fold(keys, 2 * i - j) for j in (1, 0)]
            back = level.alpha / next.alpha * state.x + level.sigma * jnp.sqrt(1 - q**2) * normal(mine[0], state.x)
            return sampler.step(denoise, state._replace(x=back), level, next, mine[1])

        def repeat(state: State) -> State:
            return jax.lax.fori_loop(1, times, again, state)

        first = sampler.step(denoise, state, level, next, keys)
        return jax.lax.cond(inside, repeat, lambda state: state, first)

    return Sampler(init, step, schedule=sampler.schedule)


@part(also(check_known))
def inpaint(sampler: Sampler, known: Data, mask: Mask) -> Sampler:
    """Inpainting by replacement: before and after each step, replace the known part of x by data noised to the same level.

    `x' <- m (alpha' known + sigma' z) + (1 - m) x'`, where z is fresh noise, at both ends of each step. At sigma' = 0 the known
    part is the known data.

    The unknown part depends on the known part only through the network, so it is not an exact conditional sample. Recurrence
    brings it closer: `recur(inpaint(ddpm("large"), known, mask), 10)`. The bias of the sampler remains. For data N(0, I), in 20
    Karras steps of the cosine schedule, the variance of the unknown part is .59 with `ddpm()` and 1.00 with `ddpm("large")`.

    Args:
      sampler: The sampler whose steps are wrapped.
      known: The known data, broadcastable to `[B, ...]`. Values outside the mask are never read, and may be NaN.
      mask: The mask, broadcastable to `[B, ...]`: 1 or True where the data are known, 0 where they are not. A fraction blends
        both, for soft edges. The noise is too small there.

    Raises:
      ValueError: If known or mask does not broadcast to x, or a value of the mask is outside [0, 1].
      TypeError: If known is an array of numbers that are not floating.

    Example:
      >>> denoise = gj.denoiser(lambda x, t, cond: 0 * x + 3, predicts="x0")
      >>> one = gj.branches(denoise, cond=None)
      >>> path = gj.levels(gj.schedules.cosine(), 2, gj.spacings.trailing())
      >>> keys = jax.random.split(jax.random.key(0), 1)
      >>> half = gj.inpaint(gj.ddpm(), known=jnp.array([1.0, jnp.nan]), mask=jnp.array([1, 0]))
      >>> print(gj.sample(keys, one, gj.chain(), half, path, (2,)))
      [[1. 3.]]

    Reference: Lugmayr et al. 2022, arXiv:2201.09865, equation 8 and algorithm 1.
    """

    def replaced(state: State, level: NoiseLevel, keys: Array) -> State:
        x = state.x
        data, share = (jnp.asarray(value).astype(x.dtype) for value in (known, mask))
        check_broadcasts(x, "inpaint", mask=share, known=data)
        data, share = jnp.broadcast_to(data, x.shape), jnp.broadcast_to(share, x.shape)
        noisy = level.alpha * jnp.where(share > 0, data, 0) + level.sigma * normal(keys, x)
        return state._replace(x=share * noisy + (1 - share) * x)

    def step(denoise: GuidedDenoiser, state: State, level: NoiseLevel, next: NoiseLevel, keys: Array) -> State:
        state = sampler.step(denoise, replaced(state, level, apart(keys, 1)), level, next, keys)
        return replaced(state, next, apart(keys, 2))

    return Sampler(sampler.init, step, schedule=sampler.schedule)


@part()
def post_step(sampler: Sampler, log_prob: LogProb, scale: PerSample) -> Sampler:
    """Classifier guidance in post-step form: after each step, move x along the gradient of the classifier.

    `x' <- x' + scale grad log p(y | x')`, at the level where the step ends.

    Args:
      sampler: The sampler whose steps are wrapped.
      log_prob: `(x, level) -> [B]`: `gj.scores.class_log_prob(classify, labels)`, or any other log-probability.
      scale: The step size, `()` or `[B]`, in the units of x squared. 0 changes nothing.

    Raises:
      ValueError: If scale is neither `()` nor `[B]`, or log_prob does not return `[B]`.

    Example:
      >>> denoise = gj.denoiser(lambda x, t, cond: 0 * x + 3, predicts="x0")
      >>> one = gj.branches(denoise, cond=None)
      >>> path = gj.levels(gj.schedules.cosine(), 2, gj.spacings.trailing())
      >>> keys = jax.random.split(jax.random.key(0), 1)
      >>> log_prob = lambda x, level: -0.5 * ((x - 1) ** 2).sum(1)
      >>> sampler = gj.post_step(gj.ddim(), log_prob, 0.5)
      >>> print(gj.sample(keys, one, gj.chain(), sampler, path, (2,)))
      [[2. 2.]]
    """

    def step(denoise: GuidedDenoiser, state: State, level: NoiseLevel, next: NoiseLevel, keys: Array) -> State:
        state = sampler.step(denoise, state, level, next, keys)
        gradient = scores.classifier_score(log_prob, state.x, next).astype(state.x.dtype)
        return state._replace(x=state.x + expand(jnp.asarray(scale, state.x.dtype), state.x) * gradient)

    return Sampler(sampler.init, step, schedule=sampler.schedule)


@part()
def projected(sampler: Sampler, project: Project) -> Sampler:
    """A sampler that keeps samples in a subspace, such as point clouds with zero centre of mass.

    `x <- project(x)` before and after each step.

    The initial noise and the noise of each step are projected too. In the subspace they are standard normal if the projection
    is orthogonal. If the network maps the subspace to itself, evaluations within a step stay in it.

    Args:
      sampler: The sampler whose steps are wrapped.
      project: `x [B, ...] -> x [B, ...]`. It treats each sample separately. A second projection must change nothing.

    Raises:
      TypeError: If project is not a function of x, or returns another dtype.
      ValueError: If project returns another shape.

    Example:
      >>> centred = lambda x: x - x.mean(1, keepdims=True)  # of points, [B, N, 3]
      >>> denoise = gj.denoiser(lambda x, t, cond: 0 * x + 3, predicts="x0")
      >>> one = gj.branches(denoise, cond=None)
      >>> path = gj.levels(gj.schedules.cosine(), 2, gj.spacings.trailing())
      >>> keys = jax.random.split(jax.random.key(0), 1)
      >>> sampler = gj.projected(gj.ddpm(), centred)
      >>> print(gj.sample(keys, one, gj.chain(), sampler, path, (4, 3)).mean(1))
      [[0. 0. 0.]]

    Reference: For zero centre of mass, Hoogeboom et al. 2022, arXiv:2203.17003, section 3.1.
    """

    def moved(state: State) -> State:
        x = ask("project", project, x=state.x)
        check_shaped(x, state.x.shape, "projected: what project returns", kind=state.x.dtype.type)
        return state._replace(x=x)

    def step(denoise: GuidedDenoiser, state: State, level: NoiseLevel, next: NoiseLevel, keys: Array) -> State:
        return moved(sampler.step(denoise, moved(state), level, next, keys))

    return Sampler(sampler.init, step, schedule=sampler.schedule, reversible=sampler.reversible)
