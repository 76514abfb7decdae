"""Compiled programs, one per structure: `sample` outside of `jit` compiles once.

All numbers and arrays in the arguments are data of the program. Everything else is its structure.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from jax.tree_util import Partial

from guidance_jax.programs.captured import UnseenError, captured
from guidance_jax.programs.parts import NUMBER, Part, build, contents, hashable, is_number

KEPT = 16
"""The maximum number of programs in the cache. A new program replaces the least recently used one."""

_LOCK = threading.Lock()
_PROGRAMS: OrderedDict[Hashable, Callable[..., Any]] = OrderedDict()


def tracing() -> bool:
    """Whether the code that calls this is being traced by `jit`."""
    return isinstance(jax.device_put(np.False_), Tracer)


def compiled(function: Callable[..., Any], static: Hashable, *arguments: Any) -> Any:
    """Calls `function(static, *arguments)` as one compiled program. Other numbers of the same structure reuse it.

    Args:
      function: A pure function of a module, the same object in every call.
      static: The static argument, part of the structure.
      *arguments: Pytrees of numbers, arrays, parts, functions and names.
    """
    leaves, structure = jax.tree.flatten(arguments)
    # Inside a caller's trace, known values stay constants. As arguments of an inner program, XLA would fold them into one loop
    # and not into another, and the two loops would round differently.
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
    key = None if inside else _key(function, static, structure, rest, arguments)
    # A function among the leaves may hold a caller's tracers, which must not outlive the trace, so it is not cached.
    if key is None:
        return jax.jit(call)(numbers)
    program: Any = _PROGRAMS.get(key) or jax.jit(call)
    traces = program._cache_size()
    result = program(numbers)
    # A trace may change a value that the function depends on, such as a list of its calls. It is the same function afterwards.
    after = key if traces == program._cache_size() else _key(function, static, structure, rest, arguments)
    with _LOCK:
        for each in {key, after} - {None}:
            _PROGRAMS[each] = program
            _PROGRAMS.move_to_end(each)
        while len(_PROGRAMS) > KEPT:
            _PROGRAMS.popitem(last=False)
    return result


def _key(function: Callable[..., Any], static: Hashable, structure: Any, rest: tuple[Any, ...], arguments: Any) -> Hashable:
    """The key of a program in the cache; None if the program serves a single call."""
    try:
        key = function, static, structure, rest, depends(arguments)
        hash(key)
    except (UnseenError, TypeError, RecursionError):
        return None
    return key


def depends(tree: Any) -> Hashable:
    """A key for what the functions in a tree depend on. Numbers in the tree are data, so the key leaves them out.

    Raises:
      UnseenError: If a function depends on something that cannot be compared.
    """
    return captured(list(_functions(tree)))


def _functions(tree: Any) -> Iterator[Any]:
    for leaf in jax.tree.leaves(tree, is_leaf=lambda leaf: isinstance(leaf, Part | Partial)):
        if isinstance(leaf, Part):
            yield from _functions(contents(leaf))
        elif isinstance(leaf, Partial):
            yield from _functions([leaf.func, leaf.args, leaf.keywords])
        elif not is_number(leaf):
            yield leaf
