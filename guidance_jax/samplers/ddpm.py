"""Ancestral sampling of denoising diffusion probabilistic models."""

import jax.numpy as jnp
from jax import Array

from guidance_jax.base import NoiseLevel, Prediction, Sampler
from guidance_jax.noise import contraction
from guidance_jax.samplers.gaussian import gaussian


def ddpm(variance: str = "small") -> Sampler:
    """DDPM: a draw from the reverse step's Gaussian, with one of the paper's two variances or the network's own.

    `x' = alpha' x0 + q sigma' eps + s z`, `q = (sigma' / alpha') / (sigma / alpha)`, the mean of p(x' | x, x0), and
    `s = sigma' sqrt(1 - q^2)`, the deviation of p(x' | x, x0) (small), or `s = sigma sqrt(1 - q^2)`, that of p(x | x') (large);
    or, learned, `log s` between these two, at the share `prediction.variance`: 0 is small, 1 is large.

    One evaluation a step. No noise is added on the way to sigma' = 0.

    Args:
      variance: "small", right for data of no spread; "large", right for data of unit variance; "learned", of networks that
        predict it.

    Raises:
      ValueError: if variance is none of these, or is learned and the network predicts none.

    Example:
      >>> denoise = denoiser(lambda x, t, cond: 0 * x + 3, predicts="x0")
      >>> path = levels(schedules.cosine(), 2, spacings.trailing())
      >>> keys = jax.random.split(jax.random.key(0), 1)
      >>> print(sample(keys, branches(denoise, cond=None), chain(), ddpm(), path, (2,)))
      [[3. 3.]]

    Reference: Ho et al. 2020, arXiv:2006.11239, equations 6 and 7, section 3.2; learned, Nichol & Dhariwal 2021,
    arXiv:2102.09672, equation 15.
    """
    if variance not in ("small", "large", "learned"):
        raise ValueError(f'variance={variance!r} is unknown; ddpm has "small", "large" and "learned".')

    def kernel(prediction: Prediction, level: NoiseLevel, next: NoiseLevel) -> tuple[Array, Array]:
        q = contraction(level, next)
        mean = next.alpha * prediction.x0 + q * next.sigma * prediction.eps
        return mean, deviation(prediction, level, next) * jnp.sqrt(1 - q**2)

    def deviation(prediction: Prediction, level: NoiseLevel, next: NoiseLevel) -> Array:
        """s, before the factor that all have in common."""
        if variance == "small":
            return next.sigma
        noisy = next.sigma > 0
        if variance == "large":
            return jnp.where(noisy, level.sigma, 0)
        if prediction.variance is None:
            raise ValueError(
                'ddpm(variance="learned") needs a network that predicts the variance: gj.denoisers.learned_variance.'
            )
        log_small, log_large = jnp.log(jnp.where(noisy, next.sigma, 1)), jnp.log(level.sigma)
        return jnp.where(noisy, jnp.exp(log_small + prediction.variance * (log_large - log_small)), 0)

    return gaussian(kernel)
