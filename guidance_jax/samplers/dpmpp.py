"""DPM-Solver++: exponential integrators of the x0-prediction, which solve the linear part of the ODE exactly."""

import jax
import jax.numpy as jnp
from jax import Array

from guidance_jax.arrays import sqrt
from guidance_jax.base import GuidedDenoiser, NoiseLevel, State
from guidance_jax.checks.door import part
from guidance_jax.checks.kinds import AtLeastZero, NonNegative
from guidance_jax.interfaces import Sampler
from guidance_jax.noise import contraction, normal
from guidance_jax.samplers.gaussian import is_zero
from guidance_jax.samplers.multistep import ages, differences, implied, integrals, length, nothing, remember
from guidance_jax.schedules.schedule import Schedule


@part()
def dpmpp_2m() -> Sampler:
    """DPM-Solver++(2M): extrapolate the x0-prediction linearly from the last two predictions.

    With `q = (sigma' / alpha') / (sigma / alpha)` and `h = -log q`, `D = x0 + h / (2 h_last) (x0 - x0_last)` and
    `x' = (sigma' / sigma) x + alpha' (1 - q) D`. In the first step, and in steps of infinite h, D = x0.

    One evaluation per step; order 2.

    Example:
      >>> denoise = gj.denoiser(lambda x, t, cond: 0 * x + 3, predicts="x0")
      >>> one = gj.branches(denoise, cond=None)
      >>> path = gj.levels(gj.schedules.cosine(), 2, gj.spacings.trailing())
      >>> keys = jax.random.split(jax.random.key(0), 1)
      >>> print(gj.sample(keys, one, gj.chain(), gj.dpmpp_2m(), path, (2,)))
      [[3. 3.]]

    Reference: Lu et al. 2022, arXiv:2211.01095, algorithm 2.
    """

    def step(denoise: GuidedDenoiser, state: State, level: NoiseLevel, next: NoiseLevel, keys: Array) -> State:
        x, past = state.x, state.memory
        prediction, state = denoise(state, level)
        x0, h = implied(prediction, x, level), length(level, next)
        (slope,), (w0, *_) = differences(x0, past, h), integrals(h)
        ahead = jnp.where(jnp.isfinite(h), w0 / 2 * slope, 0)
        x = next.alpha * prediction.x0 + next.sigma * prediction.eps + next.alpha * ahead
        return state._replace(x=x, memory=remember(past, x0, h))

    return Sampler(lambda x: nothing(x, 1), step)


@part()
def dpmpp_3m(*, curvature: AtLeastZero = 1.0) -> Sampler:
    """DPM-Solver++(3M): extrapolate the x0-prediction with a parabola through the last three predictions.

    `x' = (sigma' / sigma) x + alpha' (w_0 x0 + w_1 s + curvature w_2 c)`, `w_j = h * integral of e^(-h (1 - u)) u^j`.
    h is the length of the step in `log(alpha / sigma)`, and u in [0, 1] is the position in the step. s is the slope of the
    parabola at u = 0, and c is half its curvature. The first step, and steps of infinite length, are of first order. The second
    step is that of 2M.

    The released code of DPM-Solver halves the last term, and so do diffusers and k-diffusion. Their 3M is `curvature=0.5`, of
    order 2.

    One evaluation per step; order 3 if the first two steps are short, since these have a lower order. With few steps and strong
    guidance, 2M is more stable.

    Args:
      curvature: The factor of the last term, `()`.

    Raises:
      ValueError: If curvature is negative or not a scalar.

    Example:
      >>> denoise = gj.denoiser(lambda x, t, cond: 0 * x + 3, predicts="x0")
      >>> one = gj.branches(denoise, cond=None)
      >>> path = gj.levels(gj.schedules.cosine(), 2, gj.spacings.trailing())
      >>> keys = jax.random.split(jax.random.key(0), 1)
      >>> print(gj.sample(keys, one, gj.chain(), gj.dpmpp_3m(), path, (2,)))
      [[3. 3.]]

    Reference: Lu et al. 2022, arXiv:2211.01095, section 4 and appendix.
    """

    def step(denoise: GuidedDenoiser, state: State, level: NoiseLevel, next: NoiseLevel, keys: Array) -> State:
        x, past = state.x, state.memory
        prediction, state = denoise(state, level)
        x0, h = implied(prediction, x, level), length(level, next)
        (w0, w1, w2, _), (slope, half_curvature), (a, _) = integrals(h), differences(x0, past, h), ages(past, h)
        parabola = w1 * (slope + a * half_curvature) + jnp.asarray(curvature, x.dtype) * w2 * half_curvature
        there = jnp.isfinite(past.length[0] + past.length[1])
        ahead = jnp.where(jnp.isfinite(h), jnp.where(there, parabola, w0 / 2 * slope), 0)
        x = next.alpha * prediction.x0 + next.sigma * prediction.eps + next.alpha * ahead
        return state._replace(x=x, memory=remember(past, x0, h))

    return Sampler(lambda x: nothing(x, 2), step)


@part()
def dpmpp_2s(schedule: Schedule, *, eta: NonNegative = 0.0, noise_scale: AtLeastZero = 1.0) -> Sampler:
    """DPM-Solver++(2S): a step with the x0-prediction at its midpoint in `log(alpha / sigma)`. With eta it is ancestral.

    `x' = (d / sigma) x + (alpha' - d alpha / sigma) x0_half + noise_scale s z`.
    `s = eta sigma' sqrt(1 - q^2)` is the fresh noise, `d = sqrt(sigma'^2 - s^2)` is the rest, and
    `q = (sigma' / alpha') / (sigma / alpha)`. The midpoint is the level with `sigma / alpha = sqrt(d sigma / (alpha' alpha))`.
    A DDIM step leads there, and x0_half is the prediction at its end. Steps of infinite length are DDIM steps.

    The code computes the difference from a DDIM step.

    Two evaluations per step, and one if the step has infinite length; order 2 at eta = 0.

    Args:
      schedule: The noise schedule of the run, which gives the levels of the midpoints.
      eta: The share of fresh noise, `()`, as in `ddim`. A plain 0 draws no noise.
      noise_scale: The standard deviation of z, `()`.

    Raises:
      ValueError: If a number is negative or not a scalar.

    Example:
      >>> denoise = gj.denoiser(lambda x, t, cond: 0 * x + 3, predicts="x0")
      >>> one = gj.branches(denoise, cond=None)
      >>> path = gj.levels(gj.schedules.cosine(), 2, gj.spacings.trailing())
      >>> keys = jax.random.split(jax.random.key(0), 1)
      >>> print(gj.sample(keys, one, gj.chain(), gj.dpmpp_2s(gj.schedules.cosine()), path, (2,)))
      [[3. 3.]]

    Reference: Lu et al. 2022, arXiv:2211.01095, algorithm 1. The ancestral form is that of the k-diffusion library.
    """
    deterministic = is_zero(eta)

    def step(denoise: GuidedDenoiser, state: State, level: NoiseLevel, next: NoiseLevel, keys: Array) -> State:
        x, dtype, q = state.x, level.sigma.dtype, contraction(level, next)
        fresh = jnp.zeros((), dtype) if deterministic else jnp.minimum(jnp.asarray(eta, dtype) * jnp.sqrt(1 - q**2), 1)
        kept = sqrt(1 - fresh**2)
        short = q * kept > 0
        half = schedule.at(jnp.where(short, level.ratio, 1) * jnp.sqrt(jnp.where(short, q * kept, 1)))
        half = NoiseLevel(*(field.astype(dtype) for field in vars(half).values()))
        first, state = denoise(state, level)
        ddim = next.alpha * first.x0 + next.sigma * kept * first.eps

        def correct(state: State) -> State:
            state = state._replace(x=half.alpha * first.x0 + half.sigma * first.eps)
            second, after = denoise(state, half)
            change = implied(second, state.x, half) - implied(first, x, level)
            return after._replace(x=ddim + next.alpha * (1 - q * kept) * change)

        state = jax.lax.cond(short, correct, lambda state: state._replace(x=ddim), state)
        noise = 0 if deterministic else jnp.asarray(noise_scale, dtype) * next.sigma * fresh * normal(keys, x)
        return state._replace(x=state.x + noise)

    return Sampler(lambda x: (), step, schedule=schedule, reversible=deterministic)
