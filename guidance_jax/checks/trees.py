"""Argument validation for `trees`: the structure and shapes of pytrees and of their vectors."""

from typing import Any

import jax
import jax.numpy as jnp

from guidance_jax.checks.numbers import floating
from guidance_jax.checks.traced import demand
from guidance_jax.checks.words import described


def check_example(example: Any, points: bool) -> None:
    """Raises an error unless an example is a tree of floating arrays. With `points`, all arrays must have the same length."""
    leaves = jax.tree.leaves(example)
    demand(len(leaves) > 0, "flat: example must hold at least one array, got none.")
    for leaf in leaves:
        wanted = "flat: example must hold arrays of floating numbers, got {got}; put other arrays into the condition."
        demand(floating(leaf), wanted, TypeError, got=described(leaf))
    lengths, shapes = {leaf.shape[:1] for leaf in leaves}, ", ".join(str(leaf.shape) for leaf in leaves)
    alike = not points or (len(lengths) == 1 and () not in lengths)
    demand(alike, f"flat: with points, the first axis of all leaves must have one length, got shapes {shapes}.")


def check_tree(tree: Any, like: Any) -> None:
    """Raises an error unless a tree has the structure of `like`, and each leaf is a batch of the leaf in `like`."""
    leaves, shapes = jax.tree.leaves(tree), jax.tree.map(jnp.shape, tree)
    batch = jnp.shape(leaves[0])[:1] if leaves else ()
    wanted = lambda *batch: jax.tree.map(lambda leaf: (*batch, *leaf.shape), like)
    if not batch or shapes != wanted(*batch):
        raise ValueError(f"ravel: tree must have the shapes {wanted('B')}, got {shapes}.")


def check_vector(x: Any, size: int) -> None:
    """Raises an error unless x is a batch of vectors of this size."""
    demand(jnp.shape(x)[1:] == (size,), f"unravel: x must be [B, {size}], got {{x}}.", x=described(x))
