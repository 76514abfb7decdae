"""Guidance by the gradient of a noise-aware `log_prob(x, level) -> [B]`: of a classifier, an energy or a reward."""

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
    """Classifier guidance in score form, for any sampler.

    `eps <- eps - scale sigma grad log p(y | x_t)`, `x0 <- x0 + scale sigma^2 / alpha grad log p(y | x_t)`

    The gradient is taken at `(x_t, t)`. At alpha = 0, x_t does not depend on y, and x0 is unchanged. For several classifiers,
    use a `chain` with one `classifier` for each.

    Args:
      log_prob: `(x, level) -> [B]`: `scores.class_log_prob(classify, labels)`, or any other log-probability or reward.
      scale: 1 is Bayes' rule, 0 is no guidance.

    Raises:
      TypeError: If log_prob is not a function of x and a level. When called, if it does not return floating numbers.
      ValueError: If scale is neither `()` nor `[B]`. When called, if log_prob does not return `[B]`.

    Example:
      >>> means, covariances = jnp.array([[-2.0], [2.0]]), jnp.ones((2, 1, 1))
      >>> mixture = gj.oracles.GaussianMixture(means, covariances, jnp.ones(2), jnp.arange(2))
      >>> one = gj.branches(mixture.denoise, uncond=jnp.array([-1]))
      >>> log_prob = lambda x, level: mixture.class_log_prob(x, level, jnp.array([1]))
      >>> path = gj.levels(gj.schedules.edm(), 20, gj.spacings.karras())
      >>> keys = jax.random.split(jax.random.key(0), 1)
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
    """Classifier guidance in mean-shift form: the mean of the reverse step moves by its variance times the gradient.

    `mu <- mu + scale s^2 grad log p(y | x_t)`

    s^2 is the variance of `ddpm(variance)`. With that sampler the formula is exact. With another sampler, x0 shifts by the same
    `scale s^2 / (alpha' (1 - q^2)) grad log p(y | x_t)`, and eps is computed from x0.

    In the step to sigma' = 0, `ddpm` has variance 0, so the mean does not move. ADM's released code moves it by a clipped
    variance, and so does this method with `last`. For "small" the clipped variance is 0. For "large" it is the small variance
    of the step before. For "learned" it lies between that and sigma^2.

    Args:
      log_prob: `(x, level) -> [B]`.
      scale: 0 is no guidance.
      variance: "small", "large" or "learned", the same as the sampler's. With `ddpm("learned")` this method is ADM-G.
      at_mean: True takes the gradient at the unguided mean and the next level, as the paper derives it. False takes it at
        `(x_t, t)`, as the released code does.
      last: Whether the mean moves in the step to sigma' = 0, as in the released code. It does not move in a run of only that
        step.

    Raises:
      TypeError: If log_prob is not a function of x and a level. When called, if it does not return floating numbers.
      ValueError: If scale is neither `()` nor `[B]`, or variance is unknown. When called, if log_prob does not return `[B]`,
        or variance is learned and the network does not predict one.

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
        # s^2 / (1 - q^2). It is 0 in the step to sigma' = 0.
        spread = ancestral(variance, base.variance, level, after) ** 2
        if last:
            spread = jnp.where(after.sigma > 0, spread, _clipped(variance, base.variance, before, level, after))
            before = jnp.where(after.sigma > 0, after.sigma**2 * (1 - q**2), before)
        shift = divide(spread, after.alpha) * at(scale, context) * gradient
        return follow(d.x0 + shift, d, context.level), before

    # With `last`, the state is the small variance of the step before.
    init = lambda x: jnp.zeros((), x.dtype) if last else ()
    return Guidance(frozenset(), init, update, own_space="mean_shift")


def _clipped(variance: str, share: Array | None, before: Array, level: NoiseLevel, after: NoiseLevel) -> Array:
    """ADM's variance of the step to sigma' = 0, from the small variance of the step before; 0 if there was no such step."""
    if variance == "small":
        return jnp.zeros_like(before)
    large = (level.sigma * after.alpha) ** 2 / (level.alpha**2 + level.sigma**2)
    ratio = divide(before, large) ** (1 if variance == "large" or share is None else 1 - share)
    return jnp.where(before > 0, large * ratio, 0)


def add_score(d: Prediction, gradient: Array, level: NoiseLevel) -> Prediction:
    """The prediction for the score plus g: `x0 + sigma^2 / alpha g`, `eps - sigma g`. At alpha = 0, x0 is unchanged."""
    alpha, sigma = expand(level.alpha, gradient), expand(level.sigma, gradient)
    return d + Prediction(x0=divide(sigma, alpha) * sigma * gradient, eps=-sigma * gradient)


@part()
def reg(guidance: Guidance) -> Guidance:
    """Rectified gradient guidance: multiply the change of a guidance by the derivative of the base's x0 with respect to x.

    `change <- change (1 - sigma d(sum eps)/dx)`, elementwise. The factor equals `alpha d(sum x0)/dx`. It takes one backward
    pass through the network.

    Args:
      guidance: The guidance whose change is multiplied. The paper uses `cfg(scale)`.

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
