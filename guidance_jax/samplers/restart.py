"""Multistep samplers that begin anew where what they extrapolate jumps."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import ArrayLike

from guidance_jax.checks.old import check_range
from guidance_jax.base import GuidedDenoiser, NoiseLevel, Sampler, State
from guidance_jax.checks.old import check_sampler


def restart(sampler: Sampler, *ratios: ArrayLike) -> Sampler:
    """A sampler that forgets its past steps where the run passes given noise levels, and so falls to first order there.

    `memory <- init(x)` in the first step with `sigma / alpha <= ratio`, for each ratio.

    For multistep samplers where guidance switches on or off: `restart(dpmpp_2m(), low, high)` around `during(guidance, low,
    high)`. The memory is made anew in the first step that begins at or below a ratio.

    Args:
      sampler: a multistep sampler.
      *ratios: `sigma / alpha` where to forget, `()` each.

    Raises:
      ValueError: if there is no ratio, or one is no scalar.

    Example:
      >>> denoise = denoiser(lambda x, t, cond: x / 2, predicts="x0")
      >>> path = levels(schedules.edm(), 8, spacings.karras())
      >>> keys = jax.random.split(jax.random.key(0), 1)
      >>> always = samplers.restart(dpmpp_2m(), *path.ratio)
      >>> a, b = (sample(keys, branches(denoise, cond=None), chain(), s, path, (2,)) for s in (always, ddim()))
      >>> print(jnp.allclose(a, b))
      True
    """
    check_sampler(sampler, "restart's sampler")
    for ratio in ratios:
        check_range(ratio, "restart's ratio", 0, jnp.inf)
    if not ratios or any(jnp.shape(ratio) != () for ratio in ratios):
        raise ValueError(
            f"restart needs the noise levels, scalars in sigma / alpha, got shapes {[jnp.shape(r) for r in ratios]}."
        )

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
