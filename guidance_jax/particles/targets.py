"""The densities that particles sample: `prod_i p_i(x)^a_i exp(log_reward(x))` at every level, with p_i of branch i.

A run that is guided by `sum_i a_i score_i` does not sample this density. This file holds the targets, this drift, and the
weights that correct it.
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

_ONE = "use one number for all levels; to guide at some levels alone, use low and high of feynman_kac."
Exponent = TypeAliasType("Exponent", Annotated[ArrayLike, number(hint=_ONE)])
"""The exponent of a density: one number of either sign. It must not be a function of the level."""
InverseTemperature = TypeAliasType("InverseTemperature", Annotated[ArrayLike, number(above=0, hint=_ONE)])
"""As `Exponent`, but positive."""


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True, slots=True, eq=False, repr=False)
class Target(Part):
    """The density that particles sample: `prod_i p_i^a_i exp(log_reward)`.

    Args:
      exponents: The exponent of each branch, by name.
      total: The sum of the exponents; the Python int 1 if it is 1 for all values of the exponents.
      log_reward: `(x0 [B, ...], level) -> [B]`, or None.
      guidance: A guidance that moves the particles in addition to the target's own drift.

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


CLASSES[Target] = class_kind(Target, "use gj.targets.tilted(3.0).")


@door()
def tilted(scale: Exponent, *, cond: Branch = "cond", uncond: Branch = "uncond") -> Target:
    """The density that classifier-free guidance is meant to sample.

    `p(x)^(1 - scale) p(x | y)^scale`

    Args:
      scale: The exponent of p(x | y); 1 is the conditional model.
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
      rest: The branch with the exponent `1 - sum_i a_i`, so that all sum to 1; None for no such branch.

    Raises:
      ValueError: If there is no exponent, one is not a scalar, rest has an exponent, or their sum is not positive.
      TypeError: If an exponent is a function of the level.

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
    """A density at another temperature: `p(x | y)^beta`.

    Args:
      beta: The inverse temperature. Above 1, it makes the density narrower.
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

    Along the run, the factor is `exp(log_reward(x0))` of the x0 that the target's branches predict. For a constraint, return
    -inf outside of its set: at the end such a particle has weight 0. Along the run, the predicted x0 is only a mean of the
    possible results, so a particle with -inf keeps its last reward.

    No gradient is needed. Without `guidance`, only the weights depend on the reward. A guidance toward higher rewards
    (`universal`, `dps`, `classifier`) moves the particles there, and the weights correct its bias. This is twisted sequential
    Monte Carlo.

    Args:
      target: `tilted`, `product` or `annealed`; `product({"cond": 1.0})` is the model itself.
      log_reward: `(x0 [B, ...], level) -> [B]`, finite or -inf. At noisy levels it may be weaker than the reward; at the end it
        is the reward. For a rare constraint, let it increase toward the set at noisy levels.
      guidance: The guidance of the particles. With one, the weights are always ratios of kernels.

    Raises:
      TypeError: If an argument is of another type.

    Example:
      >>> law = gj.targets.product({"cond": 1.0})
      >>> target = gj.targets.rewarded(law, lambda x0, level: -(x0**2).sum(1))
      >>> print(target.log_reward(jnp.ones((1, 2)), gj.schedules.edm()(0.0)))
      [-2.]

    Reference: Wu et al. 2023, arXiv:2306.17775, algorithm 1.
    """
    return target.replace(log_reward=log_reward, guidance=guidance)


@part()
def drift(target: Target) -> Guidance:
    """The guidance that moves the particles: the target's score, `score = sum_i a_i score_i`.

    Args:
      target: `tilted`, `product` or `annealed`.

    Raises:
      TypeError: If target is not a target.

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
    """Whether the exponents sum to 1 for all of their values."""
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
    """The start of a run, and the part of the log-normaliser that is known before it.

    Pure noise with exponents that sum to A is `N(0, sigma^2 / A)`, with the normaliser
    `(2 pi sigma^2)^(D (1 - A) / 2) A^(-D / 2)`.
    """
    alpha, sigma = (jnp.asarray(field, at_least_float32(field.dtype)) for field in (levels.alpha, levels.sigma))
    if sums_to_one(target):
        return shape_or_x, jnp.zeros_like(sigma[0])
    total = jnp.asarray(target.total, sigma.dtype)
    given = not isinstance(shape_or_x, tuple)
    dimension = math.prod(shape_or_x.shape[1:] if given else shape_or_x)
    # The weights along a path belong to densities of x / alpha, the weights of kernels to densities of x.
    known = jnp.zeros_like(total) if kernels else dimension * (1 - total) * jnp.log(alpha[-1] / alpha[0])
    if given:
        return shape_or_x, known
    noise = normal(fold(keys, START), jax.ShapeDtypeStruct((len(keys), *shape_or_x), sigma.dtype))
    known = known + dimension / 2 * ((1 - total) * jnp.log(2 * jnp.pi * sigma[0] ** 2) - jnp.log(total))
    return sigma[0] / jnp.sqrt(total) * noise, known


def measure(target: Target, level: NoiseLevel) -> Array:
    """The variable of integration of the weights, with tau = (sigma / alpha)^2: `tau / (1 + tau)`, finite at both ends.

    It is `log(1 + tau)` if the exponents do not sum to 1, because the integrand then has the same size on every scale of tau.
    """
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
    # Exponents that do not sum to 1 leave a term of the noise itself.
    total = jnp.asarray(target.total, x.dtype)
    eps = combined(target, context).eps / total
    return (total * (total - 1) * _square(eps) / u - spread * (1 - u) / u**2) / 2


def ratio(target: Target, kernel: Kernel, prediction: Prediction, context: Context, x: Array) -> Array:
    """`sum_i a_i log B_i(x' | x) + (1 - sum_i a_i) log F(x | x') - log B(x' | x)`, `[B]`. The constants cancel."""
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
