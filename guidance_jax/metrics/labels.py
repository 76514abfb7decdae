"""What a classifier says of samples."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import entr
from jaxtyping import Float, Int

from guidance_jax.arrays import at_least_float32, concrete
from guidance_jax.checks.old import check_labels
from guidance_jax.checks.old import check_array, check_count


def accuracy(logits: Float[Array, "n c"], labels: Int[Array, "n"]) -> Float[Array, ""]:
    """The share of samples whose largest logit is that of their label.

    `mean(argmax(logits) == labels)`

    Args:
      logits: `[N, C]`.
      labels: `[N]`.

    Raises:
      ValueError: if logits that are known have NaN, or a label that is known has no logit; one that is traced counts as wrong.
      TypeError: if logits are no array of floating numbers, or labels none of integers.

    Example:
      >>> print(metrics.accuracy(jnp.eye(4), jnp.array([0, 1, 2, 0])))
      0.75
    """
    _check(logits, "accuracy's logits")
    check_array(labels, "labels", jnp.generic, "integers, [N]")
    check_labels(labels, logits.shape[1], f"accuracy of {logits.shape[1]} logits")
    if labels.shape != logits.shape[:1]:
        raise ValueError(f"labels have shape {labels.shape}, but logits {logits.shape} need one a sample: {logits.shape[:1]}.")
    return jnp.mean(jnp.asarray(logits).argmax(1) == jnp.asarray(labels))


def inception_score(logits: Float[Array, "n c"], *, splits: int = 1) -> Float[Array, ""]:
    """How sure a classifier is of each sample, and how evenly samples spread over its classes: from 1 to C.

    `exp(mean KL(p(y | x) || p(y)))`, `p(y | x) = softmax(logits)`, `p(y) = mean p(y | x)`. It sees neither real data nor how
    varied the samples of a class are.

    Args:
      logits: `[N, C]`.
      splits: the score is the mean of those of so many consecutive parts, 10 by custom, and falls as the parts get small;
        shuffle samples that lie sorted by class.

    Raises:
      ValueError: if there are fewer samples than splits, or logits that are known have NaN.
      TypeError: if logits are no array of floating numbers.

    Example:
      >>> print(metrics.inception_score(100 * jnp.eye(4)), metrics.inception_score(jnp.ones((4, 4))))
      4.0 1.0

    Reference: Salimans et al. 2016, arXiv:1606.03498.
    """
    _check(logits, "inception_score's logits")
    check_count(splits, "splits", 0)
    if not 1 <= splits <= len(logits):
        raise ValueError(f"splits={splits} must be at least 1 and at most the number of samples, {len(logits)}.")
    logits = jnp.asarray(logits)
    p = jax.nn.softmax(logits.astype(at_least_float32(logits.dtype)))
    bounds = [len(p) * i // splits for i in range(splits + 1)]
    parts = [p[start:stop] for start, stop in itertools.pairwise(bounds)]
    return jnp.stack([jnp.exp(entr(part.mean(0)).sum() - entr(part).sum(1).mean()) for part in parts]).mean()


def _check(logits: Array, name: str) -> None:
    check_array(logits, name, jnp.generic, "floating numbers, [N, C]")
    if logits.ndim != 2:
        raise ValueError(f"logits have shape {logits.shape}, but are [N, C].")
    if 0 in logits.shape:
        raise ValueError(f"logits are empty: their shape is {logits.shape}.")
    check_array(logits, name, jnp.floating, "floating numbers, [N, C]")
    if concrete(logits):
        bad = np.flatnonzero(np.isnan(np.asarray(logits)).any(1))
        if bad.size:
            raise ValueError(f"logits have NaN in {bad.size} of {len(logits)} rows, the first is {bad[0]}.")
