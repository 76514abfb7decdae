"""Whether schedules, spacings and levels fit each other."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from guidance_jax.base import NoiseLevel
from guidance_jax.checks.numbers import check_finite, check_form
from guidance_jax.checks.traced import concrete, demand
from guidance_jax.checks.words import call_it, told
from guidance_jax.interfaces import Sampler

LEVELS = "make levels with gj.levels(schedule, steps, spacing)."
GOT = "got alpha {alpha} and sigma {sigma} from level {first} on"
UPWARD = "levels must decrease in sigma / alpha, but these increase throughout, from data to noise"


def check_steps(schedule: Any, steps: int) -> None:
    """Raises where more steps are asked for than a discrete schedule has."""
    right = schedule.steps is None or steps <= schedule.steps
    demand(right, f"steps must be at most the {schedule.steps} training steps of a discrete schedule, got {steps}.")


def check_spaced(t: Any, count: int, spacing: Callable[..., Any]) -> None:
    """Raises unless a spacing returned so many times."""
    message = "levels: spacing must return times of shape [steps] = ({count},), but {spacing} returned {shape}."
    demand(jnp.shape(t) == (count,), message, count=count, spacing=told(spacing), shape=jnp.shape(t))


def check_bounds(name: str, schedule: Any, own: tuple[Any, Any], bounds: tuple[Any, Any]) -> None:
    """Raises unless a path can go from one `sigma / alpha` to another: least and most, of the schedule and of the path."""
    (low, high), (least, most) = own, bounds
    demand(lambda: most < np.inf, f"{name}: sigma_max must be finite, got the schedule's {{most}}; give one: 80.0.", most=most)
    if name == "exponential":
        demand(lambda: least > 0, "exponential: sigma_min must be positive, got {least}; give sigma_min=0.002.", least=least)
    if schedule.steps is not None:
        beyond = "is beyond the levels of this discrete schedule, which end at"
        demand(lambda: least >= 0.999 * low, f"{name}: sigma_min = {{least}} {beyond} {{low}}.", least=least, low=low)
        demand(lambda: most <= 1.001 * high, f"{name}: sigma_max = {{most}} {beyond} {{high}}.", most=most, high=high)
    demand(lambda: least < most, f"{name}: sigma_min must be below sigma_max, got {{least}}, {{most}}.", least=least, most=most)


def check_strength(path: NoiseLevel, share: float) -> None:
    """Raises where a share of a path leaves no step."""
    steps = len(path) - 1
    demand(int(steps * share) > 0, f"strength: share must leave at least one step, but {share} of {steps} steps is less.")


def check_below(path: NoiseLevel, ratio: float) -> None:
    """Raises where no step of a path begins below a noise level, or that is not known."""
    demand(concrete((path, ratio)), "below: path and ratio must be known, got traced ones; make the path outside of jit.")
    message = "below: ratio must leave at least one step; the last begins at sigma / alpha = {last:.6g}, got {ratio}."
    last = np.asarray(path.sigma)[-2] / np.asarray(path.alpha)[-2]
    demand(lambda: (path.ratio <= ratio).sum() > 1, message, ratio=ratio, last=last)


def check_level(level: NoiseLevel, x: Array) -> None:
    """Raises unless it is a noise level, one for all samples or one per sample."""
    if not isinstance(level, NoiseLevel):
        raise TypeError(f"the level must be a NoiseLevel, got {told(level)}{call_it(level)}; schedule(t) returns one.")
    wanted = f"but must be () or [B] = {x.shape[:1]}; of a whole path, take one level: levels[0]."
    shape = jnp.shape(level.sigma)
    demand(shape in ((), x.shape[:1]), f"the level has shape {shape}, {wanted}")
    check_finite((level.alpha, level.sigma), "the level's (alpha, sigma)")


def check_levels(path: NoiseLevel, sampler: Sampler | None = None, start_given: bool = False) -> None:
    """Raises unless a path is `[steps + 1]` levels of ever less noise; or of ever more, if sampler and start go that way."""
    if not isinstance(path, NoiseLevel):
        raise TypeError(f"levels must be a NoiseLevel, got {told(path)}{call_it(path)}; {LEVELS}")
    for name, field in vars(path).items():
        check_form(field, f"levels.{name}", "steps+1", hint=LEVELS)
    sizes = sorted({len(field) for field in vars(path).values()})
    demand(len(sizes) == 1 and sizes[0] > 1, f"levels must be of one length, at least 2 entries, got {sizes}; {LEVELS}")
    alpha, sigma = (np.asarray(part) if concrete(part) else part for part in (path.alpha, path.sigma))
    # Products of two lesser sigmas are denormal numbers, which are flushed to 0 and divided by.
    least = float(jnp.finfo(sigma.dtype).tiny) ** 0.5
    numbers = lambda: (alpha >= 0) & (alpha < np.inf) & ((sigma == 0) | (sigma >= least)) & (sigma < np.inf)
    wanted = f"have finite alpha >= 0 and sigma >= 0, at least {least:.2g} unless it is 0"
    mend = "end at 0 after a larger one; a spacing in sigma / alpha needs a finite largest one: flow(t_max=0.99), say."
    _demand_of_each(numbers, f"{wanted}, {GOT}; {mend}", alpha, sigma)
    # alpha' sigma > alpha sigma' is sigma / alpha > sigma' / alpha', without dividing by an alpha of zero.
    change = lambda: alpha[1:] * sigma[:-1] - alpha[:-1] * sigma[1:]
    rises = lambda: (change() < 0).all()
    if sampler is not None and concrete((alpha, sigma)) and rises():
        demand(sampler.reversible, f"{UPWARD}, which this sampler does not go; ddim() and heun() do; or turn them round.")
        demand(start_given, f"{UPWARD}; such a run starts at the data: give x, [B, ...], and not a shape.")
        demand(sigma[0] > 0, f"{UPWARD}; such a run starts with sigma > 0: gj.schedules.reverse(levels) makes its levels.")
    may_rise = sampler is not None and sampler.reversible and start_given
    mend = "order them from the most noise to the least, without repeats; take fewer steps where the spacing repeats one."
    right = lambda: (change() > 0) | (may_rise & rises())
    _demand_of_each(right, f"decrease in sigma / alpha, {GOT}; {mend}", alpha, sigma)


def _demand_of_each(holds: Callable[[], Any], message: str, alpha: Any, sigma: Any) -> None:
    """Demands something of each level, or of each pair; where it does not hold for known ones, the first pair is shown."""
    first = 0
    if concrete((alpha, sigma)):
        first = int(holds().argmin())
        alpha, sigma = alpha[first : first + 2], sigma[first : first + 2]
    demand(holds, f"levels must {message}", alpha=alpha, sigma=sigma, first=first)


def check_schedule_of(sampler: Sampler | None, path: NoiseLevel) -> None:
    """Raises where a sampler visits levels between those of the run by the schedule of other ones, all of them known."""
    if sampler is None or sampler.schedule is None or not concrete(path):
        return
    path, schedule = jax.tree.map(np.asarray, path), sampler.schedule
    given = path[(path.alpha > 0) & (path.sigma > 0)]
    ratio = given.sigma / given.alpha
    with jax.ensure_compile_time_eval():
        own, reach = schedule.at(ratio), schedule.t_max - schedule.t_min
    if len(ratio) and concrete((own, reach)):
        pairs, held = np.stack([own.t, own.alpha]), np.stack([given.t, given.alpha])
        # A few may be off: rounded times, or the ends of a schedule that stops short of the run's.
        off = (abs(pairs - held) > 0.03 * np.stack([np.broadcast_to(reach, ratio.shape), given.alpha])).any(0)
        message = "the sampler's schedule is not that of the levels: at sigma / alpha = {ratio:.4g} it has t and alpha {own}, "
        i, message = off.argmax(), message + "they have {given}; give both the same."
        demand(off.mean() <= 0.5, message, ratio=ratio[i], own=pairs[:, i], given=held[:, i])
