"""DPM-Solver++ on the reverse SDE."""

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
    """SDE-DPM-Solver++(2M): 2M on the reverse SDE, whose noise within a step is drawn at once.

    With q, h and h_last of 2M, `D = x0 + h / (2 h_last) (x0 - x0_last)` and
    `x' = (sigma' / sigma) q^eta x + alpha' (1 - q^(1 + eta)) D + noise_scale sigma' sqrt(1 - q^(2 eta)) z`. The first step and
    those of infinite length take D = x0; with D = x0 always, eta = 1 is `ddpm("small")`.

    It is what k-diffusion calls `sample_dpmpp_2m_sde` (solver_type "midpoint"), and diffusers "sde-dpmsolver++". k-diffusion's
    `sample_dpmpp_sde`, of two evaluations a step, is another and not here: `dpmpp_2s(schedule, eta=1.0)` comes nearest, which
    draws once a step where that draws halfway too.

    One evaluation a step; order 2 at eta = 0, which is `dpmpp_2m()`.

    Args:
      eta: The share of the SDE, `()`: 0 the ODE, 1 the reverse SDE, not the eta of `ddim` in between. A plain 0 draws nothing.
      noise_scale: The deviation of z, `()`.

    Raises:
      ValueError: If a number is negative or not a scalar.

    Example:
      >>> denoise = gj.denoiser(lambda x, t, cond: 0 * x + 3, predicts="x0")
      >>> path, keys = gj.levels(gj.schedules.cosine(), 2, gj.spacings.trailing()), jax.random.split(jax.random.key(0), 1)
      >>> print(gj.sample(keys, gj.branches(denoise, cond=None), gj.chain(), gj.dpmpp_sde(), path, (2,)))
      [[3. 3.]]

    Reference: Lu et al. 2022, arXiv:2211.01095, section 5; eta as in the k-diffusion library.
    """
    deterministic = is_zero(eta)

    def kept_and_fresh(h: Array) -> tuple[Array, Array]:
        """`q^eta` and `sqrt(1 - q^(2 eta))`, the shares of the noise that stays and of the new."""
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
