"""Training-free guidance: by a log-probability or a measurement of the clean data, evaluated at the predicted x0.

In the formulae, `x0` is the base's x0-prediction at x, and `grad` is the gradient with respect to x through the network. It
reuses the forward pass of the prediction, so a step costs one forward and one backward pass. Sums are over one sample.
`log_prob(x0)` returns `[B]`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from guidance_jax.arrays import at_least_float32, divide, expand, sqrt
from guidance_jax.base import Context, Prediction
from guidance_jax.checks.door import part
from guidance_jax.checks.kinds import (
    CleanLogProb,
    Count,
    CountFromZero,
    Measure,
    Measurement,
    NonNegativeScale,
    Pseudoinverse,
    Scale,
)
from guidance_jax.checks.outcomes import given_back, given_log_prob, given_residual
from guidance_jax.guidance.formula import follow, stateless
from guidance_jax.guidance.gradient import add_score
from guidance_jax.guidance.scales import at
from guidance_jax.interfaces import Guidance
from guidance_jax.noise import normal, step_keys


@part()
def universal(log_prob: CleanLogProb, scale: Scale, *, inner_steps: CountFromZero = 0, rate: Scale = 0.1) -> Guidance:
    """Universal guidance: classifier guidance by the log-probability of the predicted x0.

    `eps <- eps - scale sigma grad log_prob(x0(x))`, then `inner_steps` gradient ascents `x0 <- x0 + rate grad_x0 log_prob`

    For the paper's recurrence, use `recur(sampler, times)`. Without inner steps this is classifier guidance in denoiser form:
    `x0 <- x0 + scale sigma^2 / alpha grad log_prob(x0(x))`.

    Args:
      log_prob: `x0 [B, ...] -> [B]`: a classifier of clean data, a negative loss or a reward.
      scale: 0 is no guidance.
      inner_steps: The number of gradient ascents in x0, m in the paper.
      rate: The step size of each ascent.

    Raises:
      TypeError: If log_prob is not a function of x0. When called, if it does not return floating numbers.
      ValueError: If scale or rate is neither `()` nor `[B]`, or inner_steps is below 0. When called, if log_prob does not
        return `[B]`.

    Example:
      >>> guidance = gj.universal(lambda x0: -(x0**2).sum(1), 1.0)
      >>> guidance.derivatives == {None}  # it differentiates through the network, in the base
      True

    Reference: Bansal et al. 2023, arXiv:2302.07121, algorithm 1.
    """

    def update(d: Prediction, context: Context) -> Prediction:
        x0 = context.base.x0
        gradient = context.pullback(gradient_of(log_prob, x0))
        forward = add_score(d, at(scale, context) * gradient, context.level)
        return follow(forward.x0 + ascent(log_prob, x0, at(rate, context), inner_steps), forward, context.level)

    return stateless(update, derivatives=(None,), own_space="universal")


@part()
def dps(measure: Measure, measurement: Measurement, rate: Scale) -> Guidance:
    """Diffusion posterior sampling, for inverse problems: `measurement = measure(x0) + noise`.

    `x' <- x' - rate grad |measurement - measure(x0(x))|`, the norm over all leaves of a sample's measurement

    As with `freedom`, this is exact for samplers with one evaluation per step, such as the paper's, and inexact for others.

    Args:
      measure: `x0 [B, ...] -> ` any pytree of `[B, ...]` leaves.
      measurement: The measured values, in the same pytree.
      rate: The step size, zeta in the paper. 0 is no guidance.

    Raises:
      TypeError: If measure is not a function of x0.
      ValueError: If rate is neither `()` nor `[B]`, or measurement is not finite. When called, if measure does not return a
        pytree like measurement.

    Example:
      >>> guidance = gj.dps(lambda x0: x0[:, :1], jnp.ones((4, 1)), 0.5)
      >>> guidance.derivatives == {None}  # it differentiates through the network, in the base
      True

    Reference: Chung et al. 2022, arXiv:2209.14687, algorithm 1 with the released code's step, zeta / |.|.
    """

    def closeness(x0: Array) -> Array:
        leaves = jax.tree.leaves(given_residual(measure, measurement, x0))
        squares = jnp.stack([(leaf.reshape(len(x0), -1) ** 2).sum(1) for leaf in leaves])
        return -sqrt(squares.sum(0))

    return freedom(closeness, rate)


@part()
def freedom(log_prob: CleanLogProb, rate: Scale) -> Guidance:
    """FreeDoM: move the end of each step along the gradient of the log-probability of the predicted x0.

    `x' <- x' + rate grad log_prob(x0(x))`

    It is implemented as `x0 <- x0 + rate / alpha' grad`, with eps unchanged. At alpha' = 0 nothing moves. For the paper's time
    travel, use `recur(sampler, times, low, high)`.

    The formula is exact for samplers with one evaluation per step: `ddim`, `ddpm`, `euler`, `euler_ancestral` and the multistep
    samplers. It is exact for each repetition of `recur`, and for `churn` with the gradient at the raised level.

    Samplers with two evaluations per step move x' by a different amount. On a mixture in 10 steps, the relative error in the
    step from `sigma / alpha` = 1.4 is .25 for `flow_heun`, .30 for `dpmpp_2s` and .37 for `heun`. It is 1.7 for `heun_sde()`
    and `predictor_corrector`, which add the move of each evaluation.

    Args:
      log_prob: `x0 [B, ...] -> [B]`: a negative energy.
      rate: The step size, rho in the paper. 0 is no guidance.

    Raises:
      TypeError: If log_prob is not a function of x0. When called, if it does not return floating numbers.
      ValueError: If rate is neither `()` nor `[B]`. When called, if log_prob does not return `[B]`.

    Example:
      >>> guidance = gj.freedom(lambda x0: -(x0**2).sum(1), lambda level: 0.1 * level.alpha)
      >>> guidance.derivatives == {None}  # it differentiates through the network, in the base
      True

    Reference: Yu et al. 2023, arXiv:2303.09833, algorithm 1.
    """

    def update(d: Prediction, context: Context) -> Prediction:
        gradient = context.pullback(gradient_of(log_prob, context.base.x0))
        return d.replace(x0=d.x0 + divide(at(rate, context) * gradient, context.next.alpha))

    return stateless(update, derivatives=(None,), own_space="freedom")


@part()
def mpgd(log_prob: CleanLogProb, rate: Scale) -> Guidance:
    """Manifold-preserving guidance: one gradient ascent in x0, without a backward pass through the network.

    `x0 <- x0 + rate grad_x0 log_prob(x0)`, with eps unchanged

    Args:
      log_prob: `x0 [B, ...] -> [B]`.
      rate: The step size. 0 is no guidance.

    Raises:
      TypeError: If log_prob is not a function of x0. When called, if it does not return floating numbers.
      ValueError: If rate is neither `()` nor `[B]`. When called, if log_prob does not return `[B]`.

    Example:
      >>> guidance = gj.mpgd(lambda x0: -(x0**2).sum(1), 0.1)
      >>> len(guidance.derivatives)  # it does not differentiate through the network
      0

    Reference: He et al. 2023, arXiv:2311.16424, algorithm 1.
    """

    def update(d: Prediction, context: Context) -> Prediction:
        return d.replace(x0=d.x0 + at(rate, context) * gradient_of(log_prob, context.base.x0))

    return stateless(update, own_space="mpgd")


@part()
def pigdm(
    measure: Measure,
    pseudoinverse: Pseudoinverse,
    measurement: Measurement,
    scale: Scale = 1.0,
    *,
    variance: NonNegativeScale | None = None,
) -> Guidance:
    """Pseudoinverse guidance, for linear inverse problems without noise: `measurement = measure(x0)`.

    `grad log p(y | x) = (d x0 / d x)^T A^+ (y - A x0) / r^2`, used as the score of a classifier

    Args:
      measure: The linear map A, `x0 [B, ...] -> ` any pytree.
      pseudoinverse: The pseudoinverse A^+, from that pytree to `[B, ...]`.
      measurement: The measurement y, in the same pytree.
      scale: 0 is no guidance.
      variance: The variance r^2 of x0 given x. None is `sigma^2 / (alpha^2 + sigma^2)`, which is exact for data N(0, I).

    Raises:
      TypeError: If measure or pseudoinverse is not a function.
      ValueError: If scale or variance is neither `()` nor `[B]`, variance is negative, or measurement is not finite. When
        called, if measure does not return a pytree like measurement, or pseudoinverse does not return an array like x0.

    Example:
      >>> embed = lambda y: jnp.pad(y, ((0, 0), (0, 1)))
      >>> gj.pigdm(lambda x0: x0[:, :1], embed, jnp.ones((4, 1))).derivatives == {None}
      True

    Reference: Song et al. 2023, openreview 9_gsMA8MRKQ, equation 7.
    """

    def update(d: Prediction, context: Context) -> Prediction:
        x0 = context.base.x0
        # A^+ (y - A x0), not A^+ y - A^+ A x0: a constant that A^+ adds would cancel in the latter.
        back = given_back(pseudoinverse, given_residual(measure, measurement, x0), x0)
        r2 = _variance(context) if variance is None else at(variance, context)
        return add_score(d, at(scale, context) * divide(context.pullback(back), r2), context.level)

    return stateless(update, derivatives=(None,), own_space="pigdm")


@part()
def lgd(log_prob: CleanLogProb, scale: Scale, *, draws: Count = 8, spread: Scale | None = None) -> Guidance:
    """Loss-guided diffusion: the probability averaged over Gaussian draws around the predicted x0.

    `grad log (1/n) sum_i exp log_prob(x0(x) + r z_i)`, used as the score of a classifier, with n standard normal draws `z_i`

    Args:
      log_prob: `x0 [B, ...] -> [B]`.
      scale: 0 is no guidance.
      draws: The number n of draws.
      spread: The standard deviation r of the draws. None is `sigma / sqrt(alpha^2 + sigma^2)`.

    Raises:
      TypeError: If log_prob is not a function of x0. When called, if it does not return floating numbers.
      ValueError: If scale or spread is neither `()` nor `[B]`, or draws is below 1. When called, if log_prob does not
        return `[B]`.

    Example:
      >>> guidance = gj.lgd(lambda x0: -(x0**2).sum(1), 1.0, draws=16)
      >>> guidance.derivatives == {None}  # it differentiates through the network, in the base
      True

    Reference: Song et al. 2023, ICML, "Loss-guided diffusion models for plug-and-play controllable generation", equation 8.
    """

    def update(d: Prediction, context: Context) -> Prediction:
        r = jnp.sqrt(_variance(context)) if spread is None else at(spread, context)
        gradient = context.pullback(gradient_of(smoothed(log_prob, r, draws, context), context.base.x0))
        return add_score(d, at(scale, context) * gradient, context.level)

    return stateless(update, derivatives=(None,), own_space="lgd")


@part()
def tfg(
    log_prob: CleanLogProb,
    rho: Scale,
    mu: Scale,
    *,
    inner_steps: CountFromZero = 4,
    smoothing: Scale = 0.0,
    draws: Count = 1,
) -> Guidance:
    """Training-free guidance: a gradient in x through the network, and gradient ascents in x0. It unifies several methods.

    `f(x0) = log (1/n) sum_i exp log_prob(x0 + gamma s z_i)`, `s^2 = sigma^2 / (alpha^2 + sigma^2)`, `dx = rho grad f(x0(x))`
    and `x' <- x' + (alpha' / alpha) dx + alpha' dx0`. dx0 is the sum of `inner_steps` gradient ascents of f with rate mu.

    At alpha = 0, dx is 0. For the paper's recurrence, use `recur(sampler, times)`. As with `freedom`, the formula for x' is
    exact for samplers with one evaluation per step. For the others the relative error is .09 to .6 on the same mixture.

    Args:
      log_prob: `x0 [B, ...] -> [B]`.
      rho: The step size in x. rho = mu = 0 is no guidance.
      mu: The step size of each ascent in x0.
      inner_steps: The number of ascents.
      smoothing: The standard deviation gamma of the draws, in units of s.
      draws: The number n of draws.

    Raises:
      TypeError: If log_prob is not a function of x0. When called, if it does not return floating numbers.
      ValueError: If rho, mu or smoothing is neither `()` nor `[B]`, inner_steps is below 0, or draws is below 1. When called,
        if log_prob does not return `[B]`.

    Example:
      >>> guidance = gj.tfg(lambda x0: -(x0**2).sum(1), 0.5, 0.5)
      >>> guidance.derivatives == {None}  # it differentiates through the network, in the base
      True

    Reference: Ye et al. 2024, arXiv:2409.15761, algorithm 1.
    """

    def update(d: Prediction, context: Context) -> Prediction:
        x0, s = context.base.x0, jnp.sqrt(_variance(context))
        f = smoothed(log_prob, at(smoothing, context) * s, draws, context)
        dx = at(rho, context) * context.pullback(gradient_of(f, x0))
        dx0 = ascent(f, x0, at(mu, context), inner_steps)
        return d.replace(x0=d.x0 + divide(dx, expand(context.level.alpha, x0)) + dx0)

    return stateless(update, derivatives=(None,), own_space="tfg")


def gradient_of(log_prob: Callable[[Array], Array], x0: Array) -> Array:
    """`grad_x0 log_prob` of each sample, `[B, ...]`."""
    return jax.grad(lambda x0: given_log_prob(log_prob, x0).sum())(x0)


def ascent(log_prob: Callable[[Array], Array], x0: Array, rate: Array, steps: int) -> Array:
    """The total change of x0 in `steps` gradient ascents."""
    up = lambda _, change: change + rate * gradient_of(log_prob, x0 + change)
    return jax.lax.fori_loop(0, steps, up, jnp.zeros_like(x0)) if steps else jnp.zeros_like(x0)


def smoothed(log_prob: Callable[[Array], Array], spread: Array, draws: int, context: Context) -> Callable[[Array], Array]:
    """`log (1/n) sum_i exp log_prob(x0 + spread z_i)`. Each sample draws with its own key."""
    z = normal(step_keys(context.step), jax.ShapeDtypeStruct((len(context.x), draws, *context.x.shape[1:]), context.x.dtype))

    def mean(x0: Array) -> Array:
        each = jax.vmap(lambda z: given_log_prob(log_prob, x0 + spread * z), in_axes=1)(z)
        each = each.astype(at_least_float32(each.dtype))
        return jax.nn.logsumexp(each, axis=0) - jnp.log(jnp.asarray(draws, each.dtype))

    return mean


def _variance(context: Context) -> Array:
    """The variance of x0 given x for data N(0, I)."""
    alpha, sigma = expand(context.level.alpha, context.x), expand(context.level.sigma, context.x)
    return sigma**2 / (alpha**2 + sigma**2)
