"""Ancestral sampling of denoising diffusion probabilistic models."""

import jax.numpy as jnp
from jax import Array

from guidance_jax.base import NoiseLevel, Prediction
from guidance_jax.checks.door import part
from guidance_jax.checks.kinds import ReverseVariance
from guidance_jax.interfaces import Sampler
from guidance_jax.noise import ancestral, contraction
from guidance_jax.samplers.gaussian import from_kernel


@part()
def ddpm(variance: ReverseVariance = "small") -> Sampler:
    """DDPM: draw from the Gaussian of the reverse step, with one of the paper's two variances or a learned one.

    `x' = alpha' x0 + q sigma' eps + s z`, `q = (sigma' / alpha') / (sigma / alpha)`. The mean is that of p(x' | x, x0).

    Small: `s = sigma' sqrt(1 - q^2)`, the standard deviation of p(x' | x, x0).
    Large: `s = (c' / c) sigma sqrt(1 - q^2)`, `c = sqrt(alpha^2 + sigma^2)`, the standard deviation of p(x' | x) for data of
    unit variance. In the paper c is 1, and s is the standard deviation of p(x | x').
    Learned: `log s` is interpolated between these two by `prediction.variance`, where 0 is small and 1 is large.

    One evaluation per step. The step to sigma' = 0 adds no noise.

    Args:
      variance: "small" is exact for data of zero variance, "large" for data of unit variance. "learned" is for networks that
        predict the variance.

    Raises:
      ValueError: If variance is none of these, or it is "learned" and the network predicts no variance.

    Example:
      >>> denoise = gj.denoiser(lambda x, t, cond: 0 * x + 3, predicts="x0")
      >>> one = gj.branches(denoise, cond=None)
      >>> path = gj.levels(gj.schedules.cosine(), 2, gj.spacings.trailing())
      >>> keys = jax.random.split(jax.random.key(0), 1)
      >>> print(gj.sample(keys, one, gj.chain(), gj.ddpm(), path, (2,)))
      [[3. 3.]]

    Reference: Ho et al. 2020, arXiv:2006.11239, equations 6 and 7, section 3.2. For "learned", Nichol & Dhariwal 2021,
    arXiv:2102.09672, equation 15.
    """

    def kernel(prediction: Prediction, level: NoiseLevel, next: NoiseLevel) -> tuple[Array, Array]:
        q = contraction(level, next)
        mean = next.alpha * prediction.x0 + q * next.sigma * prediction.eps
        return mean, ancestral(variance, prediction.variance, level, next) * jnp.sqrt(1 - q**2)

    return from_kernel(kernel)
