"""Euler's method on the probability-flow ODE, with churn, and its ancestral form."""

import jax.numpy as jnp
from jax import Array
from jaxtyping import ArrayLike

from guidance_jax.arrays import sqrt
from guidance_jax.base import NoiseLevel, Prediction, Sampler, Scalar, Schedule
from guidance_jax.checks.old import check_scalar
from guidance_jax.noise import contraction
from guidance_jax.samplers.churn import churned
from guidance_jax.samplers.gaussian import gaussian, is_zero


def euler(
    schedule: Schedule | None = None,
    *,
    churn: ArrayLike = 0.0,
    low: ArrayLike = 0.0,
    high: ArrayLike = jnp.inf,
    noise_scale: ArrayLike = 1.0,
) -> Sampler:
    """Euler's method in `sigma / alpha`, which is the DDIM step, from a level that churn has raised.

    `x' = alpha' x0 + sigma' eps`, both predicted at `x^ = alpha^ (x / alpha + noise_scale sqrt(r^^2 - r^2) z)`, with
    `r^ = (1 + churn) r`, `r = sigma / alpha`. Without churn x^ is x, nothing is drawn, and this is `ddim()`.

    A sampler does not know the number of its steps, so churn is the raise of one step: EDM's gamma, which is
    `min(S_churn / steps, sqrt(2) - 1)` for their S_churn.

    One evaluation a step; order 1.

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
      >>> print(sample(keys, branches(denoise, cond=None), chain(), euler(schedules.cosine(), churn=0.2), path, (2,)))
      [[3. 3.]]

    Reference: Karras et al. 2022, arXiv:2206.00364, algorithm 2 without its correction.
    """

    def kernel(prediction: Prediction, level: NoiseLevel, next: NoiseLevel) -> tuple[Array, Scalar]:
        return next.alpha * prediction.x0 + next.sigma * prediction.eps, 0.0

    return churned(gaussian(kernel, reversible=True), schedule, churn, low, high, noise_scale)


def euler_ancestral(eta: ArrayLike = 1.0, *, noise_scale: ArrayLike = 1.0) -> Sampler:
    """Ancestral sampling by Euler's method: a step beyond the next level in `r = sigma / alpha`, and fresh noise up to it.

    `x' = alpha' (x0 + r_down eps + noise_scale r_up z)`, with `r_up = min(eta r' sqrt(1 - q^2), r')`, `q = r' / r` and
    `r_down = sqrt(r'^2 - r_up^2)`.

    At noise_scale 1 this is `ddim(eta)`, for every eta in [0, 1]; eta = 1 is also `ddpm("small")`.

    One evaluation a step; order 1 at eta = 0.

    Args:
      eta: the share of fresh noise, `()`; 0 is Euler's method, and a plain 0 draws none. It may exceed 1.
      noise_scale: the deviation of z, `()`.

    Raises:
      ValueError: if a number is negative or no scalar.

    Example:
      >>> denoise = denoiser(lambda x, t, cond: 0 * x + 3, predicts="x0")
      >>> path = levels(schedules.cosine(), 2, spacings.trailing())
      >>> keys = jax.random.split(jax.random.key(0), 1)
      >>> print(sample(keys, branches(denoise, cond=None), chain(), euler_ancestral(), path, (2,)))
      [[3. 3.]]

    Reference: Karras et al. 2022, arXiv:2206.00364; the step is that of the k-diffusion library.
    """
    check_scalar(eta, "euler_ancestral's eta")
    check_scalar(noise_scale, "euler_ancestral's noise_scale")
    deterministic = is_zero(eta)

    def kernel(prediction: Prediction, level: NoiseLevel, next: NoiseLevel) -> tuple[Array, Scalar]:
        if deterministic:
            return next.alpha * prediction.x0 + next.sigma * prediction.eps, 0.0
        dtype = prediction.x0.dtype
        up = jnp.minimum(jnp.asarray(eta, dtype) * jnp.sqrt(1 - contraction(level, next) ** 2), 1)
        mean = next.alpha * prediction.x0 + next.sigma * sqrt(1 - up**2) * prediction.eps
        return mean, jnp.asarray(noise_scale, dtype) * next.sigma * up

    return gaussian(kernel, reversible=deterministic)
