"""What particles sample: `prod_i p_i(x)^a_i exp(log_reward(x))` at every level, the p_i being what the branches predict.

A run guided by `sum_i a_i score_i` does not sample it. Here are the targets, that drift, and the weights that are missing.
"""

import dataclasses
import functools
import math
import operator
from collections.abc import Mapping
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import ArrayLike
from typing_extensions import TypeAliasType

from guidance_jax.arrays import at_least_float32, divide
from guidance_jax.base import Context, Kernel, NoiseLevel, Prediction, Scalar
from guidance_jax.checks.door import CLASSES, also, door, part
from guidance_jax.checks.kinds import Branch, LogReward, class_kind
from guidance_jax.checks.numbers import number
from guidance_jax.checks.particles import check_draws, check_exponents
from guidance_jax.checks.traced import concrete
from guidance_jax.guidance.formula import stateless
from guidance_jax.interfaces import Guidance
from guidance_jax.noise import START, contraction, fold, normal
from guidance_jax.programs.parts import Part

__all__ = ["LogReward", "Target", "annealed", "drift", "product", "rewarded", "tilted"]

_ONE = "it is one number for all levels, of one density; feynman_kac takes low and high, to guide at some levels alone."
Exponent = TypeAliasType("Exponent", Annotated[ArrayLike, number(hint=_ONE)])
"""The exponent of a density: one number of either sign, and no function of the level."""
InverseTemperature = TypeAliasType("InverseTemperature", Annotated[ArrayLike, number(above=0, hint=_ONE)])
"""As `Exponent`, and positive."""


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True, slots=True, eq=False, repr=False)
class Target(Part):
    """What the particles sample: `prod_i p_i^a_i exp(log_reward)`.

    Args:
      exponents: That of each branch.
      total: Their sum; a plain 1 where it is that for any values.
      log_reward: `(x0 [B, ...], level) -> [B]`, or None.
      guidance: What guides the particles beside the target's own drift.

    Example:
      >>> gj.targets.Target({"cond": 2.0, "uncond": -1.0}, total=1) == gj.targets.tilted(2.0)
      True
    """

    exponents: dict[str, ArrayLike]
    total: ArrayLike
    log_reward: LogReward | None = None
    guidance: Guidance | None = None

    def __repr__(self) -> str:
        fields = ((field.name, getattr(self, field.name)) for field in dataclasses.fields(self) if field.init)
        return f"Target({', '.join(f'{name}={value}' for name, value in fields if value is not None)})"


CLASSES[Target] = class_kind(Target, "gj.targets.tilted(3.0) is one.")


@door()
def tilted(scale: Exponent, *, cond: Branch = "cond", uncond: Branch = "uncond") -> Target:
    """The density that classifier-free guidance is named after.

    `p(x)^(1 - scale) p(x | y)^scale`

    Args:
      scale: 1 is the conditional model.
      cond: The branch of p(x | y).
      uncond: The branch of p(x).

    Raises:
      ValueError: If scale is not a scalar.
      TypeError: If it is a function of the level.

    Example:
      >>> gj.targets.tilted(3.0).exponents
      {'cond': 3.0, 'uncond': -2.0}

    Reference: Skreta et al. 2025, arXiv:2503.02819.
    """
    return product({cond: scale}, rest=uncond)


@door(also(check_exponents))
def product(exponents: Mapping[Branch, Exponent], *, rest: Branch | None = None) -> Target:
    """A product of experts: `prod_i p_i(x)^a_i`.

    Args:
      exponents: `{branch: a}`, each of either sign.
      rest: The branch that gets the exponent `1 - sum_i a_i`, so that all sum to 1; None for none.

    Raises:
      ValueError: If there is no exponent, one is not a scalar, or their sum is not positive.
      TypeError: If one is a function of the level.

    Example:
      >>> gj.targets.product({"red": 2.0, "round": 1.5}, rest="uncond").exponents
      {'red': 2.0, 'round': 1.5, 'uncond': -2.5}

    Reference: Skreta et al. 2025, arXiv:2503.02819.
    """
    total = sum(exponents.values())
    if rest is not None:
        return Target({**exponents, rest: 1 - total}, 1)
    if not concrete(total):
        return Target(dict(exponents), total)
    return Target(dict(exponents), 1 if abs(np.asarray(total) - 1) < 1e-6 else np.asarray(total))


@door()
def annealed(beta: InverseTemperature, branch: Branch = "cond") -> Target:
    """A temperature: `p(x | y)^beta`.

    Args:
      beta: The inverse temperature. Above 1 it sharpens.
      branch: The branch of p.

    Raises:
      ValueError: If beta is not a scalar, or not positive.
      TypeError: If it is a function of the level.

    Example:
      >>> gj.targets.annealed(2.0).exponents
      {'cond': 2.0}

    Reference: Skreta et al. 2025, arXiv:2503.02819.
    """
    return product({branch: beta})


@door()
def rewarded(target: Target, log_reward: LogReward, *, guidance: Guidance | None = None) -> Target:
    """A target times a likelihood or reward of the clean data: `target(x) exp(log_reward(x))`.

    On the way it is `exp(log_reward(x0))` of the x0 that the target's branches predict. A constraint is -inf outside of its
    set: at the end such a particle has weight 0. On the way it is no verdict, as the x0 predicted is the mean of what x may
    become: the particle keeps the reward that it had. No gradient is needed: without `guidance` the reward enters by the
    weights alone. A guidance that climbs the reward (`universal`, `dps`, `classifier`) lets the particles look for it, and the
    weights undo its bias: twisted sequential Monte Carlo.

    Args:
      target: `tilted`, `product` or `annealed`; `product({"cond": 1.0})` is the model itself.
      log_reward: `(x0 [B, ...], level) -> [B]`, finite or -inf. At a level of noise it may be weaker; at the end it is the
        reward. To meet a rare constraint, let it rise toward the set at levels of noise.
      guidance: That of the particles. They are then weighed by ratios of kernels, whatever it is.

    Raises:
      TypeError: If an argument is of another type.

    Example:
      >>> target = gj.targets.rewarded(gj.targets.product({"cond": 1.0}), lambda x0, level: -(x0**2).sum(1))
      >>> print(target.log_reward(jnp.ones((1, 2)), gj.schedules.edm()(0.0)))
      [-2.]

    Reference: Wu et al. 2023, arXiv:2306.17775, algorithm 1.
    """
    return target.replace(log_reward=log_reward, guidance=guidance)


@part()
def drift(target: Target) -> Guidance:
    """The guidance by a target's score, `score = sum_i a_i score_i`: what moves the particles.

    Args:
      target: `tilted`, `product` or `annealed`.

    Raises:
      TypeError: If it is no target.

    Example:
      >>> sorted(gj.targets.drift(gj.targets.tilted(3.0)).needs)
      ['cond', 'uncond']

    Reference: Skreta et al. 2025, arXiv:2503.02819.
    """

    def update(prediction: Prediction, context: Context) -> Prediction:
        d = combined(target, context)
        if sums_to_one(target):
            return prediction.replace(x0=d.x0, eps=d.eps)
        total = jnp.asarray(target.total, context.x.dtype)
        return prediction.replace(x0=d.x0 + (1 - total) * divide(context.x, context.level.alpha), eps=d.eps)

    return stateless(update, target.exponents)


def sums_to_one(target: Target) -> bool:
    """Whether the exponents sum to 1, whatever their values."""
    return isinstance(target.total, int) and target.total == 1


def combined(target: Target, context: Context) -> Prediction:
    """`sum_i a_i D_i`. Its eps is `-sigma` times the target's score."""
    return functools.reduce(operator.add, (a * context[name] for name, a in target.exponents.items()))


def mean(target: Target, context: Context) -> Array:
    """`sum_i a_i x0_i / sum_i a_i`."""
    return combined(target, context).x0 / jnp.asarray(target.total, context.x.dtype)


def start(
    keys: Array, target: Target, levels: NoiseLevel, shape_or_x: tuple[int, ...] | Array, kernels: bool
) -> tuple[tuple[int, ...] | Array, Array]:
    """What a run starts from, and the part of the log-normaliser that is known beforehand.

    Pure noise to powers that sum to A is `N(0, sigma^2 / A)`, of the normaliser `(2 pi sigma^2)^(D (1 - A) / 2) A^(-D / 2)`.
    """
    alpha, sigma = (jnp.asarray(field, at_least_float32(field.dtype)) for field in (levels.alpha, levels.sigma))
    if sums_to_one(target):
        return shape_or_x, jnp.zeros_like(sigma[0])
    total = jnp.asarray(target.total, sigma.dtype)
    given = not isinstance(shape_or_x, tuple)
    dimension = math.prod(shape_or_x.shape[1:] if given else shape_or_x)
    # The weights of the path are of densities of x / alpha, those of kernels of densities of x.
    known = jnp.zeros_like(total) if kernels else dimension * (1 - total) * jnp.log(alpha[-1] / alpha[0])
    if given:
        return shape_or_x, known
    noise = normal(fold(keys, START), jax.ShapeDtypeStruct((len(keys), *shape_or_x), sigma.dtype))
    known = known + dimension / 2 * ((1 - total) * jnp.log(2 * jnp.pi * sigma[0] ** 2) - jnp.log(total))
    return sigma[0] / jnp.sqrt(total) * noise, known


def measure(target: Target, level: NoiseLevel) -> Array:
    """The variable that the weights are integrated over: `tau / (1 + tau)`, tau = (sigma / alpha)^2, finite at both ends; and
    `log(1 + tau)` where the exponents do not sum to 1, for then the integrand is the same on every scale of tau."""
    bounded = level.sigma**2 / (level.alpha**2 + level.sigma**2)
    return bounded if sums_to_one(target) else -jnp.log1p(-bounded)


def integrand(target: Target, context: Context) -> Array:
    """`(|sum_i a_i score_i|^2 - sum_i a_i |score_i|^2) / 2` over tau, per unit of `measure`, `[B]`."""
    level, x = context.level, context.x
    u = level.sigma**2 / (level.alpha**2 + level.sigma**2)
    centre = mean(target, context)
    spread = sum(jnp.asarray(a, x.dtype) * _square(context[name].x0 - centre) for name, a in target.exponents.items())
    if sums_to_one(target):
        return -spread / u**2 / 2
    # Of the parts in common, the noise's power is left.
    total = jnp.asarray(target.total, x.dtype)
    eps = combined(target, context).eps / total
    return (total * (total - 1) * _square(eps) / u - spread * (1 - u) / u**2) / 2


def ratio(target: Target, kernel: Kernel, prediction: Prediction, context: Context, x: Array) -> Array:
    """`sum_i a_i log B_i(x' | x) + (1 - sum_i a_i) log F(x | x') - log B(x' | x)`, `[B]`; the constants cancel."""
    level, next = context.step.level, context.step.next

    def log_density(offset: Array, deviation: Scalar) -> Array:
        deviation = jnp.where(next.sigma > 0, deviation, 1)
        return -((offset / deviation) ** 2) / 2 - jnp.log(deviation)

    def log_backward(prediction: Prediction) -> Array:
        mean, deviation = kernel(prediction, level, next)
        check_draws(deviation)
        return log_density(x - mean, deviation)

    terms = -log_backward(prediction)
    for name, a in target.exponents.items():
        terms = terms + jnp.asarray(a, x.dtype) * log_backward(context[name])
    if not sums_to_one(target):
        forward = context.x - level.alpha / next.alpha * x
        deviation = level.sigma * jnp.sqrt(1 - contraction(level, next) ** 2)
        terms = terms + (1 - jnp.asarray(target.total, x.dtype)) * log_density(forward, deviation)
    return terms.sum(tuple(range(1, x.ndim)))


def _square(a: Array) -> Array:
    return (a * a).sum(tuple(range(1, a.ndim)))
