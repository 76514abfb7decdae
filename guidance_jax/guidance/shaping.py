"""Shapers: they change the prediction that sources have made, and nothing where it is still the base's."""

import jax.numpy as jnp
from jax import Array
from jaxtyping import ArrayLike

from guidance_jax.arrays import divide, per_sample, sqrt
from guidance_jax.base import Context, Guidance, Prediction
from guidance_jax.guidance.algebra import move, stateless


def rescale(phi: ArrayLike) -> Guidance:
    """Bring the spread of a guided prediction back toward the base prediction's.

    `x0 <- phi x0 std(base) / std(x0) + (1 - phi) x0`, std over all axes of one sample, with n - 1.

    Acts on x0; the paper, whose default is 0.7, acts on v. It asks for no branch: where nothing guides, nothing changes.

    Args:
      phi: `()` or `[B]`; 0 changes nothing, 1 restores the base's spread fully.

    Raises:
      ValueError: if phi is neither `()` nor `[B]`, or a sample has a single element, which has no spread.

    Example:
      >>> guidance = chain(cfg(7.5), rescale(0.7))

    Reference: Lin et al. 2024, arXiv:2305.08891, equations 15 and 16.
    """

    def update(prediction: Prediction, context: Context) -> Prediction:
        x0 = prediction.x0
        if x0[0].size < 2:
            raise ValueError(f"rescale needs at least two elements a sample to take their spread, but x is {x0.shape}.")
        share = per_sample(phi, x0, "rescale's phi")
        spread = _std(x0)
        # A sample without any spread has nothing to rescale.
        ratio = jnp.where(spread > 0, divide(_std(context.base.x0), spread), 1)
        return move(prediction, x0 * (share * ratio + (1 - share)), context.level)

    return stateless(update)


def _std(x: Array) -> Array:
    """The standard deviation of each sample, broadcastable."""
    return sqrt(x.var(tuple(range(1, x.ndim)), ddof=1, keepdims=True))
