"""Argument validation for training: schedules, conditions and parameters."""

from typing import Any

import jax
import jax.numpy as jnp

from guidance_jax.checks.numbers import check_broadcasts, check_range
from guidance_jax.checks.traced import demand
from guidance_jax.checks.values import check_condition
from guidance_jax.checks.words import described


def check_continuous(schedule: Any) -> None:
    """Raises an error if a schedule is discrete. Its network knows only the levels of the training steps."""
    wanted = f"log_normal_levels: schedule must be continuous, got one of {schedule.steps} steps; use noise_levels."
    demand(schedule.steps is None, wanted)


def check_cond(x0: Any, cond: Any, who: str) -> None:
    """Raises an error unless a condition has the batch of the data. A network would broadcast one label over all samples."""
    check_condition(cond, jnp.shape(x0)[:1], f"{who}: cond", "one per sample of x0")


def check_null(cond: Any, null: Any) -> None:
    """Raises an error unless the null condition can replace the condition of each sample."""
    leaves, structure = jax.tree.flatten(cond)
    if not leaves:
        raise ValueError(f"drop: the condition must have at least one leaf, got {described(cond)}.")
    if batch := getattr(leaves[0], "shape", ())[:1]:
        check_condition(cond, tuple(batch), "drop: cond", "as its first leaf")
    try:
        nulls = structure.flatten_up_to(null)
    except ValueError as error:
        raise ValueError(f"drop: null must have the structure of cond, {structure}, got {jax.tree.structure(null)}.") from error
    for leaf, empty in zip(leaves, nulls, strict=True):
        check_range(empty, "drop: null")
        check_broadcasts(leaf, "drop", "the condition", null=empty)


def check_average(average: Any, params: Any, step: Any) -> None:
    """Raises an error unless average and params have the same structure, and the step is an integer."""
    one, other = jax.tree.structure(average), jax.tree.structure(params)
    if one != other:
        raise ValueError(f"ema: average and params must have the same structure, got {one} and {other}.")
    if isinstance(step, float) and not step.is_integer():
        raise ValueError(f"ema: step must be an integer, got {step}; for the decay, use ema(average, params, step, {step}).")
