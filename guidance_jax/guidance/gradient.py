"""Guidance by the gradient of a noise-aware log-probability, `log_prob(x, level) -> [B]`: a classifier, an energy, a reward."""

from typing import Any

import jax.numpy as jnp
from jax import Array

from guidance_jax import scores
from guidance_jax.arrays import divide, expand
from guidance_jax.base import Context, Guidance, Prediction
from guidance_jax.guidance.algebra import move, own_space, stateless
from guidance_jax.checks.old import check_callable
from guidance_jax.noise import ancestral, contraction
from guidance_jax.scales import Scale, at


def classifier(log_prob: scores.LogProb, scale: Scale) -> Guidance:
    """Classifier guidance in its score form, for any sampler.

    `eps <- eps - scale sigma grad log p(y | x_t)`, `x0 <- x0 + scale sigma^2 / alpha grad log p(y | x_t)`.

    The gradient is taken at `(x_t, t)`. At alpha = 0 x_t knows nothing of y and the shift of x0 has no value; it is 0 there.
    Several classifiers are a chain of them.

    Args:
      log_prob: `(x, level) -> [B]`: `scores.class_log_prob(classify, labels)`, or any other log-probability or reward.
      scale: `()` or `[B]`, or a function of the level; 1 is Bayes' rule, 0 no guidance.

    Raises:
      ValueError: if scale is neither `()` nor `[B]`, log_prob does not give `[B]`, or inside of `in_space`.

    Example:
      >>> log_prob = scores.class_log_prob(lambda x, t: x, labels=jnp.array([0]))
      >>> sorted(classifier(log_prob, 4.0).needs)
      []

    Reference: Dhariwal & Nichol 2021, arXiv:2105.05233, algorithm 2.
    """

    check_callable(log_prob, "log_prob", scores.NOISY)

    def update(prediction: Prediction, context: Context) -> Prediction:
        own_space("classifier", context)
        gradient = scores.classifier_score(log_prob, context.x, context.level).astype(context.x.dtype)
        return add_score(prediction, at(scale, context, "classifier's scale") * gradient, context)

    return stateless(update)


def mean_shift(
    log_prob: scores.LogProb, scale: Scale, *, variance: str = "small", at_mean: bool = False, last: bool = False
) -> Guidance:
    """Classifier guidance in its mean-shift form: the mean of the reverse step moves by its variance times the gradient.

    `mu <- mu + scale s^2 grad log p(y | x_t)`, s^2 the variance of `ddpm(variance)`; exactly so with that sampler, and with
    another by the same shift of x0, `scale s^2 / (alpha' (1 - q^2)) grad log p(y | x_t)`, whose eps follows.

    `ddpm` draws nothing in the step to sigma' = 0, and so nothing moves there. ADM's released code draws nothing either, but
    moves the mean by the variance that it clips there: for "large" the small one of the step before, for "learned" between
    that and sigma^2, for "small" 0. With `last` this does so too.

    Args:
      log_prob: `(x, level) -> [B]`.
      scale: `()` or `[B]`, or a function of the level; 0 is no guidance.
      variance: "small", "large" or "learned", as the sampler's; `ddpm("learned")` and this one make ADM-G.
      at_mean: whether to take the gradient at the unguided mean and the next level, as the paper derives it, and not at
        `(x_t, t)`, as its released code does.
      last: whether the mean of the step to sigma' = 0 moves, as in the released code; not in a run of that step alone.

    Raises:
      ValueError: if scale is neither `()` nor `[B]`, log_prob does not give `[B]`, variance is unknown, or learned and the
        network predicts none, or in `in_space`.

    Example:
      >>> mean_shift(lambda x, level: -(x**2).sum(1), 1.0).pullback
      False

    Reference: Dhariwal & Nichol 2021, arXiv:2105.05233, algorithm 1.
    """
    check_callable(log_prob, "log_prob", scores.NOISY)
    if variance not in ("small", "large", "learned"):
        raise ValueError(f'variance={variance!r} is unknown; mean_shift has "small", "large" and "learned", as ddpm.')

    def update(prediction: Prediction, before: Any, context: Context) -> tuple[Prediction, Any]:
        own_space("mean_shift", context)
        level, after, base = context.step.level, context.step.next, context.base
        x, where = context.x, context.level
        if at_mean:
            x, where = after.alpha * base.x0 + contraction(level, after) * after.sigma * base.eps, after
        gradient = scores.classifier_score(log_prob, x, where).astype(context.x.dtype)
        # s^2 / (1 - q^2), which is 0 to sigma' = 0.
        spread = ancestral(variance, base.variance, level, after) ** 2
        if last and variance != "small":
            share = 0 if variance == "large" or base.variance is None else base.variance
            large = (level.sigma * after.alpha) ** 2 / (level.alpha**2 + level.sigma**2)
            clipped = large * (divide(before, large) ** (1 - share))
            spread = jnp.where(after.sigma > 0, spread, jnp.where(before > 0, clipped, 0))
        shift = divide(spread, after.alpha) * at(scale, context, "mean_shift's scale") * gradient
        if last:
            small = after.sigma**2 * (1 - contraction(level, after) ** 2)
            before = jnp.where(after.sigma > 0, small, before)
        return move(prediction, prediction.x0 + shift, context.level), before

    # What it remembers is the small variance of the step before.
    return Guidance(frozenset(), lambda x: jnp.zeros((), x.dtype) if last else (), update)


def add_score(prediction: Prediction, gradient: Array, context: Context) -> Prediction:
    """The prediction under the score plus a gradient: `eps - sigma g`, `x0 + sigma^2 / alpha g`, 0 where alpha is."""
    alpha, sigma = expand(context.level.alpha, context.x), expand(context.level.sigma, context.x)
    x0 = prediction.x0 + divide(sigma, alpha) * sigma * gradient
    return prediction._replace(x0=x0, eps=prediction.eps - sigma * gradient)
