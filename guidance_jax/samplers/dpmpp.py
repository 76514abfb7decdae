"""DPM-Solver++."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from guidance_jax.arrays import divide
from guidance_jax.base import GuidedDenoiser, NoiseLevel, Prediction, Sampler, State
from guidance_jax.noise import contraction


class Last(NamedTuple):
    """The step before: its prediction, and its length in `log(alpha / sigma)`, infinite where there was none."""

    x0: Array
    length: Array


def dpmpp_2m() -> Sampler:
    """DPM-Solver++(2M): exponential integration of the x0-prediction, extrapolated from the last two of them.

    With `q = (sigma' / alpha') / (sigma / alpha)` and `h = -log q`, `D = x0 + h / (2 h_last) (x0 - x0_last)` and
    `x' = (sigma' / sigma) x + alpha' (1 - q) D`. The first step and those of infinite length take D = x0.

    It is written below as what D adds to the DDIM step, with the x0 that eps implies: another one than x0 only where a guidance
    renoises with another eps (CFG++).

    One evaluation a step; order 2.

    Example:
      >>> denoise = denoiser(lambda x, t, cond: 0 * x + 3, predicts="x0")
      >>> path = levels(schedules.cosine(), 2, spacings.trailing())
      >>> keys = jax.random.split(jax.random.key(0), 1)
      >>> print(sample(keys, branches(denoise, cond=None), chain(), dpmpp_2m(), path, (2,)))
      [[3. 3.]]

    Reference: Lu et al. 2022, arXiv:2211.01095, algorithm 2.
    """

    def init(x: Array) -> Last:
        return Last(jnp.zeros_like(x), jnp.full((), jnp.inf, x.dtype))

    def step(denoise: GuidedDenoiser, state: State, level: NoiseLevel, next: NoiseLevel, keys: Array) -> State:
        x = state.x
        prediction, state = denoise(state, level)
        q = contraction(level, next)
        finite = q > 0
        length = -jnp.log(jnp.where(finite, q, 1))
        weight = jnp.where(finite, length / (2 * state.memory.length), 0)
        implied = _implied(prediction, x, level)
        straight = next.alpha * prediction.x0 + next.sigma * prediction.eps
        x = straight + next.alpha * (1 - q) * weight * (implied - state.memory.x0)
        return state._replace(x=x, memory=Last(implied, jnp.where(finite, length, jnp.inf)))

    return Sampler(init, step)


def _implied(prediction: Prediction, x: Array, level: NoiseLevel) -> Array:
    """The x0 that eps implies, `(x - sigma eps) / alpha`; where that is x0 but for rounding, x0 itself, unmagnified."""
    signal, noise = level.alpha * prediction.x0, level.sigma * prediction.eps
    rounding = 32 * jnp.finfo(x.dtype).eps * (jnp.abs(x) + jnp.abs(signal) + jnp.abs(noise))
    rest = x - signal - noise
    return prediction.x0 + divide(jnp.where(jnp.abs(rest) > rounding, rest, 0), level.alpha)
