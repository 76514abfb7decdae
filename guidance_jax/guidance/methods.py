"""Methods that are chains of parts, or that act on more than a contrast: one function each, beside its paper."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import ArrayLike

from guidance_jax.arrays import divide, expand, inner
from guidance_jax.checks.old import check_range
from guidance_jax.base import Context, Guidance, NoiseLevel, Prediction, Step
from guidance_jax.checks.old import check_guidance, check_scalar
from guidance_jax.guidance.algebra import chain, in_space, needed, only, own_space, relative_to, stateless
from guidance_jax.guidance.linear import cfg
from guidance_jax.guidance.shaping import amplify, clip_norm, momentum, project
from guidance_jax.noise import contraction
from guidance_jax.scales import Scale, at, at_level


def apg(
    scale: Scale,
    *,
    beta: Scale = -0.5,
    most: Scale = 15.0,
    eta: Scale = 0.0,
    cond: str = "cond",
    uncond: str = "uncond",
) -> Guidance:
    """Adaptive projected guidance: a difference with momentum, of bounded length, without its part along the prediction.

    `m <- d + beta m`, `d' = m min(1, most / |m|)`, `D = c + (scale - 1) (perp(d', c) + eta (d' - perp(d', c)))`.

    Args:
      scale: `()` or `[B]`, or a function of the level; 1 is the conditional model.
      beta: momentum, likewise; -0.75 to -0.5 in the paper.
      most: the length, likewise, in the units of x0; 2.5 to 15 in the paper.
      eta: the share of the parallel part, likewise; 0 in the paper. With beta 0, most infinite and eta 1 this is CFG.
      cond: the branch to go to.
      uncond: the branch to come from.

    Raises:
      ValueError: if a parameter is neither `()` nor `[B]`.

    Example:
      >>> denoise = denoiser(lambda x, t, c: 0 * x + c, predicts="x0")  # it says what it is told
      >>> two = branches(denoise, cond=jnp.array([[1.0, 0.0]]), uncond=jnp.array([[1.0, -1.0]]))
      >>> path, keys = levels(schedules.flow(), 4, spacings.trailing()), jax.random.split(jax.random.key(0), 1)
      >>> print(sample(keys, two, apg(4.0, beta=0.0, most=0.5), ddim(), path, (2,)))
      [[1.  1.5]]

    Reference: Sadat et al. 2024, arXiv:2410.02416, algorithm 1, with x0 as the prediction. diffusers adds scale times to u
    where this adds scale - 1 times to c.
    """

    def less_one(level: NoiseLevel) -> Array:
        given = at_level(scale, level, "apg's scale")
        check_range(given, "apg's scale")
        return jnp.asarray(given) - 1

    more = amplify(less_one)
    difference = cfg(2.0, cond=cond, uncond=uncond)
    return relative_to(cond, chain(difference, momentum(beta), clip_norm(most), project(eta), more))


def cfg_zero_star(
    scale: Scale, zero_steps: ArrayLike = 1, *, predicts: str = "velocity", cond: str = "cond", uncond: str = "uncond"
) -> Guidance:
    """CFG from the unconditional velocity as long as fits the conditional one best; none at all in the first steps.

    `a = <c, u> / |u|^2`, `D = a u + scale (c - a u)`; `D = 0` in the first `zero_steps` steps. c, u and D are velocities.

    Args:
      scale: `()` or `[B]`, or a function of the level; 1 is the conditional model.
      zero_steps: of the run, an integer `()`; their unconditional branch is not evaluated.
      predicts: the parameterisation that c, u and D are in.
      cond: the branch to go to.
      uncond: the branch to come from.

    Raises:
      ValueError: if scale is neither `()` nor `[B]`, or predicts is unknown.
      TypeError: if zero_steps is no integer.

    Example:
      >>> sorted(cfg_zero_star(4.0).needs)
      ['cond', 'uncond']

    Reference: Fan et al. 2025, arXiv:2503.18886, algorithm 1.
    """
    check_scalar(zero_steps, "cfg_zero_star's zero_steps")
    zeros = jnp.asarray(zero_steps)
    if not jnp.issubdtype(zeros.dtype, jnp.integer):
        raise TypeError(f"cfg_zero_star's zero_steps must be an integer, got {zero_steps}.")

    def update(prediction: Prediction, context: Context) -> Prediction:
        c, u = context.branches[cond].x0, context.branches[uncond].x0
        u = divide(inner(c, u), inner(u, u)) * u
        guided = u + at(scale, context, "cfg_zero_star's scale") * (c - u)
        guided = jnp.where(context.step.number < zeros, 0, guided)
        return prediction._replace(x0=prediction.x0 + (guided - context.base.x0))

    def wanted(state: Any, step: Step) -> dict[str, Any]:
        return {cond: True} | only(step.number >= zeros, {uncond: True})

    return in_space(predicts, stateless(update, (cond, uncond))._replace(wants=wanted))


def cfg_pp(scale: Scale, *, cond: str = "cond", uncond: str = "uncond") -> Guidance:
    """CFG++: interpolate x0, renoise with the unconditional eps.

    `x0 = u + scale (c - u)`, `eps = eps_u`.

    With `ddim` and `ddpm` as published. `dpmpp_2m` and `heun` take their second-order term from the unconditional model, whose
    ODE the method follows between its jumps; so does the authors' own 2M.

    Args:
      scale: in [0, 1], `()` or `[B]`, or a function of the level; 0 is the unconditional model. With DDIM it is `cfg(w)` with
        `w = scale / (1 - q)`, q the ratio of the step's two `sigma / alpha`.
      cond: the branch to go to.
      uncond: the branch to come from.

    Raises:
      ValueError: if scale is neither `()` nor `[B]`, or inside of `in_space`.

    Example:
      >>> denoise = denoiser(lambda x, t, c: 0 * x + c, predicts="x0")  # it says what it is told
      >>> two = branches(denoise, uncond=jnp.array([[0.0, 1.0]]), cond=jnp.array([[1.0, 1.0]]))
      >>> path, keys = levels(schedules.flow(), 4, spacings.trailing()), jax.random.split(jax.random.key(0), 1)
      >>> print(sample(keys, two, cfg_pp(0.6), ddim(), path, (2,)))
      [[0.6 1. ]]

    Reference: Chung et al. 2024, arXiv:2406.08070, algorithm 2.
    """

    def update(prediction: Prediction, context: Context) -> Prediction:
        own_space("cfg_pp", context)
        c, u, base = context.branches[cond], context.branches[uncond], context.base
        x0 = u.x0 + at(scale, context, "cfg_pp's scale") * (c.x0 - u.x0)
        return prediction._replace(x0=prediction.x0 + (x0 - base.x0), eps=prediction.eps + (u.eps - base.eps))

    return stateless(update, (cond, uncond))


def reg(guidance: Guidance) -> Guidance:
    """Rectified gradient guidance: a guidance whose change is weighted by how much the base's x0 answers to x.

    `change <- change (1 - sigma d(sum eps)/dx)`, elementwise; the same factor is `alpha d(sum x0)/dx`, one pullback of ones.

    Args:
      guidance: whose change is weighted, `cfg(scale)` in the paper.

    Raises:
      ValueError: inside of `in_space`.

    Example:
      >>> sorted(reg(cfg(3.0)).needs)
      ['cond', 'uncond']

    Reference: Gao et al. 2025, arXiv:2501.18865, equation 20.
    """

    check_guidance(guidance, "reg's guidance")

    def update(prediction: Prediction, state: Any, context: Context) -> tuple[Prediction, Any]:
        own_space("reg", context)
        assert context.pullback is not None
        guided, state = guidance.update(prediction, state, context)
        factor = expand(context.level.alpha, context.x) * context.pullback(jnp.ones_like(context.x))
        x0 = prediction.x0 + factor * (guided.x0 - prediction.x0)
        return prediction._replace(x0=x0, eps=prediction.eps + factor * (guided.eps - prediction.eps)), state

    return guidance._replace(update=update, pullback=True)


class Track(NamedTuple):
    """Where the path was last seen, what both branches said there, and the posterior of the condition, `log q`, `[B]`."""

    log_q: Array
    number: Array
    level: NoiseLevel
    x: Array
    cond: Array
    uncond: Array


def feedback(
    prior: Scale = 0.95,
    *,
    temperature: Scale = 1.0,
    offset: Scale = 0.0,
    most: Scale = 10.0,
    cond: str = "cond",
    uncond: str = "uncond",
) -> Guidance:
    """Feedback guidance: a scale that each sample earns by what its own path says of the condition.

    `D = u + w d`, `w = q / (q - (1 - prior))`, and after a step from x to x', whose kernels are N(mu_c, s^2) and N(mu_u, s^2),
    `log q <- log q - temperature (|x' - mu_c|^2 - |x' - mu_u|^2) / (2 s^2) + offset`,
    kept below 3 and where w is at most `most`.

    At temperature 1 and offset 0, q is the ratio p(x | y) / p(x) along the path of `ddpm`; elsewhere it is an estimate.

    Args:
      prior: pi, the share of p(x | y) in what the conditional model learnt, the rest being p(x), `()` or `[B]`; 1 is the model.
      temperature: `()` or `[B]`.
      offset: `()` or `[B]`, in log q a step; negative lets guidance grow with time.
      most: the largest scale, above 1, `()` or `[B]`.
      cond: the branch to go to.
      uncond: the branch to come from.

    Raises:
      ValueError: if a parameter is neither `()` nor `[B]`, or inside of `in_space`.

    Example:
      >>> sorted(feedback(0.95).needs)
      ['cond', 'uncond']

    Reference: Koulischer et al. 2025, arXiv:2506.06085, algorithm 1.
    """

    def init(x: Array) -> Track:
        nothing, no_level = jnp.zeros_like(x), NoiseLevel(*[jnp.ones((), x.dtype)] * 3)
        return Track(jnp.zeros_like(x, shape=len(x)), jnp.full((), -1, jnp.int32), no_level, nothing, nothing, nothing)

    def update(prediction: Prediction, track: Track, context: Context) -> tuple[Prediction, Track]:
        own_space("feedback", context)
        x, level = context.x, context.step.level
        c, u = context.branches[cond].x0, context.branches[uncond].x0
        pi = at(prior, context, "feedback's prior", 0, 1, above=0)
        tau = at(temperature, context, "feedback's temperature", 0)
        delta, top = at(offset, context, "feedback's offset"), at(most, context, "feedback's most", above=1)
        q = contraction(track.level, level)
        move = level.alpha * (1 - q**2)
        variance = level.sigma**2 * (1 - q**2)
        # q^2 alpha' / alpha, from alpha = 0 too.
        mean_u = q * (level.sigma / track.level.sigma) * track.x + move * track.uncond
        shift = move * (track.cond - track.uncond)
        # |x' - mu_c|^2 - |x' - mu_u|^2 = |shift|^2 - 2 <x' - mu_u, shift>.
        gap = inner(shift, shift) - 2 * inner(x - mean_u, shift)
        log_q = expand(track.log_q, x) - tau * divide(gap, 2 * variance) + delta
        # At prior 1 w is 1 for every q, and exp(-log_q) has to stay finite.
        least = jnp.maximum(jnp.log((1 - pi) * top / (top - 1)), -80)
        # Only where a step has gone by: neither at the first evaluation nor at a corrector's.
        stepped = (track.number >= 0) & (context.step.number > track.number)
        log_q = jnp.where(stepped, jnp.clip(log_q, least, 3), expand(track.log_q, x))
        w = 1 / (1 - (1 - pi) * jnp.exp(-log_q))
        guided = u + w * (c - u)
        x0 = prediction.x0 + (guided - context.base.x0)
        eps = context.branches[uncond].eps + w * (context.branches[cond].eps - context.branches[uncond].eps)
        here = Track(log_q.reshape(-1), context.step.number.astype(jnp.int32), level, x, c, u)
        new = context.step.number != track.number
        remembered = Track(*(_pick(new, a, b) for a, b in zip(here, track, strict=True)))
        return prediction._replace(x0=x0, eps=prediction.eps + (eps - context.base.eps)), remembered

    return Guidance(needed(cond, uncond), init, update)


def _pick(new: Array, a: Any, b: Any) -> Any:
    return (
        NoiseLevel(*(jnp.where(new, x, y) for x, y in zip(a, b, strict=True))) if isinstance(a, tuple) else jnp.where(new, a, b)
    )
