"""Whether sets of features, logits and moments are what metrics compare."""

from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float
from typing_extensions import TypeAliasType

from guidance_jax.arrays import concrete
from guidance_jax.checks.door import Kind
from guidance_jax.checks.numbers import check_form
from guidance_jax.checks.running import check_labels


def features_kind(*others: type) -> Kind:
    """The kind of a set of features, or of what was made of one already."""

    hint = "; find out why before leaving them out, for a sampler that diverges is no better for it"

    def also(value: Any, where: str) -> None:
        if not isinstance(value, others):
            check_form(value, where, "N D", hint="reshape it to x.reshape(len(x), -1), cast it with .astype(float).")
            check_rows(value, lambda held: ~np.isfinite(held).all(1), f"{where} has NaN or infinite values", hint)

    return Kind("features", lambda value: True, also=also)


def check_logits(value: Any, where: str) -> None:
    """Raises unless logits are `[N, C]` and no known one is NaN."""
    check_form(value, where, "N C")
    check_rows(value, lambda held: np.isnan(held).any(1), f"{where} has NaN")


Features = TypeAliasType("Features", Annotated[Float[Array | np.ndarray, "_ d"], features_kind()])
"""A set of features, `[N, D]`, on a device or in the host's memory."""
Logits = TypeAliasType(
    "Logits", Annotated[Float[Array | np.ndarray, "n c"], Kind("logits", lambda value: True, also=check_logits)]
)
"""What a classifier says of each sample, `[N, C]`."""


def check_rows(x: Any, bad: Any, what: str, hint: str = "") -> None:
    """Raises where rows of an array are known and bad.

    Raises:
      ValueError: Naming how many, and the first.
    """
    if not concrete(x):
        return
    with np.errstate(over="ignore"):
        rows = bad(np.asarray(x).astype(jax.dtypes.canonicalize_dtype(x.dtype)))
    if rows.any():
        raise ValueError(f"{what} in {rows.sum()} of {len(rows)} rows, the first is {rows.argmax()}{hint}.")


def check_directions(x: Any) -> None:
    """Raises where a row is known and all zero."""
    check_rows(x, lambda held: (held == 0).all(1), "vendi: x is all zero, and has no direction,")


def check_sets(least: int, why: str = "", **sets: Any) -> None:
    """Raises unless sets have so many points each, where their number is known, and features of one size.

    Raises:
      ValueError: Naming the sets and their sizes.
    """
    names, (counts, widths) = " and ".join(sets), zip(*(x.shape for x in sets.values()), strict=True)
    if concrete(counts) and min(counts) < least:
        raise ValueError(f"{names} must have at least {least} points{why}, got {' and '.join(map(str, counts))}.")
    if len(set(widths)) > 1:
        told_of = " and ".join(map(str, widths))
        raise ValueError(f"{names} have features of different sizes D, {told_of}; use the same network and layer for both.")


def check_known(k: int, **sets: Any) -> None:
    """Raises where the neighbours of a set were found before, and fewer than k of each.

    Raises:
      ValueError: Naming the set, and how it is made.
    """
    for name, x in sets.items():
        if (found := getattr(x, "nearest", None)) is not None and found.shape[1] < k:
            raise ValueError(
                f"k={k} asks for more neighbours than {name} comes with, {found.shape[1]}; use gj.metrics.neighbours(x, {k})."
            )


def check_gaussians(mean_a: Array, cov_a: Array, mean_b: Array, cov_b: Array) -> None:
    """Raises unless means and covariances are of one size.

    Raises:
      ValueError: Naming the one that is not.
    """
    size = jnp.shape(mean_a)
    for name, value, shape in (("cov_a", cov_a, 2 * size), ("mean_b", mean_b, size), ("cov_b", cov_b, 2 * size)):
        if jnp.shape(value) != shape:
            raise ValueError(f"frechet_distance: {name} has shape {jnp.shape(value)}, but mean_a {size} asks for {shape}.")


def check_classes(logits: Array, labels: Array) -> None:
    """Raises unless there is one label per sample, and a logit for each.

    Raises:
      ValueError: Naming the shapes, or the label.
    """
    check_labels(labels, logits.shape[1], f"accuracy of {logits.shape[1]} logits")
    if labels.shape != logits.shape[:1]:
        raise ValueError(f"accuracy: labels have shape {labels.shape}, but logits {logits.shape} need one per sample.")
