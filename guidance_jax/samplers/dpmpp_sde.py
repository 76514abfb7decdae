"""DPM-Solver++(2M) for the reverse SDE."""

import jax.numpy as jnp
from jax import Array

from guidance_jax.arrays import sqrt
from guidance_jax.base import GuidedDenoiser, NoiseLevel, State
from guidance_jax.checks.door import part
from guidance_jax.checks.kinds import AtLeastZero, NonNegative
from guidance_jax.interfaces import Sampler
from guidance_jax.noise import contraction, normal
from guidance_jax.samplers.gaussian import is_zero
from guidance_jax.samplers.multistep import differences, finite, implied, length, nothing, remember


@part()
def dpmpp_sde(eta: NonNegative = 1.0, *, noise_scale: AtLeastZero = 1.0) -> Sampler:
    """SDE-DPM-Solver++(2M): 2M for the reverse SDE, with one draw of noise per step.

    With q, h and h_last of 2M, `D = x0 + h / (2 h_last) (x0 - x0_last)` and
    `x' = (sigma' / sigma) q^eta x + alpha' (1 - q^(1 + eta)) D + noise_scale sigma' sqrt(1 - q^(2 eta)) z`. In the first step,
    and in steps of infinite length, D = x0. With D = x0 in all steps, eta = 1 would be `ddpm("small")`.

    k-diffusion calls it `sample_dpmpp_2m_sde` (solver_type "midpoint"), diffusers "sde-dpmsolver++". k-diffusion's
    `sample_dpmpp_sde` is a different sampler, which this library does not have. It takes two evaluations per step, and draws at
    the midpoint too. The nearest one here is `dpmpp_2s(schedule, eta=1.0)`, with one draw per step.

    One evaluation per step; order 2 at eta = 0, where it is `dpmpp_2m()`.

    Args:
      eta: The share of noise, `()`: 0 is the ODE, 1 is the reverse SDE. In between it differs from the eta of `ddim`. A plain 0
        draws no noise.
      noise_scale: The standard deviation of z, `()`.

    Raises:
      ValueError: If a number is negative or not a scalar.

    Example:
      >>> denoise = gj.denoiser(lambda x, t, cond: 0 * x + 3, predicts="x0")
      >>> one = gj.branches(denoise, cond=None)
      >>> path = gj.levels(gj.schedules.cosine(), 2, gj.spacings.trailing())
      >>> keys = jax.random.split(jax.random.key(0), 1)
      >>> print(gj.sample(keys, one, gj.chain(), gj.dpmpp_sde(), path, (2,)))
      [[3. 3.]]

    Reference: Lu et al. 2022, arXiv:2211.01095, section 5. eta is that of the k-diffusion library.
    """
    deterministic = is_zero(eta)

    def kept_and_fresh(h: Array) -> tuple[Array, Array]:
        """`q^eta` and `sqrt(1 - q^(2 eta))`, the shares of kept and of fresh noise."""
        rate, endless = jnp.asarray(eta, h.dtype), jnp.isinf(h)
        kept = jnp.where(endless, jnp.where(rate > 0, 0, 1), jnp.exp(-rate * finite(h)))
        return kept, jnp.where(endless, 1 - kept, sqrt(-jnp.expm1(-2 * rate * finite(h))))

    def step(denoise: GuidedDenoiser, state: State, level: NoiseLevel, next: NoiseLevel, keys: Array) -> State:
        x, past = state.x, state.memory
        prediction, state = denoise(state, level)
        x0, h = implied(prediction, x, level), length(level, next)
        kept, fresh = (1, 0) if deterministic else kept_and_fresh(h)
        (slope,) = differences(x0, past, h)
        ahead = jnp.where(jnp.isfinite(h), (1 - contraction(level, next) * kept) / 2 * slope, 0)
        x = next.alpha * prediction.x0 + next.sigma * kept * prediction.eps + next.alpha * ahead
        if not deterministic:
            x = x + jnp.asarray(noise_scale, x.dtype) * next.sigma * fresh * normal(keys, x)
        return state._replace(x=x, memory=remember(past, x0, h))

    return Sampler(lambda x: nothing(x, 1), step)
