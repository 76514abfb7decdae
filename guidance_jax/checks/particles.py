"""Argument validation for `feynman_kac` and its targets, and warnings about the weights at the end of a run."""

from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from guidance_jax.base import NoiseLevel, Prediction
from guidance_jax.checks.outcomes import check_each
from guidance_jax.checks.paths import check_levels
from guidance_jax.checks.running import check_networks, check_start
from guidance_jax.checks.traced import concrete, demand, insist
from guidance_jax.checks.words import noting, warn
from guidance_jax.interfaces import Sampler
from guidance_jax.programs.parts import Call

STRAIGHT = "feynman_kac: steps must go straight to the next level, not churn, recurrence, restarts, inpainting; use heun_sde()."
ALIKE = "branches{path} differs within a group of {size} particles; use jnp.repeat(labels, {size}, axis=0)."
START = (
    "exponents with the sum {total}, not 1, have no drift at alpha = 0; use a schedule that ends before, such as "
    "flow(t_max=0.99), or use rest."
)
UNREAL = "returned NaN or inf {where}, but must return a finite number, or -inf to exclude a particle."
DEAD = (
    "feynman_kac: in {count} {groups} all particles are dead: log_reward is -inf for each at the end. Use more particles, a "
    "reward that is finite at noisy levels and increases toward the set, or a guidance that moves particles there."
)
UNKNOWN = "feynman_kac: the weights are NaN in {count} {groups}: x or a prediction is NaN. gj.checked reports the step."
DEGENERATE = (
    "feynman_kac: the weights degenerate in {count} {groups}: the minimum effective number of particles is {least:.1f}, of "
    "ancestors {ancestors:.1f}. log_normaliser is likely too low. Use more particles, a smaller scale, or low and high."
)
WIDE = "feynman_kac: the spread of the particles is {width} times the spread that the target's score implies; use more steps."


def check_exponents(exponents: Mapping[str, Any], rest: str | None) -> None:
    """Raises an error unless the exponents make a density at pure noise."""
    demand(len(exponents) > 0, 'product: exponents must have at least one branch, got none; use product({{"cond": 1.0}}).')
    demand(rest not in exponents, "product: rest={rest!r} has an exponent already; use one or the other.", rest=rest)
    if rest is None:
        total = sum(exponents.values())
        message = "product: exponents must have a positive sum, got the sum {total}; use rest."
        demand(lambda: total > 0, message, total=total)


def check_population(
    keys: Array,
    branches: Any,
    sampler: Sampler,
    levels: NoiseLevel,
    start: Any,
    size: int,
    kernels: bool,
    total: Any,
    inner: list[Call],
) -> None:
    """Raises an error unless the arguments of `feynman_kac` make groups of particles.

    Args:
      keys: One per particle.
      branches: As of `feynman_kac`.
      sampler: As of `feynman_kac`.
      levels: As of `feynman_kac`.
      start: The shape of one sample, or x.
      size: The number of particles per group.
      kernels: Whether the weights are ratios of kernels.
      total: The sum of the target's exponents.
      inner: The calls in the sampler that take inner steps.
    """
    count, networks = len(keys), check_networks(branches)
    right = size >= 2 and count % size == 0
    demand(right, f"feynman_kac: size must be 2 or more and a divisor of the number of keys, {count}, got {size}.")
    conds = {name: cond for network in networks for name, cond in network.conds.items()}
    for path, leaf in jax.tree_util.tree_leaves_with_path(conds):
        if np.shape(leaf)[:1] == (count,):
            alike = lambda leaf=leaf: _alike(leaf.reshape(count // size, size, -1))
            demand(alike, ALIKE, path=jax.tree_util.keystr(path), size=size, leaf=leaf)
    right = sampler.kernel is not None or not kernels
    demand(right, "feynman_kac: kernels (a guided target needs them) need samplers that have them; use ddpm() or ddim(1.0).")
    demand(not inner, STRAIGHT)
    check_levels(levels, sampler)
    check_start(keys, levels, start)
    if not isinstance(total, int) or total != 1:
        demand(lambda: levels.alpha[0] > 0, START, total=total, alpha=levels.alpha)


def _alike(rows: Any) -> Any:
    """Whether the rows of each group are equal. NaN is equal to NaN."""
    first = rows[:, :1]
    return (rows == first) | ((rows != rows) & (first != first))


def check_first(begun: bool) -> None:
    """Raises an error if the first evaluation of a sampler is not at the x that it receives."""
    demand(begun, STRAIGHT)


def only_where(right: Array, prediction: Prediction) -> Prediction:
    """A prediction, or NaN if the sampler evaluates at another level first, or at its own level twice."""
    insist(lambda: right, STRAIGHT)
    return jax.tree.map(lambda part: jnp.where(right, part, jnp.nan), prediction)


def unguided(*_: Any) -> NoReturn:
    """Raises an error instead of returning the base's prediction."""
    raise ValueError("feynman_kac: this sampler follows the base alone; use predictor_corrector(..., guided=True).")


def not_straight(*_: Any) -> NoReturn:
    """Raises an error if a sampler takes inner steps."""
    raise ValueError(STRAIGHT)


def check_draws(deviation: Any) -> None:
    """Raises an error if a kernel draws no noise."""
    drawn = not isinstance(deviation, int | float) or deviation != 0
    demand(drawn, "feynman_kac: kernels must draw noise, but this sampler draws nothing; use ddpm() or ddim(1.0).")


def rewards(log_reward: Callable[..., Any], x0: Array, level: NoiseLevel) -> Array:
    """The checked result of a user's log_reward, in the dtype of x0."""
    with noting("log_reward", x0=x0, level=level):
        each = log_reward(x0, level)
    each = each.astype(x0.dtype) if hasattr(each, "astype") else each
    check_each(each, x0, "log_reward")
    message = "log_reward " + UNREAL.format(where="at sigma {sigma}")
    insist(lambda: right_reward(each, x0), message, sigma=level.sigma)
    return each


def right_reward(reward: Array, x0: Array) -> Array:
    """Whether each reward is finite or -inf. A sample whose x0 is not finite passes."""
    return (reward < jnp.inf) | ~jnp.isfinite(x0).all(tuple(range(1, x0.ndim)))


def check_particles(size: int, log_reward: Any, *found: Array) -> None:
    """Reports what is wrong with the groups. Within a caller's jit it only warns.

    Args:
      size: The number of particles per group.
      log_reward: The user's reward, or None.
      *found: For each group: dead, unreal, least, ancestors, spread and spread_error, `[G]`.
    """
    name, groups = getattr(log_reward, "__qualname__", repr(log_reward)), f"of {len(found[0])} groups of {size} particles"

    def report(*found: Any, known: bool = False) -> None:
        dead, unreal, least, ancestors, spread, errors = map(np.asarray, found)
        counted, width, error = np.minimum(least, ancestors), spread.mean(), np.sqrt((errors**2).sum()) / len(errors)
        # The limit: ten, a quarter of a group below 40, or a hundredth of a group above 1,000.
        few = counted < max(min(10, size / 4), size / 100)
        broken = "feynman_kac: log_reward ({name}) " + UNREAL + " gj.checked reports the noise level."
        wide = abs(width - 1) > max(0.1, 4 * error)
        checks = (unreal, broken), (dead, DEAD), (np.isnan(counted), UNKNOWN), (few, DEGENERATE), (wide, WIDE)
        wrong = [(bad.sum(), message) for bad, message in checks if bad.any()]
        if wrong:
            count, message = wrong[0]
            values = {"name": name, "count": count, "groups": groups, "where": f"in {count} {groups}"}
            values |= {"least": least.min(), "ancestors": ancestors.min(), "width": f"{width:.2f} ± {error:.2f}"}
            demand(not known or message not in (broken, DEAD), message, **values)
            warn(message.format(**values))

    if concrete(found):
        report(*found, known=True)
    else:
        insist(lambda: ~found[0], DEAD, groups=groups, count=found[0].sum())
        jax.debug.callback(report, *found)
