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
    """The exponential moving average of parameters, its decay warming up: `min(decay, (1 + step) / (10 + step))`.

    It is kept in at least float32, for in bfloat16 1 - .999 is 0 and it would stand still.

    Args:
      average: The average so far; at step 0 any parameters, in float32 for a `scan` over the steps.
      params: The parameters after this step.
      step: Counts from 0, `()`.
      decay: The final decay.

    Returns:
      The average after this step, shaped as the parameters; cast it to their dtype for a network that asks for that.

    Raises:
      ValueError: If average and params differ in structure, decay is outside [0, 1], or step is no whole number.

    Example:
      >>> print(training.ema(jnp.array(0.0), jnp.array(1.0), step=0))
      0.9

    Reference: Polyak & Juditsky 1992, "Acceleration of stochastic approximation by averaging"; the warming up is that of
    TensorFlow's ExponentialMovingAverage.
    """
    step = jnp.asarray(step, jnp.result_type(float))
    keep = jnp.minimum(decay, (1 + step) / (10 + step))

    def towards(a: Any, p: Any) -> Any:
        if jnp.issubdtype(jnp.result_type(p), jnp.floating):
            a, p = (jnp.asarray(one, at_least_float32(jnp.result_type(one))) for one in (a, p))
        return a + (1 - keep.astype(jnp.result_type(p))) * (p - a)

    return jax.tree.map(towards, average, params)
