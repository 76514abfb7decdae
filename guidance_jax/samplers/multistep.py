"""Shared parts of the multistep samplers: past predictions, and integrals of the polynomial through them.

Such a sampler integrates the x0-prediction over a step of length h in `log(alpha / sigma)`:
`x' = (sigma' / sigma) x + alpha' h * integral over u in [0, 1] of e^(-h (1 - u)) x0(u)`, with u = 0 at the start of the step.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from guidance_jax.arrays import divide
from guidance_jax.base import NoiseLevel, Prediction
from guidance_jax.noise import contraction


class Past(NamedTuple):
    """The past steps, newest first.

    Args:
      x0: The x0-predictions, each `[B, ...]`.
      length: The lengths of the steps in `log(alpha / sigma)`, each `()`. Infinite if there was no such step.
    """

    x0: tuple[Array, ...]
    length: tuple[Array, ...]


def nothing(x: Array, steps: int) -> Past:
    """The empty past before the first step, with room for `steps` steps."""
    return Past((jnp.zeros_like(x),) * steps, (jnp.full((), jnp.inf, x.dtype),) * steps)


def remember(past: Past, x0: Array, length: Array) -> Past:
    steps = len(past.x0)
    return Past((x0, *past.x0)[:steps], (length, *past.length)[:steps])


def length(level: NoiseLevel, next: NoiseLevel) -> Array:
    """The length of a step in `log(alpha / sigma)`. It is infinite from alpha = 0 and to sigma' = 0."""
    q = contraction(level, next)
    return jnp.where(q > 0, -jnp.log(jnp.where(q > 0, q, 1)), jnp.inf)


def differences(x0: Array, past: Past, length: Array) -> list[Array]:
    """Divided differences of x0 in u, at u = 0 and past steps: the slope, half the curvature, and so on.

    They are zero where a past step, or the current step, is infinitely long.
    """
    h, points, found = finite(length), [x0, *past.x0], []
    for k in range(1, len(points)):
        spans = [h / sum(past.length[i : i + k]) for i in range(len(points) - 1)]
        points = [(points[i] - points[i + 1]) * spans[i] for i in range(len(points) - 1)]
        found.append(points[0])
    return found


def ages(past: Past, length: Array) -> list[Array]:
    """The distance from u = 0 back to the start of each past step. A missing step counts as length 0."""
    lengths = [jnp.where(jnp.isfinite(one), one, 0) / finite(length) for one in past.length]
    return [sum(lengths[: k + 1], jnp.zeros_like(length)) for k in range(len(lengths))]


def integrals(length: Array) -> tuple[Array, Array, Array, Array]:
    """`w_j = h * integral over u in [0, 1] of e^(-h (1 - u)) u^j`, j from 0 to 3: the weights of the powers of u."""
    h = finite(length)
    w0 = -jnp.expm1(-h)
    w1 = 1 - w0 / h
    w2 = 1 - 2 * w1 / h
    return w0, w1, w2, 1 - 3 * w2 / h


def implied(prediction: Prediction, x: Array, level: NoiseLevel) -> Array:
    """The x0 that eps implies, `(x - sigma eps) / alpha`. If it equals x0 up to rounding, x0 itself is returned.

    It differs from x0 only if a guidance renoises with another eps (CFG++). The multistep samplers use both: x0 and eps for a
    DDIM step, and past values of the implied x0 for the term that they add to it.
    """
    signal, noise = level.alpha * prediction.x0, level.sigma * prediction.eps
    rounding = 32 * jnp.finfo(x.dtype).eps * (jnp.abs(x) + jnp.abs(signal) + jnp.abs(noise))
    rest = x - signal - noise
    return prediction.x0 + divide(jnp.where(jnp.abs(rest) > rounding, rest, 0), level.alpha)


def finite(length: Array) -> Array:
    """The length of a step, with 1 in place of infinity, so that sums and their gradients stay finite."""
    return jnp.where(jnp.isfinite(length), length, 1)
