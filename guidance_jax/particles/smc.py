"""Sequential Monte Carlo: particles carry weights along a run and are resampled in groups."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from guidance_jax.arrays import divide, expand
from guidance_jax.base import Context, GuidedDenoiser, NoiseLevel, Prediction, State
from guidance_jax.checks.door import door, part, rule
from guidance_jax.checks.kinds import Count, Fraction, Keys, Ratio
from guidance_jax.checks.particles import (
    check_first,
    check_particles,
    check_population,
    not_straight,
    only_where,
    rewards,
    right_reward,
    unguided,
)
from guidance_jax.guidance.algebra import chain
from guidance_jax.guided import Networks
from guidance_jax.interfaces import Sampler
from guidance_jax.noise import apart
from guidance_jax.particles import targets
from guidance_jax.particles.resampling import effective_size, systematic
from guidance_jax.particles.targets import Target
from guidance_jax.programs.parts import calls_of
from guidance_jax.samplers.around import recur
from guidance_jax.samplers.restart import restart
from guidance_jax.sampling import run

NOISY = 0.03
"""The spread is measured only if noise is at least this fraction of the variance of x. Below it, score errors dominate."""


class Particles(NamedTuple):
    """The end of a run. A group is `size` consecutive rows; G is the number of groups.

    `spread = sum_n w_n <eps, x_n - mean> / (sigma D (1 - sum_n w_n^2))`, with the target's eps. By Stein's identity it is 1
    under every distribution. On Gaussians it is the variance divided by the right one.

    Args:
      x: The samples, `[B, ...]`, each with its weight; NaN in a group without one.
      log_weights: `[B]`, normalised: their exponentials sum to 1 in each group. -inf is a dead particle, of weight 0.
      log_normaliser: `[G]`, an estimate of `log integral of prod_i p_i(x)^a_i exp(log_reward(x)) dx`; -inf in a group of dead
        particles. Its exponential is unbiased if `kernels` are exact, otherwise up to the error of the steps.
      effective: `[G]`, the effective sample size at the end, `1 / sum of squared weights`, in 1..size.
      least: `[G]`, the minimum effective sample size along the run, before resampling.
      ancestors: `[G]`, the effective number of ancestors at the start: 1 divided by the sum over ancestors of the squared
        total weight of their descendants. `1 / ancestors - 1 / size` estimates the relative variance of the normaliser
        (Lee & Whiteley 2018, arXiv:1509.00394).
      spread: `[G]`, the spread of the particles divided by the spread that the target's score implies; see above. It is 1 up
        to the error of the steps, which no field above shows. It is measured at the last level in `(low, high]` whose noise
        is at least 3 % of the variance of x. It shows no error below that level, and no error in the weights of modes far
        apart. It is NaN for a target with a reward, whose score is unknown; for such a target, run it without the reward.
      spread_error: `[G]`, the standard error of `spread`.
      evaluations: The number of network evaluations per particle, `()`.

    Example:
      >>> x, weights = jnp.array([[1.0], [3.0]]), jnp.array([0.25, 0.75])
      >>> found = gj.particles.Particles(x, jnp.log(weights), *jnp.zeros((6, 1)), 0)
      >>> print(jnp.exp(found.log_weights) @ found.x)  # the mean of what is sampled
      [2.5]
    """

    x: Float[Array, "b ..."]
    log_weights: Float[Array, "b"]
    log_normaliser: Float[Array, "g"]
    effective: Float[Array, "g"]
    least: Float[Array, "g"]
    ancestors: Float[Array, "g"]
    spread: Float[Array, "g"]
    spread_error: Float[Array, "g"]
    evaluations: Array


class Weights(NamedTuple):
    """The memory of a weighed sampler, `[B]` unless stated otherwise.

    Args:
      inner: The memory of the inner sampler, any pytree.
      log_weights: The weights since the last resampling.
      log_normaliser: The contribution of all resamplings so far.
      reward: The log_reward that the weights contain so far.
      unreal: Whether a log_reward was NaN or inf.
      pending: The factor of the integrand at the next evaluation, `()`.
      ancestors: The index of the particle's ancestor at the start.
      least: The minimum effective sample size so far.
      spread: The spread at the last level where it was measured.
      spread_error: Its standard error.
    """

    inner: Any
    log_weights: Array
    log_normaliser: Array
    reward: Array
    unreal: Array
    pending: Array
    ancestors: Array
    least: Array
    spread: Array
    spread_error: Array


@door(rule("the interval is empty: low must be below high, both in sigma / alpha", lambda low, high: low < high))
def feynman_kac(
    keys: Keys,
    branches: Networks,
    target: Target,
    sampler: Sampler,
    levels: NoiseLevel,
    shape_or_x: tuple[int, ...] | Array,
    *,
    size: Count,
    threshold: Fraction = 0.5,
    kernels: bool = False,
    low: Ratio = 0.0,
    high: Ratio = jnp.inf,
) -> Particles:
    """Samples a target density, which guidance alone misses. Particles move by its drift, carry weights, and are resampled.

    `log w = -1/2 integral of sum_i a_i |x0_i - x0|^2 dSNR`

    Here the exponents sum to 1, `x0 = sum_i a_i x0_i`, and SNR = alpha^2 / sigma^2. For `tilted(w)`, the right side is
    `w (w - 1) / 2 integral of |x0_c - x0_u|^2 dSNR`. The weights are right in the limit of small steps, for every sampler that
    follows the guided ODE or SDE with any amount of noise. The trapezoidal rule integrates them, from alpha = 0 and to
    sigma = 0.

    `log w = sum_i a_i log B_i(x' | x) + (1 - sum_i a_i) log F(x | x') - log B(x' | x)`

    This is the weight of one step with `kernels`, for samplers that have one. B_i is the Gaussian of the step for branch i
    alone, B the Gaussian that the step draws from, and F the forward noising. The weights are exact for any number of steps
    if the B_i are exact. The kernels of `ddpm("small")` and `ddim(1.0)` are not exact.

    Steps that are too long bias the distribution, for any number of particles. At scale 2 on Gaussians, the variance with 20,
    40, 80 and 160 steps, divided by the right one, is (`python -m experiments.gaussians`):

    - `heun_sde(2.0)`: .77, .86, .95 and .99
    - `heun_sde()`: .90, 1.02, 1.02 and 1.02
    - the kernels of `ddpm("small")`: .71, .89, .90 and .96

    The error of the log-normaliser is at most .02 for the first two, and .44, .15, .06 and .03 for the kernels. `spread`
    measures the bias. If it differs from 1 by more than a tenth and by more than four standard errors, a warning says so.

    Weights vary more in higher dimensions and at larger scales. There is a warning if too few particles carry the weight, at
    some level or as ancestors. The limit is ten, a quarter of a group below 40, or a hundredth of a group above 1,000.

    A sampler that draws more noise, `heun_sde(2.0)` instead of `heun_sde()`, has more even weights but needs more steps.
    Resampling copies particles, and noise makes the copies different again. With a deterministic sampler they stay equal.

    Args:
      keys: `[B]`, one per particle; B is a multiple of `size`.
      branches: As of `sample`. Each condition is the same for all particles of a group.
      target: `tilted(scale)`, `product`, `annealed` or `rewarded`.
      sampler: `heun_sde(2.0)`, `ddpm()`, ...
      levels: As of `sample`.
      shape_or_x: The shape of one sample, to start from the target at pure noise. Or x at `levels[0]`, drawn from the target
        there; the normaliser is then relative to the normaliser of that target.
      size: The number of particles in a group, at least 2. A group shares its weights.
      threshold: A group is resampled (systematically) if its effective sample size is below `threshold size`; 0 means never.
      kernels: Whether the weights are ratios of kernels.
      low: The lower bound in `sigma / alpha`, excluded. Below it there are no weights and no resampling, only guidance. It is a
        compromise: weights degenerate less, but the particles no longer sample the target. A reward counts at every level.
      high: The upper bound in `sigma / alpha`, included.

    Returns:
      `Particles`: x, their weights, the log-normaliser, and how far the weights degenerated.

    Raises:
      ValueError: As `sample`. If B is not a multiple of size, or a condition differs within a group. If kernels are needed and
        the sampler has none. If its steps do not follow the guided ODE or SDE (churn, recurrence, restarts). If exponents
        that do not sum to 1 start at alpha = 0. After the run, if a log_reward was NaN or inf, or is -inf for a whole group.
        Inside a caller's jit there is a warning instead: x of that group is NaN, its log_normaliser NaN or -inf, and other
        groups are right.

    Example:
      >>> means, covariances = jnp.array([[-1.0], [1.0]]), jnp.ones((2, 1, 1))
      >>> mixture = gj.oracles.GaussianMixture(means, covariances, jnp.ones(2), jnp.arange(2))
      >>> keys, label = jax.random.split(jax.random.key(0), 512), jnp.zeros(512, int)
      >>> two = gj.branches(mixture.denoise, cond=label, uncond=label - 1)
      >>> path = gj.levels(gj.schedules.edm(), 40, gj.spacings.karras())
      >>> @jax.jit
      ... def draw(keys, scale):
      ...     target, sampler = gj.targets.tilted(scale), gj.heun_sde()
      ...     return gj.feynman_kac(keys, two, target, sampler, path, (1,), size=512)
      >>> print(draw(keys, 2.0).log_normaliser.round(1))
      [0.5]

    Reference: Skreta et al. 2025, arXiv:2503.02819; kernels, arXiv:2506.05668.
    """
    kernels = kernels or target.guidance is not None
    inner = calls_of(restart, sampler) + [call for call in calls_of(recur, sampler) if call.arguments["times"] > 1]
    check_population(keys, branches, sampler, levels, shape_or_x, size, kernels, target.total, inner)
    start, known = targets.start(keys, target, levels, shape_or_x, kernels)
    guidance = targets.drift(target) if target.guidance is None else chain(targets.drift(target), target.guidance)
    around = weighed(sampler, target, levels[-1], size, threshold=threshold, kernels=kernels, low=low, high=high)
    state, _ = run(keys, branches, guidance, around, levels, start)

    last: Weights = state.memory
    if target.log_reward is not None:
        last = _rewarded(last, rewards(target.log_reward, state.x, levels[-1]), state.x)
    groups, each = last.log_weights.reshape(-1, size), lambda group: jnp.repeat(group, size)
    dead, unreal = (groups == -jnp.inf).all(1), last.unreal.reshape(-1, size).any(1)
    sums = jax.nn.logsumexp(jnp.where(dead[:, None], 0, groups), axis=1)
    log_weights = jnp.where(each(unreal), jnp.nan, groups.ravel() - each(sums))
    log_normaliser = known.astype(sums.dtype) + last.log_normaliser[::size] + sums - math.log(size)
    log_normaliser = jnp.where(dead, -jnp.inf, jnp.where(unreal, jnp.nan, log_normaliser))

    effective = jnp.where(unreal, jnp.nan, effective_size(groups))
    families = jax.ops.segment_sum(jnp.exp(log_weights), last.ancestors, len(keys)).reshape(-1, size)
    least, ancestors = jnp.minimum(last.least[::size], effective), divide(jnp.ones_like(sums), (families**2).sum(1))
    # Equal copies of a particle add no information.
    error = last.spread_error[::size] * jnp.sqrt(jnp.maximum(divide(effective, ancestors), 1))
    spread = last.spread[::size]

    x = state.x.astype(levels.sigma.dtype if isinstance(shape_or_x, tuple) else shape_or_x.dtype)
    x = jnp.where(expand(each(dead | unreal), x), jnp.nan, x)
    check_particles(size, target.log_reward, dead, unreal, least, ancestors, spread, error)
    return Particles(x, log_weights, log_normaliser, effective, least, ancestors, spread, error, state.evaluations)


@part()
def weighed(
    sampler: Sampler,
    target: Target,
    end: NoiseLevel,
    size: Count,
    *,
    threshold: Fraction,
    kernels: bool,
    low: Ratio,
    high: Ratio,
) -> Sampler:
    """A sampler that adds weights and resampling to each step of another. The arguments are those of `feynman_kac`."""

    def init(x: Array) -> Weights:
        zeros = jnp.zeros_like(x, shape=len(x))
        first = jnp.zeros_like(x, jnp.int32, shape=len(x)) + jnp.arange(len(x), dtype=jnp.int32)
        pending, full, unknown = jnp.zeros((), x.dtype), zeros + size, zeros + jnp.nan
        return Weights(sampler.init(x), zeros, zeros, zeros, zeros > 0, pending, first, full, unknown, unknown)

    def step(denoise: GuidedDenoiser, state: State, level: NoiseLevel, next: NoiseLevel, keys: Array) -> State:
        weights = state.memory
        prediction, state, context = denoise.look(state, level)
        # The trapezoidal rule: the integrand times half of both adjacent steps. The end of the last step has no evaluation.
        integrand = jnp.zeros_like(weights.log_weights) if kernels else targets.integrand(target, context)
        weights = weights._replace(log_weights=weights.log_weights + weights.pending * integrand)
        inside = (level.ratio > jnp.asarray(low, state.x.dtype)) & (level.ratio <= jnp.asarray(high, state.x.dtype))
        if target.log_reward is None:
            weights = _measured(weights, target, context, size, inside)
        else:
            # The predicted x0 is a mean. If its reward is -inf, the final x may still have a finite reward.
            x0 = targets.mean(target, context)
            reward = rewards(target.log_reward, x0, level)
            weights = _rewarded(weights, jnp.where(reward == -jnp.inf, weights.reward, reward), x0)

        weights, order = _resample(weights, keys, size, jnp.where(inside, jnp.asarray(threshold, state.x.dtype), 0))
        take = lambda tree: jax.tree.map(lambda leaf: leaf[order] if jnp.ndim(leaf) else leaf, tree)
        inner = take(weights.inner)
        state = state._replace(x=take(state.x), guidance=take(state.guidance), x0=take(state.x0), memory=inner)
        prediction, base = take(prediction), take(context.base)
        branches = {name: take(each) for name, each in context.branches.items()}
        context = context._replace(x=state.x, base=base, branches=branches, derivatives={})

        state = sampler.step(_known(denoise, prediction, context), Looked(*state), level, next, keys)
        length = jnp.where(inside, targets.measure(target, level) - targets.measure(target, next), 0)
        last = (next.alpha == end.alpha.astype(next.alpha.dtype)) & (next.sigma == end.sigma.astype(next.sigma.dtype))
        if sampler.kernel is not None and kernels:
            gained = targets.ratio(target, sampler.kernel, prediction, context, state.x)
            gained = jnp.where(inside & (next.sigma > 0), gained, 0)
        else:
            gained = jnp.where(last, length, length / 2) * integrand[order]
        pending = jnp.where(last, 0, length / 2)
        weights = weights._replace(inner=state.memory, log_weights=weights.log_weights + gained, pending=pending)
        return state._replace(x=state.x, memory=weights)

    return Sampler(init, step, schedule=sampler.schedule)


class Looked(State):
    """A state whose prediction at x is known. With another x it becomes a plain `State`."""

    __slots__ = ()

    def _replace(self, **changes: Any) -> State:  # pyright: ignore[reportIncompatibleMethodOverride]
        return State(*self)._replace(**changes) if "x" in changes else super()._replace(**changes)


def _known(denoise: GuidedDenoiser, prediction: Prediction, context: Context) -> GuidedDenoiser:
    """The denoiser of a step whose first prediction is known, at `context.x` and `context.level`."""
    begun: list[bool] = []

    def look(state: State, at: NoiseLevel) -> tuple[Prediction, State, Context]:
        here = ((at.alpha == context.level.alpha) & (at.sigma == context.level.sigma)).all()
        if isinstance(state, Looked):
            begun.append(True)
            return only_where(here, prediction), State(*state), context
        check_first(bool(begun))
        other, state, read = denoise.look(state, at)
        return only_where(~here, other), state, read

    return GuidedDenoiser(look, unguided, not_straight)


def _rewarded(weights: Weights, reward: Array, x0: Array) -> Weights:
    """The weights with the reward of x0 instead of the reward that they contain."""
    unreal = weights.unreal | ~right_reward(reward, x0)
    return weights._replace(log_weights=weights.log_weights + reward - weights.reward, reward=reward, unreal=unreal)


def _measured(weights: Weights, target: Target, context: Context, size: int, inside: Array) -> Weights:
    """The weights with the spread of the particles at this level, `Particles.spread`."""
    x, dimension = context.x, math.prod(context.x.shape[1:])
    inner = lambda a, b: (a * b).reshape(-1, size, dimension).sum(2)
    share = jax.nn.softmax(weights.log_weights.reshape(-1, size), axis=1)
    centre = jnp.einsum("gn,gnd->gd", share, x.reshape(-1, size, dimension), precision="highest")
    offset = x - jnp.repeat(centre, size, axis=0).reshape(x.shape)
    others = 1 - (share**2).sum(1)
    terms = inner(targets.combined(target, context).eps, offset) / (context.level.sigma * dimension)
    spread = divide((share * terms).sum(1), others)
    error = jnp.sqrt((share**2 * (terms - spread[:, None]) ** 2).sum(1))
    variance = divide((share * inner(offset, offset)).sum(1), others * dimension)
    seen = jnp.repeat(inside & (context.level.sigma**2 >= NOISY * variance), size)
    pick = lambda new, old: jnp.where(seen, jnp.repeat(new, size), old)
    return weights._replace(spread=pick(spread, weights.spread), spread_error=pick(error, weights.spread_error))


def _resample(weights: Weights, keys: Array, size: int, threshold: Array) -> tuple[Weights, Array]:
    """The weights after resampling the groups that need it, without the inner memory; and the source row of each row, `[B]`."""
    grouped = weights.log_weights.reshape(-1, size)
    effective = effective_size(grouped)
    now = (effective < threshold * size) & (effective > 0)
    drawn = jax.vmap(systematic)(apart(keys[::size], 0), grouped)
    places = jnp.arange(len(keys), dtype=drawn.dtype).reshape(-1, size)
    order = jnp.where(now[:, None], drawn + places[:, :1], places).ravel()
    gained = jnp.where(now, jax.nn.logsumexp(jnp.where(now[:, None], grouped, 0), axis=1) - math.log(size), 0)
    each = lambda value: jnp.repeat(value, size)
    weights = weights._replace(
        log_weights=jnp.where(each(now), 0, weights.log_weights),
        log_normaliser=weights.log_normaliser + each(gained),
        reward=weights.reward[order],
        ancestors=weights.ancestors[order],
        least=jnp.minimum(weights.least, each(effective)),
    )
    return weights, order
