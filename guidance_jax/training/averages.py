"""Averages of parameters."""

from typing import Any

import jax
import jax.numpy as jnp

from guidance_jax.arrays import at_least_float32
from guidance_jax.checks.door import also, door
from guidance_jax.checks.kinds import (
    Fraction,
    NonNegative,
)
from guidance_jax.checks.training import check_average


@door(also(check_average))
def ema(average: Any, params: Any, step: NonNegative, decay: Fraction = 0.999) -> Any:
    """The exponential moving average of parameters, with the warmed-up decay `min(decay, (1 + step) / (10 + step))`.

    It is computed in at least float32. In bfloat16, .999 rounds to 1, and the average would not change.

    Args:
      average: The average so far. At step 0 it may be any parameters. In a `scan` over the steps it must start in float32.
      params: The parameters after this step.
      step: The number of the step, from 0, `()`.
      decay: The final decay.

    Returns:
      The average after this step, shaped as the parameters. Cast it to their dtype if the network needs that.

    Raises:
      ValueError: If average and params differ in structure, decay is outside [0, 1], or step is not a whole number.

    Example:
      >>> print(gj.training.ema(jnp.array(0.0), jnp.array(1.0), step=0))
      0.9

    Reference: Polyak & Juditsky 1992, "Acceleration of stochastic approximation by averaging". The warm-up is that of
    TensorFlow's ExponentialMovingAverage.
    """
    step = jnp.asarray(step, jnp.result_type(float))
    keep = jnp.minimum(decay, (1 + step) / (10 + step))

    def towards(a: Any, p: Any) -> Any:
        if jnp.issubdtype(jnp.result_type(p), jnp.floating):
            a, p = (jnp.asarray(one, at_least_float32(jnp.result_type(one))) for one in (a, p))
        return a + (1 - keep.astype(jnp.result_type(p))) * (p - a)

    return jax.tree.map(towards, average, params)
