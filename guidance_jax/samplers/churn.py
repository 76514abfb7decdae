"""EDM's stochastic churn: before a step, x is raised to more noise."""

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
    """Churn: every step begins from more noise, `r^ = (1 + amount) r`, where r = sigma / alpha is in `[low, high]`.

    `x^ = alpha^ (x / alpha + noise_scale sqrt(r^^2 - r^2) z)`, z fresh noise, at the level `schedule.at(r^)`.

    A sampler does not know the number of its steps, so `amount` is that of one step: EDM's gamma, which is
    `min(S_churn / steps, sqrt(2) - 1)` for their S_churn. x is raised no higher than the schedule goes, and not at alpha = 0.
    `churn(heun(), schedule, ...)` is EDM's stochastic sampler.

    Args:
      sampler: Whose steps begin there: `heun()`, `euler()`.
      schedule: The noise schedule of the run's levels, which knows those in between.
      amount: The share by which `sigma / alpha` is raised before each step, `()`. With a plain 0 this is the sampler itself.
      low: The smallest `sigma / alpha` at which to churn, `()`, included (S_min).
      high: The largest, likewise (S_max).
      noise_scale: The deviation of z, `()` (S_noise).

    Raises:
      TypeError: If there is no sampler or no schedule.
      ValueError: If a number is negative or not a scalar.

    Example:
      >>> denoise = gj.denoiser(lambda x, t, cond: 0 * x + 3, predicts="x0")
      >>> path, keys = gj.levels(gj.schedules.edm(), 2, gj.spacings.karras()), jax.random.split(jax.random.key(0), 1)
      >>> sampler = gj.churn(gj.heun(), gj.schedules.edm(), 0.2)
      >>> print(gj.sample(keys, gj.branches(denoise, cond=None), gj.chain(), sampler, path, (2,)))
      [[3. 3.]]

    Reference: Karras et al. 2022, arXiv:2206.00364, algorithm 2.
    """
    if is_zero(amount):
        return sampler

    def raised(level: NoiseLevel) -> tuple[NoiseLevel, Array]:
        """The level to begin from, and whether it is another."""
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
