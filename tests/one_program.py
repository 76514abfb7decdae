"""A call as one compiled program, the same one for all calls that differ in numbers alone."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

_PROGRAMS: dict[Any, Any] = {}


def one_program(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """The results of a call under `jax.jit`, as NumPy arrays.

    Floats and arrays are data of the program. Everything else, such as functions and shapes, is its structure: pass the same
    function objects again to share a program.
    """
    leaves, structure = jax.tree.flatten((arguments, named))
    data = [isinstance(leaf, float | jax.Array | np.ndarray | np.generic) for leaf in leaves]
    fixed = tuple(None if number else leaf for number, leaf in zip(data, leaves, strict=True))

    def call(numbers: list[Any]) -> Any:
        left = iter(numbers)
        whole = [next(left) if number else leaf for number, leaf in zip(data, fixed, strict=True)]
        arguments, named = jax.tree.unflatten(structure, whole)
        return function(*arguments, **named)

    program = _PROGRAMS.setdefault((function, structure, fixed), jax.jit(call))
    found = program([leaf for number, leaf in zip(data, leaves, strict=True) if number])
    jax.effects_barrier()
    return jax.tree.map(np.asarray, found)
