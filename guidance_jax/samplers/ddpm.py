"""Ancestral sampling of denoising diffusion probabilistic models."""

import jax.numpy as jnp
from jax import Array

from guidance_jax.base import GuidedDenoiser, NoiseLevel, Sampler, State
from guidance_jax.noise import contraction, normal


def ddpm(variance: str = "small") -> Sampler:
    """DDPM: a draw from the reverse step's Gaussian, with one of the paper's two variances.

    `x' = alpha' x0 + q sigma' eps + s z`, `q = (sigma' / alpha') / (sigma / alpha)`, the mean of p(x' | x, x0), and
    `s = sigma' sqrt(1 - q^2)`, the deviation of p(x' | x, x0) (small), or `s = sigma sqrt(1 - q^2)`, that of p(x | x') (large).

    One evaluation a step. No noise is added on the way to sigma' = 0.

    Args:
      variance: "small", right for data of no spread, or "large", right for data of unit variance.

    Raises:
      ValueError: if variance is neither.

    Example:
      >>> denoise = denoiser(lambda x, t, cond: 0 * x + 3, predicts="x0")
      >>> path = levels(schedules.cosine(), 2, spacings.trailing())
      >>> keys = jax.random.split(jax.random.key(0), 1)
      >>> print(sample(keys, branches(denoise, cond=None), chain(), ddpm(), path, (2,)))
      [[3. 3.]]

    Reference: Ho et al. 2020, arXiv:2006.11239, equations 6 and 7, section 3.2.
    """
    if variance not in ("small", "large"):
        raise ValueError(f'variance={variance!r} is unknown; ddpm has "small" and "large".')

    def step(denoise: GuidedDenoiser, state: State, level: NoiseLevel, next: NoiseLevel, keys: Array) -> State:
        prediction, state = denoise(state, level)
        q = contraction(level, next)
        scale = next.sigma if variance == "small" else jnp.where(next.sigma > 0, level.sigma, 0)
        mean = next.alpha * prediction.x0 + q * next.sigma * prediction.eps
        return state._replace(x=mean + scale * jnp.sqrt(1 - q**2) * normal(keys, state.x))

    return Sampler(lambda x: (), step)
