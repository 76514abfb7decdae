"""Guidances, samplers, schedules and functions of a level are data: they remember the call that made them.

`cfg(2.0)` is an ordinary call of an ordinary function with closures inside. What it returns also knows the call:

- `repr` shows it: `chain(cfg(scale=2.0), rescale(fraction=0.7))`.
- Its numbers are pytree leaves, and everything else (names, functions, counts) is static. So it can be an argument of `jit`,
  of `vmap` (a grid of scales) and of `grad` (learned scales), and two of one structure share a compiled program.

Inside a trace the function is called again with the traced numbers.
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
    """A call of a public function."""

    function: Callable[..., Any]
    arguments: dict[str, Any]
    """By name, as given; those of `*args` as a tuple, those of `**kwargs` as a dictionary."""
    fixed: frozenset[str] = frozenset()
    """The arguments that are static, numbers or not: counts."""

    def again(self) -> Any:
        """What the function returns for these arguments, which were checked when the call was made."""
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
    """What is equal in two parts that share a compiled program."""

    kind: type
    function: Any
    names: tuple[str, ...]
    structure: Any
    """Of the arguments, with the parts among them."""
    rest: tuple[Any, ...]
    """The leaves that are static, and `NUMBER` where a number stands."""
    fixed: frozenset[str]


class Number:
    """Stands for a number among static leaves."""

    def __repr__(self) -> str:
        return "*"

    def __reduce__(self) -> str:
        return "NUMBER"


NUMBER = Number()


class Same:
    """A static leaf that cannot be hashed: a NumPy array is equal to one of the same values, all else to itself alone."""

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
    """What a public function returned, with the call that made it; without one, what a user's own constructor made."""

    call: Call | None = dataclasses.field(default=None, init=False)

    def __getattr__(self, name: str) -> Any:
        # A field that is not there yet: jax has unflattened this part, and its function is called when it is first read.
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
        """The same with some fields changed. It no longer remembers its call."""
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
    """A function that a public function returned: a scale of the level, a denoiser, a spacing."""

    function: Callable[..., Any]

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self.function(*arguments, **named)


def remembering(made: Any, call: Call) -> Any:
    """A part that remembers its call."""
    if not isinstance(made, Part):
        part = Function(made)
    else:  # It may be a part of another call, or the user's own: `autoguidance` is a call of `cfg`, `chain(own)` is `own`.
        part = object.__new__(type(made))
        for field in dataclasses.fields(made):
            object.__setattr__(part, field.name, getattr(made, field.name))
    object.__setattr__(part, "call", call)
    return part


def build(tree: Any) -> None:
    """Calls the functions of all parts in a tree that jax has unflattened: here, and not later within a loop or a `cond`, whose
    traced values must not be found outside of it."""
    for leaf in jax.tree.leaves(tree, is_leaf=lambda leaf: isinstance(leaf, Part)):
        if isinstance(leaf, Part):
            fields = [getattr(leaf, field.name) for field in dataclasses.fields(leaf)]
            if leaf.call is None:
                build(fields)


def calls(tree: Any) -> list[Call]:
    """All calls that are remembered in a part, and in the parts among its arguments."""
    if not isinstance(tree, Part):
        leaves = jax.tree.leaves(tree, is_leaf=lambda leaf: isinstance(leaf, Part))
        return [call for leaf in leaves if isinstance(leaf, Part) for call in calls(leaf)]
    return [] if tree.call is None else [tree.call, *calls(tuple(tree.call.arguments.values()))]


def contents(part: Part) -> list[Any]:
    """What a part was made of: the function that was called and its arguments, or the fields of a user's own."""
    if part.call is not None:
        return [part.call.function, part.call.arguments]
    return [getattr(part, field.name) for field in dataclasses.fields(part) if field.init]


def is_number(leaf: Any) -> bool:
    """Whether a leaf is a number or an array, known or traced, and so data. A Python bool is not."""
    if isinstance(leaf, int | float):
        return not isinstance(leaf, bool)
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and hasattr(leaf, "shape") and not (isinstance(dtype, np.dtype) and dtype.kind in "OSU")


def hashable(leaf: Any) -> Any:
    """A static leaf as a key."""
    try:
        hash(leaf)
    except TypeError:
        return Same(leaf)
    return leaf


@functools.cache
def signature(function: Callable[..., Any]) -> inspect.Signature:
    """That of a public function, remembered."""
    return inspect.signature(function)


def _said(value: Any) -> str:
    """An argument in a repr: a number, a part by its call, another function by its name, an array by its shape."""
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
