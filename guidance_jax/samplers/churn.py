"""EDM's stochastic churn, which adds noise to x before each step."""

import jax.numpy as jnp
from jax import Array

from guidance_jax.arrays import divide, sqrt
from guidance_jax.base import GuidedDenoiser, NoiseLevel, State
from guidance_jax.checks.door import part, rule
from guidance_jax.checks.kinds import AtLeastZero, NonNegative, Ratio
from guidance_jax.interfaces import Sampler
from guidance_jax.noise import normal
from guidance_jax.samplers.gaussian import is_zero
from guidance_jax.schedules.schedule import Schedule


@part(rule("low must be at most high", lambda low, high: low <= high))
def churn(
    sampler: Sampler,
    schedule: Schedule,
    amount: NonNegative,
    low: Ratio = 0.0,
    high: Ratio = jnp.inf,
    *,
    noise_scale: AtLeastZero = 1.0,
) -> Sampler:
    """Churn: start each step from a raised noise level, `r^ = (1 + amount) r`, if r = sigma / alpha is in `[low, high]`.

    `x^ = alpha^ (x / alpha + noise_scale sqrt(r^^2 - r^2) z)`, where z is fresh noise, at the level `schedule.at(r^)`.

    `amount` is EDM's gamma, `min(S_churn / steps, sqrt(2) - 1)`. Compute it yourself, since a sampler does not know the number
    of steps. The level is not raised at alpha = 0, nor beyond the maximum noise of the schedule. `churn(heun(), schedule, ...)`
    is EDM's stochastic sampler.

    Args:
      sampler: The sampler that takes the steps: `heun()`, `euler()`.
      schedule: The noise schedule of the run, which gives the raised levels.
      amount: The relative increase of `sigma / alpha` before each step, `()`. A plain 0 returns the sampler unchanged.
      low: The minimum `sigma / alpha` with churn, `()`, included (S_min).
      high: The maximum `sigma / alpha` with churn, `()`, included (S_max).
      noise_scale: The standard deviation of z, `()` (S_noise).

    Raises:
      TypeError: If there is no sampler or no schedule.
      ValueError: If a number is negative or not a scalar.

    Example:
      >>> denoise = gj.denoiser(lambda x, t, cond: 0 * x + 3, predicts="x0")
      >>> one = gj.branches(denoise, cond=None)
      >>> path = gj.levels(gj.schedules.edm(), 2, gj.spacings.karras())
      >>> keys = jax.random.split(jax.random.key(0), 1)
      >>> sampler = gj.churn(gj.heun(), gj.schedules.edm(), 0.2)
      >>> print(gj.sample(keys, one, gj.chain(), sampler, path, (2,)))
      [[3. 3.]]

    Reference: Karras et al. 2022, arXiv:2206.00364, algorithm 2.
    """
    if is_zero(amount):
        return sampler

    def raised(level: NoiseLevel) -> tuple[NoiseLevel, Array]:
        """The level where the step starts, and whether it is raised."""
        noisy, dtype = level.alpha > 0, level.sigma.dtype
        inside = noisy & (level.ratio >= jnp.asarray(low, dtype)) & (level.ratio <= jnp.asarray(high, dtype))
        above = schedule.at(jnp.where(noisy, level.ratio, 1) * (1 + jnp.asarray(amount, dtype)))
        fields = {name: field.astype(dtype) for name, field in vars(above).items()}
        up = inside & (NoiseLevel(**fields).ratio > level.ratio)
        return NoiseLevel(**{name: jnp.where(up, fields[name], field) for name, field in vars(level).items()}), up

    def step(denoise: GuidedDenoiser, state: State, level: NoiseLevel, next: NoiseLevel, keys: Array) -> State:
        start, up = raised(level)
        grown = jnp.where(up, divide(start.alpha, level.alpha), 1)
        fresh = jnp.where(up, sqrt(1 - (divide(level.sigma * start.alpha, start.sigma * level.alpha)) ** 2), 0)
        noise = jnp.asarray(noise_scale, state.x.dtype) * start.sigma * fresh * normal(keys, state.x)
        return sampler.step(denoise, state._replace(x=grown * state.x + noise), start, next, keys)

    return Sampler(sampler.init, step, schedule=schedule)
