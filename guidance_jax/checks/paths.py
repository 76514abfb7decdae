"""Checks of schedules, spacings and noise levels."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from guidance_jax.base import NoiseLevel
from guidance_jax.checks.numbers import check_finite, check_form
from guidance_jax.checks.traced import concrete, demand
from guidance_jax.checks.words import call_it, described
from guidance_jax.interfaces import Sampler

LEVELS = "use gj.levels(schedule, steps, spacing)."
GOT = "got alpha {alpha} and sigma {sigma} from level {first} on"
UPWARD = "levels must decrease in sigma / alpha, but these increase throughout, from data to noise"


def check_steps(schedule: Any, steps: int) -> None:
    """Raises an error if there are more steps than a discrete schedule has."""
    right = schedule.steps is None or steps <= schedule.steps
    demand(right, f"steps must be at most the {schedule.steps} training steps of a discrete schedule, got {steps}.")


def check_spaced(t: Any, count: int, spacing: Callable[..., Any]) -> None:
    """Raises an error unless a spacing returned `count` times."""
    message = "levels: spacing must return times of shape [steps] = ({count},), but {spacing} returned {shape}."
    demand(jnp.shape(t) == (count,), message, count=count, spacing=described(spacing), shape=jnp.shape(t))


def check_bounds(name: str, schedule: Any, own: tuple[Any, Any], bounds: tuple[Any, Any]) -> None:
    """Raises an error unless a path can go from the maximum `sigma / alpha` to the minimum.

    Args:
      name: The spacing.
      schedule: The schedule.
      own: The minimum and maximum of the schedule.
      bounds: The minimum and maximum of the path.
    """
    (low, high), (end, start) = own, bounds
    wanted = "sigma_max must be finite, got the schedule's {start}: it begins in pure noise"
    mend = f"begin at {name}(sigma_max=80.0), or use uniform() or trailing(), as usual for flow matching."
    demand(lambda: start < np.inf, f"{name}: {wanted}; {mend}", start=start)
    if name == "exponential":
        demand(lambda: end > 0, "exponential: sigma_min must be positive, got {end}; use sigma_min=0.002.", end=end)
    if schedule.steps is not None:
        beyond = "is beyond the levels of this discrete schedule, which end at"
        demand(lambda: end >= 0.999 * low, f"{name}: sigma_min = {{end}} {beyond} {{low}}.", end=end, low=low)
        demand(lambda: start <= 1.001 * high, f"{name}: sigma_max = {{start}} {beyond} {{high}}.", start=start, high=high)
    message = f"{name}: sigma_min must be below sigma_max, got {{end}}, {{start}}."
    demand(lambda: end < start, message, end=end, start=start)


def check_strength(path: NoiseLevel, share: float) -> None:
    """Raises an error if this share of a path has no step."""
    steps = len(path) - 1
    demand(int(steps * share) > 0, f"strength: share must leave at least one step, got {share} of {steps} steps.")


def check_below(path: NoiseLevel, ratio: float) -> None:
    """Raises an error if the path or the ratio is traced, or if no step begins at or below the ratio."""
    demand(concrete((path, ratio)), "below: path and ratio must be known, got traced values; call below outside of jit.")
    message = "below: ratio must leave at least one step, got {ratio}; the last step begins at sigma / alpha = {last:.6g}."
    last = np.asarray(path.sigma)[-2] / np.asarray(path.alpha)[-2]
    demand(lambda: (path.ratio <= ratio).sum() > 1, message, ratio=ratio, last=last)


def check_level(level: NoiseLevel, x: Array) -> None:
    """Raises an error unless this is one noise level for all samples, or one per sample."""
    if not isinstance(level, NoiseLevel):
        raise TypeError(f"the level must be a NoiseLevel, got {described(level)}{call_it(level)}; use schedule(t).")
    shape = jnp.shape(level.sigma)
    message = f"the level must be () or [B] = {x.shape[:1]}, got shape {shape}; for one level of a path, use levels[0]."
    demand(shape in ((), x.shape[:1]), message)
    check_finite((level.alpha, level.sigma), "the level's (alpha, sigma)")


def check_levels(path: NoiseLevel, sampler: Sampler | None = None, start_given: bool = False) -> None:
    """Raises an error unless the `[steps + 1]` levels of a path decrease. They may increase for a reversible sampler from x."""
    if not isinstance(path, NoiseLevel):
        raise TypeError(f"levels must be a NoiseLevel, got {described(path)}{call_it(path)}; {LEVELS}")
    for name, field in vars(path).items():
        check_form(field, f"levels.{name}", "steps+1", hint=LEVELS)
    sizes = sorted({len(field) for field in vars(path).values()})
    demand(len(sizes) == 1 and sizes[0] > 1, f"levels must have one length, at least 2 entries, got {sizes}; {LEVELS}")
    alpha, sigma = (np.asarray(part) if concrete(part) else part for part in (path.alpha, path.sigma))
    # The product of two smaller sigmas is subnormal. It is flushed to 0, and then it is a divisor.
    low = float(jnp.finfo(sigma.dtype).tiny) ** 0.5
    numbers = lambda: (alpha >= 0) & (alpha < np.inf) & ((sigma == 0) | (sigma >= low)) & (sigma < np.inf)
    wanted = f"have finite alpha >= 0 and sigma >= 0, at least {low:.2g} unless it is 0"
    mend = "use 0 for a last sigma that is too small; a spacing in sigma / alpha needs a finite maximum: flow(t_max=0.99)."
    _demand_of_each(numbers, f"{wanted}, {GOT}; {mend}", alpha, sigma)
    # alpha' sigma > alpha sigma' is equivalent to sigma / alpha > sigma' / alpha', but never divides by an alpha of 0.
    change = lambda: alpha[1:] * sigma[:-1] - alpha[:-1] * sigma[1:]
    rises = lambda: (change() < 0).all()
    if sampler is not None and concrete((alpha, sigma)) and rises():
        demand(sampler.reversible, f"{UPWARD}, and this sampler cannot; use ddim() or heun(), or reverse the levels.")
        demand(start_given, f"{UPWARD}; such a run starts from data: use x, [B, ...], instead of a shape.")
        demand(sigma[0] > 0, f"{UPWARD}; such a run must start with sigma > 0; use gj.schedules.reverse(levels).")
    may_rise = sampler is not None and sampler.reversible and start_given
    mend = "sort them from the maximum noise to the minimum, without repeats; if the spacing repeats a level, use fewer steps."
    right = lambda: (change() > 0) | (may_rise & rises())
    _demand_of_each(right, f"decrease in sigma / alpha, {GOT}; {mend}", alpha, sigma)


def _demand_of_each(holds: Callable[[], Any], message: str, alpha: Any, sigma: Any) -> None:
    """Demands that something holds for each level, or each pair of levels. The error shows the first level that fails."""
    first = 0
    if concrete((alpha, sigma)):
        first = int(holds().argmin())
        alpha, sigma = alpha[first : first + 2], sigma[first : first + 2]
    demand(holds, f"levels must {message}", alpha=alpha, sigma=sigma, first=first)


def check_schedule_of(sampler: Sampler | None, path: NoiseLevel) -> None:
    """Raises an error if a sampler's own schedule does not match the known levels of the run."""
    if sampler is None or sampler.schedule is None or not concrete(path):
        return
    path, schedule = jax.tree.map(np.asarray, path), sampler.schedule
    given = path[(path.alpha > 0) & (path.sigma > 0)]
    ratio = given.sigma / given.alpha
    with jax.ensure_compile_time_eval():
        own, reach = schedule.at(ratio), schedule.t_max - schedule.t_min
    if len(ratio) and concrete((own, reach)):
        pairs, held = np.stack([own.t, own.alpha]), np.stack([given.t, given.alpha])
        # A few levels may differ: times are rounded, and one schedule may end before the other.
        off = (abs(pairs - held) > 0.03 * np.stack([np.broadcast_to(reach, ratio.shape), given.alpha])).any(0)
        message = (
            "the sampler's schedule must match the levels: at sigma / alpha = {ratio:.4g} its t and alpha are {own}, those "
        )
        i, message = off.argmax(), message + "of the levels are {given}; use one schedule for both."
        demand(off.mean() <= 0.5, message, ratio=ratio[i], own=pairs[:, i], given=held[:, i])
