"""What a classifier says of samples."""

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
from guidance_jax.checks.features import Logits, check_classes, check_sets
from guidance_jax.checks.kinds import Count, array_kind

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
      ValueError: If logits that are known have NaN, or a label that is known has no logit; one that is traced counts as wrong.
      TypeError: If logits are no array of floating numbers, or labels none of integers.

    Example:
      >>> print(gj.metrics.accuracy(jnp.eye(4), jnp.array([0, 1, 2, 0])))
      0.75
    """
    return jnp.mean(jnp.asarray(logits).argmax(1) == jnp.asarray(labels))


@door(also(lambda logits, splits: check_sets(splits, f" for splits={splits}", logits=logits)))
def inception_score(logits: Logits, *, splits: Count = 1) -> Float[Array, ""]:
    """How sure a classifier is of each sample, and how evenly samples spread over its classes: from 1 to C.

    `exp(mean KL(p(y | x) || p(y)))`, `p(y | x) = softmax(logits)`, `p(y) = mean p(y | x)`. It sees neither real data nor how
    varied the samples of a class are.

    Args:
      logits: `[N, C]`.
      splits: The score is the mean of those of so many consecutive parts, 10 by custom, and falls as the parts get small;
        shuffle samples that lie sorted by class.

    Raises:
      ValueError: If there are fewer samples than splits, or logits that are known have NaN.
      TypeError: If logits are no array of floating numbers.

    Example:
      >>> print(gj.metrics.inception_score(100 * jnp.eye(4)), gj.metrics.inception_score(jnp.ones((4, 4))))
      4.0 1.0

    Reference: Salimans et al. 2016, arXiv:1606.03498.
    """
    logits = jnp.asarray(logits)
    p = jax.nn.softmax(logits.astype(at_least_float32(logits.dtype)))
    bounds = [len(p) * i // splits for i in range(splits + 1)]
    parts = [p[start:stop] for start, stop in itertools.pairwise(bounds)]
    return jnp.stack([jnp.exp(entr(part.mean(0)).sum() - entr(part).sum(1).mean()) for part in parts]).mean()
