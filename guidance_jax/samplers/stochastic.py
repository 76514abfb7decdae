"""A second-order sampler for the reverse SDE."""

import jax
import jax.numpy as jnp
from jax import Array

from guidance_jax.arrays import sqrt
from guidance_jax.base import GuidedDenoiser, NoiseLevel, State
from guidance_jax.checks.door import part
from guidance_jax.checks.kinds import AtLeastZero
from guidance_jax.interfaces import Sampler
from guidance_jax.noise import contraction, normal


@part()
def heun_sde(eta: AtLeastZero = 1.0) -> Sampler:
    """Heun's method for the reverse SDE, with the same noise in predictor and corrector.

    In `y = x / alpha` and `tau = (sigma / alpha)^2` the SDE is `dy = (1 + eta^2) / 2 score |dtau| + eta sqrt|dtau| z`.

    The predictor solves it exactly for constant x0. With `q = (sigma' / alpha') / (sigma / alpha)` it is
    `x' = alpha' x0 + sigma' q^(eta^2) eps + sigma' sqrt(1 - q^(2 eta^2)) z`.

    The corrector is `x' <- x' + alpha' weight (x0' - x0)`, where x0' is the prediction at x'. It takes x0 to be linear in tau.
    With `c = (1 + eta^2) / 2`, `weight = (1 - q^(2 c) - c / (1 - c) (q^(2 c) - q^2)) / (1 - q^2)`.

    Two evaluations per step, and one if sigma' = 0, where the step returns x0. Its weak order is 2; ancestral sampling has weak
    order 1. We compared five variables for the linear interpolation on exact Gaussian laws. tau had the minimum error at every
    eta.

    Args:
      eta: The amount of fresh noise, `()`, 0 or more. 0 is the probability-flow ODE, 1 is the reverse SDE.

    Raises:
      ValueError: If eta is negative or not a scalar.

    Example:
      >>> denoise = gj.denoiser(lambda x, t, cond: 0 * x + 3, predicts="x0")
      >>> one = gj.branches(denoise, cond=None)
      >>> path = gj.levels(gj.schedules.cosine(), 2, gj.spacings.trailing())
      >>> keys = jax.random.split(jax.random.key(0), 1)
      >>> print(gj.sample(keys, one, gj.chain(), gj.heun_sde(), path, (2,)))
      [[3. 3.]]

    Reference: For the SDE, Song et al. 2021, arXiv:2011.13456. For solvers with constant or linear x0, Lu et al. 2022,
    arXiv:2211.01095, section 5.
    """

    def step(denoise: GuidedDenoiser, state: State, level: NoiseLevel, next: NoiseLevel, keys: Array) -> State:
        first, state = denoise(state, level)
        square = jnp.asarray(eta, state.x.dtype) ** 2
        q = contraction(level, next)
        length = -2 * jnp.log(jnp.where(q > 0, q, 1))
        # From alpha = 0 the length is infinite, and no eps is kept unless eta is 0.
        kept = jnp.where(q > 0, jnp.exp(-square * length / 2), (square == 0).astype(q.dtype))
        x = next.alpha * first.x0 + next.sigma * (kept * first.eps + sqrt(1 - kept**2) * normal(keys, state.x))
        state = state._replace(x=x)

        def correct(state: State) -> State:
            second, after = denoise(state, next)
            c = (1 + square) / 2
            weight = (1 - q * kept - c * length * q**2 * _expm1_ratio((1 - c) * length)) / (1 - q**2)
            return after._replace(x=state.x + next.alpha * weight * (second.x0 - first.x0))

        return jax.lax.cond(next.sigma > 0, correct, lambda state: state, state)

    return Sampler(lambda x: (), step)


def _expm1_ratio(z: Array) -> Array:
    """`(exp(z) - 1) / z`, with a series near 0 that has the right derivatives."""
    small = jnp.abs(z) < 1e-2
    return jnp.where(small, 1 + z / 2 + z**2 / 6 + z**3 / 24, jnp.expm1(z) / jnp.where(small, 1, z))
