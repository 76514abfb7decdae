"""Sets of features in one dtype, and passes over all pairs of two sets in blocks."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.lax import Precision

BLOCK = 1024
"""The maximum number of rows in a block."""


def widened(*sets: Array | np.ndarray) -> tuple[Array, ...]:
    """The sets in one floating dtype, float32 or wider."""
    arrays = [jnp.asarray(x) for x in sets]
    wide = any(x.dtype == jnp.float64 for x in arrays)
    return tuple(x.astype(jnp.float64 if wide else jnp.float32) for x in arrays)


@jax.custom_jvp
def squared_distances(a: Array, b: Array) -> Array:
    """The squared distances `[S, T]` between `a` `[S, D]` and `b` `[T, D]`, without an array `[S, T, D]`.

    The squared differences are summed one feature at a time. In float32, `|a|^2 + |b|^2 - 2 a b` loses all digits of the
    distance between nearly equal points, and separates equal ones.
    """

    def add(total: Array, feature: tuple[Array, Array]) -> tuple[Array, None]:
        x, y = feature
        return total + (x[:, None] - y[None]) ** 2, None

    return jax.lax.scan(add, jnp.zeros((len(a), len(b)), a.dtype), (a.T, b.T))[0]


@squared_distances.defjvp
def _squared_distances_jvp(points: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    """`2 (a - b) . (da - db)` as products of matrices, with one of the points as the origin."""
    (a, b), (da, db) = points, tangents
    centre = jax.lax.stop_gradient(b[:1])
    x, y = a - centre, b - centre
    product = functools.partial(jnp.matmul, precision=Precision.HIGHEST)
    change = (x * da).sum(1)[:, None] + (y * db).sum(1)[None] - product(da, y.T) - product(x, db.T)
    return squared_distances(a, b), 2 * change


def fold(step: Callable[[Any, Any, Any, Array], Any], start: Any, rows: Any, columns: Any, *, itself: bool = True) -> Any:
    """A reduction over all columns for each row, one block of rows and one block of columns at a time.

    Its gradient works in the same way and recomputes what it needs: no value is kept per pair.

    Args:
      step: `(state, rows, columns, counted) -> state`, on blocks of S rows and T columns. `counted`, `[S, T]`, is False for
        pairs to leave out.
      start: The state of one row before the first column, a pytree.
      rows: A pytree of `[N, ...]`.
      columns: A pytree of `[M, ...]`.
      itself: Whether a row counts the column of its own index. Use False to pair a set with itself.

    Returns:
      the rows' states, `[N, ...]`.
    """
    n, m = (len(jax.tree.leaves(points)[0]) for points in (rows, columns))
    columns = _cut((columns, jnp.arange(m)))

    def gather(block: tuple[Any, Array]) -> Any:
        x, i = block

        def visit(state: Any, block: tuple[Any, Array]) -> tuple[Any, None]:
            y, j = block
            counted = jnp.broadcast_to(j < m, (len(i), len(j)))
            return jax.checkpoint(step)(state, x, y, counted if itself else counted & (i[:, None] != j[None])), None

        states = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (len(i), *jnp.shape(leaf))), start)
        return jax.lax.scan(visit, states, columns)[0]

    states = jax.lax.map(jax.checkpoint(gather), _cut((rows, jnp.arange(n))))
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:n], states)


def _cut(points: tuple[Any, Array]) -> tuple[Any, Array]:
    """Points and their indices in the fewest equal blocks of at most BLOCK. Padding has indices beyond the set."""
    n = len(points[1])
    blocks = -(-n // BLOCK)
    size = -(-n // blocks)

    def cut(leaf: Array) -> Array:
        width = [(0, blocks * size - n)] + [(0, 0)] * (leaf.ndim - 1)
        return jnp.pad(leaf, width).reshape(blocks, size, *leaf.shape[1:])

    return jax.tree.map(cut, points[0]), jnp.arange(blocks * size).reshape(blocks, size)
