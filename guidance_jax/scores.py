"""Bayes' rule as functions: the formulae of guidance, readable beside the paper.

`grad log p(x_t | y) = grad log p(x_t) + grad log p(y | x_t)`. Scores are arrays `[B, ...]`; a `log_prob` is a function
`(x, level) -> [B]` such as `class_log_prob` makes of a classifier.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import ArrayLike, Float, Int

from guidance_jax.arrays import at_least_float32, divide, expand
from guidance_jax.checks.old import per_sample
from guidance_jax.base import NoiseLevel, Prediction
from guidance_jax.checks.old import check_labels
from guidance_jax.checks.old import check_array, check_callable, check_kind, check_takes, noting
from guidance_jax.checks.old import check_each

__all__ = ["LogProb", "bayes", "class_log_prob", "classifier_score", "guided", "implicit_classifier", "score"]

LogProb = Callable[[Array, NoiseLevel], Array]
"""`(x [B, ...], level) -> [B]`: `log p(y | x_t)`, or any other."""
NOISY = "it is (x, level) -> [B], as gj.scores.class_log_prob(classify, labels) makes it."


def score(prediction: Prediction, level: NoiseLevel) -> Float[Array, "b ..."]:
    """The score that a prediction implies, `grad log p(x_t) = -eps / sigma`; 0 where sigma is 0.

    Args:
      prediction: of a denoiser at x.
      level: the level of x.

    Example:
      >>> prediction = Prediction(x0=jnp.zeros((1, 2)), eps=jnp.ones((1, 2)))
      >>> print(scores.score(prediction, schedules.edm()(0.0)))
      [[-1. -1.]]

    Reference: Song et al. 2021, arXiv:2011.13456.
    """
    check_kind(prediction, Prediction, "the prediction", "denoise(x, level, cond) gives one.")
    return divide(-prediction.eps, expand(level.sigma, prediction.eps))


def class_log_prob(
    classify: Callable[[Array, Array], Array],
    labels: Int[Array, "b"],
    classes: int | None = None,
    *,
    temperature: ArrayLike = 1.0,
) -> LogProb:
    """`log p(y | x_t)` of a noise-aware classifier: the log-softmax of its logits over the temperature, at the labels.

    `log p(y | x_t) = l_y - log sum_k exp(l_k)`, `l = classify(x_t, t) / temperature`.

    Args:
      classify: `(x [B, ...], t [B]) -> logits [B, C]`, trained on noisy inputs; t is the network's own time.
      labels: `[B]`, each in 0..C - 1.
      classes: the number of logits the classifier must give; not checked where None.
      temperature: of the softmax, `()` or `[B]`; below 1 sharpens the classifier, above 1 softens it.

    Returns:
      `(x, level) -> [B]`, for `guidance.classifier`.

    Raises:
      ValueError: if the logits are not `[B, C]`, C is not `classes`, or a label is outside; one that is traced gives NaN.
      TypeError: if the labels are not integers.

    Example:
      >>> log_prob = scores.class_log_prob(lambda x, t: x, labels=jnp.array([0]))
      >>> print(log_prob(jnp.zeros((1, 4)), schedules.edm()(0.0)).round(3))
      [-1.386]

    Reference: Dhariwal & Nichol 2021, arXiv:2105.05233.
    """
    check_callable(classify, "classify", "it is (x, t) -> logits [B, classes].")
    check_array(labels, "labels", jnp.generic, "integers, [B]")

    def log_prob(x: Array, level: NoiseLevel) -> Array:
        t = jnp.broadcast_to(level.t, x.shape[:1])
        with noting("the classifier", x=x, t=t):
            logits = classify(x, t)
        if logits.ndim != 2 or logits.shape[0] != x.shape[0]:
            raise ValueError(f"the classifier gave logits {logits.shape} for x {x.shape}, but must give [B, classes].")
        if classes is not None and logits.shape[1] != classes:
            raise ValueError(f"the classifier gives {logits.shape[1]} logits, but there are {classes} classes.")
        if labels.shape != x.shape[:1]:
            raise ValueError(f"labels have shape {labels.shape}, but x {x.shape} needs one a sample: {x.shape[:1]}.")
        check_labels(labels, logits.shape[1], f"a classifier of {logits.shape[1]} logits")
        logits = logits.astype(at_least_float32(logits.dtype))
        logits = logits / per_sample(temperature, logits, "the temperature", above=0)
        # A label outside that is traced: NaN in the gradient too, where the gather's would be 0 and guide nothing.
        logits = logits * jnp.where((labels >= 0) & (labels < logits.shape[1]), 1, jnp.nan).astype(logits.dtype)[:, None]
        return jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)[:, 0]

    return log_prob


def classifier_score(log_prob: LogProb, x: Float[Array, "b ..."], level: NoiseLevel) -> Float[Array, "b ..."]:
    """`grad_x log p(y | x_t)`, by `jax.grad`; a sum over the batch, so each sample has its own gradient, whatever B is.

    Args:
      log_prob: `(x, level) -> [B]`.
      x: `[B, ...]`.
      level: the level of x.

    Raises:
      ValueError: if log_prob does not give one number a sample.

    Example:
      >>> log_prob = lambda x, level: -0.5 * (x**2).sum(1)
      >>> print(scores.classifier_score(log_prob, jnp.ones((1, 2)), schedules.edm()(0.0)))
      [[-1. -1.]]

    Reference: Dhariwal & Nichol 2021, arXiv:2105.05233, section 4.1.
    """
    check_takes(log_prob, "log_prob", "x", "level")

    def total(x: Array) -> Array:
        each = log_prob(x, level)
        check_each(each, x, "log_prob")
        return each.sum()

    return jax.grad(total)(x)


def bayes(
    unconditional: Float[Array, "b ..."], classifier: Float[Array, "b ..."], scale: ArrayLike = 1.0
) -> Float[Array, "b ..."]:
    """The score of classifier guidance: `s(x) + scale * grad log p(y | x_t)`; Bayes' rule at scale 1.

    Args:
      unconditional: `s(x) = grad log p(x_t)`.
      classifier: `grad log p(y | x_t)`.
      scale: `()` or `[B]`.

    Raises:
      ValueError: if scale is neither `()` nor `[B]`.

    Example:
      >>> print(scores.bayes(jnp.ones((1, 2)), jnp.ones((1, 2)), 2.0))
      [[3. 3.]]

    Reference: Dhariwal & Nichol 2021, arXiv:2105.05233, equation 14.
    """
    _check_alike(unconditional, classifier)
    return unconditional + per_sample(scale, unconditional, "the scale") * classifier


def implicit_classifier(conditional: Float[Array, "b ..."], unconditional: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
    """The classifier's score that two models imply: `grad log p(y | x_t) = s(x | y) - s(x)`.

    Args:
      conditional: `s(x | y)`.
      unconditional: `s(x)`.

    Raises:
      ValueError: if the two scores differ in shape.

    Example:
      >>> print(scores.implicit_classifier(jnp.full((1, 2), 3.0), jnp.ones((1, 2))))
      [[2. 2.]]

    Reference: Ho & Salimans 2022, arXiv:2207.12598.
    """
    _check_alike(conditional, unconditional)
    return conditional - unconditional


def guided(conditional: Float[Array, "b ..."], unconditional: Float[Array, "b ..."], scale: ArrayLike) -> Float[Array, "b ..."]:
    """The score of classifier-free guidance: `s(x) + scale (s(x | y) - s(x))`.

    Args:
      conditional: `s(x | y)`.
      unconditional: `s(x)`.
      scale: `()` or `[B]`; 1 is the conditional score, 0 the unconditional one.

    Raises:
      ValueError: if scale is neither `()` nor `[B]`.

    Example:
      >>> print(scores.guided(jnp.full((1, 2), 3.0), jnp.ones((1, 2)), 2.0))
      [[5. 5.]]

    Reference: Ho & Salimans 2022, arXiv:2207.12598, equation 6 with w = scale - 1.
    """
    return bayes(unconditional, implicit_classifier(conditional, unconditional), scale)


def _check_alike(a: Array, b: Array) -> None:
    if jnp.shape(a) != jnp.shape(b):
        raise ValueError(f"the two scores must have one shape, [B, ...], got {jnp.shape(a)} and {jnp.shape(b)}.")
