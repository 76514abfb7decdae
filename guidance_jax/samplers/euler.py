"""Euler's method for the probability-flow ODE, and its ancestral form."""

import jax.numpy as jnp
from jax import Array

from guidance_jax.arrays import sqrt
from guidance_jax.base import NoiseLevel, Prediction, Scalar
from guidance_jax.checks.door import part
from guidance_jax.checks.kinds import AtLeastZero, NonNegative
from guidance_jax.interfaces import Sampler
from guidance_jax.noise import contraction
from guidance_jax.samplers.gaussian import from_kernel, is_zero


@part()
def euler() -> Sampler:
    """Euler's method in `sigma / alpha`. It is the same as DDIM.

    `x' = alpha' x0 + sigma' eps`

    One evaluation per step; order 1. `churn(euler(), schedule, ...)` is EDM's stochastic sampler without its correction.

    Example:
      >>> denoise = gj.denoiser(lambda x, t, cond: 0 * x + 3, predicts="x0")
      >>> one = gj.branches(denoise, cond=None)
      >>> path = gj.levels(gj.schedules.cosine(), 2, gj.spacings.trailing())
      >>> keys = jax.random.split(jax.random.key(0), 1)
      >>> print(gj.sample(keys, one, gj.chain(), gj.euler(), path, (2,)))
      [[3. 3.]]

    Reference: Karras et al. 2022, arXiv:2206.00364, algorithm 1 without its correction.
    """

    def kernel(prediction: Prediction, level: NoiseLevel, next: NoiseLevel) -> tuple[Array, Scalar]:
        return next.alpha * prediction.x0 + next.sigma * prediction.eps, 0.0

    return from_kernel(kernel, True)


@part()
def euler_ancestral(eta: NonNegative = 1.0, *, noise_scale: AtLeastZero = 1.0) -> Sampler:
    """Ancestral sampling by Euler's method: step to a level below the next one, then add fresh noise up to the next one.

    `x' = alpha' (x0 + r_down eps + noise_scale r_up z)`, with `r = sigma / alpha`, `q = r' / r`,
    `r_up = min(eta r' sqrt(1 - q^2), r')` and `r_down = sqrt(r'^2 - r_up^2)`.

    At noise_scale 1 and eta in [0, 1] this is `ddim(eta)`. At eta = 1 it is also `ddpm("small")`.

    One evaluation per step; order 1 at eta = 0.

    Args:
      eta: The share of fresh noise, `()`. 0 is Euler's method. A plain 0 draws no noise. eta may exceed 1.
      noise_scale: The standard deviation of z, `()`.

    Raises:
      ValueError: If a number is negative or not a scalar.

    Example:
      >>> denoise = gj.denoiser(lambda x, t, cond: 0 * x + 3, predicts="x0")
      >>> one = gj.branches(denoise, cond=None)
      >>> path = gj.levels(gj.schedules.cosine(), 2, gj.spacings.trailing())
      >>> keys = jax.random.split(jax.random.key(0), 1)
      >>> print(gj.sample(keys, one, gj.chain(), gj.euler_ancestral(), path, (2,)))
      [[3. 3.]]

    Reference: Karras et al. 2022, arXiv:2206.00364. The step is that of the k-diffusion library.
    """
    deterministic = is_zero(eta)

    def kernel(prediction: Prediction, level: NoiseLevel, next: NoiseLevel) -> tuple[Array, Scalar]:
        if deterministic:
            return next.alpha * prediction.x0 + next.sigma * prediction.eps, 0.0
        dtype = prediction.x0.dtype
        up = jnp.minimum(jnp.asarray(eta, dtype) * jnp.sqrt(1 - contraction(level, next) ** 2), 1)
        mean = next.alpha * prediction.x0 + next.sigma * sqrt(1 - up**2) * prediction.eps
        return mean, jnp.asarray(noise_scale, dtype) * next.sigma * up

    return from_kernel(kernel, deterministic)
