"""Losses of denoisers and classifiers, their weights, and label dropout. Losses are per sample, `[B]`."""

from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import ArrayLike, Float
from typing_extensions import TypeAliasType

from guidance_jax.arrays import at_least_float32, divide, expand
from guidance_jax.base import Cond
from guidance_jax.checks.door import also, door
from guidance_jax.checks.kinds import (
    AtLevel,
    Classify,
    Fraction,
    Key,
    Labels,
    Network,
    Positive,
    Predicts,
    Samples,
    number,
)
from guidance_jax.checks.outcomes import given_logits, network_output
from guidance_jax.checks.training import check_cond, check_null
from guidance_jax.denoisers import OUTPUTS, edm_coefficients
from guidance_jax.training.levels import diffuse, noised

Cutoff = TypeAliasType("Cutoff", Annotated[ArrayLike, number(low=0, high=np.inf, above=0)])
"""A positive number. Infinity means no cutoff."""


@door(also(lambda x0, cond: check_cond(x0, cond, "denoising_loss")))
def denoising_loss(
    network: Network, predicts: Predicts, key: Key, x0: Samples, level: AtLevel, cond: Cond
) -> Float[Array, "b"]:
    """The mean squared error of a network's prediction, with noise drawn with `key`.

    For a score it is weighted by `sigma^2`, which makes it the error in eps.

    Args:
      network: `(x, t, cond) -> output`.
      predicts: The quantity that the network predicts: "eps", "x0", "v", "score" or "velocity".
      key: One PRNG key.
      x0: The clean data, `[B, ...]`.
      level: The noise levels, `[B]`, as from `noise_levels`.
      cond: The condition that the network receives, after label dropout.

    Returns:
      The loss, `[B]`.

    Raises:
      ValueError: If `predicts` is none of these, the output has another shape than x, or cond has another batch than x0.

    Example:
      >>> level = gj.training.noise_levels(jax.random.key(0), gj.schedules.cosine(), 2)
      >>> network = lambda x, t, cond: jnp.zeros_like(x)
      >>> x0, key = jnp.ones((2, 3)), jax.random.key(1)
      >>> print(gj.training.denoising_loss(network, "x0", key, x0, level, None))
      [1. 1.]

    Reference: Ho et al. 2020, arXiv:2006.11239, equation 14. For v, Salimans & Ho 2022, arXiv:2202.00512.
    """
    x, eps, wide, alpha, sigma = noised(key, x0, level)
    given = x.astype(jax.dtypes.canonicalize_dtype(x0.dtype))
    residual = network_output(network, given, level.t, cond, x) - OUTPUTS[predicts](wide, eps, alpha, sigma)
    if predicts == "score":
        residual = sigma * residual
    return jnp.mean(residual**2, axis=tuple(range(1, x.ndim)))


@door()
def min_snr(level: AtLevel, predicts: Predicts, gamma: Cutoff = 5.0) -> Float[Array, "b"]:
    """The min-SNR weight of a `denoising_loss`: it makes the loss the error in x0 times the clipped signal-to-noise ratio.

    The weighted loss is `min(SNR, gamma) |x0 error|^2`, `SNR = (alpha / sigma)^2`. For eps the weight is
    `min(SNR, gamma) / SNR`. For v of a variance-preserving process it is `min(SNR, gamma) / (SNR + 1)`.

    Args:
      level: The noise levels, `[B]`.
      predicts: The quantity that the network predicts, the same as in `denoising_loss`.
      gamma: The maximum signal-to-noise ratio, `()`. The paper uses 5.

    Returns:
      The weight, `[B]`. Multiply the loss by it.

    Raises:
      ValueError: If `predicts` is none of the five parameterisations.

    Example:
      >>> level = gj.schedules.cosine()(jnp.array([0.1, 0.5, 0.9]))
      >>> print(gj.training.min_snr(level, "eps").round(3))
      [0.125 1.    1.   ]

    Reference: Hang et al. 2023, arXiv:2303.09556, section 3.4.
    """
    alpha, sigma = (jnp.asarray(field, at_least_float32(field.dtype)) for field in (level.alpha, level.sigma))
    # The error in eps, and in x0, for an error of 1 in the output. The loss of a score is already in eps.
    in_eps, in_x0 = {
        "eps": (jnp.ones_like(alpha), sigma / alpha),
        "x0": (alpha / sigma, jnp.ones_like(alpha)),
        "v": (alpha / (alpha**2 + sigma**2), sigma / (alpha**2 + sigma**2)),
        "score": (jnp.ones_like(alpha), sigma / alpha),
        "velocity": (alpha / (alpha + sigma), sigma / (alpha + sigma)),
    }[predicts]
    most = jnp.asarray(gamma, jnp.result_type(alpha))
    return jnp.where((alpha / sigma) ** 2 < most, in_eps**2, most * in_x0**2)


@door(also(lambda x0, cond: check_cond(x0, cond, "edm_loss")))
def edm_loss(network: Network, sigma_data: Positive, key: Key, x0: Samples, level: AtLevel, cond: Cond) -> Float[Array, "b"]:
    """The loss of a network F with EDM's preconditioning: the error of its raw output, whose target has unit variance.

    `mean |F(c_in x) - (x0 - c_skip x) / c_out|^2`. This is the squared error of the denoiser, weighted by `1 / c_out^2`.

    Args:
      network: `(x, t, cond) -> output`.
      sigma_data: The standard deviation of the data, `()`.
      key: One PRNG key.
      x0: The clean data, `[B, ...]`.
      level: The noise levels, `[B]`.
      cond: The condition that the network receives, after label dropout.

    Returns:
      The loss, `[B]`.

    Raises:
      ValueError: If the output has another shape than x, or cond has another batch than x0.

    Example:
      >>> level = gj.schedules.edm()(jnp.zeros(2))
      >>> network = lambda x, t, cond: jnp.zeros_like(x)
      >>> x0, key = jnp.ones((2, 3)), jax.random.key(1)
      >>> print(gj.training.edm_loss(network, 1.0, key, x0, level, None).shape)
      (2,)

    Reference: Karras et al. 2022, arXiv:2206.00364, equation 8.
    """
    x, _, wide, alpha, sigma = noised(key, x0, level)
    skip, out, scale = edm_coefficients(alpha, sigma, jnp.asarray(sigma_data, x.dtype))
    given = (scale * x).astype(jax.dtypes.canonicalize_dtype(x0.dtype))
    residual = network_output(network, given, level.t, cond, x) - divide(wide - skip * x, out)
    return jnp.mean(residual**2, axis=tuple(range(1, x.ndim)))


@door()
def classifier_loss(
    classify: Classify,
    key: Key,
    x0: Samples,
    level: AtLevel,
    labels: Labels,
) -> Float[Array, "b"]:
    """The cross-entropy of a noise-aware classifier on noisy data, with noise drawn with `key`.

    Args:
      classify: `(x, t) -> logits [B, C]`.
      key: One PRNG key.
      x0: The clean data, `[B, ...]`.
      level: The noise levels, `[B]`. Draw them over the whole schedule.
      labels: The classes, `[B]` integers in 0..C - 1.

    Returns:
      The loss, `[B]`.

    Raises:
      ValueError: If a label is outside 0..C - 1.
      TypeError: If the labels are not integers.

    Example:
      >>> level = gj.schedules.cosine()(jnp.array([0.5]))
      >>> classify = lambda x, t: jnp.zeros((1, 10))
      >>> x0, labels, key = jnp.ones((1, 2)), jnp.array([3]), jax.random.key(0)
      >>> loss = gj.training.classifier_loss(classify, key, x0, level, labels)
      >>> print(f"{loss[0]:.3f}")
      2.303

    Reference: Dhariwal & Nichol 2021, arXiv:2105.05233, section 4.
    """
    x, _ = diffuse(key, x0, level)
    logits = given_logits(classify, x, level.t, labels, None)
    logits = logits.astype(at_least_float32(logits.dtype))
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)[:, 0]


@door(also(check_null))
def drop(key: Key, cond: Cond, null: Cond, rate: Fraction) -> Cond:
    """Label dropout: replace each sample's condition by the null condition with probability `rate`.

    One network then learns the conditional and the unconditional model.

    Args:
      key: One PRNG key.
      cond: The conditions: any pytree of `[B, ...]` leaves.
      null: The null condition: the same pytree, with leaves that broadcast against those of one sample.
      rate: The probability, usually 0.1 to 0.2.

    Raises:
      ValueError: If null has another structure, a leaf of it does not broadcast, or rate is outside [0, 1].
      TypeError: If a leaf of null is not a number.

    Example:
      >>> print(gj.training.drop(jax.random.key(0), jnp.array([3, 1]), 10, rate=1.0))
      [10 10]

    Reference: Ho & Salimans 2022, arXiv:2207.12598, algorithm 1.
    """
    batch = jax.tree.leaves(cond)[0].shape[:1]
    dropped = jax.random.bernoulli(key, rate, batch)

    def replace(leaf: Array, empty: Any) -> Array:
        empty = jnp.broadcast_to(jnp.asarray(empty, jnp.result_type(leaf)), leaf.shape)
        return jnp.where(expand(dropped, leaf), empty, leaf)

    return jax.tree.map(replace, cond, null)
