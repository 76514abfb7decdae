"""Multistep samplers that forget their past steps where guidance switches."""

from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import ArrayLike
from typing_extensions import TypeAliasType

from guidance_jax.base import GuidedDenoiser, NoiseLevel, State
from guidance_jax.checks.door import part, rule
from guidance_jax.checks.numbers import number
from guidance_jax.interfaces import Sampler

RatioFromZero = TypeAliasType("RatioFromZero", Annotated[ArrayLike, number("a noise level", 0, np.inf)])
"""One `sigma / alpha`, possibly infinite."""


@part(rule("there must be at least one ratio, as in forget(dpmpp_2m(), 0.3, 5.0)", lambda ratios: len(ratios) > 0))
def forget(sampler: Sampler, *ratios: RatioFromZero) -> Sampler:
    """A multistep sampler that forgets its past steps at given noise levels. Its next step is of first order.

    `memory <- init(x)` in the first step with `sigma / alpha <= ratio`, for each ratio.

    Use it where guidance switches on or off: `forget(dpmpp_2m(), low, high)` with `during(guidance, low, high)`. The memory is
    made anew in the first step that begins at or below a ratio.

    Args:
      sampler: A multistep sampler.
      *ratios: The `sigma / alpha` at which it forgets, `()` each.

    Raises:
      ValueError: If there is no ratio, or one is not a scalar.

    Example:
      >>> one = gj.branches(gj.denoiser(lambda x, t, cond: x / 2, predicts="x0"), cond=None)
      >>> path = gj.levels(gj.schedules.edm(), 8, gj.spacings.karras())
      >>> keys = jax.random.split(jax.random.key(0), 1)
      >>> always = gj.forget(gj.dpmpp_2m(), *path.ratio)
      >>> a = gj.sample(keys, one, gj.chain(), always, path, (2,))
      >>> b = gj.sample(keys, one, gj.chain(), gj.ddim(), path, (2,))
      >>> print(jnp.allclose(a, b))
      True
    """

    def init(x: Array) -> tuple[Any, Array]:
        return sampler.init(x), jnp.full((), jnp.inf, x.dtype)

    def step(denoise: GuidedDenoiser, state: State, level: NoiseLevel, next: NoiseLevel, keys: Array) -> State:
        memory, last = state.memory
        bounds = jnp.stack([jnp.asarray(ratio, last.dtype) for ratio in ratios])
        passed = ((last > bounds) & (level.ratio <= bounds)).any()
        memory = jax.tree.map(lambda new, old: jnp.where(passed, new, old), sampler.init(state.x), memory)
        state = sampler.step(denoise, state._replace(memory=memory), level, next, keys)
        return state._replace(memory=(state.memory, level.ratio))

    return Sampler(init, step, schedule=sampler.schedule)
