"""What particles and their targets receive, and what is wrong with them at the end of a run."""

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
from guidance_jax.programs.parts import calls

STRAIGHT = "feynman_kac needs steps straight to the next level, not churn, recurrence, restarts, inpainting; use heun_sde()."
ALIKE = "branches{path} differs within a group of {size} particles; repeat each condition: jnp.repeat(labels, {size}, axis=0)."
START = (
    "exponents of sum {total}, not 1, have no drift at alpha = 0: end the schedule before, flow(t_max=0.99), or give a rest."
)
UNREAL = "gave NaN or inf {where}, but must give a finite number, or -inf where a particle must not be."
DEAD = (
    "feynman_kac: in {count} {groups} all particles are dead: log_reward is -inf for each at the end. Use more particles, or a "
    "reward that is finite at levels of noise and leads there, or a guidance that does."
)
UNKNOWN = "feynman_kac: the weights are NaN in {count} {groups}: x or a prediction is. gj.checked tells after which step."
DEGENERATE = (
    "feynman_kac: the weights degenerate in {count} {groups}: at worst {least:.1f} of them counted, and all descend from "
    "{ancestors:.1f}: log_normaliser is likely too low. Use more particles, a smaller scale, or an interval (low, high)."
)
WIDE = "feynman_kac: the particles are spread {width} times as wide as the score of the target says; use more steps."


def check_exponents(exponents: Mapping[str, Any], rest: str | None) -> None:
    """Raises unless exponents make a density of noise."""
    demand(len(exponents) > 0, 'product: a product needs a branch, got none; product({{"cond": 1.0}}) has one.')
    demand(rest not in exponents, "product: rest={rest!r} has an exponent already; give it one or the other.", rest=rest)
    if rest is None:
        total = sum(exponents.values())
        message = "product: exponents must have a positive sum to make a density of noise, but sum to {total}; or give a rest."
        demand(lambda: total > 0, message, total=total)


def check_population(
    keys: Array, branches: Any, sampler: Sampler, levels: NoiseLevel, start: Any, size: int, kernels: bool, total: Any
) -> None:
    """Raises unless what `feynman_kac` receives makes groups of particles, with a target whose exponents have this sum."""
    count, networks = len(keys), check_networks(branches)
    right = size >= 2 and count % size == 0
    demand(right, f"feynman_kac: size must be 2 or more and a divisor of the number of keys, {count}, got {size}.")
    conds = {name: cond for network in networks for name, cond in network.conds.items()}
    for path, leaf in jax.tree_util.tree_leaves_with_path(conds):
        if np.shape(leaf)[:1] == (count,):
            alike = lambda leaf=leaf: _alike(leaf.reshape(count // size, size, -1))
            demand(alike, ALIKE, path=jax.tree_util.keystr(path), size=size, leaf=leaf)
    right = sampler.kernel is not None or not kernels
    demand(right, "feynman_kac: kernels, as a guided target needs, are of samplers that have them; use ddpm(), ddim(1.0), ...")
    made = [(call.function.__name__, call.arguments) for call in calls(sampler)]
    again = any(name == "restart" or (name == "recur" and arguments["times"] > 1) for name, arguments in made)
    demand(not again, STRAIGHT)
    check_levels(levels, sampler)
    check_start(keys, levels, start)
    if not isinstance(total, int) or total != 1:
        demand(lambda: levels.alpha[0] > 0, START, total=total, alpha=levels.alpha)


def _alike(rows: Any) -> Any:
    """Whether the rows of each group are equal; NaN is as NaN."""
    first = rows[:, :1]
    return (rows == first) | ((rows != rows) & (first != first))


def check_first(begun: bool) -> None:
    """Raises where a sampler first looks at another x than it was given."""
    demand(begun, STRAIGHT)


def only_where(right: Array, prediction: Prediction) -> Prediction:
    """A prediction, NaN where a sampler looks first at another level than its own, or at that a second time."""
    insist(lambda: right, STRAIGHT)
    return jax.tree.map(lambda part: jnp.where(right, part, jnp.nan), prediction)


def unguided(*_: Any) -> NoReturn:
    """Raises in place of the base's prediction."""
    raise ValueError("feynman_kac: this sampler follows the base alone; use predictor_corrector(..., guided=True).")


def not_straight(*_: Any) -> NoReturn:
    """Raises where a sampler takes steps of its own."""
    raise ValueError(STRAIGHT)


def check_draws(deviation: Any) -> None:
    """Raises where a kernel draws nothing."""
    drawn = not isinstance(deviation, int | float) or deviation != 0
    demand(drawn, "feynman_kac weighs by ratios of kernels, but this sampler draws nothing; use ddpm(), ddim(1.0), ...")


def rewards(log_reward: Callable[..., Any], x0: Array, level: NoiseLevel) -> Array:
    """What a user's log_reward gives, checked, in the dtype of x0."""
    with noting("log_reward", x0=x0, level=level):
        each = log_reward(x0, level)
    each = each.astype(x0.dtype) if hasattr(each, "astype") else each
    check_each(each, x0, "log_reward")
    message = "log_reward " + UNREAL.format(where="at sigma {sigma}")
    insist(lambda: right_reward(each, x0), message, sigma=level.sigma)
    return each


def right_reward(reward: Array, x0: Array) -> Array:
    """Whether each is a finite number or -inf, or of an x0 that is not finite itself."""
    return (reward < jnp.inf) | ~jnp.isfinite(x0).all(tuple(range(1, x0.ndim)))


def check_particles(size: int, log_reward: Any, *found: Array) -> None:
    """Tells what is wrong with groups: dead, unreal, least, ancestors, spread and error; within a caller's jit as a warning."""
    name, groups = getattr(log_reward, "__qualname__", repr(log_reward)), f"of {len(found[0])} groups of {size} particles"

    def tell(*found: Any, known: bool = False) -> None:
        dead, unreal, least, ancestors, spread, errors = map(np.asarray, found)
        counted, width, error = np.minimum(least, ancestors), spread.mean(), np.sqrt((errors**2).sum()) / len(errors)
        # Ten, a quarter of a small group, or a hundredth of a large one.
        few = counted < max(min(10, size / 4), size / 100)
        broken = "feynman_kac: log_reward ({name}) " + UNREAL + " gj.checked tells at which noise level."
        wide = abs(width - 1) > max(0.1, 4 * error)
        checks = (unreal, broken), (dead, DEAD), (np.isnan(counted), UNKNOWN), (few, DEGENERATE), (wide, WIDE)
        wrong = [(bad.sum(), message) for bad, message in checks if bad.any()]
        if wrong:
            count, message = wrong[0]
            shown = {"name": name, "count": count, "groups": groups, "where": f"in {count} {groups}"}
            shown |= {"least": least.min(), "ancestors": ancestors.min(), "width": f"{width:.2f} ± {error:.2f}"}
            demand(not known or message not in (broken, DEAD), message, **shown)
            warn(message.format(**shown))

    if concrete(found):
        tell(*found, known=True)
    else:
        insist(lambda: ~found[0], DEAD, groups=groups, count=found[0].sum())
        jax.debug.callback(tell, *found)
