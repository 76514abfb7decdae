"""Guidance by the gradient of a noise-aware log-probability, `log_prob(x, level) -> [B]`: a classifier, an energy, a reward."""

from typing import Any

import jax.numpy as jnp
from jax import Array

from guidance_jax import scores
from guidance_jax.arrays import divide, expand
from guidance_jax.base import Context, NoiseLevel, Prediction
from guidance_jax.checks.door import part
from guidance_jax.checks.kinds import LogProb, ReverseVariance, Scale
from guidance_jax.guidance.formula import follow, stateless
from guidance_jax.guidance.scales import at
from guidance_jax.interfaces import Guidance
from guidance_jax.noise import ancestral, contraction


@part()
def classifier(log_prob: LogProb, scale: Scale) -> Guidance:
    """Classifier guidance in its score form, for any sampler.

    `eps <- eps - scale sigma grad log p(y | x_t)`, `x0 <- x0 + scale sigma^2 / alpha grad log p(y | x_t)`

    The gradient is taken at `(x_t, t)`. At alpha = 0 x_t holds nothing of y, and x0 stays as it is. Several classifiers are a
    chain of them.

    Args:
      log_prob: `(x, level) -> [B]`: `scores.class_log_prob(classify, labels)`, or any other log-probability or reward.
      scale: 1 is Bayes' rule, 0 no guidance.

    Raises:
      TypeError: If log_prob is not a function of x and a level; when called, if it does not return floating numbers.
      ValueError: If scale is neither `()` nor `[B]`; when called, if log_prob does not return `[B]`.

    Example:
      >>> mixture = gj.oracles.GaussianMixture(jnp.array([[-2.0], [2.0]]), jnp.ones((2, 1, 1)), jnp.ones(2), jnp.arange(2))
      >>> one = gj.branches(mixture.denoise, uncond=jnp.array([-1]))
      >>> log_prob = lambda x, level: mixture.class_log_prob(x, level, jnp.array([1]))
      >>> path, keys = gj.levels(gj.schedules.edm(), 20, gj.spacings.karras()), jax.random.split(jax.random.key(0), 1)
      >>> print(bool(gj.sample(keys, one, gj.classifier(log_prob, 3.0), gj.heun(), path, (1,)) > 0))
      True

    Reference: Dhariwal & Nichol 2021, arXiv:2105.05233, algorithm 2.
    """

    def update(d: Prediction, context: Context) -> Prediction:
        gradient = scores.classifier_score(log_prob, context.x, context.level)
        return add_score(d, at(scale, context) * gradient, context.level)

    return stateless(update, own_space="classifier")


@part()
def mean_shift(
    log_prob: LogProb, scale: Scale, *, variance: ReverseVariance = "small", at_mean: bool = False, last: bool = False
) -> Guidance:
    """Classifier guidance in its mean-shift form: the mean of the reverse step moves by its variance times the gradient.

    `mu <- mu + scale s^2 grad log p(y | x_t)`

    s^2 is the variance of `ddpm(variance)`. It is exactly so with that sampler. With another it is the same shift of x0,
    `scale s^2 / (alpha' (1 - q^2)) grad log p(y | x_t)`, and eps follows.

    `ddpm` draws nothing in the step to sigma' = 0, and so nothing moves there. ADM's released code draws nothing either, but
    moves the mean by the variance that it clips there: for "large" the small one of the step before, for "learned" between
    that and sigma^2, for "small" 0. With `last` this does so too.

    Args:
      log_prob: `(x, level) -> [B]`.
      scale: 0 is no guidance.
      variance: "small", "large" or "learned", as the sampler's; `ddpm("learned")` and this one make ADM-G.
      at_mean: Whether to take the gradient at the unguided mean and the next level, as the paper derives it, and not at
        `(x_t, t)`, as its released code does.
      last: Whether the mean of the step to sigma' = 0 moves, as in the released code; not in a run of that step alone.

    Raises:
      TypeError: If log_prob is not a function of x and a level; when called, if it does not return floating numbers.
      ValueError: If scale is neither `()` nor `[B]`, or variance is unknown; when called, if log_prob does not return `[B]`,
        or variance is learned and the network predicts none.

    Example:
      >>> print(gj.mean_shift(lambda x, level: -(x**2).sum(1), 1.0, variance="large").own_space)
      mean_shift

    Reference: Dhariwal & Nichol 2021, arXiv:2105.05233, algorithm 1.
    """

    def update(d: Prediction, before: Any, context: Context) -> tuple[Prediction, Any]:
        level, after, base = context.step.level, context.next, context.base
        q = contraction(level, after)
        mean = after.alpha * base.x0 + q * after.sigma * base.eps
        where = (mean, after) if at_mean else (context.x, context.level)
        gradient = scores.classifier_score(log_prob, *where)
        # s^2 / (1 - q^2), which is 0 to sigma' = 0.
        spread = ancestral(variance, base.variance, level, after) ** 2
        if last:
            spread = jnp.where(after.sigma > 0, spread, _clipped(variance, base.variance, before, level, after))
            before = jnp.where(after.sigma > 0, after.sigma**2 * (1 - q**2), before)
        shift = divide(spread, after.alpha) * at(scale, context) * gradient
        return follow(d.x0 + shift, d, context.level), before

    # With `last` it remembers the small variance of the step before.
    init = lambda x: jnp.zeros((), x.dtype) if last else ()
    return Guidance(frozenset(), init, update, own_space="mean_shift")


def _clipped(variance: str, share: Array | None, before: Array, level: NoiseLevel, after: NoiseLevel) -> Array:
    """ADM's variance of the step to sigma' = 0, from the small variance of the step before; 0 without one."""
    if variance == "small":
        return jnp.zeros_like(before)
    large = (level.sigma * after.alpha) ** 2 / (level.alpha**2 + level.sigma**2)
    ratio = divide(before, large) ** (1 if variance == "large" or share is None else 1 - share)
    return jnp.where(before > 0, large * ratio, 0)


def add_score(d: Prediction, gradient: Array, level: NoiseLevel) -> Prediction:
    """The prediction under the score plus a gradient: `x0 + sigma^2 / alpha g`, `eps - sigma g`; x0 as it is at alpha = 0."""
    alpha, sigma = expand(level.alpha, gradient), expand(level.sigma, gradient)
    return d + Prediction(x0=divide(sigma, alpha) * sigma * gradient, eps=-sigma * gradient)


@part()
def reg(guidance: Guidance) -> Guidance:
    """Rectified gradient guidance: a guidance whose change is weighted by how much the base's x0 answers to x.

    `change <- change (1 - sigma d(sum eps)/dx)`, elementwise; the same factor is `alpha d(sum x0)/dx`, one pullback of ones.

    Args:
      guidance: Its change is weighted; `cfg(scale)` in the paper.

    Raises:
      TypeError: If guidance is not a guidance.

    Example:
      >>> sorted(gj.reg(gj.cfg(3.0)).needs)
      ['cond', 'uncond']

    Reference: Gao et al. 2025, arXiv:2501.18865, equation 20.
    """

    def update(d: Prediction, state: Any, context: Context) -> tuple[Prediction, Any]:
        guided, state = guidance.update(d, state, context)
        factor = expand(context.level.alpha, context.x) * context.pullback(jnp.ones_like(context.x))
        return d + factor * (guided - d), state

    return guidance.replace(update=update, derivatives=guidance.derivatives | {None}, own_space="reg")
