"""Whether trees have the structure and shapes that their vectors were made for."""

from typing import Any

import jax
import jax.numpy as jnp

from guidance_jax.checks.numbers import floating
from guidance_jax.checks.traced import demand
from guidance_jax.checks.words import told


def check_example(example: Any, points: bool) -> None:
    """Raises unless an example is a tree of floating arrays; with `points`, of one length."""
    leaves = jax.tree.leaves(example)
    demand(len(leaves) > 0, "flat: example must hold at least one array, got none.")
    for leaf in leaves:
        wanted = "flat: example must hold arrays of floating numbers, got {got}; noise is added to each."
        demand(floating(leaf), wanted, TypeError, got=told(leaf))
    lengths, shapes = {leaf.shape[:1] for leaf in leaves}, ", ".join(str(leaf.shape) for leaf in leaves)
    alike = not points or (len(lengths) == 1 and () not in lengths)
    demand(alike, f"flat: with points, the first axis of each leaf must be the same points, got {shapes}.")


def check_tree(tree: Any, like: Any) -> None:
    """Raises unless a tree has a structure, and a batch of each of its shapes."""
    leaves, shapes = jax.tree.leaves(tree), jax.tree.map(jnp.shape, tree)
    batch = jnp.shape(leaves[0])[:1] if leaves else ()
    wanted = lambda *batch: jax.tree.map(lambda leaf: (*batch, *leaf.shape), like)
    if not batch or shapes != wanted(*batch):
        raise ValueError(f"ravel: tree must be of shapes {wanted('B')}, got {shapes}.")


def check_vector(x: Any, size: int) -> None:
    """Raises unless x holds vectors of a size."""
    demand(jnp.shape(x)[1:] == (size,), f"unravel: x must be [B, {size}], got {{x}}.", x=told(x))
