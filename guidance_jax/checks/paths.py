"""Whether schedules, spacings and paths fit each other."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from guidance_jax.arrays import concrete
from guidance_jax.base import NoiseLevel, Schedule
from guidance_jax.checks.traced import insist
from guidance_jax.checks.words import told


def check_discrete(schedule: Schedule) -> None:
    """Raises unless a schedule is discrete, of two steps at least.

    Raises:
      ValueError: naming its steps.
    """
    if schedule.steps is None or schedule.steps < 2:
        raise ValueError(
            f"zero_terminal_snr: schedule must be discrete, of at least two steps, and this one has {schedule.steps}; a "
            "continuous one is pure noise at a t_max of its own: cosine(t_max=1.0), flow()."
        )


def check_continuous(schedule: Schedule) -> None:
    """Raises unless a schedule is continuous.

    Raises:
      ValueError: naming its steps.
    """
    if schedule.steps is not None:
        raise ValueError(
            f"shift: schedule must be continuous, and this one has {schedule.steps} steps, beyond whose last there is no "
            "noise level; give discrete(betas) the shifted rates."
        )


def check_steps(schedule: Schedule, steps: int) -> None:
    """Raises where more steps are asked for than a discrete schedule has.

    Raises:
      ValueError: naming both.
    """
    if schedule.steps is not None and steps > schedule.steps:
        raise ValueError(
            f"{steps} steps of a discrete schedule that has {schedule.steps} training steps: at most "
            f"{schedule.steps} of them can be visited."
        )


def check_spaced(t: Any, count: int, spacing: Callable[..., Any]) -> None:
    """Raises unless a spacing returned so many times.

    Raises:
      ValueError: naming their shape.
    """
    if jnp.shape(t) != (count,):
        raise ValueError(
            f"levels: spacing must return times of shape [steps] = ({count},), but {told(spacing)} returned {jnp.shape(t)}."
        )


def check_bounds(name: str, schedule: Schedule, own: tuple[Any, Any], bounds: tuple[Any, Any]) -> None:
    """Raises unless a path can go from one `sigma / alpha` to another: least and most, of the schedule and of the path.

    Raises:
      ValueError: naming the bound that is wrong.
    """
    (low, high), (least, most) = own, bounds
    if concrete(most) and not np.isfinite(most):
        raise ValueError(
            f"{name} spacing needs a finite largest sigma / alpha, but the schedule's t_max has alpha = 0; "
            f"give {name}(sigma_max=80.0), or the schedule a smaller t_max."
        )
    if schedule.steps is not None and concrete((own, bounds)):
        for end, value, last, beyond in (("min", least, low, least < 0.999 * low), ("max", most, high, most > 1.001 * high)):
            if beyond:
                said = f"is beyond the levels of this discrete schedule, which end at {last:.4g}."
                raise ValueError(f"{name}: sigma_{end} = {value:.4g} {said}")
    words = "its sigma_min must be below its sigma_max, or the schedule's"
    if not concrete(bounds):
        right = lambda: jnp.asarray(least) < jnp.asarray(most)
        insist(right, f"{name} spacing got {{low}} and {{high}}, but {words}.", low=jnp.asarray(least), high=jnp.asarray(most))
    elif not least < most:
        raise ValueError(f"{name} spacing got {least} and {most}, but {words}.")


def check_some_noise(least: Any) -> None:
    """Raises where a smallest `sigma / alpha` is known to be 0, which has no logarithm.

    Raises:
      ValueError: naming what to write.
    """
    if concrete(least) and not least > 0:
        raise ValueError(
            "exponential spacing needs a smallest sigma / alpha above 0, but the schedule's t_min has sigma = 0; give "
            "exponential(sigma_min=0.002), or the schedule a larger t_min."
        )


def check_strength(path: NoiseLevel, share: float) -> None:
    """Raises where a share of a path leaves no step.

    Raises:
      ValueError: naming both.
    """
    steps = len(path) - 1
    if int(steps * share) < 1:
        raise ValueError(f"strength: share must leave at least one step, but {share} of {steps} steps is {int(steps * share)}.")


def check_below(path: NoiseLevel, ratio: float) -> None:
    """Raises where no step of a path begins below a noise level, or that is not known.

    Raises:
      ValueError: naming the last step's level.
    """
    if not concrete((path, ratio)):
        raise ValueError(
            "below counts the levels that are left, but they or the ratio are traced; make the path outside of jit."
        )
    if (np.asarray(path.ratio) <= ratio).sum() < 2:
        raise ValueError(
            f"below: no step is left of this path below sigma / alpha = {ratio}; its last begins at {path.ratio[-2]:.6g}."
        )
