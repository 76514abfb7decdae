"""What training receives: whether schedules, conditions and parameters fit each other."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from guidance_jax.base import Schedule
from guidance_jax.checks.numbers import check_range
from guidance_jax.checks.words import told


def check_continuous(schedule: Schedule) -> None:
    """Raises where a schedule is discrete: its network knows no levels between the training steps.

    Raises:
      ValueError: naming its steps, and what draws these.
    """
    if schedule.steps is not None:
        raise ValueError(
            f"log_normal_levels: schedule must be continuous, got one of {schedule.steps} steps; use noise_levels for these."
        )


def check_null(cond: Any, null: Any) -> None:
    """Raises unless the null condition can stand in the place of each sample's.

    Raises:
      ValueError: if it has another structure, or a leaf that does not broadcast.
      TypeError: if a leaf is no number.
    """
    leaves, structure = jax.tree.flatten(cond)
    if not leaves:
        raise ValueError(f"drop: there is no leaf in the condition, got {told(cond)}.")
    try:
        nulls = structure.flatten_up_to(null)
    except ValueError as error:
        raise ValueError(f"drop: null must have the structure of cond, {structure}, got {jax.tree.structure(null)}.") from error
    for leaf, empty in zip(leaves, nulls, strict=True):
        check_range(empty, "drop: null")
        shape = jnp.shape(empty)
        if any(n not in (1, m) for n, m in zip(shape[::-1], leaf.shape[::-1], strict=False)) or len(shape) > leaf.ndim:
            raise ValueError(f"drop: null has a leaf of shape {shape}, which does not broadcast to that of cond, {leaf.shape}.")


def check_average(average: Any, params: Any, step: Any) -> None:
    """Raises unless an average and parameters have one structure, and the step is a whole number.

    Raises:
      ValueError: naming both structures, or the step.
    """
    structures = jax.tree.structure(average), jax.tree.structure(params)
    if structures[0] != structures[1]:
        raise ValueError(f"ema: average and params must have one structure, got {structures[0]} and {structures[1]}.")
    if isinstance(step, float) and not step.is_integer():
        raise ValueError(f"ema: step counts from 0, got {step}; the decay comes after it: ema(average, params, step, {step}).")


def check_logits(logits: Array, x: Array) -> None:
    """Raises unless a classifier gave a row of logits for each sample.

    Raises:
      ValueError: naming the shape.
    """
    if jnp.ndim(logits) != 2 or len(logits) != len(x):
        raise ValueError(f"the classifier gave logits {jnp.shape(logits)} for x {x.shape}, but must give [B, classes].")
