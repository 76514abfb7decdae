"""Checks of known conditions: a user's function is traced with their values before the loop, which hides them."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from guidance_jax.checks.traced import concrete
from guidance_jax.programs.compiled import KEPT, tracing
from guidance_jax.programs.parts import NUMBER, hashable, is_number

_SEEN: OrderedDict[Hashable, list[tuple[int, int]]] = OrderedDict()
"""For each structure, the minimum and maximum of each integer leaf so far."""


def check_known(fixed: Any, values: Any, function: Callable[..., Any], *arguments: Any) -> None:
    """Traces a user's function with known values, such as labels, so that the function can check them.

    Inside the loop the values are traced, and the function cannot check them. Outside of a trace the function is traced once
    per structure, and again if an integer is outside of the range so far.

    Args:
      fixed: The rest of the structure.
      values: Pytrees of the values.
      function: The function to trace. It holds the values as constants.
      *arguments: The arguments of the trace: shapes and dtypes.
    """
    if not concrete(values):
        return
    if tracing() or not concrete(fixed):
        jax.eval_shape(function, *arguments)
        return
    key = _structure((fixed, values, arguments[0]))
    spans, seen = _spans(values), _SEEN.get(key)
    spans = [(min(a, c), max(b, d)) for (a, b), (c, d) in zip(spans, seen or spans, strict=True)]
    if spans != seen:
        jax.eval_shape(function, *arguments)
    _SEEN[key] = spans
    _SEEN.move_to_end(key)
    if len(_SEEN) > KEPT:
        _SEEN.popitem(last=False)


def has_labels(tree: Any) -> bool:
    """Whether the arguments of a part contain arrays of integers, which may be labels."""
    return any(jnp.ndim(leaf) and jnp.issubdtype(leaf.dtype, jnp.integer) for leaf in jax.tree.leaves(tree))


def _structure(tree: Any) -> Hashable:
    """A tree without its numbers. Two trees of one structure have the same trace."""
    leaves, structure = jax.tree.flatten(tree)
    like = lambda leaf: (NUMBER, jnp.shape(leaf), jnp.result_type(leaf)) if is_number(leaf) else hashable(leaf)
    return structure, tuple(map(like, leaves))


def _spans(values: Any) -> list[tuple[int, int]]:
    """The minimum and maximum of each leaf of integers."""
    integers = [np.asarray(leaf) for leaf in jax.tree.leaves(values) if jnp.ndim(leaf) and leaf.size]
    integers = [leaf for leaf in integers if jnp.issubdtype(leaf.dtype, jnp.integer)]
    return [(int(leaf.min()), int(leaf.max())) for leaf in integers]
