"""Particles that sample what a guidance says: weighted along the run, resampled in groups (sequential Monte Carlo)."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import ArrayLike, Float

from guidance_jax import targets
from guidance_jax.arrays import at_least_float32, concrete, divide
from guidance_jax.base import Branches, Context, GuidedDenoiser, NoiseLevel, Prediction, Sampler, State
from guidance_jax.checks import check_keys, check_levels, check_networks, check_order, check_sampler, check_scalar, check_start
from guidance_jax.evaluation import Networks
from guidance_jax.guidance.algebra import chain
from guidance_jax.kinds import check_count
from guidance_jax.noise import START, apart, fold, normal
from guidance_jax.outcomes import check_particles, right_reward
from guidance_jax.sampling import run
from guidance_jax.targets import Target, check_target
from guidance_jax.traced import insist

__all__ = ["Particles", "effective_size", "feynman_kac", "systematic"]

NOISY = 0.03
"""The spread is measured where noise is at least this share of the variance of x: below it a score's errors hide it."""


class Particles(NamedTuple):
    """The end of a run. A group is `size` rows, one after another; G is the number of groups.

    Example:
      >>> x, weights = jnp.array([[1.0], [3.0]]), jnp.array([0.25, 0.75])
      >>> found = particles.Particles(x, jnp.log(weights), *jnp.zeros((6, 1)), 0)
      >>> print(jnp.exp(found.log_weights) @ found.x)  # the mean of what is sampled
      [2.5]
    """

    x: Float[Array, "b ..."]
    """The samples, each with its weight; NaN in a group that has none."""
    log_weights: Float[Array, "b"]
    """Normalised: their exponentials sum to 1 in each group. -inf for a dead particle, of weight 0."""
    log_normaliser: Float[Array, "g"]
    """An estimate of `log integral of prod_i p_i(x)^a_i exp(log_reward(x)) dx`; -inf in a group of dead particles. Its
    exponential is without bias where `kernels` are exact, and otherwise but for the error of the steps."""
    effective: Float[Array, "g"]
    """The effective sample size at the end, `1 / sum of squared weights`, in 1..size."""
    least: Float[Array, "g"]
    """The smallest effective sample size along the run, before a resampling mended it."""
    ancestors: Float[Array, "g"]
    """The effective number of particles of the start that those of the end descend from: 1 over the sum of squares of the
    weights that the descendants of each have together. `1 / ancestors - 1 / size` estimates the relative variance of the
    normaliser (Lee & Whiteley 2018, arXiv:1509.00394)."""
    spread: Float[Array, "g"]
    """How wide the particles are spread, as a share of what the target's score says: 1, but for the error of the steps, which
    none of the fields above sees. `sum_n w_n <eps, x_n - mean> / (sigma D (1 - sum_n w_n^2))`, eps that of the target, which is
    1 under every law by Stein's identity; on Gaussians it is the variance over the right one. Measured at the last level
    within `(low, high]` whose noise is 3 % or more of the variance of x: what goes wrong below it, or in the shares of modes
    far apart, it does not see. NaN for a target with a reward, whose score is not known: run the target without."""
    spread_error: Float[Array, "g"]
    """The standard error of `spread`."""
    evaluations: Array
    """The number of network evaluations, per particle."""


class Weights(NamedTuple):
    """What the run carries beside the inner sampler's memory; a row a particle."""

    inner: Any
    log_weights: Array
    log_normaliser: Array
    reward: Array
    """The log_reward that the weights hold so far."""
    unreal: Array
    """Whether a log_reward was NaN or inf."""
    pending: Array
    """What the integrand at the next evaluation still has to be multiplied by, `()`."""
    ancestors: Array
    least: Array
    spread: Array
    spread_error: Array


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
    `tilted(w)`. It holds for every sampler that follows the guided ODE or SDE, of any share of noise, in the limit of small
    steps, and is integrated by the trapezoidal rule, from alpha = 0 and to sigma = 0. With `kernels`, for samplers that have
    one, `log w = sum_i a_i log B_i(x' | x) + (1 - sum_i a_i) log F(x | x') - log B(x' | x)` a step: B_i the step's Gaussian by
    branch i alone, B the one drawn from, F the noising; exact at any number of steps where the B_i are, which those of
    `ddpm("small")` and `ddim(1.0)` are not.

    Steps that are too long bias the law, whatever the number of particles. At scale 2 on Gaussians, in 20, 40, 80 and 160
    steps, the variance is this share of the right one (`python -m experiments.gaussians`):

    - `heun_sde(2.0)`: .77, .86, .95 and .99
    - `heun_sde()`: .90, 1.02, 1.02 and 1.02
    - the kernels of `ddpm("small")`: .71, .89, .90 and .96

    The log-normaliser is off by at most .02 with the former two, and by .44, .15, .06 and .03 with those kernels. `spread` sees
    the bias. A warning says so where it is off by a tenth and by four standard errors.

    Weights grow with the dimension and the scale; where few particles carry them all, fewer than ten, a quarter of a small
    group, or a hundredth of a large one, at some level or as ancestors, a warning says so. The more a sampler draws, the more
    even they are, and the more steps it needs: `heun_sde(2.0)` in place of `heun_sde()`. Copies that a
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
        1 meet a start at alpha = 0. After the run, if a log_reward was NaN or inf, or is -inf for all of a group; within a
        caller's jit such a group is NaN, its log_normaliser NaN or -inf, the others are right, and a warning tells.

    Example:
      >>> mixture = oracles.GaussianMixture(jnp.array([[-1.0], [1.0]]), jnp.ones((2, 1, 1)), jnp.ones(2), jnp.arange(2))
      >>> keys, label = jax.random.split(jax.random.key(0), 512), jnp.zeros(512, int)
      >>> two, path = branches(mixture.denoise, cond=label, uncond=label - 1), levels(schedules.edm(), 40, spacings.karras())
      >>> found = feynman_kac(keys, two, targets.tilted(2.0), heun_sde(), path, (1,), size=512)
      >>> print(found.log_normaliser.round(1))
      [0.5]

    Reference: Skreta et al. 2025, arXiv:2503.02819; kernels, arXiv:2506.05668.
    """
    check_target(target)
    check_sampler(sampler)
    check_count(size, "size")
    kernels = kernels or target.guidance is not None
    check_keys(keys)
    _check_groups(len(keys), check_networks(branches), size)
    check_scalar(threshold, "feynman_kac's threshold", most=1)
    check_order(low, high, "feynman_kac", "the interval is empty: low must be below high, both in sigma / alpha")
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
    if target.log_reward is not None:
        last = _rewarded(last, targets.reward_of(target.log_reward, state.x, end), state.x)
    grouped = last.log_weights.reshape(-1, size)
    dead, unreal = (grouped == -jnp.inf).all(1), last.unreal.reshape(-1, size).any(1)
    each = lambda group: jnp.repeat(group, size)
    sums = jax.nn.logsumexp(jnp.where(dead[:, None], 0, grouped), axis=1)
    normalised = jnp.where(each(unreal), jnp.nan, grouped.ravel() - each(sums))
    families = jax.ops.segment_sum(jnp.exp(normalised), last.ancestors, len(keys)).reshape(-1, size)
    effective = jnp.where(unreal, jnp.nan, effective_size(grouped))
    least, ancestors = jnp.minimum(last.least[::size], effective), divide(jnp.ones_like(sums), (families**2).sum(1))
    x = state.x.astype(levels.sigma.dtype if isinstance(shape_or_x, tuple) else shape_or_x.dtype)
    x = jnp.where(each(dead | unreal).reshape(-1, *[1] * (x.ndim - 1)), jnp.nan, x)
    log_normaliser = known.astype(sums.dtype) + last.log_normaliser[::size] + sums - math.log(size)
    log_normaliser = jnp.where(dead, -jnp.inf, jnp.where(unreal, jnp.nan, log_normaliser))
    # Copies that did not part are no new witnesses.
    error = last.spread_error[::size] * jnp.sqrt(jnp.maximum(divide(effective, ancestors), 1))
    spread = last.spread[::size]
    check_particles(size, target.log_reward, dead, unreal, least, ancestors, spread, error)
    return Particles(x, normalised, log_normaliser, effective, least, ancestors, spread, error, state.evaluations)


def effective_size(log_weights: Array) -> Array:
    """The effective sample size over the last axis, `(sum w)^2 / sum w^2`.

    Args:
      log_weights: `[..., N]`, normalised or not.

    Returns:
      `[...]`, in 1..N; 0 where all weights are.

    Example:
      >>> print(particles.effective_size(jnp.log(jnp.array([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]]))))
      [2. 1. 0.]

    Reference: Kong et al. 1994, "Sequential imputations and Bayesian missing data problems".
    """
    wide = log_weights.astype(at_least_float32(log_weights.dtype))
    dead = (wide == -jnp.inf).all(-1)
    some = jnp.where(dead[..., None], 0, wide)
    return jnp.where(dead, 0, jnp.exp(2 * jax.nn.logsumexp(some, axis=-1) - jax.nn.logsumexp(2 * some, axis=-1)))


def systematic(key: Array, log_weights: Array) -> Array:
    """Systematic resampling: which of N particles each of N takes the place of, `[N]`, from one uniform number.

    Place i is taken by the first k with `sum over j <= k of w_j >= (i + u) / N`, u in [0, 1): a particle of weight w, of
    weights that sum to 1, `floor(N w)` or `ceil(N w)` times, and never where w is 0. Where all are, each takes its own place.

    Args:
      key: a PRNG key.
      log_weights: `[N]`, normalised or not; -inf is a weight of 0.

    Example:
      >>> print(particles.systematic(jax.random.key(0), jnp.log(jnp.array([0.5, 0.0, 0.25, 0.25]))))
      [0 0 2 3]

    Reference: Kitagawa 1996, doi:10.1080/10618600.1996.10474692.
    """
    n = len(log_weights)
    wide = log_weights.astype(at_least_float32(log_weights.dtype))
    dead = (wide == -jnp.inf).all()
    weights = jax.nn.softmax(jnp.where(dead, 0, wide))
    total = jnp.cumsum(weights)
    # Sums of different roundings: nothing may be added by a weight of 0.
    share = jax.lax.cummax(jnp.where(weights > 0, total / total[-1], 0))
    at = (jnp.arange(n, dtype=total.dtype) + jax.random.uniform(key, (), total.dtype)) / n
    # u may be 0, and a place be rounded to 1: the first particle that has weight, and the last.
    first, last = jnp.searchsorted(share, 0, side="right"), jnp.searchsorted(share, 1)
    return jnp.clip(jnp.searchsorted(share, at), first, last)


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
        zeros = jnp.zeros_like(x, shape=len(x))
        first = jnp.zeros_like(x, jnp.int32, shape=len(x)) + jnp.arange(len(x), dtype=jnp.int32)
        pending, most, unknown = jnp.zeros((), x.dtype), zeros + when.size, zeros + jnp.nan
        return Weights(sampler.init(x), zeros, zeros, zeros, zeros > 0, pending, first, most, unknown, unknown)

    def step(denoise: GuidedDenoiser, state: State, level: NoiseLevel, next: NoiseLevel, keys: Array) -> State:
        weights = state.memory
        prediction, state, context = denoise.look(state, level)
        # The trapezoid: the integrand here times half of the steps on both its sides. The last step has no end to look at.
        integrand = jnp.zeros_like(weights.log_weights) if kernels else targets.integrand(target, context)
        weights = weights._replace(log_weights=weights.log_weights + weights.pending * integrand)
        if target.log_reward is not None:
            # The x0 predicted is a mean: where it has no reward, x may still come to a place that has one.
            x0 = targets.mean(target, context)
            reward = targets.reward_of(target.log_reward, x0, level)
            weights = _rewarded(weights, jnp.where(reward == -jnp.inf, weights.reward, reward), x0)

        low, high, threshold = (jnp.asarray(bound, state.x.dtype) for bound in (when.low, when.high, when.threshold))
        inside = (level.ratio > low) & (level.ratio <= high)
        if target.log_reward is None:
            weights = _measured(weights, target, context, when.size, inside)
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


def _rewarded(weights: Weights, reward: Array, x0: Array) -> Weights:
    """The weights with the reward of x0 in place of the one that they hold."""
    unreal = weights.unreal | ~right_reward(reward, x0)
    return weights._replace(log_weights=weights.log_weights + reward - weights.reward, reward=reward, unreal=unreal)


def _measured(weights: Weights, target: Target, context: Context, size: int, inside: Array) -> Weights:
    """The weights with the spread of the particles here, `Particles.spread`."""
    x, dimension = context.x, math.prod(context.x.shape[1:])
    inner = lambda a, b: (a * b).reshape(-1, size, dimension).sum(2)
    share = jax.nn.softmax(weights.log_weights.reshape(-1, size), axis=1)
    centre = jnp.einsum("gn,gnd->gd", share, x.reshape(-1, size, dimension), precision="highest")
    offset = x - jnp.repeat(centre, size, axis=0).reshape(x.shape)
    others = 1 - (share**2).sum(1)
    terms = inner(targets.noise_of(target, context), offset) / (context.level.sigma * dimension)
    spread = divide((share * terms).sum(1), others)
    error = jnp.sqrt((share**2 * (terms - spread[:, None]) ** 2).sum(1))
    variance = divide((share * inner(offset, offset)).sum(1), others * dimension)
    seen = jnp.repeat(inside & (context.level.sigma**2 >= NOISY * variance), size)
    pick = lambda new, old: jnp.where(seen, jnp.repeat(new, size), old)
    return weights._replace(spread=pick(spread, weights.spread), spread_error=pick(error, weights.spread_error))


def _resample(weights: Weights, keys: Array, size: int, threshold: Array) -> tuple[Weights, Array]:
    """The weights after resampling the groups that need it, but for the inner memory; and which row takes each place."""
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
                if callable(leaf) or len(leaf) != count:
                    continue
                if not concrete(leaf):
                    grouped = leaf.reshape(count // size, size, -1)
                    told = f"branch {name!r}{jax.tree_util.keystr(path)} differs within a group of {size} particles."
                    insist(lambda grouped=grouped: _alike(grouped), told)
                    continue
                rows = np.asarray(leaf).reshape(count // size, size, -1)
                if not _alike(rows):
                    raise ValueError(
                        f"branch {name!r}{jax.tree_util.keystr(path)} differs within a group of {size} particles, which share "
                        f"one target; repeat each condition: jnp.repeat(labels, {size}, axis=0)."
                    )


def _alike(rows: Any) -> Any:
    """Whether the rows of each group are equal; NaN is as NaN."""
    first = rows[:, :1]
    return ((rows == first) | ((rows != rows) & (first != first))).all()
