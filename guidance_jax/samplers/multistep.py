"""What the multistep samplers share: the predictions that they remember, and integrals of the polynomial through those.

Such a sampler integrates the x0-prediction, in `log(alpha / sigma)`, over a step of length h:
`x' = (sigma' / sigma) x + alpha' h * integral over u in [0, 1] of e^(-h (1 - u)) x0(u)`, u being 0 at the step's beginning.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from guidance_jax.arrays import divide
from guidance_jax.base import NoiseLevel, Prediction
from guidance_jax.noise import contraction


class Past(NamedTuple):
    """The steps before, the last first."""

    x0: tuple[Array, ...]
    length: tuple[Array, ...]
    """In `log(alpha / sigma)`; infinite where there was no step."""


def nothing(x: Array, steps: int) -> Past:
    """The past of so many steps, before the first."""
    return Past((jnp.zeros_like(x),) * steps, (jnp.full((), jnp.inf, x.dtype),) * steps)


def remember(past: Past, x0: Array, length: Array) -> Past:
    steps = len(past.x0)
    return Past((x0, *past.x0)[:steps], (length, *past.length)[:steps])


def length(level: NoiseLevel, next: NoiseLevel) -> Array:
    """The step's, in `log(alpha / sigma)`: infinite from alpha = 0 and to sigma' = 0."""
    q = contraction(level, next)
    return jnp.where(q > 0, -jnp.log(jnp.where(q > 0, q, 1)), jnp.inf)


def differences(x0: Array, past: Past, length: Array) -> list[Array]:
    """Divided differences of x0 at u = 0 and ever more steps of the past, per `u`: the slope, half the curvature, and so on.

    Zero where the past, or the step, is infinitely long.
    """
    h, points, found = finite(length), [x0, *past.x0], []
    for k in range(1, len(points)):
        spans = [h / sum(past.length[i : i + k]) for i in range(len(points) - 1)]
        points = [(points[i] - points[i + 1]) * spans[i] for i in range(len(points) - 1)]
        found.append(points[0])
    return found


def ages(past: Past, length: Array) -> list[Array]:
    """How far behind u = 0 each step of the past began; one that there was not adds nothing."""
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
    """The x0 that eps implies, `(x - sigma eps) / alpha`; where that is x0 but for rounding, x0 itself, unmagnified.

    It is another one than x0 only where a guidance renoises with another eps (CFG++). The samplers are the DDIM step and what
    the past of this x0 adds to it, so that the step keeps both halves of such a guidance.
    """
    signal, noise = level.alpha * prediction.x0, level.sigma * prediction.eps
    rounding = 32 * jnp.finfo(x.dtype).eps * (jnp.abs(x) + jnp.abs(signal) + jnp.abs(noise))
    rest = x - signal - noise
    return prediction.x0 + divide(jnp.where(jnp.abs(rest) > rounding, rest, 0), level.alpha)


def finite(length: Array) -> Array:
    """The length of a finite step, and 1 for another, which no sum may take as it is."""
    return jnp.where(jnp.isfinite(length), length, 1)
