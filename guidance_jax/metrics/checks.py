"""Argument validation for the metrics."""

from typing import Annotated, Any

import jax
import numpy as np
from jax import Array
from jaxtyping import Float
from typing_extensions import TypeAliasType

from guidance_jax.checks.door import Kind
from guidance_jax.checks.numbers import check_form
from guidance_jax.checks.traced import concrete, demand
from guidance_jax.checks.values import check_labels

ALIKE = "{names} have features of different sizes D, {sizes}; use the same network and layer for both."


def features_kind(*others: type) -> Kind:
    """The kind of a set of features, or of a value that was made from one."""
    hint = "; find the cause before you drop them, because they can come from a sampler that diverges"

    def also(value: Any, where: str) -> None:
        if not isinstance(value, others):
            check_form(value, where, "N D", hint="reshape it to x.reshape(len(x), -1), cast it with .astype(float).")
            check_rows(value, lambda x: np.isfinite(x).all(1), f"{where} has NaN or infinite values", hint)

    return Kind("features", lambda value: True, also=also)


def check_logits(value: Any, where: str) -> None:
    """Raises unless logits are `[N, C]`, and without NaN if they are known."""
    check_form(value, where, "N C")
    check_rows(value, lambda x: ~np.isnan(x).any(1), f"{where} has NaN")


Features = TypeAliasType("Features", Annotated[Float[Array | np.ndarray, "_ d"], features_kind()])
"""A set of features, `[N, D]`, on a device or in host memory."""
LOGITS = Kind("logits", lambda value: True, also=check_logits)
Logits = TypeAliasType("Logits", Annotated[Float[Array | np.ndarray, "n c"], LOGITS])
"""The logits of a classifier, `[N, C]`."""


def check_rows(x: Any, right: Any, what: str, hint: str = "") -> None:
    """Raises if rows of a known array are wrong."""
    if concrete(x):
        with np.errstate(over="ignore"):
            bad = ~right(np.asarray(x).astype(jax.dtypes.canonicalize_dtype(x.dtype)))
        demand(~bad, f"{what} in {bad.sum()} of {len(bad)} rows, the first is {bad.argmax()}{hint}.")


def check_directions(x: Any) -> None:
    """Raises if a known row is all zero."""
    check_rows(x, lambda x: x.any(1), "vendi: x is all zero and has no direction")


def check_sets(minimum: int, why: str = "", **sets: Any) -> None:
    """Raises unless each set has at least `minimum` points, if their number is known, and all features have one size."""
    names, (counts, sizes) = " and ".join(sets), zip(*(x.shape for x in sets.values()), strict=True)
    enough = not concrete(counts) or min(counts) >= minimum
    demand(enough, f"{names} must have at least {minimum} points{why}, got {' and '.join(map(str, counts))}.")
    demand(len(set(sizes)) == 1, ALIKE, names=names, sizes=" and ".join(map(str, sizes)))


def check_known(k: int, **sets: Any) -> None:
    """Raises if the neighbours of a set are precomputed, but fewer than k per point."""
    for name, x in sets.items():
        found = x.nearest.shape[1] if hasattr(x, "nearest") else k
        demand(found >= k, f"{name} has {found} neighbours per point, fewer than k={k}; use gj.metrics.neighbours(x, {k}).")


def check_gaussians(mean_a: Array, cov_a: Array, mean_b: Array, cov_b: Array) -> None:
    """Raises unless means are `[D]` and covariances `[D, D]`."""
    size = mean_a.shape
    for name, value, shape in (("cov_a", cov_a, 2 * size), ("mean_b", mean_b, size), ("cov_b", cov_b, 2 * size)):
        demand(
            value.shape == shape,
            f"frechet_distance: {name} must have the shape {shape}, as mean_a has {size}, got {value.shape}.",
        )


def check_classes(logits: Array, labels: Array) -> None:
    """Raises unless there is one label per row of logits, and a logit for each label."""
    check_labels(labels, logits.shape[1], f"accuracy of {logits.shape[1]} logits")
    right = labels.shape == logits.shape[:1]
    demand(right, f"accuracy: labels must be {logits.shape[:1]}, one per row of the logits, got {labels.shape}.")
