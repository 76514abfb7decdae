"""What particles and their targets receive, and what is wrong with them at the end of a run."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from guidance_jax.arrays import concrete
from guidance_jax.base import Branches, NoiseLevel, Prediction, Sampler
from guidance_jax.checks.door import Kind
from guidance_jax.checks.numbers import number
from guidance_jax.checks.outcomes import check_each
from guidance_jax.checks.paths import check_levels
from guidance_jax.checks.running import check_networks, check_start
from guidance_jax.checks.traced import insist
from guidance_jax.checks.words import noting
from guidance_jax.parts import calls

REWARD = "a finite number, or -inf where a particle must not be."
STRAIGHT = (
    "feynman_kac's weights are of a sampler that goes from each level straight to the next, but this one first moves x, or "
    "takes steps again (churn, recurrence, inpainting); use heun_sde(), ddpm(), ddim(eta), heun(), ..."
)


def exponent(*, above: float | None = None) -> Kind:
    """The kind of an exponent: one number, and no function of the level."""
    of = number(above=above)

    def also(value: Any, where: str) -> None:
        if callable(value):
            what = "is a function of the level, but the target is one density: give a number"
            raise ValueError(f"{where} {what}. For guidance in some levels alone, feynman_kac has low and high.")
        of.check(value, where)

    return Kind(of.expected, lambda value: True, also=also)


def check_exponents(exponents: Mapping[str, Any], rest: str | None) -> None:
    """Raises unless exponents make a density of noise.

    Raises:
      ValueError: if there is none, their sum is not positive, or the rest has one already.
    """
    if not exponents:
        raise ValueError('product: a product needs a branch: product({"cond": 1.0}).')
    if rest in exponents:
        raise ValueError(f"product: rest={rest!r} has an exponent already.")
    total = sum(exponents.values())
    if rest is None and concrete(total) and np.asarray(total) <= 0:
        raise ValueError(
            f"product: the exponents sum to {float(np.asarray(total)):g}, and noise to that power is no density; make their "
            "sum positive, or give a rest."
        )


def check_population(
    keys: Array,
    branches: Any,
    sampler: Sampler,
    levels: NoiseLevel,
    shape_or_x: Any,
    size: int,
    kernels: bool,
    total: Any,
) -> None:
    """Raises unless keys, branches, sampler, levels and start make groups of particles with a target of these exponents.

    Raises:
      ValueError: telling what does not fit.
      TypeError: if an argument is of another type.
    """
    _check_groups(len(keys), check_networks(branches), size)
    if kernels and sampler.kernel is None:
        raise ValueError("ratios of kernels, as a guided target needs, are of samplers that have one: ddpm(), ddim(1.0), ...")
    if any(call.function.__name__ == "recur" and call.arguments["times"] > 1 for call in calls(sampler)):
        raise ValueError(STRAIGHT)
    check_levels(levels, sampler)
    check_start(keys, levels, shape_or_x)
    one = isinstance(total, int) and total == 1
    if not one and concrete(levels.alpha) and not np.asarray(levels.alpha)[0] > 0:
        raise ValueError(
            f"the exponents sum to {total} and not to 1, so the target's drift has no value at alpha = 0, where these levels "
            "start; let the schedule end before: flow(t_max=0.99), or give the product a rest."
        )


def _check_groups(count: int, networks: tuple[Branches, ...], size: int) -> None:
    """Raises unless the keys are groups, whose particles have the same conditions."""
    if size < 2 or count % size:
        raise ValueError(f"size={size} particles a group, but there are {count} keys: 2 or more, and a divisor of that.")
    for network in networks:
        for name, cond in network.conds.items():
            for path, leaf in jax.tree_util.tree_leaves_with_path(cond):
                if not callable(leaf) and len(leaf) == count:
                    _check_alike(leaf, size, f"branch {name!r}{jax.tree_util.keystr(path)} differs within a group of {size}")


def _check_alike(leaf: Any, size: int, told: str) -> None:
    """Raises unless the rows of each group are equal; NaN is as NaN."""
    rows = (leaf if not concrete(leaf) else np.asarray(leaf)).reshape(len(leaf) // size, size, -1)
    first = rows[:, :1]
    alike = lambda: ((rows == first) | ((rows != rows) & (first != first))).all()
    if not concrete(leaf):
        insist(alike, f"{told} particles.")
    elif not alike():
        raise ValueError(
            f"{told} particles, which share one target; repeat each condition: jnp.repeat(labels, {size}, axis=0)."
        )


def check_first(begun: bool) -> None:
    """Raises where a sampler first looks at another x than it was given.

    Raises:
      ValueError: naming the samplers that do.
    """
    if not begun:
        raise ValueError(STRAIGHT)


def only_where(right: Array, prediction: Prediction) -> Prediction:
    """A prediction, NaN where a sampler looks first at another level than its own, or at that a second time."""
    insist(lambda: right, STRAIGHT)
    return jax.tree.map(lambda part: jnp.where(right, part, jnp.nan), prediction)


def unguided(*_: Any) -> NoReturn:
    """In place of the base's prediction.

    Raises:
      ValueError: naming the sampler that follows the guidance.
    """
    raise ValueError(
        "feynman_kac's weights are of particles that the target guides, but this sampler follows the base alone; use "
        "predictor_corrector(..., guided=True)."
    )


def check_draws(deviation: Any) -> None:
    """Raises where a kernel draws nothing.

    Raises:
      ValueError: naming samplers that draw.
    """
    if isinstance(deviation, int | float) and deviation == 0:
        raise ValueError(
            "feynman_kac weighs by ratios of kernels here, but this sampler draws nothing; use ddpm(), ddim(1.0), ..."
        )


def rewards(log_reward: Callable[..., Any], x0: Array, level: NoiseLevel) -> Array:
    """What a user's log_reward gives, checked, in the dtype of x0."""
    with noting("log_reward", x0=x0, level=level):
        each = log_reward(x0, level)
    each = each.astype(x0.dtype) if hasattr(each, "astype") else each
    check_each(each, x0, "log_reward")
    message = f"log_reward gave NaN or inf at sigma {{sigma}}, but must give {REWARD}"
    insist(lambda: right_reward(each, x0).all(), message, sigma=level.sigma)
    return each


def right_reward(reward: Array, x0: Array) -> Array:
    """Whether each is a finite number or -inf, or of an x0 that is not finite itself."""
    return (reward < jnp.inf) | ~jnp.isfinite(x0).all(tuple(range(1, x0.ndim)))


def check_particles(
    size: int,
    log_reward: Callable[..., Any] | None,
    dead: Array,
    unreal: Array,
    least: Array,
    ancestors: Array,
    spread: Array,
    error: Array,
) -> None:
    """Tells what is wrong with groups of particles; within a caller's jit as a warning, when it is known.

    Raises:
      ValueError: if all particles of a group have weight 0, or a reward is NaN or inf.
    """

    def tell(dead: Any, unreal: Any, least: Any, ancestors: Any, spread: Any, error: Any) -> str | None:
        groups = f"of {len(dead)} groups of {size} particles"
        if unreal.any():
            name = getattr(log_reward, "__qualname__", repr(log_reward))
            return (
                f"feynman_kac: log_reward ({name}) gave NaN or inf in {unreal.sum()} {groups}, but must give {REWARD} "
                "gj.checked tells at which noise level."
            )
        if dead.any():
            return (
                f"feynman_kac: in {dead.sum()} {groups} all particles are dead: log_reward is -inf for each at the end. "
                "Use more particles, or a reward that is finite at levels of noise and leads there, or a guidance that does."
            )
        counted = np.minimum(least, ancestors)
        if np.isnan(counted).any():
            return (
                f"feynman_kac: the weights are NaN in {np.isnan(counted).sum()} {groups}: x or a prediction is. gj.checked "
                "tells after which step."
            )
        # Ten, a quarter of a small group, or a hundredth of a large one.
        bad = counted < max(min(10, size / 4), size / 100)
        if bad.any():
            return (
                f"feynman_kac: the weights degenerate in {bad.sum()} {groups}: at worst {np.min(least):.1f} of them counted, "
                f"and all descend from {np.min(ancestors):.1f}. Such a group gives few samples many times, and its "
                "log_normaliser is likely too low. Use more particles, a smaller scale, or an interval (low, high)."
            )
        mean, deviation = spread.mean(), np.sqrt((error**2).sum()) / len(error)
        if abs(mean - 1) > max(0.1, 4 * deviation):
            return (
                f"feynman_kac: the particles are spread {mean:.2f} ± {deviation:.2f} times as wide as the score of the target "
                "says; use more steps."
            )
        return None

    def warn(*found: Any) -> None:
        message = tell(*map(np.asarray, found))
        if message is not None:
            warnings.warn(message, stacklevel=6)

    found = dead, unreal, least, ancestors, spread, error
    if not concrete(found):
        message = f"all particles of {{count}} of {len(dead)} groups are dead: log_reward is -inf for each of them at the end."
        insist(lambda: ~dead.any(), message, count=dead.sum())
        jax.debug.callback(warn, *found)
        return
    if dead.any() or unreal.any():
        raise ValueError(tell(*map(np.asarray, found)))
    warn(*found)
