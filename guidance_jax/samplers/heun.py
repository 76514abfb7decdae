"""Heun's method on the probability-flow ODE."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import ArrayLike

from guidance_jax.arrays import divide
from guidance_jax.base import GuidedDenoiser, NoiseLevel, Prediction, Sampler, Schedule, State
from guidance_jax.samplers.churn import churned


def heun(
    schedule: Schedule | None = None,
    *,
    churn: ArrayLike = 0.0,
    low: ArrayLike = 0.0,
    high: ArrayLike = jnp.inf,
    noise_scale: ArrayLike = 1.0,
) -> Sampler:
    """EDM's sampler: a DDIM step, corrected by the mean of the slopes at both its ends, from a level that churn has raised.

    `x' = (alpha' / alpha) x + (sigma' - sigma alpha' / alpha) (eps + eps') / 2`, eps' taken at the DDIM step's end.

    From alpha = 0 that has no value, and the trapezoid on x0 takes its place:
    `x' = (sigma' / sigma) x + (alpha' - alpha sigma' / sigma) (x0 + x0') / 2`. Both are written below as what they add to
    the DDIM step. To sigma' = 0 it is the DDIM step alone.

    With churn the step begins at `x^ = alpha^ (x / alpha + noise_scale sqrt(r^^2 - r^2) z)`, with `r^ = (1 + churn) r`,
    `r = sigma / alpha`. A sampler does not know the number of its steps, so churn is the raise of one step: EDM's gamma, which
    is `min(S_churn / steps, sqrt(2) - 1)` for their S_churn.

    Two evaluations a step, one in a step to sigma' = 0; order 2.

    Args:
      schedule: the noise schedule of the run's levels; needed with churn alone, for the levels in between.
      churn: the share by which `sigma / alpha` is raised before each step, `()`; a plain 0 draws nothing.
      low: the smallest `sigma / alpha` at which to churn, `()`, included (S_min).
      high: the largest, likewise (S_max).
      noise_scale: the deviation of z, `()` (S_noise).

    Raises:
      ValueError: if there is churn and no schedule, or a number is negative or no scalar.

    Example:
      >>> denoise = denoiser(lambda x, t, cond: 0 * x + 3, predicts="x0")
      >>> path = levels(schedules.cosine(), 2, spacings.trailing())
      >>> keys = jax.random.split(jax.random.key(0), 1)
      >>> print(sample(keys, branches(denoise, cond=None), chain(), heun(), path, (2,)))
      [[3. 3.]]

    Reference: Karras et al. 2022, arXiv:2206.00364, algorithms 1 and 2.
    """

    def correction(first: Prediction, second: Prediction, level: NoiseLevel, next: NoiseLevel) -> Array:
        along_eps = (next.sigma - level.sigma * divide(next.alpha, level.alpha)) / 2 * (second.eps - first.eps)
        along_x0 = (next.alpha - level.alpha * next.sigma / level.sigma) / 2 * (second.x0 - first.x0)
        return jnp.where(level.alpha > 0, along_eps, along_x0)

    return churned(_corrected(correction), schedule, churn, low, high, noise_scale)


def flow_heun() -> Sampler:
    """Heun's method on x itself, whose velocity along a step is `(alpha' - alpha) x0 + (sigma' - sigma) eps`.

    `x' = x + (alpha' - alpha) (x0 + x0') / 2 + (sigma' - sigma) (eps + eps') / 2`, the primed ones at the DDIM step's end.

    Under flow matching it is `x' = x + (t' - t) (v + v') / 2`, as flow models are sampled; `heun` is the same on `x / alpha`.
    From alpha = 0 it needs no exception. To sigma' = 0 it is the DDIM step alone.

    Two evaluations a step, one in a step to sigma' = 0; order 2.

    Example:
      >>> denoise = denoiser(lambda x, t, cond: 0 * x + 3, predicts="x0")
      >>> path = levels(schedules.flow(), 2, spacings.trailing())
      >>> keys = jax.random.split(jax.random.key(0), 1)
      >>> print(sample(keys, branches(denoise, cond=None), chain(), flow_heun(), path, (2,)))
      [[3. 3.]]

    Reference: Lipman et al. 2023, arXiv:2210.02747; Esser et al. 2024, arXiv:2403.03206.
    """

    def correction(first: Prediction, second: Prediction, level: NoiseLevel, next: NoiseLevel) -> Array:
        along_eps = (next.sigma - level.sigma) / 2 * (second.eps - first.eps)
        return (next.alpha - level.alpha) / 2 * (second.x0 - first.x0) + along_eps

    return _corrected(correction)


def _corrected(correction: Callable[[Prediction, Prediction, NoiseLevel, NoiseLevel], Array]) -> Sampler:
    """A DDIM step, and what the predictions at both its ends, `(first, second, level, next)`, add to it."""

    def step(denoise: GuidedDenoiser, state: State, level: NoiseLevel, next: NoiseLevel, keys: Array) -> State:
        first, state = denoise(state, level)
        state = state._replace(x=next.alpha * first.x0 + next.sigma * first.eps)

        def correct(state: State) -> State:
            second, after = denoise(state, next)
            return after._replace(x=state.x + correction(first, second, level, next))

        return jax.lax.cond(next.sigma > 0, correct, lambda state: state, state)

    return Sampler(lambda x: (), step, reversible=True)
