"""What training receives: whether schedules, conditions and parameters fit each other."""

from typing import Any

import jax

from guidance_jax.checks.numbers import check_broadcasts, check_range
from guidance_jax.checks.traced import demand
from guidance_jax.checks.words import told


def check_continuous(schedule: Any) -> None:
    """Raises where a schedule is discrete: its network knows no levels between the training steps."""
    wanted = f"log_normal_levels: schedule must be continuous, got one of {schedule.steps} steps; use noise_levels for these."
    demand(schedule.steps is None, wanted)


def check_null(cond: Any, null: Any) -> None:
    """Raises unless the null condition can stand in the place of each sample's."""
    leaves, structure = jax.tree.flatten(cond)
    if not leaves:
        raise ValueError(f"drop: there is no leaf in the condition, got {told(cond)}.")
    try:
        nulls = structure.flatten_up_to(null)
    except ValueError as error:
        raise ValueError(f"drop: null must have the structure of cond, {structure}, got {jax.tree.structure(null)}.") from error
    for leaf, empty in zip(leaves, nulls, strict=True):
        check_range(empty, "drop: null")
        check_broadcasts(leaf, "drop", "the condition", null=empty)


def check_average(average: Any, params: Any, step: Any) -> None:
    """Raises unless an average and parameters have one structure, and the step is a whole number."""
    one, other = jax.tree.structure(average), jax.tree.structure(params)
    if one != other:
        raise ValueError(f"ema: average and params must have one structure, got {one} and {other}.")
    if isinstance(step, float) and not step.is_integer():
        raise ValueError(f"ema: step counts from 0, got {step}; the decay comes after it: ema(average, params, step, {step}).")
