"""Guidance by gradients."""

from jaxtyping import ArrayLike

from guidance_jax import scores
from guidance_jax.arrays import divide, expand, per_sample
from guidance_jax.base import Context, Guidance, Prediction
from guidance_jax.guidance.algebra import stateless


def classifier(log_prob: scores.LogProb, scale: ArrayLike) -> Guidance:
    """Classifier guidance in its score form, for any sampler.

    `eps <- eps - scale sigma grad log p(y | x_t)`, `x0 <- x0 + scale sigma^2 / alpha grad log p(y | x_t)`.

    The gradient is taken at `(x_t, t)`. At alpha = 0 x_t knows nothing of y and the shift of x0 has no value; it is 0 there.

    Args:
      log_prob: `(x, level) -> [B]`: `scores.class_log_prob(classify, labels)`, or any other log-probability or reward.
      scale: `()` or `[B]`; 1 is Bayes' rule, 0 no guidance.

    Raises:
      ValueError: if scale is neither `()` nor `[B]`, or log_prob does not give `[B]`.

    Example:
      >>> log_prob = scores.class_log_prob(lambda x, t: x, labels=jnp.array([0]))
      >>> sorted(classifier(log_prob, 4.0).needs)
      []

    Reference: Dhariwal & Nichol 2021, arXiv:2105.05233, algorithm 2.
    """

    def update(prediction: Prediction, context: Context) -> Prediction:
        x, level = context.x, context.level
        alpha, sigma = expand(level.alpha, x), expand(level.sigma, x)
        gradient = scores.classifier_score(log_prob, x, level).astype(x.dtype)
        shift = per_sample(scale, x, "classifier's scale") * sigma * gradient
        x0 = prediction.x0 + divide(sigma, alpha) * shift
        return prediction._replace(x0=x0, eps=prediction.eps - shift)

    return stateless(update)
