"""Whether trees have the structure and shapes that their vectors were made for."""

from typing import Any

import jax
import jax.numpy as jnp

from guidance_jax.checks.words import told


def check_example(example: Any, points: bool) -> None:
    """Raises unless an example is a tree of floating arrays; with `points`, of one length.

    Raises:
      TypeError: If a leaf is not an array of floating numbers.
      ValueError: If there is no leaf, or the leaves are not of one number of points.
    """
    leaves = jax.tree.leaves(example)
    for leaf in leaves:
        if not hasattr(leaf, "shape") or not jnp.issubdtype(getattr(leaf, "dtype", bool), jnp.floating):
            raise TypeError(f"flat: example must hold arrays of floating numbers, got {told(leaf)}; noise is added to each.")
    if not leaves:
        raise ValueError("flat: example must hold at least one array, got none.")
    lengths = {leaf.shape[:1] for leaf in leaves}
    if points and (() in lengths or len(lengths) > 1):
        shapes = ", ".join(str(leaf.shape) for leaf in leaves)
        raise ValueError(f"flat: with points, the first axis of each leaf must be the same points, got {shapes}.")


def check_tree(tree: Any, like: Any, what: str) -> None:
    """Raises unless a tree has a structure, and a batch of each of its shapes.

    Raises:
      ValueError: Naming both.
    """
    shapes = jax.tree.map(jnp.shape, tree)
    batch = jax.tree.leaves(tree)[0].shape[:1] if jax.tree.leaves(tree) else ()
    expected = jax.tree.map(lambda leaf: (*batch, *leaf.shape), like)
    if not batch or shapes != expected:
        wanted = jax.tree.map(lambda leaf: ("B", *leaf.shape), like)
        raise ValueError(f"{what} must be of shapes {wanted}, got {shapes}.")


def check_vector(x: Any, size: int) -> None:
    """Raises unless x holds vectors of a size.

    Raises:
      ValueError: Naming both.
    """
    if jnp.shape(x)[1:] != (size,):
        raise ValueError(f"unravel: x must be [B, {size}], got {told(x)}.")
