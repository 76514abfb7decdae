"""EDM's stochastic churn: before a step, x is raised to more noise."""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import ArrayLike

from guidance_jax.arrays import divide, sqrt
from guidance_jax.base import GuidedDenoiser, NoiseLevel, Sampler, Schedule, State
from guidance_jax.checks.old import check_scalar, check_schedule
from guidance_jax.noise import normal
from guidance_jax.samplers.gaussian import is_zero


def churned(
    sampler: Sampler, schedule: Schedule | None, churn: ArrayLike, low: ArrayLike, high: ArrayLike, noise_scale: ArrayLike
) -> Sampler:
    """A sampler whose every step begins from more noise, `r^ = (1 + churn) r`, r = sigma / alpha in `[low, high]`.

    `x^ = alpha^ (x / alpha + noise_scale sqrt(r^^2 - r^2) z)`; the level of r^, with the t that the network is told there, is
    `schedule.at(r^)`: no higher than the schedule goes. Nothing is raised at alpha = 0.

    Raises:
      ValueError: if there is churn and no schedule, or a number is negative or no scalar.
    """
    for value, name in ((churn, "churn"), (noise_scale, "noise_scale")):
        check_scalar(value, name)
    for value, name in ((low, "low"), (high, "high")):
        check_scalar(value, name, most=jnp.inf)
    if schedule is not None:
        check_schedule(schedule)
    if is_zero(churn):
        return sampler
    if schedule is None:
        raise ValueError(
            f"churn={churn} raises x to levels of its own, which only the schedule knows: heun(schedule, churn=0.2)."
        )

    def raised(level: NoiseLevel) -> tuple[NoiseLevel, Array]:
        """The level to begin from, and whether it is another."""
        finite, dtype = level.alpha > 0, level.sigma.dtype
        inside = finite & (level.ratio >= jnp.asarray(low, dtype)) & (level.ratio <= jnp.asarray(high, dtype))
        above = schedule.at(jnp.where(finite, level.ratio, 1) * (1 + jnp.asarray(churn, dtype)))
        above = jax.tree.map(lambda field: field.astype(dtype), above)
        up = inside & (above.ratio > level.ratio)
        return jax.tree.map(lambda new, old: jnp.where(up, new, old), above, level), up

    def step(denoise: GuidedDenoiser, state: State, level: NoiseLevel, next: NoiseLevel, keys: Array) -> State:
        start, up = raised(level)
        scale = jnp.where(up, divide(start.alpha, level.alpha), 1)
        fresh = jnp.where(up, sqrt(1 - (divide(level.sigma * start.alpha, start.sigma * level.alpha)) ** 2), 0)
        noise = jnp.asarray(noise_scale, state.x.dtype) * start.sigma * fresh * normal(keys, state.x)
        return sampler.step(denoise, state._replace(x=scale * state.x + noise), start, next, keys)

    return Sampler(sampler.init, step, schedule=schedule)
