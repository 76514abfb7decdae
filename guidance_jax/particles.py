"""Particles that sample what a guidance says: weighted along the run, resampled in groups (sequential Monte Carlo)."""

import math
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import ArrayLike, Float

from guidance_jax import targets
from guidance_jax.arrays import at_least_float32, concrete
from guidance_jax.base import Branches, Context, GuidedDenoiser, NoiseLevel, Prediction, Sampler, State
from guidance_jax.checks import check_keys, check_levels, check_networks, check_sampler, check_scalar, check_start
from guidance_jax.evaluation import Networks
from guidance_jax.guidance.algebra import chain
from guidance_jax.kinds import check_count
from guidance_jax.noise import START, apart, fold, normal
from guidance_jax.sampling import run
from guidance_jax.targets import Target, check_target

__all__ = ["Particles", "effective_size", "feynman_kac", "systematic"]


class Particles(NamedTuple):
    """The end of a run. A group is `size` rows, one after another; G is the number of groups.

    Example:
      >>> found = particles.Particles(jnp.array([[1.0], [3.0]]), jnp.log(jnp.array([0.25, 0.75])), *jnp.zeros((4, 1)), 0)
      >>> print(jnp.exp(found.log_weights) @ found.x)  # the mean of what is sampled
      [2.5]
    """

    x: Float[Array, "b ..."]
    """The samples, each with its weight."""
    log_weights: Float[Array, "b"]
    """Normalised: their exponentials sum to 1 in each group."""
    log_normaliser: Float[Array, "g"]
    """An estimate of `log integral of prod_i p_i(x)^a_i exp(log_reward(x)) dx`, whose exponential is without bias."""
    effective: Float[Array, "g"]
    """The effective sample size at the end, `1 / sum of squared weights`, in 1..size."""
    least: Float[Array, "g"]
    """The smallest effective sample size along the run, before a resampling mended it."""
    ancestors: Float[Array, "g"]
    """The effective number of particles of the start that those of the end descend from: 1 over the sum of squares of the
    weights that the descendants of each have together. `1 / ancestors - 1 / size` estimates the relative variance of the
    normaliser (Lee & Whiteley 2018, arXiv:1509.00394)."""
    evaluations: Array
    """The number of network evaluations, per particle."""


class Weights(NamedTuple):
    """What the run carries beside the inner sampler's memory; a row a particle."""

    inner: Any
    log_weights: Array
    log_normaliser: Array
    reward: Array
    """The log_reward that the weights hold so far."""
    pending: Array
    """What the integrand at the next evaluation still has to be multiplied by, `()`."""
    ancestors: Array
    least: Array


def feynman_kac(
    keys: Array,
    branches: Networks,
    target: Target,
    sampler: Sampler,
    levels: NoiseLevel,
    shape_or_x: tuple[int, ...] | Array,
    *,
    size: int,
    threshold: ArrayLike = 0.5,
    kernels: bool = False,
    low: ArrayLike = 0.0,
    high: ArrayLike = jnp.inf,
) -> Particles:
    """Samples of a target, which guidance alone misses: particles move by its drift, carry weights, and are resampled.

    With `x0 = sum_i a_i x0_i`, for exponents that sum to 1, and SNR = alpha^2 / sigma^2,
    `log w = -1/2 integral of sum_i a_i |x0_i - x0|^2 dSNR`, which is `w (w - 1) / 2 integral of |x0_c - x0_u|^2 dSNR` for
    `tilted(w)`. It holds for every sampler that follows the guided ODE or SDE, of any share of noise, and is
    integrated by the trapezoidal rule, from alpha = 0 and to sigma = 0. With `kernels`, for samplers that have one,
    `log w = sum_i a_i log B_i(x' | x) + (1 - sum_i a_i) log F(x | x') - log B(x' | x)` a step: B_i the step's Gaussian by
    branch i alone, B the one drawn from, F the noising; exact at any number of steps where the B_i are.

    Weights grow with the dimension and the scale; where few particles carry them all, the result is theirs alone, and a
    warning says so. The more a sampler draws, the more even they are: `heun_sde(2.0)` in place of `heun_sde()`. Copies that a
    resampling makes part again by what is drawn; with a deterministic sampler they stay copies.

    Args:
      keys: `[B]`, one a particle; B is a multiple of `size`.
      branches: as of `sample`; each condition is the same for all particles of a group.
      target: `tilted(scale)`, `product`, `annealed` or `rewarded`.
      sampler: `heun_sde(2.0)`, `ddpm()`, ...
      levels: as of `sample`.
      shape_or_x: the shape of one sample, to start from the target of pure noise; or x at `levels[0]`, which is taken
        for draws from the target there, and the normaliser is then relative to that target's.
      size: the number of particles of a group, which share their weights: 2 or more.
      threshold: resampled, systematically, where the effective sample size is below `threshold size`, `()`; 0 for never.
      kernels: whether to weigh by ratios of kernels.
      low: of `sigma / alpha`, `()`, excluded: below it neither weights nor resampling, only the guidance. A compromise: weights
        degenerate less, but what is sampled is no longer the target. A reward is weighed at every level.
      high: likewise, included.

    Returns:
      `Particles`: x, their weights, the log-normaliser, and how far the weights degenerated.

    Raises:
      ValueError: as `sample`; and if B is no multiple of size, a condition differs within a group, kernels are needed and the
        sampler has none, its steps are no steps of the guided ODE or SDE (churn, recurrence), or exponents that do not sum to
        1 meet a start at alpha = 0.

    Example:
      >>> mixture = oracles.GaussianMixture(jnp.array([[-1.0], [1.0]]), jnp.ones((2, 1, 1)), jnp.ones(2), jnp.arange(2))
      >>> keys, label = jax.random.split(jax.random.key(0), 64), jnp.zeros(64, int)
      >>> two, path = branches(mixture.denoise, cond=label, uncond=label - 1), levels(schedules.edm(), 16, spacings.karras())
      >>> found = feynman_kac(keys, two, targets.tilted(2.0), heun_sde(), path, (1,), size=64)
      >>> print(found.log_normaliser.shape)
      (1,)

    Reference: Skreta et al. 2025, arXiv:2503.02819; kernels, arXiv:2506.05668.
    """
    check_target(target)
    check_sampler(sampler)
    check_count(size, "size")
    kernels = kernels or target.guidance is not None
    check_keys(keys)
    _check_groups(len(keys), check_networks(branches), size)
    check_scalar(threshold, "feynman_kac's threshold", most=1)
    if concrete((low, high)) and not np.asarray(low) < np.asarray(high):
        raise ValueError(f"feynman_kac(low={low}, high={high}) is empty: low must be below high, both in sigma / alpha.")
    if kernels and sampler.kernel is None:
        raise ValueError("ratios of kernels, as a guided target needs, are of samplers that have one: ddpm(), ddim(1.0), ...")
    check_levels(levels, sampler)
    check_start(keys, levels, shape_or_x)
    given, known = _start(keys, target, levels, shape_or_x, kernels)
    guidance = targets.drift(target) if target.guidance is None else chain(targets.drift(target), target.guidance)
    end = NoiseLevel(*(field[-1] for field in levels))
    around = _around(sampler, target, Resampling(size, threshold, low, high), kernels, end)
    state, _ = run(keys, branches, guidance, around, levels, given)

    last: Weights = state.memory
    log_weights = last.log_weights
    if target.log_reward is not None:
        log_weights = log_weights + targets.reward_of(target.log_reward, state.x, end) - last.reward
    grouped = log_weights.reshape(-1, size)
    sums = jax.nn.logsumexp(grouped, axis=1, keepdims=True)
    normalised = (grouped - sums).ravel()
    families = jax.ops.segment_sum(jnp.exp(normalised), last.ancestors, len(keys)).reshape(-1, size)
    effective = effective_size(grouped)
    least, ancestors = jnp.minimum(last.least[::size], effective), 1 / (families**2).sum(1)
    _watch(least, ancestors, size)
    x = state.x.astype(levels.sigma.dtype if isinstance(shape_or_x, tuple) else shape_or_x.dtype)
    log_normaliser = known.astype(sums.dtype) + last.log_normaliser[::size] + sums[:, 0] - math.log(size)
    return Particles(x, normalised, log_normaliser, effective, least, ancestors, state.evaluations)


def effective_size(log_weights: Array) -> Array:
    """The effective sample size over the last axis, `(sum w)^2 / sum w^2`.

    Args:
      log_weights: `[..., N]`, normalised or not.

    Returns:
      `[...]`, in 1..N.

    Example:
      >>> print(particles.effective_size(jnp.log(jnp.array([[1.0, 1.0], [1.0, 0.0]]))))
      [2. 1.]

    Reference: Kong et al. 1994, "Sequential imputations and Bayesian missing data problems".
    """
    wide = log_weights.astype(at_least_float32(log_weights.dtype))
    return jnp.exp(2 * jax.nn.logsumexp(wide, axis=-1) - jax.nn.logsumexp(2 * wide, axis=-1))


def systematic(key: Array, log_weights: Array) -> Array:
    """Systematic resampling: which of N particles each of N takes the place of, `[N]`, from one uniform number.

    Place i is taken by the first k with `sum over j <= k of w_j >= (i + u) / N`, u in [0, 1): a particle of weight w, of
    weights that sum to 1, `floor(N w)` or `ceil(N w)` times.

    Args:
      key: a PRNG key.
      log_weights: `[N]`, normalised or not.

    Example:
      >>> print(particles.systematic(jax.random.key(0), jnp.log(jnp.array([0.5, 0.0, 0.25, 0.25]))))
      [0 0 2 3]

    Reference: Kitagawa 1996, doi:10.1080/10618600.1996.10474692.
    """
    n = len(log_weights)
    total = jnp.cumsum(jax.nn.softmax(log_weights.astype(at_least_float32(log_weights.dtype))))
    at = (jnp.arange(n, dtype=total.dtype) + jax.random.uniform(key, (), total.dtype)) / n
    return jnp.minimum(jnp.searchsorted(total / total[-1], at), n - 1)


def _start(
    keys: Array, target: Target, levels: NoiseLevel, shape_or_x: tuple[int, ...] | Array, kernels: bool
) -> tuple[tuple[int, ...] | Array, Array]:
    """What `run` is given to start from, and the part of the log-normaliser that is known beforehand.

    Pure noise to powers that sum to A is `N(0, sigma^2 / A)`, of the normaliser `(2 pi sigma^2)^(D (1 - A) / 2) A^(-D / 2)`.
    """
    alpha, sigma = (jnp.asarray(field, at_least_float32(field.dtype)) for field in (levels.alpha, levels.sigma))
    if targets.sums_to_one(target):
        return shape_or_x, jnp.zeros_like(sigma[0])
    if concrete(alpha) and not np.asarray(alpha)[0] > 0:
        raise ValueError(
            f"the exponents sum to {target.total} and not to 1, so the target's drift has no value at alpha = 0, where these "
            "levels start; let the schedule end before: flow(t_max=0.99), or give the product a rest."
        )
    total = jnp.asarray(target.total, sigma.dtype)
    given = not isinstance(shape_or_x, tuple)
    dimension = math.prod(shape_or_x.shape[1:] if given else shape_or_x)
    # The weights of the path are of densities of x / alpha, those of kernels of densities of x.
    known = jnp.zeros_like(total) if kernels else dimension * (1 - total) * jnp.log(alpha[-1] / alpha[0])
    if given:
        return shape_or_x, known
    noise = normal(fold(keys, START), jax.ShapeDtypeStruct((len(keys), *shape_or_x), sigma.dtype))
    known = known + dimension / 2 * ((1 - total) * jnp.log(2 * jnp.pi * sigma[0] ** 2) - jnp.log(total))
    return sigma[0] / jnp.sqrt(total) * noise, known


class Resampling(NamedTuple):
    """When a group is resampled."""

    size: int
    threshold: ArrayLike
    low: ArrayLike
    high: ArrayLike


def _around(sampler: Sampler, target: Target, when: Resampling, kernels: bool, end: NoiseLevel) -> Sampler:
    """The sampler that weighs and resamples around each step of another."""

    def init(x: Array) -> Weights:
        zeros = jnp.zeros(len(x), x.dtype)
        first = jnp.arange(len(x), dtype=jnp.int32)
        return Weights(sampler.init(x), zeros, zeros, zeros, jnp.zeros((), x.dtype), first, zeros + when.size)

    def step(denoise: GuidedDenoiser, state: State, level: NoiseLevel, next: NoiseLevel, keys: Array) -> State:
        weights = state.memory
        prediction, state, context = denoise.look(state, level)
        # The trapezoid: the integrand here times half of the steps on both its sides. The last step has no end to look at.
        integrand = jnp.zeros_like(weights.log_weights) if kernels else targets.integrand(target, context)
        log_weights = weights.log_weights + weights.pending * integrand
        if target.log_reward is not None:
            reward = targets.reward_of(target.log_reward, targets.mean(target, context), level)
            log_weights, weights = log_weights + reward - weights.reward, weights._replace(reward=reward)

        low, high, threshold = (jnp.asarray(bound, state.x.dtype) for bound in (when.low, when.high, when.threshold))
        inside = (level.ratio > low) & (level.ratio <= high)
        weights = weights._replace(log_weights=log_weights)
        weights, order = _resample(weights, keys, when.size, jnp.where(inside, threshold, 0))
        take = lambda leaf: leaf[order] if jnp.ndim(leaf) else leaf
        weights = weights._replace(inner=jax.tree.map(take, weights.inner))
        state = state._replace(x=take(state.x), guidance=jax.tree.map(take, state.guidance), x0=take(state.x0))
        prediction, base, asked = jax.tree.map(take, (prediction, context.base, context.branches))
        context = context._replace(x=state.x, base=base, branches=asked, pullback=None)

        length = jnp.where(inside, targets.measure(target, level) - targets.measure(target, next), 0)
        last = (next.alpha == end.alpha.astype(next.alpha.dtype)) & (next.sigma == end.sigma.astype(next.sigma.dtype))
        replay = _replay(denoise, prediction, state._replace(memory=weights.inner), context)
        state = sampler.step(replay, state._replace(memory=weights.inner), level, next, keys)
        if sampler.kernel is not None and kernels:
            gained = targets.ratio(target, sampler.kernel, prediction, context, state.x)
            gained = jnp.where(inside & (next.sigma > 0), gained, 0)
        else:
            gained = jnp.where(last, length, length / 2) * integrand[order]
        pending = jnp.where(last, 0, length / 2)
        weights = weights._replace(inner=state.memory, log_weights=weights.log_weights + gained, pending=pending)
        return state._replace(memory=weights)

    return Sampler(init, step, schedule=sampler.schedule)


def _resample(weights: Weights, keys: Array, size: int, threshold: Array) -> tuple[Weights, Array]:
    """The weights after resampling the groups that need it, but for the inner memory; and which row takes each place."""
    grouped = weights.log_weights.reshape(-1, size)
    effective = effective_size(grouped)
    now = effective < threshold * size
    drawn = jax.vmap(systematic)(apart(keys[::size], 0), grouped)
    places = jnp.arange(len(keys), dtype=drawn.dtype).reshape(-1, size)
    order = jnp.where(now[:, None], drawn + places[:, :1], places).ravel()
    gained = jnp.where(now, jax.nn.logsumexp(grouped, axis=1) - math.log(size), 0)
    each = lambda value: jnp.repeat(value, size)
    weights = weights._replace(
        log_weights=jnp.where(each(now), 0, weights.log_weights),
        log_normaliser=weights.log_normaliser + each(gained),
        reward=weights.reward[order],
        ancestors=weights.ancestors[order],
        least=jnp.minimum(weights.least, each(effective)),
    )
    return weights, order


def _replay(denoise: GuidedDenoiser, prediction: Prediction, state: State, context: Context) -> GuidedDenoiser:
    """A denoiser that knows the step's first prediction already."""

    asked: list[NoiseLevel] = []

    def look(given: State, at: NoiseLevel) -> tuple[Prediction, State, Context]:
        known, again = at is context.level and given.x is state.x, bool(asked)
        asked.append(at)
        if again and at is not context.level:
            return denoise.look(given, at)
        if not known:
            raise ValueError(
                "feynman_kac's weights are of a sampler that goes from each level straight to the next, but this one first "
                "moves x, or takes steps again (churn, recurrence, inpainting); take heun_sde(), ddpm(), ddim(eta), heun(), ..."
            )
        return prediction, given, context

    def base(given: State, at: NoiseLevel) -> tuple[Prediction, State]:
        raise ValueError(
            "feynman_kac's weights are of particles that the target guides, but this sampler follows the base alone; "
            "take predictor_corrector(..., guided=True)."
        )

    return GuidedDenoiser(look, base)


def _check_groups(count: int, networks: tuple[Branches, ...], size: int) -> None:
    """Raises unless the keys are groups, whose particles have the same conditions."""
    if size < 2 or count % size:
        raise ValueError(f"size={size} particles a group, but there are {count} keys: 2 or more, and a divisor of that.")
    for network in networks:
        for name, cond in network.conds.items():
            for path, leaf in jax.tree_util.tree_leaves_with_path(cond):
                if callable(leaf) or not concrete(leaf) or len(leaf) != count:
                    continue
                rows = np.asarray(leaf).reshape(count // size, size, -1)
                if (rows != rows[:, :1]).any():
                    raise ValueError(
                        f"branch {name!r}{jax.tree_util.keystr(path)} differs within a group of {size} particles, which share "
                        f"one target; repeat each condition: jnp.repeat(labels, {size}, axis=0)."
                    )


def _watch(least: Array, ancestors: Array, size: int) -> None:
    """Warns of groups whose weights degenerated, now or, within a caller's jit, when it is known."""

    def tell(least: Any, ancestors: Any) -> None:
        bad = ~(np.minimum(least, ancestors) >= min(10, size / 4))
        if bad.any():
            warnings.warn(
                f"feynman_kac: the weights degenerate in {bad.sum()} of {bad.size} groups of {size} particles: at worst "
                f"{np.min(least):.1f} of them counted, and all descend from {np.min(ancestors):.1f}. Such a group gives few "
                "samples many times, and its log_normaliser is likely too low. Take more particles, a smaller scale, or an "
                "interval (low, high).",
                stacklevel=3,
            )

    if concrete((least, ancestors)):
        tell(least, ancestors)
    else:
        jax.debug.callback(tell, least, ancestors)
