"""Bayes' rule as functions: the formulae of guidance in terms of scores.

`grad log p(x_t | y) = grad log p(x_t) + grad log p(y | x_t)`. Scores are arrays `[B, ...]`. A `log_prob` is a function
`(x, level) -> [B]`. `class_log_prob` makes one from a classifier.
"""

from typing import Annotated

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int
from typing_extensions import TypeAliasType

from guidance_jax.arrays import at_least_float32, divide, expand
from guidance_jax.base import NoiseLevel, Prediction
from guidance_jax.checks.door import also, door, part
from guidance_jax.checks.kinds import AtLevel, Classify, Count, LogProb, PerSample, PositivePerSample, array_kind
from guidance_jax.checks.numbers import check_shape
from guidance_jax.checks.outcomes import given_log_prob, given_logits
from guidance_jax.checks.values import check_scores

__all__ = ["LogProb", "bayes", "class_log_prob", "classifier_score", "guided", "implicit_classifier", "score"]

OneLabelPerSample = TypeAliasType(
    "OneLabelPerSample",
    Annotated[Int[Array, "b"], array_kind("integers, [B]", jnp.integer, hint="cast them with jnp.asarray(labels, int).")],
)
"""Integer labels, `[B]`."""


@door()
def score(prediction: Prediction, level: AtLevel) -> Float[Array, "b ..."]:
    """The score of a prediction: `grad log p(x_t) = -eps / sigma`, and 0 where sigma is 0.

    Args:
      prediction: The prediction of a denoiser at x.
      level: The level of x.

    Raises:
      TypeError: If prediction is not a `Prediction`, or level is not a `NoiseLevel`.

    Example:
      >>> prediction = gj.Prediction(x0=jnp.zeros((1, 2)), eps=jnp.ones((1, 2)))
      >>> print(gj.scores.score(prediction, gj.schedules.edm()(0.0)))
      [[-1. -1.]]

    Reference: Song et al. 2021, arXiv:2011.13456.
    """
    return divide(-prediction.eps, expand(level.sigma, prediction.eps))


@part()
def class_log_prob(
    classify: Classify, labels: OneLabelPerSample, classes: Count | None = None, *, temperature: PositivePerSample = 1.0
) -> LogProb:
    """`log p(y | x_t)` of a noise-aware classifier: the log-softmax of its logits, divided by the temperature, at the labels.

    `log p(y | x_t) = l_y - log sum_k exp(l_k)`, `l = classify(x_t, t) / temperature`

    Args:
      classify: `(x [B, ...], t [B]) -> logits [B, C]`, trained on noisy inputs. t is the time that the classifier was trained
        with.
      labels: The class of each sample, `[B]`, in 0..C - 1.
      classes: The number of logits C that the classifier must return. None does not check it.
      temperature: The temperature of the softmax. Below 1 it sharpens the classifier, above 1 it softens it.

    Returns:
      `(x, level) -> [B]`, for `classifier`.

    Raises:
      TypeError: If the labels are not an array of integers, or classify is not a function of x and t.
      ValueError: If temperature is not positive. When called, if the logits are not `[B, C]`, C is not `classes`, or a label is
        outside 0..C - 1. If the labels are traced, such a label returns NaN.

    Example:
      >>> log_prob = gj.scores.class_log_prob(lambda x, t: x, labels=jnp.array([0]))
      >>> print(log_prob(jnp.zeros((1, 4)), gj.schedules.edm()(0.0)).round(3))
      [-1.386]

    Reference: Dhariwal & Nichol 2021, arXiv:2105.05233.
    """

    def log_prob(x: Array, level: NoiseLevel) -> Array:
        logits = given_logits(classify, x, jnp.broadcast_to(level.t, x.shape[:1]), labels, classes)
        logits = logits.astype(at_least_float32(logits.dtype))
        check_shape(temperature, logits, "class_log_prob: temperature")
        logits = logits / expand(jnp.asarray(temperature, logits.dtype), logits)
        # A traced label outside the range makes the gradient NaN too. The gather's gradient of 0 would silently stop guidance.
        logits = logits * jnp.where((labels >= 0) & (labels < logits.shape[1]), 1, jnp.nan).astype(logits.dtype)[:, None]
        return jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)[:, 0]

    return log_prob


@door()
def classifier_score(log_prob: LogProb, x: Float[Array, "b ..."], level: AtLevel) -> Float[Array, "b ..."]:
    """`grad_x log p(y | x_t)` of each sample, by `jax.grad` of the sum over the batch.

    Args:
      log_prob: `(x, level) -> [B]`.
      x: The noisy samples, `[B, ...]`.
      level: The level of x.

    Raises:
      TypeError: If log_prob is not a function of x and a level, or does not return floating numbers.
      ValueError: If log_prob does not return one number per sample.

    Example:
      >>> log_prob = lambda x, level: -0.5 * (x**2).sum(1)
      >>> print(gj.scores.classifier_score(log_prob, jnp.ones((1, 2)), gj.schedules.edm()(0.0)))
      [[-1. -1.]]

    Reference: Dhariwal & Nichol 2021, arXiv:2105.05233, section 4.1.
    """
    return jax.grad(lambda x: given_log_prob(log_prob, x, level).sum())(x)


@door(also(lambda unconditional, classifier, scale: check_scores(unconditional, classifier, scale)))
def bayes(
    unconditional: Float[Array, "b ..."], classifier: Float[Array, "b ..."], scale: PerSample = 1.0
) -> Float[Array, "b ..."]:
    """The score of classifier guidance: `s(x) + scale * grad log p(y | x_t)`. At scale 1 it is Bayes' rule.

    Args:
      unconditional: The unconditional score `s(x) = grad log p(x_t)`.
      classifier: The gradient of the classifier, `grad log p(y | x_t)`.
      scale: 1 is Bayes' rule, 0 is no guidance.

    Raises:
      ValueError: If the two differ in shape, or scale is neither `()` nor `[B]`.

    Example:
      >>> print(gj.scores.bayes(jnp.ones((1, 2)), jnp.ones((1, 2)), 2.0))
      [[3. 3.]]

    Reference: Dhariwal & Nichol 2021, arXiv:2105.05233, equation 14.
    """
    unconditional, classifier = jnp.asarray(unconditional), jnp.asarray(classifier)
    return unconditional + expand(jnp.asarray(scale, unconditional.dtype), unconditional) * classifier


@door(also(lambda conditional, unconditional: check_scores(conditional, unconditional)))
def implicit_classifier(conditional: Float[Array, "b ..."], unconditional: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
    """The classifier gradient implied by two scores: `grad log p(y | x_t) = s(x | y) - s(x)`.

    Args:
      conditional: The conditional score `s(x | y)`.
      unconditional: The unconditional score `s(x)`.

    Raises:
      ValueError: If the two scores differ in shape.

    Example:
      >>> print(gj.scores.implicit_classifier(jnp.full((1, 2), 3.0), jnp.ones((1, 2))))
      [[2. 2.]]

    Reference: Ho & Salimans 2022, arXiv:2207.12598.
    """
    return jnp.asarray(conditional) - jnp.asarray(unconditional)


@door(also(lambda conditional, unconditional, scale: check_scores(conditional, unconditional, scale)))
def guided(conditional: Float[Array, "b ..."], unconditional: Float[Array, "b ..."], scale: PerSample) -> Float[Array, "b ..."]:
    """The score of classifier-free guidance: `s(x) + scale (s(x | y) - s(x))`.

    Args:
      conditional: The conditional score `s(x | y)`.
      unconditional: The unconditional score `s(x)`.
      scale: 1 is the conditional score, 0 is the unconditional one.

    Raises:
      ValueError: If the two scores differ in shape, or scale is neither `()` nor `[B]`.

    Example:
      >>> print(gj.scores.guided(jnp.full((1, 2), 3.0), jnp.ones((1, 2)), 2.0))
      [[5. 5.]]

    Reference: Ho & Salimans 2022, arXiv:2207.12598, equation 6 with w = scale - 1.
    """
    return bayes(unconditional, implicit_classifier(conditional, unconditional), scale)
