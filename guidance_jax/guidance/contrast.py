"""Guidance by the difference of branches."""

from jaxtyping import ArrayLike

from guidance_jax.arrays import per_sample
from guidance_jax.base import Context, Guidance, Prediction
from guidance_jax.guidance.algebra import stateless


def cfg(scale: ArrayLike, *, cond: str = "cond", uncond: str = "uncond") -> Guidance:
    """Classifier-free guidance.

    `D = uncond + scale (cond - uncond)`, in any parameterisation.

    A source: what it adds is D less the base prediction. A negative prompt is an `uncond` branch with that condition.

    Args:
      scale: `()` or `[B]`; 1 is the conditional model, 0 the unconditional one; fractions and negatives are legal.
      cond: the name of the branch to go to.
      uncond: the name of the branch to come from.

    Raises:
      ValueError: if scale is neither `()` nor `[B]`.

    Example:
      >>> guidance = chain(during(cfg(3.0), 0.2, 5.0), rescale(0.7))
      >>> sorted(guidance.needs)
      ['cond', 'uncond']

    Reference: Ho & Salimans 2022, arXiv:2207.12598; its w is `scale - 1`.
    """

    def update(prediction: Prediction, context: Context) -> Prediction:
        c, u, base = context.branches[cond], context.branches[uncond], context.base
        w = per_sample(scale, context.x, "cfg's scale")
        x0 = u.x0 + w * (c.x0 - u.x0)
        eps = u.eps + w * (c.eps - u.eps)
        return prediction._replace(x0=prediction.x0 + (x0 - base.x0), eps=prediction.eps + (eps - base.eps))

    return stateless(update, needs=(cond, uncond))
