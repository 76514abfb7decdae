"""From a network to a denoiser: what the network predicts, its preconditioning, and clipping.

A network is a pure function `(x [B, ...], t [B], cond) -> output [B, ...]`, its parameters bound by the caller. Each
formula below solves `x = alpha x0 + sigma eps` and the definition of the output for `(x0, eps)`. Where a division has no
answer (an eps-network at alpha = 0, an x0-network at sigma = 0) the part that nothing determines is 0.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import ArrayLike

from guidance_jax.arrays import divide, expand
from guidance_jax.base import Cond, Denoiser, NoiseLevel, Prediction
from guidance_jax.checks.old import check_level, check_order, check_scalar
from guidance_jax.checks.old import check_array, check_callable, check_kind, check_network, check_takes, noting

__all__ = ["Network", "clip", "denoiser", "edm", "learned_variance"]

Network = Callable[[Array, Array, Cond], Array]
"""`(x [B, ...], t [B], cond) -> output [B, ...]`, its parameters bound."""


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

    Networks trained with time the other way round predict `x0 - eps`: negate them.
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
"""The other way: what each network would say of `(x0, eps)`."""


def parameterisation(predicts: str) -> Callable[[Array, Array, Array, Array], Prediction]:
    """The function that turns an output into a `Prediction`.

    Raises:
      ValueError: if `predicts` is none of the five.
    """
    check_kind(predicts, str, "predicts", f"a network predicts one of {', '.join(map(repr, PREDICTS))}.")
    if predicts not in PREDICTS:
        raise ValueError(f"predicts={predicts!r} is unknown; a network predicts one of {', '.join(map(repr, PREDICTS))}.")
    return PREDICTS[predicts]


def denoiser(network: Network, predicts: str) -> Denoiser:
    """The denoiser of a network that predicts eps, x0, v, the score or the flow's velocity.

    It solves `x = alpha x0 + sigma eps` together with what the output is: `eps`, `x0`, `v = alpha eps - sigma x0`,
    `score = -eps / sigma` or `velocity = eps - x0`.

    Args:
      network: `(x [B, ...], t [B], cond) -> [B, ...]`; t is `level.t`, repeated for each sample.
      predicts: "eps", "x0", "v", "score" or "velocity".

    Returns:
      `(x, level, cond) -> Prediction`, for `sample` or for use on its own.

    Raises:
      ValueError: if `predicts` is none of these, or the network's output has another shape than x.

    Example:
      >>> denoise = denoiser(lambda x, t, cond: jnp.zeros_like(x), predicts="eps")
      >>> level = schedules.cosine()(0.5)
      >>> print(denoise(jnp.ones((1, 2)), level, None).x0.round(4))
      [[1.4142 1.4142]]

    Reference: eps, Ho et al. 2020, arXiv:2006.11239; v, Salimans & Ho 2022, arXiv:2202.00512; the score, Song et al. 2021,
    arXiv:2011.13456; the velocity, Lipman et al. 2023, arXiv:2210.02747.
    """
    check_network(network)
    convert = parameterisation(predicts)

    def denoise(x: Array, level: NoiseLevel, cond: Cond) -> Prediction:
        check_level(level, x)
        x = jnp.asarray(x)
        out = call(network, x, level.t, cond, x)
        return convert(out, x, expand(level.alpha, x), expand(level.sigma, x))

    return denoise


def learned_variance(network: Network, predicts: str) -> Denoiser:
    """The denoiser of a network that predicts the reverse step's variance too, in twice the channels: for `ddpm("learned")`.

    `variance = (v + 1) / 2`, v the second half of the output's last axis: at -1 the small variance, at 1 the large one, and
    between them their logarithms are interpolated. The first half is as of `denoiser`.

    Args:
      network: `(x [B, ..., C], t [B], cond) -> [B, ..., 2 C]`, channels last.
      predicts: "eps", "x0", "v", "score" or "velocity": what the first half is.

    Returns:
      `(x, level, cond) -> Prediction`, its variance given.

    Raises:
      ValueError: if `predicts` is none of these, or the output does not have twice the channels of x.

    Example:
      >>> network = lambda x, t, cond: jnp.concatenate([jnp.zeros_like(x), jnp.full_like(x, -0.5)], -1)
      >>> denoise = denoisers.learned_variance(network, predicts="eps")
      >>> print(denoise(jnp.ones((1, 2)), schedules.cosine()(0.5), None).variance)
      [[0.25 0.25]]

    Reference: Nichol & Dhariwal 2021, arXiv:2102.09672, equation 15; the range of v, in its released code.
    """
    check_network(network)
    convert = parameterisation(predicts)

    def denoise(x: Array, level: NoiseLevel, cond: Cond) -> Prediction:
        check_level(level, x)
        x = jnp.asarray(x)
        out = _asked(network, x, level.t, cond)
        if jnp.shape(out) != (*x.shape[:-1], 2 * x.shape[-1]):
            raise ValueError(
                f"the network gave {jax.tree.map(jnp.shape, out)} for x of shape {x.shape}, but learned_variance takes twice "
                f"the channels, {(*x.shape[:-1], 2 * x.shape[-1])}: what is predicted, then the variance, along the last axis."
            )
        first, second = jnp.split(out.astype(x.dtype), 2, axis=-1)
        prediction = convert(first, x, expand(level.alpha, x), expand(level.sigma, x))
        return prediction._replace(variance=(second + 1) / 2)

    return denoise


def edm(network: Network, sigma_data: ArrayLike = 0.5) -> Denoiser:
    """The denoiser of a network F with EDM's preconditioning, on any process.

    With `s = sqrt(sigma^2 + alpha^2 sigma_data^2)`,
    `x0 = (alpha sigma_data^2 / s^2) x + (sigma sigma_data / s) F(x / s, t)`; at alpha = 1 these are EDM's c_skip, c_out
    and c_in. On `schedules.edm()` the network is told `t = c_noise = log(sigma) / 4`.

    Args:
      network: `(x [B, ...], t [B], cond) -> [B, ...]`.
      sigma_data: the standard deviation of the data, `()`.

    Raises:
      ValueError: if the network's output has another shape than x.

    Example:
      >>> denoise = denoisers.edm(lambda x, t, cond: jnp.zeros_like(x), sigma_data=1.0)
      >>> print(denoise(jnp.ones((1, 1)), schedules.edm()(0.0), None).x0.round(3))
      [[0.5]]

    Reference: Karras et al. 2022, arXiv:2206.00364, table 1.
    """
    check_network(network)
    check_scalar(sigma_data, "edm's sigma_data", above=0)

    def denoise(x: Array, level: NoiseLevel, cond: Cond) -> Prediction:
        check_level(level, x)
        x = jnp.asarray(x)
        alpha, sigma = expand(level.alpha, x), expand(level.sigma, x)
        skip, out, scale = edm_coefficients(alpha, sigma, jnp.asarray(sigma_data, x.dtype))
        return from_x0(skip * x + out * call(network, scale * x, level.t, cond, x), x, alpha, sigma)

    return denoise


def edm_coefficients(alpha: Array, sigma: Array, sigma_data: Array) -> tuple[Array, Array, Array]:
    """EDM's c_skip, c_out and c_in, on any process: `alpha sigma_data^2 / s^2`, `sigma sigma_data / s` and `1 / s`."""
    s = jnp.sqrt(sigma**2 + (alpha * sigma_data) ** 2)
    return alpha * (sigma_data / s) ** 2, sigma * sigma_data / s, 1 / s


def clip(denoise: Denoiser, low: ArrayLike = -1.0, high: ArrayLike = 1.0) -> Denoiser:
    """A denoiser whose x0 is clipped to the range of the data, before any guidance; eps follows.

    `x0 <- min(max(x0, low), high)`, `eps <- (x - alpha x0) / sigma`.

    Args:
      denoise: the denoiser.
      low: the least value of the data, `()` or broadcastable against x, `[B, ...]`.
      high: the greatest value of the data, likewise.

    Raises:
      ValueError: if low is not below high; when called, if the level is neither `()` nor `[B]`.

    Example:
      >>> loud = denoiser(lambda x, t, cond: 3 * x, predicts="x0")
      >>> print(denoisers.clip(loud)(jnp.ones((1, 2)), schedules.cosine()(0.5), None).x0)
      [[1. 1.]]

    Reference: Ho et al. 2020, arXiv:2006.11239 (released code).
    """
    check_callable(denoise, "denoise", "gj.denoiser(network, predicts=...) makes one.")
    check_order(low, high, "clip", "low must be below high")

    def clipped(x: Array, level: NoiseLevel, cond: Cond) -> Prediction:
        prediction = denoise(x, level, cond)
        x0 = jnp.clip(prediction.x0, low, high)
        eps = from_x0(x0, x, expand(level.alpha, x), expand(level.sigma, x)).eps
        return prediction._replace(x0=x0, eps=eps)

    return clipped


def call(network: Network, x: Array, t: Array, cond: Cond, like: Array) -> Array:
    """The network's output, checked to be shaped as the data and cast to its dtype."""
    out = _asked(network, x, t, cond)
    check_array(out, "what the network gives", jnp.floating, "floating numbers")
    if jnp.shape(out) != x.shape:
        raise ValueError(
            f"the network gave {jax.tree.map(jnp.shape, out)} for x of shape {x.shape}, but its output must be shaped as "
            "x. Where it also gives a variance, in twice the channels: denoisers.learned_variance."
        )
    return out.astype(like.dtype)


def _asked(network: Network, x: Array, t: Array, cond: Cond) -> Any:
    """What the network says, as it says it; an error within tells what it was asked."""
    check_takes(network, "the network", "x", "t", "cond")
    t = jnp.broadcast_to(t, x.shape[:1])
    with noting("the network", x=x, t=t, cond=cond):
        return network(x, t, cond)
