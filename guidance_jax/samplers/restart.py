"""The Restart sampler: an interval of the noise levels is sampled several times, each time from fresh noise."""

import jax
import jax.numpy as jnp
from jax import Array

from guidance_jax.arrays import sqrt
from guidance_jax.base import GuidedDenoiser, NoiseLevel, Sampler, Schedule, State
from guidance_jax.checks.door import part, rule
from guidance_jax.checks.kinds import AtLeastZero, Count, Positive
from guidance_jax.noise import contraction, fold, normal

RHO = 7.0
"""That of the Karras spacing."""
NEAR = 1e-3
"""A level this close to low, relatively, has reached it: levels that are equal differ by rounding."""


@part(rule("low must be below high", lambda low, high: low < high))
def restart(
    sampler: Sampler,
    schedule: Schedule,
    steps: Count,
    times: Count,
    low: Positive,
    high: Positive,
    *,
    noise_scale: AtLeastZero = 1.0,
) -> Sampler:
    """The Restart sampler: at noise level low, x is raised to high by fresh noise and sampled down again, several times.

    `x' = alpha' (x / alpha + noise_scale sqrt(r'^2 - r^2) z)`, with z fresh noise, r = sigma / alpha and `r' = high`. Then
    `steps` steps of the sampler lead back to r, at `r_i = (r'^(1/7) + i / steps (r^(1/7) - r'^(1/7)))^7`.

    Fresh noise contracts the error that x has accumulated, and the few steps of an ODE sampler add little. The restarts follow
    the first step that ends at or below low (to 0.1 %), and r is where that step ends. The released code takes the level
    nearest to low: both agree if low is a level of the run. A step to sigma = 0 has no restarts. On a discrete schedule, high
    is at most the largest `sigma / alpha`.

    The sampler's memory begins anew in each restart. Guidance sees each step between r' and r as a step of its own, with the
    number of the run's step.

    For several intervals, nest: `restart(restart(heun(), schedule, 3, 2, 0.06, 0.3), schedule, 3, 1, 1.0, 2.0)`. Put the
    interval of the larger low outside, so that no restart runs within another.

    Args:
      sampler: Whose steps are taken, an ODE sampler; `heun()` in the paper.
      schedule: The noise schedule of the run's levels, for the levels in between.
      steps: The steps from high down to low. The paper's N_Restart counts levels, and is `steps + 1`.
      times: The number of restarts (K).
      low: The `sigma / alpha` where x is raised, `()` (t_min).
      high: The `sigma / alpha` to which x is raised, `()` (t_max).
      noise_scale: The standard deviation of z, `()` (S_noise).

    Raises:
      ValueError: If steps or times is below 1, low is not below high, or a number is out of range or not a scalar.

    Example:
      >>> one = gj.branches(gj.denoiser(lambda x, t, cond: 0 * x + 3, predicts="x0"), cond=None)
      >>> path, keys = gj.levels(gj.schedules.edm(), 18, gj.spacings.karras()), jax.random.split(jax.random.key(0), 1)
      >>> sampler = gj.restart(gj.heun(), gj.schedules.edm(), 2, 2, 0.06, 0.3)
      >>> run = keys, one, gj.chain(), sampler, path, (2,)
      >>> print(gj.sample(*run), gj.evaluations(*run))
      [[3. 3.]] 43

    Reference: Xu et al. 2023, arXiv:2306.14878, section 3.1, and the released code.
    """

    def interval(next: NoiseLevel, inside: Array, most: Array) -> NoiseLevel:
        """The levels from high down to the next, `[steps + 1]`; where there are no restarts, some that decrease."""
        end = jnp.where(inside, next.ratio, most / 2)
        first, last = most ** (1 / RHO), end ** (1 / RHO)
        path = schedule.at((first + jnp.arange(steps + 1, dtype=end.dtype) / steps * (last - first)) ** RHO)
        close = lambda path, next: path.astype(end.dtype).at[-1].set(jnp.where(inside, next, path[-1].astype(end.dtype)))
        return NoiseLevel(**{name: close(field, getattr(next, name)) for name, field in vars(path).items()})

    def step(denoise: GuidedDenoiser, state: State, level: NoiseLevel, next: NoiseLevel, keys: Array) -> State:
        dtype = level.sigma.dtype
        bound, most = jnp.asarray(low, dtype) * (1 + NEAR), schedule.at(high).ratio.astype(dtype)
        inside = (level.ratio > bound) & (next.ratio <= bound) & (next.sigma > 0) & (most > next.ratio)
        path = interval(next, inside, most)
        start, end = path[0], path[steps]

        def again(i: Array | int, state: State) -> State:
            mine = fold(keys, i)
            noise = jnp.asarray(noise_scale, dtype) * start.sigma * sqrt(1 - contraction(start, end) ** 2)
            x = start.alpha / end.alpha * state.x + noise * normal(fold(mine, 0), state.x)

            def advance(j: Array | int, state: State) -> State:
                now, after = path[j], path[j + 1]
                return sampler.step(denoise.between(now, after), state, now, after, fold(mine, j + 1))

            return jax.lax.fori_loop(0, steps, advance, state._replace(x=x, memory=sampler.init(x)))

        def several(state: State) -> State:
            return jax.lax.fori_loop(1, times + 1, again, state)

        first = sampler.step(denoise, state, level, next, fold(keys, 0))
        return jax.lax.cond(inside, several, lambda state: state, first)

    return Sampler(sampler.init, step, schedule=schedule)
