"""Guidance by the difference of two branches, weighted or projected by what they are.

`c, u` in the formulae are the x0 of the branches `cond` and `uncond`, `d = c - u`; sums are over one sample. Every function
here is a source: what it adds to a prediction is its formula less the base. Not the same in every parameterisation: `in_space`.
"""

from collections.abc import Callable, Mapping

import jax.numpy as jnp
from jax import Array

from guidance_jax.arrays import divide, inner, norm, sqrt
from guidance_jax.checks.old import check_range
from guidance_jax.base import Context, Guidance, Prediction
from guidance_jax.guidance.algebra import move, stateless
from guidance_jax.checks.old import check_kind
from guidance_jax.scales import Scale, at, at_level


def perp_neg(scale: Scale, negatives: Mapping[str, Scale], *, cond: str = "cond", uncond: str = "uncond") -> Guidance:
    """Negative conditions that take nothing from the positive one: only what is perpendicular to it is subtracted.

    `D = u + scale (d - sum_i w_i perp(n_i - u, d))`, `perp(a, d) = a - <a, d> / |d|^2 d`.

    Where d is no more than the rounding of c it has no direction, and nothing is projected away.

    Args:
      scale: `()` or `[B]`, or a function of the level; 1 without negatives is the conditional model.
      negatives: the weight of each negative branch, positive, `()` or `[B]`, or a function of the level.
      cond: the positive branch.
      uncond: the branch to come from.

    Raises:
      ValueError: if scale or a weight is neither `()` nor `[B]`.

    Example:
      >>> denoise = denoiser(lambda x, t, c: 0 * x + c, predicts="x0")  # it says what it is told
      >>> c, n, u = jnp.array([[[1.0, 0.0]], [[1.0, 1.0]], [[0.0, 0.0]]])
      >>> three = branches(denoise, cond=c, negative=n, uncond=u)
      >>> path, keys = levels(schedules.flow(), 4, spacings.trailing()), jax.random.split(jax.random.key(0), 1)
      >>> print(sample(keys, three, perp_neg(7.5, {"negative": 1.0}), ddim(), path, (2,)))
      [[ 7.5 -7.5]]

    Reference: Armandpour et al. 2023, arXiv:2304.04968, equation 6.
    """
    check_kind(negatives, Mapping, "perp_neg's negatives", '{"negative": 1.0} is one.')

    def x0(context: Context, c: Array, u: Array) -> Array:
        d = c - u
        known = inner(d, d) > (64 * jnp.finfo(d.dtype).eps) ** 2 * inner(c, c)
        total = d
        for name, weight in negatives.items():
            a = context.branches[name].x0 - u
            along = jnp.where(known, divide(inner(a, d), jnp.where(known, inner(d, d), 1)), 0) * d
            total = total - at(weight, context, f"perp_neg's weight of {name!r}") * (a - along)
        return u + at(scale, context, "perp_neg's scale") * total

    return _of_x0(x0, cond, uncond, *negatives)


def tcfg(scale: Scale, *, cond: str = "cond", uncond: str = "uncond") -> Guidance:
    """Tangential damping: CFG from the unconditional prediction's part along what both predictions share.

    `D = u' + scale (c - u')`, `u' = <u, v> v`, v the first right-singular vector of the two rows `[c; u]`.

    With `(a, b)` the first left-singular vector, of the Gram matrix of c and u, `u' = b (a c + b u)`.

    Args:
      scale: `()` or `[B]`, or a function of the level; 1 is the conditional model.
      cond: the branch to go to.
      uncond: the branch to come from.

    Raises:
      ValueError: if scale is neither `()` nor `[B]`.

    Example:
      >>> sorted(tcfg(3.0).needs)
      ['cond', 'uncond']

    Reference: Kwon et al. 2025, arXiv:2503.18137, algorithm 1, which acts on the network's own output: `in_space`.
    """

    def x0(context: Context, c: Array, u: Array) -> Array:
        half, cross = (inner(c, c) - inner(u, u)) / 2, inner(c, u)
        radius = sqrt(half**2 + cross**2)
        bb, ab = (1 - divide(half, radius)) / 2, divide(cross, radius) / 2
        tangent = ab * c + bb * u
        return tangent + at(scale, context, "tcfg's scale") * (c - tangent)

    return _of_x0(x0, cond, uncond)


def mambo_g(scale: Scale, damping: Scale = 8.0, *, cond: str = "cond", uncond: str = "uncond") -> Guidance:
    """Magnitude-aware guidance: CFG whose scale is damped where the difference is large beside the prediction.

    `D = u + w d`, `w = 1 + (scale - 1) exp(-damping |d| / |u|)`.

    Args:
      scale: `()` or `[B]`, or a function of the level; 1 is the conditional model, 10 in the paper.
      damping: likewise; 0 is CFG.
      cond: the branch to go to.
      uncond: the branch to come from.

    Raises:
      ValueError: if scale or damping is neither `()` nor `[B]`.

    Example:
      >>> sorted(mambo_g(10.0).needs)
      ['cond', 'uncond']

    Reference: Zhu et al. 2025, arXiv:2508.03442, which acts on the network's own output: `in_space`.
    """

    def x0(context: Context, c: Array, u: Array) -> Array:
        w, a = at(scale, context, "mambo_g's scale"), at(damping, context, "mambo_g's damping")
        return u + (1 + (w - 1) * jnp.exp(-a * divide(norm(c - u), norm(u)))) * (c - u)

    return _of_x0(x0, cond, uncond)


def power_law(scale: Scale, power: Scale = 0.9, *, cond: str = "cond", uncond: str = "uncond") -> Guidance:
    """Non-linear guidance: strong where the branches differ much, and gone where they agree.

    `D = c + (scale - 1) |d|^power d`.

    Args:
      scale: `()` or `[B]`, or a function of the level; 1 is the conditional model.
      power: above -1, likewise; 0 is CFG.
      cond: the branch to go to.
      uncond: the branch to come from.

    Raises:
      ValueError: if scale or power is neither `()` nor `[B]`.

    Example:
      >>> sorted(power_law(2.0).needs)
      ['cond', 'uncond']

    Reference: Pavasovic et al. 2025, arXiv:2502.07849, section 5, which acts on the score: `in_space`.
    """

    def x0(context: Context, c: Array, u: Array) -> Array:
        w, a = at(scale, context, "power_law's scale"), at(power, context, "power_law's power", above=-1)
        return c + (w - 1) * _power(norm(c - u), a) * (c - u)

    return _of_x0(x0, cond, uncond)


def beta_cfg(scale: Scale, power: Scale = 1.0, *, cond: str = "cond", uncond: str = "uncond") -> Guidance:
    """CFG by a difference of normalised length; its scale is meant to follow `scales.beta`'s curve.

    `D = u + scale d / |d|^power`.

    Args:
      scale: `()` or `[B]`, or a function of the level, in the units of x0 at power 1.
      power: likewise; 0 is CFG, 1 leaves the direction alone.
      cond: the branch to go to.
      uncond: the branch to come from.

    Raises:
      ValueError: if scale or power is neither `()` nor `[B]`.

    Example:
      >>> guidance = in_space("eps", beta_cfg(lambda level: 7.5 * level.t * (1 - level.t)))
      >>> sorted(guidance.needs)
      ['cond', 'uncond']

    Reference: Malarz et al. 2025, arXiv:2502.10574, which acts on eps: `in_space`.
    """

    def x0(context: Context, c: Array, u: Array) -> Array:
        w, gamma = at(scale, context, "beta_cfg's scale"), at(power, context, "beta_cfg's power")
        return u + w * _power(norm(c - u), -gamma) * (c - u)

    return _of_x0(x0, cond, uncond)


def recfg(scale: Scale, ratio: Scale, *, cond: str = "cond", uncond: str = "uncond") -> Guidance:
    """Rectified CFG: coefficients that need not sum to one, so that guidance does not shift the mean.

    `D = scale c + (1 - scale) ratio u`.

    Args:
      scale: `()` or `[B]`, or a function of the level; 1 is the conditional model.
      ratio: `E[c u] / E[u^2]` over the data of a condition at the level; likewise, or shaped as x or one sample. 1 is CFG.
      cond: the branch to go to.
      uncond: the branch to come from.

    Raises:
      ValueError: if scale is neither `()` nor `[B]`, or ratio is shaped neither so nor as x.

    Example:
      >>> guidance = in_space("eps", recfg(3.0, ratio=lambda level: 1 - 0.01 * level.sigma))
      >>> sorted(guidance.needs)
      ['cond', 'uncond']

    Reference: Xia et al. 2024, arXiv:2410.18737, equation 15, which acts on eps: `in_space`.
    """

    def x0(context: Context, c: Array, u: Array) -> Array:
        w = at(scale, context, "recfg's scale")
        told = at_level(ratio, context.level, "recfg's ratio")
        check_range(told, "recfg's ratio")
        given = jnp.asarray(told, u.dtype)
        if given.shape not in ((), u.shape[:1]) and given.shape in (u.shape, u.shape[1:]):
            return w * c + (1 - w) * given.reshape((-1, *u.shape[1:])) * u
        return w * c + (1 - w) * at(given, context, "recfg's ratio") * u

    return _of_x0(x0, cond, uncond)


def _power(length: Array, power: Array) -> Array:
    """`length^power`, and 0 where there is no length; so are its gradients."""
    some = length > 0
    return jnp.where(some, jnp.where(some, length, 1) ** power, 0)


def _of_x0(formula: Callable[[Context, Array, Array], Array], cond: str, uncond: str, *more: str) -> Guidance:
    """A source from its formula in the x0 of two branches; eps follows."""

    def update(prediction: Prediction, context: Context) -> Prediction:
        guided = formula(context, context.branches[cond].x0, context.branches[uncond].x0)
        return move(prediction, prediction.x0 + (guided - context.base.x0), context.level)

    return stateless(update, (cond, uncond, *more))
