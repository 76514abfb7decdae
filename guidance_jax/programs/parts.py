"""Guidances, samplers, schedules and functions of a level are data: they remember the call that made them.

`cfg(2.0)` is an ordinary call of an ordinary function with closures inside. Its result also remembers the call:

- `repr` shows the call: `chain(cfg(scale=2.0), rescale(fraction=0.7))`.
- The numbers of the call are pytree leaves, and everything else (names, functions, counts) is static. The result can be an
  argument of `jit`, `vmap` (a grid of scales) and `grad` (learned scales). Two results of one structure share a program.

Inside a trace, the function is called again with the traced numbers.
"""

import dataclasses
import functools
import inspect
import reprlib
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

T = TypeVar("T")


class Call(NamedTuple):
    """A call of a public function.

    Args:
      function: The public function.
      arguments: The arguments by name, as the caller wrote them. `*args` is a tuple, `**kwargs` a dictionary.
      fixed: The names of the arguments that are static even if they are numbers, such as counts.
    """

    function: Callable[..., Any]
    arguments: dict[str, Any]
    fixed: frozenset[str] = frozenset()

    def again(self) -> Any:
        """Calls the function again with these arguments, which the first call checked."""
        return self.function.entrance.again(self.arguments)  # pyright: ignore[reportFunctionMemberAccess]

    def __repr__(self) -> str:
        said: list[str] = []
        for name, value in self.arguments.items():
            parameter = signature(self.function).parameters[name]
            if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
                said += map(_said, value)
            elif parameter.kind is inspect.Parameter.VAR_KEYWORD:
                said += [f"{key}={_said(each)}" for key, each in value.items()]
            elif value is not parameter.default:
                unnamed = isinstance(value, Part) or parameter.kind is inspect.Parameter.POSITIONAL_ONLY
                said.append(_said(value) if unnamed else f"{name}={_said(value)}")
        return f"{self.function.__name__}({', '.join(said)})"


class Static(NamedTuple):
    """The static data of a part. Two parts share a compiled program if theirs is equal.

    Args:
      kind: The class of the part.
      function: The public function of its call; None if a user's constructor made the part.
      names: The names of the arguments.
      structure: The tree structure of the arguments, including the parts among them.
      rest: The static leaves of the arguments, with `NUMBER` in place of each number.
      fixed: The names of the static arguments.
    """

    kind: type
    function: Any
    names: tuple[str, ...]
    structure: Any
    rest: tuple[Any, ...]
    fixed: frozenset[str]


class Number:
    """The placeholder for a number among static leaves."""

    def __repr__(self) -> str:
        return "*"

    def __reduce__(self) -> str:
        return "NUMBER"


NUMBER = Number()


class Same:
    """A static leaf without a hash. NumPy arrays with the same values are equal; any other value equals only itself.

    Args:
      value: The leaf.
    """

    __slots__ = ("key", "value")

    def __init__(self, value: Any) -> None:
        self.value = value
        self.key = (value.dtype, value.shape, value.tobytes()) if type(value) is np.ndarray else id(value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and other.key == self.key

    def __hash__(self) -> int:
        return hash(self.key)


@dataclasses.dataclass(frozen=True, slots=True, weakref_slot=True, eq=False, repr=False)
class Part:
    """The base class of results that remember their call: guidances, samplers, schedules, functions of a level.

    Args:
      call: The call that returned the part; None if a user's constructor made the part.
    """

    call: Call | None = dataclasses.field(default=None, init=False)

    def __getattr__(self, name: str) -> Any:
        # JAX unflattened this part, so its fields are missing. The first read of a field calls the function again.
        if name.startswith("__") or name not in {field.name for field in dataclasses.fields(type(self))}:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        assert self.call is not None
        build(tuple(self.call.arguments.values()))
        made = remembering(self.call.again(), self.call)
        for field in dataclasses.fields(made):
            if field.name != "call":
                object.__setattr__(self, field.name, getattr(made, field.name))
        return object.__getattribute__(self, name)

    def __repr__(self) -> str:
        return _article(type(self).__name__) if self.call is None else repr(self.call)

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        (mine, static), (theirs, other_static) = self.tree_flatten(), other.tree_flatten()
        alike = static == other_static and jax.tree.structure(mine) == jax.tree.structure(theirs)
        return alike and all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(mine, theirs, strict=True))

    def __hash__(self) -> int:
        return hash(self.tree_flatten()[1])

    def __reduce__(self) -> Any:
        if self.call is not None:
            return _remade, (type(self), *self.call)
        return type(self), tuple(getattr(self, field.name) for field in dataclasses.fields(self) if field.init)

    def replace(self, **changes: Any) -> Any:
        """A copy with some fields changed. It does not remember the call."""
        return dataclasses.replace(self, **changes)

    def tree_flatten(self) -> tuple[tuple[Any, ...], Static]:
        if self.call is None:
            function = None
            arguments = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.init}
            fixed = frozenset(name for name, value in arguments.items() if isinstance(value, int | float))
        else:
            function, arguments, fixed = self.call
        leaves, structure = jax.tree.flatten(tuple(arguments.values()))
        counts = [len(jax.tree.leaves(value)) for value in arguments.values()]
        dynamic = [name not in fixed for name, count in zip(arguments, counts, strict=True) for _ in range(count)]
        numbers = [free and is_number(leaf) for free, leaf in zip(dynamic, leaves, strict=True)]
        rest = tuple(NUMBER if number else hashable(leaf) for number, leaf in zip(numbers, leaves, strict=True))
        static = Static(type(self), function, tuple(arguments), structure, rest, fixed)
        return tuple(leaf for number, leaf in zip(numbers, leaves, strict=True) if number), static

    @classmethod
    def tree_unflatten(cls, static: Static, numbers: tuple[Any, ...]) -> Any:
        left = iter(numbers)
        leaves = [next(left) if leaf is NUMBER else leaf.value if isinstance(leaf, Same) else leaf for leaf in static.rest]
        arguments = dict(zip(static.names, jax.tree.unflatten(static.structure, leaves), strict=True))
        part = object.__new__(cls)
        if static.function is None:
            arguments["call"] = None
        else:
            arguments = {"call": Call(static.function, arguments, static.fixed)}
        for name, value in arguments.items():
            object.__setattr__(part, name, value)
        return part


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True, slots=True, eq=False, repr=False)
class Function(Part):
    """A function that a public function returned: a scale of the level, a denoiser, a spacing.

    Args:
      function: The function itself.
    """

    function: Callable[..., Any]

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self.function(*arguments, **named)


def remembering(made: Any, call: Call) -> Any:
    """A part that remembers this call."""
    if not isinstance(made, Part):
        part = Function(made)
    else:
        # Copy it, since it may be a part of another call, or a user's: `autoguidance` calls `cfg`, and `chain(own)` is `own`.
        part = object.__new__(type(made))
        for field in dataclasses.fields(made):
            object.__setattr__(part, field.name, getattr(made, field.name))
    object.__setattr__(part, "call", call)
    return part


def build(tree: Any) -> None:
    """Calls the functions of all parts in a tree that JAX unflattened.

    A later call inside a loop or a `cond` would leak traced values.
    """
    for leaf in jax.tree.leaves(tree, is_leaf=lambda leaf: isinstance(leaf, Part)):
        if isinstance(leaf, Part):
            fields = [getattr(leaf, field.name) for field in dataclasses.fields(leaf)]
            if leaf.call is None:
                build(fields)


def calls(tree: Any) -> list[Call]:
    """All calls that the parts in a tree remember, including those of the parts among their arguments."""
    if not isinstance(tree, Part):
        leaves = jax.tree.leaves(tree, is_leaf=lambda leaf: isinstance(leaf, Part))
        return [call for leaf in leaves if isinstance(leaf, Part) for call in calls(leaf)]
    return [] if tree.call is None else [tree.call, *calls(tuple(tree.call.arguments.values()))]


def calls_of(function: Callable[..., Any], tree: Any) -> list[Call]:
    """The calls of one public function that the parts in a tree remember."""
    return [call for call in calls(tree) if call.function is function]


def contents(part: Part) -> list[Any]:
    """The function and arguments of a part's call, or the fields of a part that a user's constructor made."""
    if part.call is not None:
        return [part.call.function, part.call.arguments]
    return [getattr(part, field.name) for field in dataclasses.fields(part) if field.init]


def is_number(leaf: Any) -> bool:
    """Whether a leaf is data: a number or an array, known or traced. A Python bool is static."""
    if isinstance(leaf, int | float):
        return not isinstance(leaf, bool)
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and hasattr(leaf, "shape") and not (isinstance(dtype, np.dtype) and dtype.kind in "OSU")


def hashable(leaf: Any) -> Any:
    """The static leaf itself if it has a hash, otherwise `Same(leaf)`."""
    try:
        hash(leaf)
    except TypeError:
        return Same(leaf)
    return leaf


@functools.cache
def signature(function: Callable[..., Any]) -> inspect.Signature:
    """The signature of a public function, from a cache."""
    return inspect.signature(function)


def _said(value: Any) -> str:
    """An argument in a repr: a number, the call of a part, the name of another function, the dtype and shape of an array."""
    if isinstance(value, Array | np.ndarray) and value.ndim:
        return f"{value.dtype}[{','.join(map(str, value.shape))}]"
    if isinstance(value, Array) and not isinstance(value, Tracer) and jnp.issubdtype(value.dtype, jnp.number):
        return repr(value.item())
    if isinstance(value, functools.partial):
        return f"partial({_said(value.func)})"
    if callable(value) and not isinstance(value, Part):
        return getattr(value, "__name__", type(value).__name__)
    said = repr(value)
    return said if len(said) <= 200 or isinstance(value, Part) else reprlib.repr(value)


def _article(name: str) -> str:
    return f"{'an' if name[0] in 'AEIOaeio' else 'a'} {name}"


def _remade(kind: type, *call: Any) -> Any:
    part = object.__new__(kind)
    object.__setattr__(part, "call", Call(*call))
    return part
