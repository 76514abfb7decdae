"""What a function depends on besides its arguments: its closure, its defaults, its globals, the object it is bound to.

A compiled program of a function is reused while all of these stay the same. New parameters, further training of a module, or
a change of a list in place compile a new program.
"""

import functools
import inspect
import sys
import types
from collections.abc import Hashable, Iterator
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.core import Tracer

from guidance_jax.programs.parts import Part, Same, contents

PLAIN = (type(None), bool, int, float, complex, str, bytes, types.EllipsisType, types.CodeType, range)
ITSELF = (Array, np.ndarray, types.ModuleType, type, types.BuiltinFunctionType, types.MethodDescriptorType, np.ufunc, np.dtype)
LIBRARIES = ("jax", "jaxlib", "ml_dtypes", "jaxtyping")
"""Packages whose objects do not change."""
OBJECTS, BYTES = 10_000, 2**26
"""The maximum number of objects in a key, and the maximum size of a NumPy array in it."""


class UnseenError(Exception):
    """A function depends on something that cannot be compared: hidden state, a traced value, or too many objects."""


def captured(tree: Any) -> Hashable:
    """A key for the functions in a tree. If two keys are equal, the functions compute the same.

    Raises:
      UnseenError: If a function depends on something that cannot be compared.
    """
    return _key(tree, {})


def _key(value: Any, seen: dict[int, tuple[int, Any]]) -> Hashable:
    if isinstance(value, PLAIN):
        return type(value), value
    if isinstance(value, jax.tree_util.PyTreeDef):
        return value
    large = isinstance(value, np.ndarray) and value.nbytes > BYTES
    if isinstance(value, Tracer) or large or len(seen) > OBJECTS:
        raise UnseenError(f"{type(value)}")
    if isinstance(value, ITSELF) or (_root(type(value)) in LIBRARIES and not hasattr(value, "__wrapped__")):
        return Same(value)
    if isinstance(value, np.generic):
        return Same(np.asarray(value))
    if id(value) not in seen:
        seen[id(value)] = len(seen), value
        return type(value), tuple(_key(part, seen) for part in _parts(value))
    return Same, seen[id(value)][0]


def _parts(value: Any) -> Iterator[Any]:
    """The values that a value depends on."""
    if isinstance(value, types.FunctionType) and hasattr(value, "__wrapped__") and _is_library(value):
        yield inspect.unwrap(value)
    elif isinstance(value, types.FunctionType):
        yield value.__code__
        yield from (cell.cell_contents for cell in value.__closure__ or () if cell != types.CellType())
        yield from (value.__defaults__, value.__kwdefaults__)
        yield from () if _is_library(value) else (value.__globals__.get(name) for name in sorted(_names(value.__code__)))
    elif isinstance(value, types.MethodType):
        yield from (value.__func__, value.__self__)
    elif isinstance(value, functools.partial):
        yield from (value.func, value.args, value.keywords)
    elif isinstance(value, dict | types.MappingProxyType):
        yield from (part for pair in value.items() for part in pair)
    elif isinstance(value, tuple | list):
        yield from value
    elif isinstance(value, Part):
        yield from contents(value)
    elif hasattr(value, "__wrapped__"):
        yield value.__wrapped__
    elif not jax.tree_util.all_leaves([value]):
        leaves, structure = jax.tree.flatten(value)
        yield from (structure, *leaves, *_methods(type(value)))
    elif hasattr(value, "__dict__"):
        yield from (vars(value), *_methods(type(value)))
    else:
        raise UnseenError(f"{type(value)}")


def _names(code: types.CodeType) -> set[str]:
    """The names that code reads, including the functions inside it."""
    return {*code.co_names}.union(*(_names(each) for each in code.co_consts if isinstance(each, types.CodeType)))


def _methods(kind: type) -> list[Any]:
    """The functions of a user's class. Functions of installed packages are left out."""
    own = [each for base in kind.__mro__ for each in vars(base).values() if isinstance(each, types.FunctionType)]
    return [each for each in own if not _is_library(each)]


def _is_library(function: types.FunctionType) -> bool:
    """Whether a function is of an installed package, whose globals do not change."""
    file, name = (str(function.__globals__.get(each)) for each in ("__file__", "__name__"))
    return "site-packages" in file or name.partition(".")[0] in ("guidance_jax", *sys.stdlib_module_names - {"__main__"})


def _root(named: Any) -> str:
    """The top-level package of a function or class."""
    return (getattr(named, "__module__", None) or "").partition(".")[0]
