"""Heun's method on the probability-flow ODE."""

import jax
import jax.numpy as jnp
from jax import Array

from guidance_jax.arrays import divide
from guidance_jax.base import GuidedDenoiser, NoiseLevel, Sampler, State


def heun() -> Sampler:
    """EDM's deterministic sampler: a DDIM step, corrected by the mean of the slopes at both its ends.

    `x' = (alpha' / alpha) x + (sigma' - sigma alpha' / alpha) (eps + eps') / 2`, eps' taken at the DDIM step's end.

    From alpha = 0 that has no value, and the trapezoid on x0 takes its place:
    `x' = (sigma' / sigma) x + (alpha' - alpha sigma' / sigma) (x0 + x0') / 2`. Both are written below as what they add to
    the DDIM step. To sigma' = 0 it is the DDIM step alone.

    Two evaluations a step, one in a step to sigma' = 0; order 2.

    Example:
      >>> denoise = denoiser(lambda x, t, cond: 0 * x + 3, predicts="x0")
      >>> path = levels(schedules.cosine(), 2, spacings.trailing())
      >>> keys = jax.random.split(jax.random.key(0), 1)
      >>> print(sample(keys, branches(denoise, cond=None), chain(), heun(), path, (2,)))
      [[3. 3.]]

    Reference: Karras et al. 2022, arXiv:2206.00364, algorithm 1.
    """

    def step(denoise: GuidedDenoiser, state: State, level: NoiseLevel, next: NoiseLevel, keys: Array) -> State:
        first, state = denoise(state, level)
        state = state._replace(x=next.alpha * first.x0 + next.sigma * first.eps)

        def correct(state: State) -> State:
            second, after = denoise(state, next)
            along_eps = (next.sigma - level.sigma * divide(next.alpha, level.alpha)) / 2 * (second.eps - first.eps)
            along_x0 = (next.alpha - level.alpha * next.sigma / level.sigma) / 2 * (second.x0 - first.x0)
            return after._replace(x=state.x + jnp.where(level.alpha > 0, along_eps, along_x0))

        return jax.lax.cond(next.sigma > 0, correct, lambda state: state, state)

    return Sampler(lambda x: (), step, reversible=True)
