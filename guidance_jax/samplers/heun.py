"""Heun's method for the probability-flow ODE."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from guidance_jax.arrays import divide
from guidance_jax.base import GuidedDenoiser, NoiseLevel, Prediction, State
from guidance_jax.checks.door import part
from guidance_jax.interfaces import Sampler


@part()
def heun() -> Sampler:
    """EDM's sampler: a DDIM step, corrected by the mean of the slopes at both ends.

    `x' = (alpha' / alpha) x + (sigma' - sigma alpha' / alpha) (eps + eps') / 2`, with eps' at the end of the DDIM step.

    From alpha = 0 this is undefined, and the trapezoidal rule in x0 is used:
    `x' = (sigma' / sigma) x + (alpha' - alpha sigma' / sigma) (x0 + x0') / 2`. The code computes the difference of both from
    the DDIM step. To sigma' = 0 the step is a DDIM step.

    Two evaluations per step, and one if sigma' = 0; order 2. `churn(heun(), schedule, ...)` is EDM's stochastic sampler.

    Example:
      >>> denoise = gj.denoiser(lambda x, t, cond: 0 * x + 3, predicts="x0")
      >>> one = gj.branches(denoise, cond=None)
      >>> path = gj.levels(gj.schedules.cosine(), 2, gj.spacings.trailing())
      >>> keys = jax.random.split(jax.random.key(0), 1)
      >>> print(gj.sample(keys, one, gj.chain(), gj.heun(), path, (2,)))
      [[3. 3.]]

    Reference: Karras et al. 2022, arXiv:2206.00364, algorithm 1.
    """

    def correction(first: Prediction, second: Prediction, level: NoiseLevel, next: NoiseLevel) -> Array:
        along_eps = (next.sigma - level.sigma * divide(next.alpha, level.alpha)) / 2 * (second.eps - first.eps)
        along_x0 = (next.alpha - level.alpha * next.sigma / level.sigma) / 2 * (second.x0 - first.x0)
        return jnp.where(level.alpha > 0, along_eps, along_x0)

    return _corrected(correction)


@part()
def flow_heun() -> Sampler:
    """Heun's method in x, for flow models. `heun` is Heun's method in `x / alpha`.

    `x' = x + (alpha' - alpha) (x0 + x0') / 2 + (sigma' - sigma) (eps + eps') / 2`, with x0', eps' at the end of the DDIM step.

    Under flow matching it is `x' = x + (t' - t) (v + v') / 2`. It is defined from alpha = 0 too. To sigma' = 0 the step is a
    DDIM step.

    Two evaluations per step, and one if sigma' = 0; order 2.

    Example:
      >>> denoise = gj.denoiser(lambda x, t, cond: 0 * x + 3, predicts="x0")
      >>> one = gj.branches(denoise, cond=None)
      >>> path = gj.levels(gj.schedules.flow(), 2, gj.spacings.trailing())
      >>> keys = jax.random.split(jax.random.key(0), 1)
      >>> print(gj.sample(keys, one, gj.chain(), gj.flow_heun(), path, (2,)))
      [[3. 3.]]

    Reference: Lipman et al. 2023, arXiv:2210.02747; Esser et al. 2024, arXiv:2403.03206.
    """

    def correction(first: Prediction, second: Prediction, level: NoiseLevel, next: NoiseLevel) -> Array:
        along_eps = (next.sigma - level.sigma) / 2 * (second.eps - first.eps)
        return (next.alpha - level.alpha) / 2 * (second.x0 - first.x0) + along_eps

    return _corrected(correction)


def _corrected(correction: Callable[[Prediction, Prediction, NoiseLevel, NoiseLevel], Array]) -> Sampler:
    """A DDIM step plus `correction(first, second, level, next)`, from the predictions at both ends."""

    def step(denoise: GuidedDenoiser, state: State, level: NoiseLevel, next: NoiseLevel, keys: Array) -> State:
        first, state = denoise(state, level)
        state = state._replace(x=next.alpha * first.x0 + next.sigma * first.eps)

        def correct(state: State) -> State:
            second, after = denoise(state, next)
            return after._replace(x=state.x + correction(first, second, level, next))

        return jax.lax.cond(next.sigma > 0, correct, lambda state: state, state)

    return Sampler(lambda x: (), step, reversible=True)
