"""What particles sample: `prod_i p_i(x)^a_i exp(log_reward(x))` at every level, the p_i being what the branches predict.

A run guided by `sum_i a_i score_i` does not sample it. Here are the targets, that drift, and the weights that are missing.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import ArrayLike

from guidance_jax.arrays import concrete, divide
from guidance_jax.checks.old import LARGEST
from guidance_jax.base import Context, Guidance, Kernel, NoiseLevel, Prediction, Scalar
from guidance_jax.checks.old import check_guidance, check_scalar
from guidance_jax.guidance.algebra import stateless
from guidance_jax.checks.old import check_callable, check_kind, check_takes
from guidance_jax.noise import contraction
from guidance_jax.checks.old import check_reward

__all__ = ["LogReward", "Target", "annealed", "drift", "product", "rewarded", "tilted"]

LogReward = Callable[[Array, NoiseLevel], Array]
"""`(x0 [B, ...], level) -> [B]`: of the x0-prediction along the run, of x itself at its end."""


class Target(NamedTuple):
    """What the particles sample: `prod_i p_i^a_i exp(log_reward)`.

    Example:
      >>> targets.Target({"cond": 2.0, "uncond": -1.0}, total=1) == targets.tilted(2.0)
      True
    """

    exponents: dict[str, ArrayLike]
    """Of each branch, `()`."""
    total: ArrayLike
    """Their sum; a plain 1 where it is that for any values."""
    log_reward: LogReward | None = None
    guidance: Guidance | None = None
    """What guides the particles beside the target's own drift."""


def tilted(scale: ArrayLike, *, cond: str = "cond", uncond: str = "uncond") -> Target:
    """The density that classifier-free guidance is named after.

    `p(x)^(1 - scale) p(x | y)^scale`

    Args:
      scale: `()`; 1 is the conditional model.
      cond: the name of the branch of p(x | y).
      uncond: the name of the branch of p(x).

    Raises:
      ValueError: if scale is no scalar, or a function of the level.

    Example:
      >>> targets.tilted(3.0).exponents
      {'cond': 3.0, 'uncond': -2.0}

    Reference: Skreta et al. 2025, arXiv:2503.02819.
    """
    if not callable(scale):
        check_scalar(scale, "tilted's scale", -LARGEST)
    return product({cond: scale}, rest=uncond)


def product(exponents: Mapping[str, ArrayLike], *, rest: str | None = None) -> Target:
    """A product of experts: `prod_i p_i(x)^a_i`.

    Args:
      exponents: `{branch: a}`, each `()`, of either sign.
      rest: the branch that gets the exponent `1 - sum_i a_i`, so that all sum to 1; None for none.

    Raises:
      ValueError: if there is no exponent, one is no scalar or a function of the level, or their sum is not positive.

    Example:
      >>> targets.product({"red": 2.0, "round": 1.5}, rest="uncond").exponents
      {'red': 2.0, 'round': 1.5, 'uncond': -2.5}

    Reference: Skreta et al. 2025, arXiv:2503.02819.
    """
    check_kind(exponents, Mapping, "product's exponents", '{"cond": 1.0} is one.')
    if not exponents:
        raise ValueError('a product needs a branch: product({"cond": 1.0}).')
    for name, exponent in exponents.items():
        if callable(exponent):
            raise ValueError(
                f"the exponent of {name!r} is a function of the level, but the target is one density: give a number. For "
                "guidance in some levels alone, feynman_kac has low and high."
            )
        check_scalar(exponent, f"product's exponent of {name!r}", -LARGEST)
    if rest in exponents:
        raise ValueError(f"rest={rest!r} has an exponent already.")
    total = sum(exponents.values())
    if rest is not None:
        return Target({**exponents, rest: 1 - total}, 1)
    if concrete(total):
        value = float(np.asarray(total))
        if value <= 0:
            raise ValueError(f"the exponents sum to {value:g}, and noise to that power is no density: above 0, or give a rest.")
        total = 1 if abs(value - 1) < 1e-6 else total
    return Target(dict(exponents), total)


def annealed(beta: ArrayLike, branch: str = "cond") -> Target:
    """A temperature: `p(x | y)^beta`.

    Args:
      beta: the inverse temperature, `()`; above 1 sharpens.
      branch: the name of the branch of p.

    Raises:
      ValueError: if beta is no scalar, a function of the level, or not positive.

    Example:
      >>> targets.annealed(2.0).exponents
      {'cond': 2.0}

    Reference: Skreta et al. 2025, arXiv:2503.02819.
    """
    if not callable(beta):
        check_scalar(beta, "annealed's beta", above=0)
    return product({branch: beta})


def rewarded(target: Target, log_reward: LogReward, *, guidance: Guidance | None = None) -> Target:
    """A target times a likelihood or reward of the clean data: `target(x) exp(log_reward(x))`.

    On the way it is `exp(log_reward(x0))` of the x0 that the target's branches predict. A constraint is -inf outside of its
    set: at the end such a particle has weight 0. On the way it is no verdict, as the x0 predicted is the mean of what x may
    become: the particle keeps the reward that it had. No gradient is needed: without `guidance` the reward enters by the
    weights alone. A guidance that climbs the reward (`universal`, `dps`, `classifier`)
    lets the particles look for it and the weights undo its bias: twisted sequential Monte Carlo.

    Args:
      target: `tilted`, `product` or `annealed`; `product({"cond": 1.0})` is the model itself.
      log_reward: `(x0 [B, ...], level) -> [B]`, finite or -inf; one at a level of noise may be weaker, at the end it is the
        reward. To meet a rare constraint, let it rise toward the set at levels of noise.
      guidance: of the particles; they are then weighed by ratios of kernels, whatever it is.

    Example:
      >>> target = targets.rewarded(targets.product({"cond": 1.0}), lambda x0, level: -(x0**2).sum(1))
      >>> print(target.log_reward(jnp.ones((1, 2)), schedules.edm()(0.0)))
      [-2.]

    Reference: Wu et al. 2023, arXiv:2306.17775, algorithm 1.
    """
    check_target(target)
    check_callable(log_reward, "log_reward", "it is (x0, level) -> [B].")
    check_takes(log_reward, "log_reward", "x0", "level")
    if guidance is not None:
        check_guidance(guidance)
    return target._replace(log_reward=log_reward, guidance=guidance)


def drift(target: Target) -> Guidance:
    """The guidance by a target's score, `score = sum_i a_i score_i`: what moves the particles.

    Args:
      target: `tilted`, `product` or `annealed`.

    Example:
      >>> sorted(targets.drift(targets.tilted(3.0)).needs)
      ['cond', 'uncond']

    Reference: Skreta et al. 2025, arXiv:2503.02819.
    """
    check_target(target)

    def update(prediction: Prediction, context: Context) -> Prediction:
        x0, eps = (sum(a * part for a, part in _parts(target, context, half)) for half in ("x0", "eps"))
        if not sums_to_one(target):
            x0 = x0 + (1 - jnp.asarray(target.total, context.x.dtype)) * divide(context.x, context.level.alpha)
        return prediction._replace(x0=x0, eps=eps)

    return stateless(update, target.exponents)


def check_target(target: object) -> None:
    """Raises unless it is a target.

    Raises:
      TypeError: telling what it is.
    """
    check_kind(target, Target, "the target", "gj.targets.tilted(3.0) is one.")


def sums_to_one(target: Target) -> bool:
    """Whether the exponents sum to 1, whatever their values."""
    return isinstance(target.total, int) and target.total == 1


def _parts(target: Target, context: Context, half: str) -> list[tuple[Array, Array]]:
    """Each branch's exponent, and half of its prediction."""
    return [(jnp.asarray(a, context.x.dtype), getattr(context.branches[name], half)) for name, a in target.exponents.items()]


def mean(target: Target, context: Context) -> Array:
    """`sum_i a_i x0_i / sum_i a_i`."""
    total = jnp.asarray(target.total, context.x.dtype)
    return sum((a / total * x0 for a, x0 in _parts(target, context, "x0")), jnp.zeros_like(context.x))


def noise_of(target: Target, context: Context) -> Array:
    """`sum_i a_i eps_i`, which is `-sigma` times the target's score."""
    return sum((a * eps for a, eps in _parts(target, context, "eps")), jnp.zeros_like(context.x))


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
    spread = sum((a * _square(x0 - centre) for a, x0 in _parts(target, context, "x0")), jnp.zeros(len(x), x.dtype))
    if sums_to_one(target):
        return -spread / u**2 / 2
    # Of the parts in common, the noise's power is left.
    total = jnp.asarray(target.total, x.dtype)
    eps = sum((a / total * eps for a, eps in _parts(target, context, "eps")), jnp.zeros_like(x))
    return (total * (total - 1) * _square(eps) / u - spread * (1 - u) / u**2) / 2


def ratio(target: Target, kernel: Kernel, prediction: Prediction, context: Context, x: Array) -> Array:
    """`sum_i a_i log B_i(x' | x) + (1 - sum_i a_i) log F(x | x') - log B(x' | x)`, `[B]`; the constants cancel."""
    level, next = context.step.level, context.step.next

    def log_density(offset: Array, deviation: Scalar) -> Array:
        deviation = jnp.where(next.sigma > 0, deviation, 1)
        return -((offset / deviation) ** 2) / 2 - jnp.log(deviation)

    def backward(prediction: Prediction) -> Array:
        mean, deviation = kernel(prediction, level, next)
        if isinstance(deviation, int | float) and deviation == 0:
            raise ValueError(
                "feynman_kac weighs by ratios of kernels here, but this sampler draws nothing: ddpm(), ddim(1.0), ..."
            )
        return log_density(x - mean, deviation)

    each = -backward(prediction)
    for name, a in target.exponents.items():
        each = each + jnp.asarray(a, x.dtype) * backward(context.branches[name])
    if not sums_to_one(target):
        forward = context.x - level.alpha / next.alpha * x
        deviation = level.sigma * jnp.sqrt(1 - contraction(level, next) ** 2)
        each = each + (1 - jnp.asarray(target.total, x.dtype)) * log_density(forward, deviation)
    return each.sum(tuple(range(1, x.ndim)))


def reward_of(log_reward: LogReward, x0: Array, level: NoiseLevel) -> Array:
    each = log_reward(x0, level)
    if jnp.shape(each) != x0.shape[:1]:
        raise ValueError(f"log_reward gave shape {jnp.shape(each)} for x0 {x0.shape}, but must give one number a sample, [B].")
    check_reward(each, x0, level)
    return each.astype(x0.dtype)


def _square(a: Array) -> Array:
    return (a * a).sum(tuple(range(1, a.ndim)))
