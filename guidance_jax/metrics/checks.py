"""Whether sets of features, logits and moments are what metrics compare."""

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
    """The kind of a set of features, or of what was made of one already."""
    hint = "; find out why before leaving them out, for a sampler that diverges is no better for it"

    def also(value: Any, where: str) -> None:
        if not isinstance(value, others):
            check_form(value, where, "N D", hint="reshape it to x.reshape(len(x), -1), cast it with .astype(float).")
            check_rows(value, lambda x: np.isfinite(x).all(1), f"{where} has NaN or infinite values", hint)

    return Kind("features", lambda value: True, also=also)


def check_logits(value: Any, where: str) -> None:
    """Raises unless logits are `[N, C]` and no known one is NaN."""
    check_form(value, where, "N C")
    check_rows(value, lambda x: ~np.isnan(x).any(1), f"{where} has NaN")


Features = TypeAliasType("Features", Annotated[Float[Array | np.ndarray, "_ d"], features_kind()])
"""A set of features, `[N, D]`, on a device or in the host's memory."""
LOGITS = Kind("logits", lambda value: True, also=check_logits)
Logits = TypeAliasType("Logits", Annotated[Float[Array | np.ndarray, "n c"], LOGITS])
"""What a classifier says of each sample, `[N, C]`."""


def check_rows(x: Any, right: Any, what: str, hint: str = "") -> None:
    """Raises where rows of an array are known and wrong."""
    if concrete(x):
        with np.errstate(over="ignore"):
            bad = ~right(np.asarray(x).astype(jax.dtypes.canonicalize_dtype(x.dtype)))
        demand(~bad, f"{what} in {bad.sum()} of {len(bad)} rows, the first is {bad.argmax()}{hint}.")


def check_directions(x: Any) -> None:
    """Raises where a row is known and all zero."""
    check_rows(x, lambda x: x.any(1), "vendi: x is all zero, and has no direction,")


def check_sets(least: int, why: str = "", **sets: Any) -> None:
    """Raises unless sets have so many points each, where their number is known, and features of one size."""
    names, (counts, sizes) = " and ".join(sets), zip(*(x.shape for x in sets.values()), strict=True)
    enough = not concrete(counts) or min(counts) >= least
    demand(enough, f"{names} must have at least {least} points{why}, got {' and '.join(map(str, counts))}.")
    demand(len(set(sizes)) == 1, ALIKE, names=names, sizes=" and ".join(map(str, sizes)))


def check_known(k: int, **sets: Any) -> None:
    """Raises where the neighbours of a set were found before, and fewer than k of each."""
    for name, x in sets.items():
        found = x.nearest.shape[1] if hasattr(x, "nearest") else k
        demand(found >= k, f"k={k} asks for more than {name}'s {found} neighbours; use gj.metrics.neighbours(x, {k}).")


def check_gaussians(mean_a: Array, cov_a: Array, mean_b: Array, cov_b: Array) -> None:
    """Raises unless means and covariances are of one size."""
    size = mean_a.shape
    for name, value, shape in (("cov_a", cov_a, 2 * size), ("mean_b", mean_b, size), ("cov_b", cov_b, 2 * size)):
        demand(value.shape == shape, f"frechet_distance: {name} must be {shape}, as mean_a is {size}, got {value.shape}.")


def check_classes(logits: Array, labels: Array) -> None:
    """Raises unless there is one label per sample, and a logit for each."""
    check_labels(labels, logits.shape[1], f"accuracy of {logits.shape[1]} logits")
    right = labels.shape == logits.shape[:1]
    demand(right, f"accuracy: labels must be {logits.shape[:1]}, one for each row of the logits, got {labels.shape}.")
