"""Methods that are chains of parts, or that act on more than a contrast: one function each, beside its paper."""

from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import ArrayLike
from typing_extensions import TypeAliasType

from guidance_jax.arrays import divide, expand, inner
from guidance_jax.base import Context, Guidance, NoiseLevel, Prediction, Step
from guidance_jax.checks.door import part
from guidance_jax.checks.kinds import BoundScale, Branch, Integer, Level, NonNegativeScale, Predicts, Scale, scale_kind
from guidance_jax.guidance.algebra import chain, in_space, only, relative_to
from guidance_jax.guidance.formula import source, stateless
from guidance_jax.guidance.linear import cfg
from guidance_jax.guidance.shaping import amplify, clip_norm, momentum, project
from guidance_jax.noise import contraction
from guidance_jax.scales import at, at_level

Prior = TypeAliasType("Prior", Annotated[ArrayLike | Level, scale_kind(low=0, high=1, above=0)])
"""As `Scale`, in (0, 1]."""
MaxScale = TypeAliasType("MaxScale", Annotated[ArrayLike | Level, scale_kind(above=1)])
"""As `Scale`, above 1."""


@part()
def apg(
    scale: Scale,
    *,
    beta: Scale = -0.5,
    max_norm: BoundScale = 15.0,
    eta: Scale = 0.0,
    cond: Branch = "cond",
    uncond: Branch = "uncond",
) -> Guidance:
    """Adaptive projected guidance: a difference with momentum, of bounded length, without its part along the prediction.

    `m <- d + beta m`, `d' = m min(1, max_norm / |m|)`, `D = c + (scale - 1) (perp(d', c) + eta (d' - perp(d', c)))`

    Here `d = c - u`, and `perp(d', c)` is the part of d' that is perpendicular to c. With beta 0, max_norm infinite and eta 1
    this is CFG.

    Args:
      scale: 1 is the conditional model.
      beta: The momentum. The paper uses -0.75 to -0.5.
      max_norm: The greatest length, in the units of x0. The paper uses 2.5 to 15.
      eta: The fraction of the parallel part that is kept. The paper uses 0.
      cond: The branch to move towards.
      uncond: The branch to move away from.

    Raises:
      ValueError: If a parameter is neither `()` nor `[B]`, or out of range.

    Example:
      >>> denoise = gj.denoiser(lambda x, t, c: 0 * x + c, predicts="x0")  # it predicts its condition
      >>> two = gj.branches(denoise, cond=jnp.array([[1.0, 0.0]]), uncond=jnp.array([[1.0, -1.0]]))
      >>> path, keys = gj.levels(gj.schedules.flow(), 4, gj.spacings.trailing()), jax.random.split(jax.random.key(0), 1)
      >>> print(gj.sample(keys, two, gj.apg(4.0, beta=0.0, max_norm=0.5), gj.ddim(), path, (2,)))
      [[1.  1.5]]

    Reference: Sadat et al. 2024, arXiv:2410.02416, algorithm 1, with x0 as the prediction. diffusers adds scale times to u
    where this adds scale - 1 times to c.
    """
    difference = cfg(2.0, cond=cond, uncond=uncond)
    more = amplify(lambda level: jnp.asarray(at_level(scale, level)) - 1)
    return relative_to(cond, chain(difference, momentum(beta), clip_norm(max_norm), project(eta), more))


@part()
def cfg_zero_star(
    scale: Scale,
    zero_steps: Integer = 1,
    *,
    predicts: Predicts = "velocity",
    cond: Branch = "cond",
    uncond: Branch = "uncond",
) -> Guidance:
    """CFG away from the multiple of the unconditional velocity that is nearest to the conditional one; 0 in the first steps.

    `s = <c, u> / |u|^2`, `D = s u + scale (c - s u)`; `D = 0` in the first `zero_steps` steps. c, u and D are velocities.

    Args:
      scale: 1 is the conditional model.
      zero_steps: The number of steps of the run in which D is 0; the unconditional branch is not evaluated there.
      predicts: The parameterisation that c, u and D are in.
      cond: The branch to move towards.
      uncond: The branch to move away from.

    Raises:
      ValueError: If scale is neither `()` nor `[B]`, or not finite, or predicts is unknown.
      TypeError: If zero_steps is not an integer.

    Example:
      >>> sorted(gj.cfg_zero_star(4.0).needs)
      ['cond', 'uncond']

    Reference: Fan et al. 2025, arXiv:2503.18886, algorithm 1.
    """
    zeros = jnp.asarray(zero_steps, jnp.int32)

    def update(d: Prediction, context: Context) -> Array:
        c, u, w = context[cond].x0, context[uncond].x0, at(scale, context)
        s = divide(inner(c, u), inner(u, u))
        guided = s * u + w * (c - s * u)
        guided = jnp.where(context.step.number < zeros, 0, guided)
        return d.x0 + (guided - context.base.x0)

    def wanted(state: Any, step: Step) -> dict[str, Any]:
        return {cond: True} | only(step.number >= zeros, {uncond: True})

    return in_space(predicts, stateless(update, (cond, uncond)).replace(wants=wanted))


@part()
def cfg_pp(scale: Scale, *, cond: Branch = "cond", uncond: Branch = "uncond") -> Guidance:
    """CFG++: interpolate x0, renoise with the unconditional eps.

    `x0 = u + scale (c - u)`, `eps = eps_u`

    With `ddim` and `ddpm` as published. `dpmpp_2m` and `heun` take their second-order term from the unconditional model, whose
    ODE the method follows between its jumps; so does the authors' own 2M.

    Args:
      scale: In [0, 1]; 0 is the unconditional model. With DDIM it is `cfg(w)` with `w = scale / (1 - q)`, q the ratio of the
        step's two `sigma / alpha`.
      cond: The branch to move towards.
      uncond: The branch to move away from.

    Raises:
      ValueError: If scale is neither `()` nor `[B]`, or not finite.

    Example:
      >>> denoise = gj.denoiser(lambda x, t, c: 0 * x + c, predicts="x0")  # it predicts its condition
      >>> two = gj.branches(denoise, uncond=jnp.array([[0.0, 1.0]]), cond=jnp.array([[1.0, 1.0]]))
      >>> path, keys = gj.levels(gj.schedules.flow(), 4, gj.spacings.trailing()), jax.random.split(jax.random.key(0), 1)
      >>> print(gj.sample(keys, two, gj.cfg_pp(0.6), gj.ddim(), path, (2,)))
      [[0.6 1. ]]

    Reference: Chung et al. 2024, arXiv:2406.08070, algorithm 2.
    """
    renoised = source(lambda c, u, w: (u + w * (c - u)).replace(eps=u.eps), cond, uncond, w=scale)
    return renoised.replace(own_space="cfg_pp")


@part()
def reg(guidance: Guidance) -> Guidance:
    """Rectified gradient guidance: a guidance whose change is weighted by how much the base's x0 answers to x.

    `change <- change (1 - sigma d(sum eps)/dx)`, elementwise; the same factor is `alpha d(sum x0)/dx`, one pullback of ones.

    Args:
      guidance: Its change is weighted; `cfg(scale)` in the paper.

    Raises:
      TypeError: If guidance is not a guidance.

    Example:
      >>> sorted(gj.reg(gj.cfg(3.0)).needs)
      ['cond', 'uncond']

    Reference: Gao et al. 2025, arXiv:2501.18865, equation 20.
    """

    def update(d: Prediction, state: Any, context: Context) -> tuple[Prediction, Any]:
        guided, state = guidance.update(d, state, context)
        factor = expand(context.level.alpha, context.x) * context.pullback(jnp.ones_like(context.x))
        return d + factor * (guided - d), state

    return guidance.replace(update=update, derivatives=guidance.derivatives | {None}, own_space="reg")


class Track(NamedTuple):
    """Where the path was last seen, what both branches predicted there, and the posterior of the condition."""

    log_q: Array
    """`[B]`."""
    number: Array
    """Of the step; -1 before the first."""
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
    """Feedback guidance: a scale for each sample, from what its own path says of the condition.

    `D = u + w d`, `w = q / (q - (1 - prior))`, and after a step from x to x', whose kernels are N(mu_c, s^2) and N(mu_u, s^2),
    `log q <- log q - temperature (|x' - mu_c|^2 - |x' - mu_u|^2) / (2 s^2) + offset`,
    kept below 3 and where w is at most `max_scale`.

    At temperature 1 and offset 0, q is the ratio p(x | y) / p(x) along the path of `ddpm`; elsewhere it is an estimate.

    Args:
      prior: The share of p(x | y) in what the conditional model learnt, the rest being p(x), in (0, 1]; 1 is the conditional
        model.
      temperature: How much a step counts.
      offset: What each step adds to log q; a negative number lets guidance grow with time.
      max_scale: The largest w, above 1.
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
        # At prior 1 w is 1 for every q, and exp(-log_q) has to stay finite.
        lowest = jnp.maximum(jnp.log((1 - pi) * top / (top - 1)), -80)
        # Only where a step has gone by: neither at the first evaluation nor at a corrector's.
        stepped = (track.number >= 0) & (number > track.number)
        log_q = jnp.where(stepped, jnp.clip(log_q, lowest, 3), before)
        w = 1 / (1 - (1 - pi) * jnp.exp(-log_q))
        level = NoiseLevel(**vars(context.step.level))
        here = Track(log_q.reshape(-1), number.astype(jnp.int32), level, context.x, c.x0, u.x0)
        track = jax.tree.map(lambda new, old: jnp.where(number != track.number, new, old), here, track)
        return d + (u + w * (c - u) - context.base), track

    return Guidance(frozenset((cond, uncond)), init, update, own_space="feedback")


def _evidence(track: Track, context: Context) -> Array:
    """`(|x' - mu_c|^2 - |x' - mu_u|^2) / (2 s^2)`, x' where the path is now, by the kernel of `ddpm` from where it was."""
    x, level = context.x, context.step.level
    q = contraction(track.level, level)
    move, variance = level.alpha * (1 - q**2), level.sigma**2 * (1 - q**2)
    # q^2 alpha' / alpha, from alpha = 0 too.
    mu_u = q * (level.sigma / track.level.sigma) * track.x + move * track.uncond
    shift = move * (track.cond - track.uncond)
    # |x' - mu_c|^2 - |x' - mu_u|^2 = |shift|^2 - 2 <x' - mu_u, shift>.
    return divide(inner(shift, shift) - 2 * inner(x - mu_u, shift), 2 * variance)
