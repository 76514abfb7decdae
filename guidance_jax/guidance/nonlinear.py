"""Guidance by nonlinear functions of two or more branches.

In the formulae, `c` and `u` are the x0 of the branches `cond` and `uncond`, and `d = c - u`. Sums are over one sample. Every
function here is a source: it adds its formula minus the base to a prediction. The formulae depend on the parameterisation:
`in_space` selects it.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import jax.numpy as jnp
from jax import Array
from jaxtyping import ArrayLike
from typing_extensions import TypeAliasType

from guidance_jax.arrays import divide, expand, inner, norm, sqrt
from guidance_jax.base import Context, Prediction, Step
from guidance_jax.checks.door import part
from guidance_jax.checks.kinds import Branch, ElementScale, Integer, Level, Predicts, Scale, scale_kind
from guidance_jax.checks.outcomes import check_elements
from guidance_jax.guidance.algebra import in_space, only
from guidance_jax.guidance.formula import source, stateless
from guidance_jax.guidance.scales import at, at_level
from guidance_jax.interfaces import Guidance

Power = TypeAliasType("Power", Annotated[ArrayLike | Level, scale_kind(above=-1)])
"""As `Scale`, above -1."""


@part()
def perp_neg(scale: Scale, negatives: Mapping[Branch, Scale], *, cond: Branch = "cond", uncond: Branch = "uncond") -> Guidance:
    """CFG with negative conditions: subtract only their components perpendicular to the positive direction.

    `D = u + scale (d - sum_i w_i perp(n_i - u, d))`, `perp(a, d) = a - <a, d> / |d|^2 d`

    If d is zero up to the rounding of c, it has no direction, and `perp(a, d) = a`.

    Args:
      scale: 1 without negatives is the conditional model.
      negatives: The weight w_i of each negative branch, by the name of the branch. Weights are positive.
      cond: The positive branch.
      uncond: The branch to move away from.

    Raises:
      ValueError: If scale or a weight is neither `()` nor `[B]`, or not finite.

    Example:
      >>> denoise = gj.denoiser(lambda x, t, c: 0 * x + c, predicts="x0")  # predicts its condition
      >>> c, n, u = jnp.array([[[1.0, 0.0]], [[1.0, 1.0]], [[0.0, 0.0]]])
      >>> three = gj.branches(denoise, cond=c, negative=n, uncond=u)
      >>> path = gj.levels(gj.schedules.flow(), 4, gj.spacings.trailing())
      >>> keys = jax.random.split(jax.random.key(0), 1)
      >>> print(gj.sample(keys, three, gj.perp_neg(7.5, {"negative": 1.0}), gj.ddim(), path, (2,)))
      [[ 7.5 -7.5]]

    Reference: Armandpour et al. 2023, arXiv:2304.04968, equation 6.
    """

    def update(prediction: Prediction, context: Context) -> Array:
        c, u = context[cond].x0, context[uncond].x0
        total = d = c - u
        for name, weight in negatives.items():
            total = total - at(weight, context) * _perp(context[name].x0 - u, d, c)
        return prediction.x0 + (u + at(scale, context) * total - context.base.x0)

    return stateless(update, (cond, uncond, *negatives))


@part()
def tcfg(scale: Scale, *, cond: Branch = "cond", uncond: Branch = "uncond") -> Guidance:
    """Tangential damping: CFG with the unconditional prediction projected onto the main direction of both predictions.

    `D = u' + scale (c - u')`, `u' = <u, v> v`, where v is the first right-singular vector of the two rows `[c; u]`.

    It is computed as `u' = b (a c + b u)`, where `(a, b)` is the first eigenvector of the Gram matrix of c and u.

    Args:
      scale: 1 is the conditional model.
      cond: The branch to move towards.
      uncond: The branch to move away from.

    Raises:
      ValueError: If scale is neither `()` nor `[B]`, or not finite.

    Example:
      >>> sorted(gj.tcfg(3.0).needs)
      ['cond', 'uncond']

    Reference: Kwon et al. 2025, arXiv:2503.18137, algorithm 1. The paper acts on the output of the network: `in_space`.
    """

    def formula(c: Array, u: Array, w: Array) -> Array:
        half, cross = (inner(c, c) - inner(u, u)) / 2, inner(c, u)
        radius = sqrt(half**2 + cross**2)
        bb, ab = (1 - divide(half, radius)) / 2, divide(cross, radius) / 2
        tangent = ab * c + bb * u
        return tangent + w * (c - tangent)

    return _source(formula, cond, uncond, w=scale)


@part()
def mambo_g(scale: Scale, damping: Scale = 8.0, *, cond: Branch = "cond", uncond: Branch = "uncond") -> Guidance:
    """Magnitude-aware guidance: CFG whose scale decreases where the difference is large relative to the prediction.

    `D = u + w d`, `w = 1 + (scale - 1) exp(-damping |d| / |u|)`

    Args:
      scale: 1 is the conditional model. The paper uses 10.
      damping: The rate of the decrease. 0 is CFG.
      cond: The branch to move towards.
      uncond: The branch to move away from.

    Raises:
      ValueError: If scale or damping is neither `()` nor `[B]`, or not finite.

    Example:
      >>> sorted(gj.mambo_g(10.0).needs)
      ['cond', 'uncond']

    Reference: Zhu et al. 2025, arXiv:2508.03442. The paper acts on the output of the network: `in_space`.
    """

    def formula(c: Array, u: Array, w: Array, a: Array) -> Array:
        w = 1 + (w - 1) * jnp.exp(-a * divide(norm(c - u), norm(u)))
        return u + w * (c - u)

    return _source(formula, cond, uncond, w=scale, a=damping)


@part()
def power_law(scale: Scale, power: Power = 0.9, *, cond: Branch = "cond", uncond: Branch = "uncond") -> Guidance:
    """Power-law guidance: a scale that grows with the difference between the branches and vanishes where they agree.

    `D = c + (scale - 1) |d|^power d`

    Args:
      scale: 1 is the conditional model.
      power: The exponent, above -1. 0 is CFG.
      cond: The branch to move towards.
      uncond: The branch to move away from.

    Raises:
      ValueError: If scale or power is neither `()` nor `[B]`, or out of range.

    Example:
      >>> sorted(gj.power_law(2.0).needs)
      ['cond', 'uncond']

    Reference: Pavasovic et al. 2025, arXiv:2502.07849, section 5. The paper acts on the score: `in_space`.
    """
    return _source(lambda c, u, w, a: c + (w - 1) * _power(norm(c - u), a) * (c - u), cond, uncond, w=scale, a=power)


@part()
def beta_cfg(scale: Scale, power: Scale = 1.0, *, cond: Branch = "cond", uncond: Branch = "uncond") -> Guidance:
    """CFG with a normalised difference. Its scale is meant to follow the curve of `scales.beta`.

    `D = u + scale d / |d|^power`

    Args:
      scale: The scale; at power 1 it has the units of x0.
      power: 0 is CFG. 1 keeps only the direction of d.
      cond: The branch to move towards.
      uncond: The branch to move away from.

    Raises:
      ValueError: If scale or power is neither `()` nor `[B]`, or not finite.

    Example:
      >>> guidance = gj.in_space("eps", gj.beta_cfg(lambda level: 7.5 * level.t * (1 - level.t)))
      >>> sorted(guidance.needs)
      ['cond', 'uncond']

    Reference: Malarz et al. 2025, arXiv:2502.10574. The paper acts on eps: `in_space`.
    """
    return _source(lambda c, u, w, gamma: u + w * _power(norm(c - u), -gamma) * (c - u), cond, uncond, w=scale, gamma=power)


@part()
def recfg(scale: Scale, ratio: ElementScale, *, cond: Branch = "cond", uncond: Branch = "uncond") -> Guidance:
    """Rectified CFG: the coefficients need not sum to one, so that guidance does not shift the mean.

    `D = scale c + (1 - scale) ratio u`

    Args:
      scale: 1 is the conditional model.
      ratio: `E[c u] / E[u^2]` at the noise level, over the data of a condition. 1 is CFG.
      cond: The branch to move towards.
      uncond: The branch to move away from.

    Raises:
      ValueError: If scale is neither `()` nor `[B]`, ratio is neither of these nor shaped as x, or a value is not finite.

    Example:
      >>> guidance = gj.in_space("eps", gj.recfg(3.0, ratio=lambda level: 1 - 0.01 * level.sigma))
      >>> sorted(guidance.needs)
      ['cond', 'uncond']

    Reference: Xia et al. 2024, arXiv:2410.18737, equation 15. The paper acts on eps: `in_space`.
    """

    def update(prediction: Prediction, context: Context) -> Array:
        c, u = context[cond].x0, context[uncond].x0
        w, r = at(scale, context), _elementwise(ratio, context)
        return prediction.x0 + (w * c + (1 - w) * r * u - context.base.x0)

    return stateless(update, (cond, uncond))


def _source(formula: Callable[..., Array], *branches: str, **scales: Scale) -> Guidance:
    """A source from its formula, a function of the x0 of its branches and of the scales, by name."""
    return source(lambda *given, **weights: formula(*(p.x0 for p in given), **weights), *branches, **scales)


def _elementwise(ratio: ElementScale, context: Context) -> Array:
    """A ratio at the level of x, broadcastable: one number, one per sample, or one per element of a sample or of x."""
    value = at_level(ratio, context.level)
    check_elements(value, context.x, "recfg: ratio")
    value = jnp.asarray(value, context.x.dtype)
    return expand(value, context.x) if value.shape == context.x.shape[:1] else jnp.broadcast_to(value, context.x.shape)


def _perp(a: Array, d: Array, c: Array) -> Array:
    """The component of a perpendicular to d; a itself where d is zero up to the rounding of c."""
    squared = inner(d, d)
    known = squared > (64 * jnp.finfo(d.dtype).eps) ** 2 * inner(c, c)
    return a - divide(inner(a, d), jnp.where(known, squared, 0)) * d


def _power(length: Array, power: Array) -> Array:
    """`length^power`, and 0 where the length is 0. Its gradients are 0 there too."""
    some = length > 0
    return jnp.where(some, jnp.where(some, length, 1) ** power, 0)


@part()
def cfg_zero_star(
    scale: Scale,
    zero_steps: Integer = 1,
    *,
    predicts: Predicts = "velocity",
    cond: Branch = "cond",
    uncond: Branch = "uncond",
) -> Guidance:
    """CFG-Zero*: CFG with an optimally scaled unconditional velocity, and a zero velocity in the first steps.

    `s = <c, u> / |u|^2`, `D = s u + scale (c - s u)`, and `D = 0` in the first `zero_steps` steps. c, u and D are velocities.
    The factor s minimises `|c - s u|`.

    Args:
      scale: 1 is the conditional model.
      zero_steps: The number of first steps in which D is 0. The unconditional branch is not evaluated in them.
      predicts: The parameterisation of c, u and D.
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
