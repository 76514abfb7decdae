"""Denoisers from networks: parameterisations, preconditioning, and clipping.

A network is a pure function `(x [B, ...], t [B], cond) -> output [B, ...]` with parameters bound by the caller. Each formula
below solves `x = alpha x0 + sigma eps` and the definition of the output for `(x0, eps)`. An undetermined quantity is set to 0:
x0 of an eps-network at alpha = 0, and eps of an x0-network at sigma = 0.
"""

from collections.abc import Callable
from typing import Annotated

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import ArrayLike
from typing_extensions import TypeAliasType

from guidance_jax.arrays import divide, expand
from guidance_jax.base import Cond, Denoiser, NoiseLevel, Prediction
from guidance_jax.checks.door import part, rule
from guidance_jax.checks.kinds import Denoise, Network, Positive, Predicts, number
from guidance_jax.checks.outcomes import check_prediction, network_output
from guidance_jax.checks.paths import check_level

__all__ = ["Network", "clip", "denoiser", "edm", "learned_variance"]

Bound = TypeAliasType("Bound", Annotated[ArrayLike, number("a bound of the data", -np.inf, np.inf, scalar=False)])
"""A bound of the data: one number, or an array that broadcasts against x. It may be infinite."""


def from_eps(out: Array, x: Array, alpha: Array, sigma: Array) -> Prediction:
    """The output is the noise (arXiv:2006.11239): `x0 = (x - sigma eps) / alpha`."""
    return Prediction(divide(x - sigma * out, alpha), out)


def from_x0(out: Array, x: Array, alpha: Array, sigma: Array) -> Prediction:
    """The output is the clean data: `eps = (x - alpha x0) / sigma`."""
    return Prediction(out, divide(x - alpha * out, sigma))


def from_v(out: Array, x: Array, alpha: Array, sigma: Array) -> Prediction:
    """The output is `v = alpha eps - sigma x0` (arXiv:2202.00512), for any alpha and sigma."""
    total = alpha**2 + sigma**2
    return Prediction((alpha * x - sigma * out) / total, (sigma * x + alpha * out) / total)


def from_score(out: Array, x: Array, alpha: Array, sigma: Array) -> Prediction:
    """The output is the score, `grad log p(x_t) = -eps / sigma` (arXiv:2011.13456)."""
    return from_eps(-sigma * out, x, alpha, sigma)


def from_velocity(out: Array, x: Array, alpha: Array, sigma: Array) -> Prediction:
    """The output is `u = eps - x0`: dx/dt of flow matching with noise at t = 1 (arXiv:2210.02747).

    Networks trained with noise at t = 0 predict `x0 - eps`: negate their output.
    """
    total = alpha + sigma
    return Prediction((x - sigma * out) / total, (x + alpha * out) / total)


PREDICTS = {"eps": from_eps, "x0": from_x0, "v": from_v, "score": from_score, "velocity": from_velocity}

OUTPUTS: dict[str, Callable[[Array, Array, Array, Array], Array]] = {
    "eps": lambda x0, eps, alpha, sigma: eps,
    "x0": lambda x0, eps, alpha, sigma: x0,
    "v": lambda x0, eps, alpha, sigma: alpha * eps - sigma * x0,
    "score": lambda x0, eps, alpha, sigma: divide(-eps, sigma),
    "velocity": lambda x0, eps, alpha, sigma: eps - x0,
}
"""The inverse of `PREDICTS`: the output of each kind of network for `(x0, eps)`."""


@part()
def denoiser(network: Network, predicts: Predicts) -> Denoiser:
    """The denoiser of a network that predicts eps, x0, v, the score or the velocity of a flow.

    It solves `x = alpha x0 + sigma eps` and the definition of the output for x0 and eps. The output is `eps`, `x0`,
    `v = alpha eps - sigma x0`, `score = -eps / sigma` or `velocity = eps - x0`.

    If the network is a pytree, its parameters are leaves of the denoiser, and new parameters do not cause a new compilation.
    Such networks are `jax.tree_util.Partial(apply, params)`, Flax NNX modules and Equinox modules.

    Args:
      network: `(x [B, ...], t [B], cond) -> [B, ...]`. t is `level.t`, one per sample.
      predicts: The output of the network: "eps", "x0", "v", "score" or "velocity".

    Returns:
      `(x, level, cond) -> Prediction`. Use it in `branches`, or call it directly.

    Raises:
      TypeError: If the network is not a function of these arguments.
      ValueError: If `predicts` is none of these. When called, if the network's output has another shape than x.

    Example:
      >>> denoise = gj.denoiser(lambda x, t, cond: jnp.zeros_like(x), predicts="eps")
      >>> level = gj.schedules.cosine()(0.5)
      >>> print(denoise(jnp.ones((1, 2)), level, None).x0.round(4))
      [[1.4142 1.4142]]

    Reference: For eps, Ho et al. 2020, arXiv:2006.11239. For v, Salimans & Ho 2022, arXiv:2202.00512. For the score, Song et
    al. 2021, arXiv:2011.13456. For the velocity, Lipman et al. 2023, arXiv:2210.02747.
    """

    def denoise(x: Array, level: NoiseLevel, cond: Cond) -> Prediction:
        x, alpha, sigma = _terms(x, level)
        return PREDICTS[predicts](network_output(network, x, level.t, cond, x), x, alpha, sigma)

    return denoise


@part()
def learned_variance(network: Network, predicts: Predicts) -> Denoiser:
    """The denoiser of a network that also predicts the variance of the reverse step, for `ddpm("learned")`.

    `variance = (v + 1) / 2`, where v is the second half of the output's last axis. v = -1 is the small variance, v = 1 is the
    large one. In between, their logarithms are interpolated. The first half of the output is that of `denoiser`.

    Args:
      network: `(x [B, ..., C], t [B], cond) -> [B, ..., 2 C]`, channels last.
      predicts: The first half of the output: "eps", "x0", "v", "score" or "velocity".

    Returns:
      `(x, level, cond) -> Prediction` with a variance.

    Raises:
      TypeError: If the network is not a function of these arguments.
      ValueError: If `predicts` is none of these. When called, if the output does not have twice the channels of x.

    Example:
      >>> network = lambda x, t, cond: jnp.concatenate([0 * x, 0 * x - 0.5], -1)
      >>> denoise = gj.denoisers.learned_variance(network, predicts="eps")
      >>> print(denoise(jnp.ones((1, 2)), gj.schedules.cosine()(0.5), None).variance)
      [[0.25 0.25]]

    Reference: Nichol & Dhariwal 2021, arXiv:2102.09672, equation 15. The range of v is that of the released code.
    """

    def denoise(x: Array, level: NoiseLevel, cond: Cond) -> Prediction:
        x, alpha, sigma = _terms(x, level)
        output, v = jnp.split(network_output(network, x, level.t, cond, x, times=2), 2, axis=-1)
        return PREDICTS[predicts](output, x, alpha, sigma).replace(variance=(v + 1) / 2)

    return denoise


@part()
def edm(network: Network, sigma_data: Positive = 0.5) -> Denoiser:
    """The denoiser of a network F with EDM's preconditioning, for any noise schedule.

    With `s = sqrt(sigma^2 + alpha^2 sigma_data^2)`,
    `x0 = (alpha sigma_data^2 / s^2) x + (sigma sigma_data / s) F(x / s, t)`. At alpha = 1 the coefficients are EDM's c_skip,
    c_out and c_in. With `schedules.edm()` the network receives `t = c_noise = log(sigma) / 4`.

    Args:
      network: `(x [B, ...], t [B], cond) -> [B, ...]`.
      sigma_data: The standard deviation of the data.

    Raises:
      TypeError: If the network is not a function of these arguments.
      ValueError: If sigma_data is not positive. When called, if the network's output has another shape than x.

    Example:
      >>> denoise = gj.denoisers.edm(lambda x, t, cond: jnp.zeros_like(x), sigma_data=1.0)
      >>> print(denoise(jnp.ones((1, 1)), gj.schedules.edm()(0.0), None).x0.round(3))
      [[0.5]]

    Reference: Karras et al. 2022, arXiv:2206.00364, table 1.
    """

    def denoise(x: Array, level: NoiseLevel, cond: Cond) -> Prediction:
        x, alpha, sigma = _terms(x, level)
        skip, out, scale = edm_coefficients(alpha, sigma, jnp.asarray(sigma_data, x.dtype))
        return from_x0(skip * x + out * network_output(network, scale * x, level.t, cond, x), x, alpha, sigma)

    return denoise


def edm_coefficients(alpha: Array, sigma: Array, sigma_data: Array) -> tuple[Array, Array, Array]:
    """EDM's c_skip, c_out and c_in for any schedule: `alpha sigma_data^2 / s^2`, `sigma sigma_data / s` and `1 / s`."""
    s = jnp.sqrt(sigma**2 + (alpha * sigma_data) ** 2)
    return alpha * (sigma_data / s) ** 2, sigma * sigma_data / s, 1 / s


@part(rule("low must be below high", lambda low, high: low < high))
def clip(denoise: Denoise, low: Bound = -1.0, high: Bound = 1.0) -> Denoiser:
    """A denoiser whose x0 is clipped to the range of the data, before any guidance.

    `x0 <- min(max(x0, low), high)`, `eps <- (x - alpha x0) / sigma`.

    Args:
      denoise: The denoiser.
      low: The minimum of the data: one number, or an array that broadcasts against x.
      high: The maximum of the data: one number, or an array that broadcasts against x.

    Raises:
      TypeError: If denoise is not a function of `(x, level, cond)`.
      ValueError: If low is not below high. When called, if the level is neither `()` nor `[B]`.

    Example:
      >>> loud = gj.denoiser(lambda x, t, cond: 3 * x, predicts="x0")
      >>> print(gj.denoisers.clip(loud)(jnp.ones((1, 2)), gj.schedules.cosine()(0.5), None).x0)
      [[1. 1.]]

    Reference: Ho et al. 2020, arXiv:2006.11239 (released code).
    """

    def clipped(x: Array, level: NoiseLevel, cond: Cond) -> Prediction:
        prediction, (x, alpha, sigma) = denoise(x, level, cond), _terms(x, level)
        check_prediction(prediction, x, "the denoiser")
        x0 = jnp.clip(prediction.x0, low, high)
        return prediction.replace(x0=x0, eps=from_x0(x0, x, alpha, sigma).eps)

    return clipped


def _terms(x: Array, level: NoiseLevel) -> tuple[Array, Array, Array]:
    """x, alpha and sigma of `x = alpha x0 + sigma eps`, in shapes that broadcast."""
    check_level(level, x)
    return jnp.asarray(x), expand(level.alpha, x), expand(level.sigma, x)
