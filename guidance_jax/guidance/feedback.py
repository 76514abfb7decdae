"""Feedback guidance: one scale per sample, estimated from its path."""

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import ArrayLike
from typing_extensions import TypeAliasType

from guidance_jax.arrays import divide, expand, inner
from guidance_jax.base import Context, NoiseLevel, Prediction
from guidance_jax.checks.door import part
from guidance_jax.checks.kinds import Branch, Level, NonNegativeScale, Scale, scale_kind
from guidance_jax.guidance.scales import at
from guidance_jax.interfaces import Guidance
from guidance_jax.noise import contraction

Prior = TypeAliasType("Prior", Annotated[ArrayLike | Level, scale_kind(low=0, high=1, above=0)])
"""As `Scale`, in (0, 1]."""
MaxScale = TypeAliasType("MaxScale", Annotated[ArrayLike | Level, scale_kind(above=1)])
"""As `Scale`, above 1."""


class Track(NamedTuple):
    """The state of `feedback`: the last point of the path, both predictions there, and the posterior estimate.

    Args:
      log_q: The logarithm of q, `[B]`.
      number: The number of the step; -1 before the first step.
      level: The noise level of the point.
      x: The point, `[B, ...]`.
      cond: The conditional x0-prediction, `[B, ...]`.
      uncond: The unconditional x0-prediction, `[B, ...]`.
    """

    log_q: Array
    number: Array
    level: NoiseLevel
    x: Array
    cond: Array
    uncond: Array


@part()
def feedback(
    prior: Prior = 0.95,
    *,
    temperature: NonNegativeScale = 1.0,
    offset: Scale = 0.0,
    max_scale: MaxScale = 10.0,
    cond: Branch = "cond",
    uncond: Branch = "uncond",
) -> Guidance:
    """Feedback guidance: one scale per sample, from an estimate of how well its path fits the condition.

    `D = u + w d`, `w = q / (q - (1 - prior))`. After a step from x to x', with kernels N(mu_c, s^2) and N(mu_u, s^2),
    `log q <- log q - temperature (|x' - mu_c|^2 - |x' - mu_u|^2) / (2 s^2) + offset`.
    log q is clipped to at most 3, and from below so that w is at most `max_scale`.

    At temperature 1 and offset 0, q is the ratio p(x | y) / p(x) along the path of `ddpm`. Otherwise it is an estimate.

    Args:
      prior: The weight of p(x | y) in the mixture that the conditional model learned, in (0, 1]. The rest is p(x). 1 is the
        conditional model.
      temperature: The weight of each step in log q.
      offset: The constant that each step adds to log q. A negative number makes guidance grow with time.
      max_scale: The maximum w, above 1.
      cond: The branch to move towards.
      uncond: The branch to move away from.

    Raises:
      ValueError: If a parameter is neither `()` nor `[B]`, or out of range.

    Example:
      >>> sorted(gj.feedback(0.95).needs)
      ['cond', 'uncond']

    Reference: Koulischer et al. 2025, arXiv:2506.06085, algorithm 1.
    """

    def init(x: Array) -> Track:
        nothing, no_level = jnp.zeros_like(x), NoiseLevel(*[jnp.ones((), x.dtype)] * 3)
        return Track(jnp.zeros_like(x, shape=len(x)), jnp.full((), -1, jnp.int32), no_level, nothing, nothing, nothing)

    def update(d: Prediction, track: Track, context: Context) -> tuple[Prediction, Track]:
        number, c, u = context.step.number, context[cond], context[uncond]
        pi, tau, delta, top = (at(scale, context) for scale in (prior, temperature, offset, max_scale))
        before = expand(track.log_q, context.x)
        log_q = before - tau * _evidence(track, context) + delta
        # At prior 1, w is 1 for every q. The bound -80 keeps exp(-log_q) finite.
        lowest = jnp.maximum(jnp.log((1 - pi) * top / (top - 1)), -80)
        # Update log q only after a step: not at the first evaluation, and not at a corrector's evaluation.
        stepped = (track.number >= 0) & (number > track.number)
        log_q = jnp.where(stepped, jnp.clip(log_q, lowest, 3), before)
        w = 1 / (1 - (1 - pi) * jnp.exp(-log_q))
        level = NoiseLevel(**vars(context.step.level))
        here = Track(log_q.reshape(-1), number.astype(jnp.int32), level, context.x, c.x0, u.x0)
        track = jax.tree.map(lambda new, old: jnp.where(number != track.number, new, old), here, track)
        return d + (u + w * (c - u) - context.base), track

    return Guidance(frozenset((cond, uncond)), init, update, own_space="feedback")


def _evidence(track: Track, context: Context) -> Array:
    """`(|x' - mu_c|^2 - |x' - mu_u|^2) / (2 s^2)` at the current point x', by the kernel of `ddpm` from the last point."""
    x, level = context.x, context.step.level
    q = contraction(track.level, level)
    move, variance = level.alpha * (1 - q**2), level.sigma**2 * (1 - q**2)
    # The factor is q^2 alpha' / alpha, in a form that is finite at alpha = 0.
    mu_u = q * (level.sigma / track.level.sigma) * track.x + move * track.uncond
    shift = move * (track.cond - track.uncond)
    # |x' - mu_c|^2 - |x' - mu_u|^2 = |shift|^2 - 2 <x' - mu_u, shift>.
    return divide(inner(shift, shift) - 2 * inner(x - mu_u, shift), 2 * variance)
