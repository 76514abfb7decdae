"""Metrics of a classifier's logits."""

import itertools
from typing import Annotated

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import entr
from jaxtyping import Float, Int
from typing_extensions import TypeAliasType

from guidance_jax.arrays import at_least_float32
from guidance_jax.checks.door import also, door
from guidance_jax.checks.kinds import Count, array_kind
from guidance_jax.metrics.checks import Logits, check_classes, check_sets

OneLabelEach = TypeAliasType("OneLabelEach", Annotated[Int[Array, "n"], array_kind("integers, [N]", jnp.integer)])
"""Integer labels, `[N]`."""


@door(also(check_classes))
def accuracy(logits: Logits, labels: OneLabelEach) -> Float[Array, ""]:
    """The share of samples whose largest logit is that of their label.

    `mean(argmax(logits) == labels)`

    Args:
      logits: `[N, C]`.
      labels: `[N]`.

    Raises:
      ValueError: If known logits have NaN, or a known label has no logit. A traced label without a logit counts as wrong.
      TypeError: If logits are not an array of floating numbers, or labels are not an array of integers.

    Example:
      >>> print(gj.metrics.accuracy(jnp.eye(4), jnp.array([0, 1, 2, 0])))
      0.75
    """
    return jnp.mean(jnp.asarray(logits).argmax(1) == jnp.asarray(labels))


@door(also(lambda logits, splits: check_sets(splits, f" for splits={splits}", logits=logits)))
def inception_score(logits: Logits, *, splits: Count = 1) -> Float[Array, ""]:
    """The Inception score, from 1 to C: high if each sample is classified with confidence and all classes occur equally often.

    `exp(mean KL(p(y | x) || p(y)))`, `p(y | x) = softmax(logits)`, `p(y) = mean p(y | x)`. The score does not depend on real
    data, nor on the diversity within a class.

    Args:
      logits: `[N, C]`.
      splits: The number of consecutive parts. The score is the mean over the parts; papers use 10. Small parts lower it.
        Shuffle samples that are sorted by class.

    Raises:
      ValueError: If there are fewer samples than splits, or known logits have NaN.
      TypeError: If logits are not an array of floating numbers.

    Example:
      >>> score = jax.jit(gj.metrics.inception_score)
      >>> print(score(100 * jnp.eye(4)).round(3), score(jnp.ones((4, 4))).round(3))
      4.0 1.0

    Reference: Salimans et al. 2016, arXiv:1606.03498.
    """
    logits = jnp.asarray(logits)
    p = jax.nn.softmax(logits.astype(at_least_float32(logits.dtype)))
    bounds = [len(p) * i // splits for i in range(splits + 1)]
    parts = [p[start:stop] for start, stop in itertools.pairwise(bounds)]
    return jnp.stack([jnp.exp(entr(part.mean(0)).sum() - entr(part).sum(1).mean()) for part in parts]).mean()
