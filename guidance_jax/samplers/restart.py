"""The Restart sampler: an interval of the noise levels is sampled several times, each time from fresh noise."""

from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jax import Array
from typing_extensions import TypeAliasType

from guidance_jax.arrays import sqrt
from guidance_jax.base import GuidedDenoiser, NoiseLevel, State
from guidance_jax.checks.door import part, rule
from guidance_jax.checks.kinds import AtLeastZero, Positive
from guidance_jax.checks.numbers import count
from guidance_jax.interfaces import Sampler
from guidance_jax.noise import INNER, apart, contraction, fold, normal
from guidance_jax.schedules.schedule import Schedule

RHO = 7.0
"""The exponent of the Karras spacing."""
NEAR = 1e-3
"""A level within this relative distance of low counts as low, since equal levels differ by rounding."""


FORGET = "to discard the history of a multistep sampler, use forget(dpmpp_2m(), 0.3, 5.0)."
Repeats = TypeAliasType("Repeats", Annotated[int, count(hint=FORGET)])
"""A whole number, at least 1, as `Count`."""


@part(
    rule("low must be below high", lambda low, high: low < high),
    rule("high must have alpha > 0 in the schedule", lambda schedule, high: schedule.at(high).alpha > 0),
)
def restart(
    sampler: Sampler,
    schedule: Schedule,
    steps: Repeats,
    times: Repeats,
    low: Positive,
    high: Positive,
    *,
    noise_scale: AtLeastZero = 1.0,
) -> Sampler:
    """The Restart sampler: at noise level low, raise x to high with fresh noise and sample down again, several times.

    `x' = alpha' (x / alpha + noise_scale sqrt(r'^2 - r^2) z)`, with z fresh noise, r = sigma / alpha and `r' = high`. Then
    `steps` steps of the sampler lead back to r, at `r_i = (r'^(1/7) + i / steps (r^(1/7) - r'^(1/7)))^7`.

    Fresh noise contracts the error that x has accumulated. The few steps of an ODE sampler add little error. The restarts
    follow the first step that ends at or below low (to 0.1 %), once per run, and r is the level where that step ends. The
    released code takes the level nearest to low. Both agree if low is a level of the run. There are no restarts after a step
    to sigma = 0. x is raised at most to the schedule's maximum `sigma / alpha`.

    The sampler's memory begins anew in each restart. Guidance treats each inner step as a step with levels and draws of its
    own. Its number is that of the run's step, so `reuse` counts all restarts as one step.

    For several intervals, nest: `restart(restart(heun(), schedule, 3, 2, 0.06, 0.3), schedule, 3, 1, 1.0, 2.0)`. Put the
    interval of the larger low outside, so that no restart runs within another.

    Args:
      sampler: The sampler that takes the steps, of the ODE; `heun()` in the paper.
      schedule: The noise schedule of the run's levels. It gives the levels of the inner steps.
      steps: The number of steps from high to low. The paper's N_Restart counts levels, and is `steps + 1`.
      times: The number of restarts (K).
      low: The `sigma / alpha` where x is raised, `()` (t_min).
      high: The `sigma / alpha` to which x is raised, `()` (t_max).
      noise_scale: The standard deviation of z, `()` (S_noise).

    Raises:
      ValueError: If steps or times is below 1, or low is not below high. If alpha is 0 at high. If a number is out of range or
        not a scalar.

    Example:
      >>> denoise = gj.denoiser(lambda x, t, cond: 0 * x + 3, predicts="x0")
      >>> one = gj.branches(denoise, cond=None)
      >>> path = gj.levels(gj.schedules.edm(), 18, gj.spacings.karras())
      >>> keys = jax.random.split(jax.random.key(0), 1)
      >>> sampler = gj.restart(gj.heun(), gj.schedules.edm(), 2, 2, 0.06, 0.3)
      >>> run = keys, one, gj.chain(), sampler, path, (2,)
      >>> print(gj.sample(*run), gj.evaluations(*run))
      [[3. 3.]] 43

    Reference: Xu et al. 2023, arXiv:2306.14878, section 3.1, and the released code.
    """

    def path(level: NoiseLevel, next: NoiseLevel) -> tuple[NoiseLevel, NoiseLevel, Array]:
        """Where the run's step and those of the restarts begin and end, `[1 + times steps]`, and whether there are restarts."""
        dtype = level.sigma.dtype
        bound = jnp.asarray(low, dtype) * (1 + NEAR)
        most = jnp.minimum(schedule.at(high).ratio, schedule(schedule.t_max).ratio).astype(dtype)
        inside = (level.ratio > bound) & (next.ratio <= bound) & (next.sigma > 0) & (most > next.ratio)
        # Without restarts these levels are not used. They end at half of high, so that gradients through them are finite.
        first, last = most ** (1 / RHO), jnp.where(inside, next.ratio, most / 2) ** (1 / RHO)
        down = schedule.at((first + jnp.arange(steps + 1, dtype=dtype) / steps * (last - first)) ** RHO)
        begins, ends = {}, {}
        for name, field in vars(down).items():
            field = field.astype(dtype)
            field = field.at[-1].set(jnp.where(inside, getattr(next, name), field[-1]))
            begins[name] = jnp.append(getattr(level, name), jnp.tile(field[:-1], times))
            ends[name] = jnp.append(getattr(next, name), jnp.tile(field[1:], times))
        return NoiseLevel(**begins), NoiseLevel(**ends), inside

    def init(x: Array) -> tuple[Any, Array]:
        return sampler.init(x), jnp.zeros((), bool)

    def step(denoise: GuidedDenoiser, state: State, level: NoiseLevel, next: NoiseLevel, keys: Array) -> State:
        memory, done = state.memory
        begins, ends, crossed = path(level, next)
        start, end, inside, keys = begins[1], ends[-1], crossed & ~done, apart(keys, INNER)

        def raised(state: State, i: Array) -> State:
            noise = jnp.asarray(noise_scale, state.x.dtype) * start.sigma * sqrt(1 - contraction(start, end) ** 2)
            x = start.alpha / end.alpha * state.x + noise * normal(fold(keys, 2 * i + 1), state.x)
            return state._replace(x=x, memory=sampler.init(x))

        def taken(state: State, i: Array) -> State:
            state = jax.lax.cond((i > 0) & ((i - 1) % steps == 0), raised, lambda state, i: state, state, i)
            now, after = begins[i], ends[i]
            return sampler.step(denoise.between(now, after, i), state, now, after, fold(keys, 2 * i))

        def body(i: Array, state: State) -> State:
            return jax.lax.cond((i == 0) | inside, taken, lambda state, i: state, state, i)

        # One loop that skips steps, so that a program of nested restarts has one copy of the network.
        state = jax.lax.fori_loop(0, 1 + times * steps, body, state._replace(memory=memory))
        return state._replace(memory=(state.memory, done | crossed))

    return Sampler(init, step, schedule=schedule)
