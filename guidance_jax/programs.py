"""Compiled programs, one per structure: `sample` outside of `jit` compiles once.

Numbers and arrays, wherever they are among the arguments, are data of the program. Everything else is its structure.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from guidance_jax.parts import NUMBER, build, hashable, is_number

KEPT = 64
"""The number of programs that are kept. The least recently used one makes room for a new one."""

_PROGRAMS: OrderedDict[Hashable, Callable[..., Any]] = OrderedDict()


def tracing() -> bool:
    """Whether the code that calls this is being traced by `jit`."""
    return isinstance(jax.device_put(np.False_), Tracer)


def compiled(function: Callable[..., Any], static: Hashable, *arguments: Any) -> Any:
    """`function(static, *arguments)` as one program, which is kept for other numbers of the same structure.

    Args:
      function: A module's function: pure, and the same object in every call.
      static: Part of the structure.
      *arguments: Pytrees of numbers, arrays, parts, functions and names.
    """
    leaves, structure = jax.tree.flatten(arguments)
    # Within a caller's trace, what is known stays known. As an argument of an inner program it would be folded into one loop
    # and not into another, which rounds otherwise.
    inside = tracing() or any(isinstance(leaf, Tracer) for leaf in leaves)
    data = [isinstance(leaf, Tracer) if inside else is_number(leaf) for leaf in leaves]
    rest = tuple(NUMBER if number else hashable(leaf) for number, leaf in zip(data, leaves, strict=True))
    numbers = [leaf for number, leaf in zip(data, leaves, strict=True) if number]

    def call(numbers: list[Any]) -> Any:
        left = iter(numbers)
        whole = [next(left) if number else leaf for number, leaf in zip(data, fixed, strict=True)]
        arguments = jax.tree.unflatten(structure, whole)
        build(arguments)
        return function(static, *arguments)

    fixed = [None if number else leaf for number, leaf in zip(data, leaves, strict=True)]
    # A function among the leaves may hold a caller's tracers, which must not outlive the trace.
    if inside:
        return jax.jit(call)(numbers)
    key = function, static, structure, rest
    program = _PROGRAMS.setdefault(key, jax.jit(call))
    _PROGRAMS.move_to_end(key)
    if len(_PROGRAMS) > KEPT:
        _PROGRAMS.popitem(last=False)
    return program(numbers)
