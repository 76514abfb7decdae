"""Denoising diffusion implicit models."""

import jax.numpy as jnp
from jax import Array

from guidance_jax.arrays import sqrt
from guidance_jax.base import NoiseLevel, Prediction, Scalar
from guidance_jax.checks.door import part
from guidance_jax.checks.kinds import Fraction
from guidance_jax.interfaces import Sampler
from guidance_jax.noise import contraction
from guidance_jax.samplers.gaussian import from_kernel, is_zero


@part()
def ddim(eta: Fraction = 0.0) -> Sampler:
    """DDIM: the first-order solver of the probability-flow ODE at eta = 0, ancestral sampling at eta = 1.

    `x' = alpha' x0 + sqrt(sigma'^2 - s^2) eps + s z`, `s = eta sigma' sqrt(1 - q^2)`, with z fresh noise and
    `q = (sigma' / alpha') / (sigma / alpha)`.

    One evaluation per step; order 1.

    Args:
      eta: The share of fresh noise, `()`. A plain 0 draws no noise.

    Raises:
      ValueError: If eta is outside [0, 1] or not a scalar.

    Example:
      >>> denoise = gj.denoiser(lambda x, t, cond: 0 * x + 3, predicts="x0")
      >>> one = gj.branches(denoise, cond=None)
      >>> path = gj.levels(gj.schedules.cosine(), 2, gj.spacings.trailing())
      >>> keys = jax.random.split(jax.random.key(0), 1)
      >>> print(gj.sample(keys, one, gj.chain(), gj.ddim(), path, (2,)))
      [[3. 3.]]

    Reference: Song et al. 2021, arXiv:2010.02502, equations 12 and 16.
    """
    deterministic = is_zero(eta)

    def kernel(prediction: Prediction, level: NoiseLevel, next: NoiseLevel) -> tuple[Array, Scalar]:
        if deterministic:
            return next.alpha * prediction.x0 + next.sigma * prediction.eps, 0.0
        fresh = jnp.asarray(eta, prediction.x0.dtype) * jnp.sqrt(1 - contraction(level, next) ** 2)
        mean = next.alpha * prediction.x0 + next.sigma * sqrt(1 - fresh**2) * prediction.eps
        return mean, next.sigma * fresh

    return from_kernel(kernel, deterministic)
