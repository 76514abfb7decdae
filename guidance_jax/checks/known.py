"""Conditions whose values are known, which a network cannot see inside the loop: it is traced with them before."""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from guidance_jax.arrays import concrete
from guidance_jax.base import Branches, Cond, NoiseLevel
from guidance_jax.checks.outcomes import predicted
from guidance_jax.parts import NUMBER, hashable, is_number
from guidance_jax.programs import KEPT, tracing

_SEEN: OrderedDict[Hashable, list[tuple[int, int]]] = OrderedDict()
"""Of each branch, by its name, network and shapes, the least and the greatest value of each integer leaf so far."""


def check_known(network: Branches, name: str, x: jax.ShapeDtypeStruct, level: NoiseLevel) -> None:
    """Lets a network check the values of a branch's condition, such as labels.

    Outside of a trace this is done once per structure, and again where an integer leaves the range of those seen before.
    """
    cond = network.conds[name]
    if callable(cond) or not concrete(cond):
        return
    # The condition is a constant of this trace, so its values are known in it.
    trace = lambda: jax.eval_shape(lambda x, at: predicted(network, x, at, cond), x, level)
    if tracing() or not concrete(network.denoise):
        trace()
        return
    key = (name, _structure(network.denoise), _structure(cond), x.shape, x.dtype)
    spans, seen = _spans(cond), _SEEN.get(key)
    if seen is None or any(low < least or high > most for (low, high), (least, most) in zip(spans, seen, strict=True)):
        trace()
        seen = seen or spans
        seen = [(min(a, least), max(b, most)) for (a, b), (least, most) in zip(spans, seen, strict=True)]
    _SEEN[key] = seen
    _SEEN.move_to_end(key)
    if len(_SEEN) > KEPT:
        _SEEN.popitem(last=False)


def _structure(tree: Any) -> Hashable:
    """A tree without its numbers: what two trees have in common that trace alike."""
    leaves, structure = jax.tree.flatten(tree)
    like = lambda leaf: (NUMBER, jnp.shape(leaf), jnp.result_type(leaf)) if is_number(leaf) else hashable(leaf)
    return structure, tuple(map(like, leaves))


def _spans(cond: Cond) -> list[tuple[int, int]]:
    """The least and the greatest value of each leaf of integers."""
    integers = [np.asarray(leaf) for leaf in jax.tree.leaves(cond) if jnp.issubdtype(leaf.dtype, jnp.integer) and leaf.size]
    return [(int(leaf.min()), int(leaf.max())) for leaf in integers]
