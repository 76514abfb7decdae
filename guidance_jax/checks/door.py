"""The door of a public function: its annotations say what each parameter accepts, and are checked when it is called."""

import dataclasses
import difflib
import functools
import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar, cast

import numpy as np
from typing_extensions import TypeAliasType

from guidance_jax.arrays import concrete
from guidance_jax.checks.words import article, call_it, told
from guidance_jax.parts import Call, remembering, signature

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])


@dataclasses.dataclass(frozen=True, eq=False)
class Kind:
    """What a parameter accepts. `typing.Annotated` attaches it to a type, so type checkers see the type alone.

    Args:
      expected: Completes the sentence "scale must be ...".
      check: `(value, where) -> None`: raises for a wrong value, which it may do by `refuse`.
      hint: What to write instead; it ends the sentence.
      fixed: Whether the value is part of a part's structure, and no pytree leaf: counts.
      zero: Whether a plain 0 is part of the structure, since it leaves work out: nothing is drawn.
      guard: `(value, where) -> ` the function in place of a user's, which checks what that returns.
    """

    expected: str
    check: Callable[["Kind", Any, str], None]
    hint: str = ""
    fixed: bool = False
    zero: bool = False
    guard: Callable[[Any, str], Any] | None = None

    def refuse(self, value: Any, where: str, error: type[Exception] = TypeError, got: str = "") -> typing.NoReturn:
        """Raises: got X, expected Y, use Z."""
        mend = f"; {self.hint}" if self.hint else "."
        raise error(f"{where} must be {self.expected}, got {got or told(value)}{call_it(value)}{mend}")


Rule = tuple[str, Callable[..., Any]]


def rule(words: str, holds: Callable[..., Any]) -> Rule:
    """A rule between the parameters of one function: `rule("low must be below high", lambda low, high: low < high)`.

    It is checked where all its values are known; where they are traced, in a program that is `checked`.
    """
    return words, holds


def also(check: Callable[..., None]) -> Rule:
    """A check of several parameters that raises by itself."""
    return "", check


def door(*rules: Rule) -> Callable[[F], F]:
    """Checks the arguments of a public function against its annotations, then calls it.

    Errors name the function and the parameter: `cfg: scale must be a finite number, ..., got the str '7.5'.` Of a class, its
    constructor is checked.

    Args:
      *rules: Rules between parameters, `rule(words, holds)`.

    Raises:
      TypeError: If an argument is missing, unknown, or of the wrong type.
      ValueError: If an argument is out of range, or a rule is broken.
    """

    def decorate(function: F) -> F:
        if inspect.isclass(function):
            function.__init__ = decorate(cast(Any, function.__init__))
            return cast(F, function)
        enter = _Door(function, rules)

        @functools.wraps(function)
        def checked(*args: Any, **kwargs: Any) -> Any:
            return enter.called(enter(args, kwargs)[0])

        return cast(F, checked)

    return decorate


def part(*rules: Rule) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """As `door`, for a function whose result remembers the call that made it (`guidance_jax.parts`)."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        enter = _Door(function, rules)

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            arguments, fixed = enter(args, kwargs)
            return cast(R, remembering(enter.called(arguments), Call(call, arguments, fixed)))

        call.again, call.kinds = enter.called, lambda: enter.kinds  # pyright: ignore[reportAttributeAccessIssue]
        return call

    return decorate


class _Door:
    """The checks of one function."""

    def __init__(self, function: Callable[..., Any], rules: tuple[Rule, ...]) -> None:
        # `UNet.__init__` is the door of UNet.
        self.function, self.name = function, getattr(function, "__qualname__", "?").removesuffix(".__init__").rpartition(".")[2]
        self.rules = [(words, holds, tuple(inspect.signature(holds).parameters)) for words, holds in rules]

    @functools.cached_property
    def kinds(self) -> dict[str, Any]:
        """What each parameter accepts. Read at the first call, when a file's later names are known."""
        hints = typing.get_type_hints(inspect.unwrap(self.function), include_extras=True)
        return {
            name: _several(reading(hints[name]), parameter.kind)
            for name, parameter in signature(self.function).parameters.items()
            if name in hints
        }

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[dict[str, Any], frozenset[str]]:
        """The arguments by name, and those that are static; raises where one is wrong."""
        try:
            arguments = signature(self.function).bind(*args, **kwargs).arguments
        except TypeError as error:
            raise TypeError(self._unbound(str(error))) from None
        kinds, fixed = self.kinds, []
        for name, value in arguments.items():
            kind = kinds.get(name)
            if kind is not None:
                if kind(value, f"{self.name}: {name}"):
                    fixed.append(name)
        for words, holds, names in self.rules:
            self._hold(words, holds, names, arguments)
        return arguments, frozenset(fixed)

    def called(self, arguments: dict[str, Any]) -> Any:
        """What the function returns for these arguments, which are checked already."""
        guarded = {name: self.kinds[name].guarded(value, f"{self.name}: {name}") for name, value in arguments.items() if name in self.guards}
        bound = inspect.BoundArguments(signature(self.function), {**arguments, **guarded})  # pyright: ignore[reportArgumentType]
        return self.function(*bound.args, **bound.kwargs)

    @functools.cached_property
    def guards(self) -> frozenset[str]:
        """The parameters that take a user's function whose results are checked."""
        return frozenset(name for name, check in self.kinds.items() if check is not None and check.guards)

    def _hold(self, words: str, holds: Callable[..., Any], names: tuple[str, ...], arguments: dict[str, Any]) -> None:
        from guidance_jax.checks.traced import insist

        parameters = signature(self.function).parameters
        values = [arguments.get(name, parameters[name].default) for name in names]
        if not words:
            holds(*values)
            return
        said = " and ".join(f"{name} {_said(value)}" for name, value in zip(names, values, strict=True))
        if not all(concrete(value) or not hasattr(value, "dtype") for value in values):
            arrays = dict(zip(names, values, strict=True))
            told_of = " and ".join(f"{name} {{{name}}}" for name in names)
            insist(lambda: holds(**arrays), f"{self.name}: {words}, got {told_of}.", **arrays)
        elif not np.all(holds(*values)):
            raise ValueError(f"{self.name}: {words}, got {said}.")

    def _unbound(self, error: str) -> str:
        """Why the arguments do not fit the parameters."""
        parameters = [name for name in signature(self.function).parameters if name != "self"]
        if missing := re.search(r"missing a required (?:\S+ )?argument: '(\w+)'", error):
            hint = getattr(self.kinds.get(missing[1]), "hint", "")
            return f"{self.name}: {missing[1]} is missing{'; ' + hint if hint else '.'}"
        if unknown := re.search(r"unexpected keyword argument '(\w+)'", error):
            close = difflib.get_close_matches(unknown[1], parameters, n=1)
            mend = f"did you mean {close[0]}?" if close else f"it takes {', '.join(parameters)}."
            return f"{self.name}: there is no parameter {unknown[1]}; {mend}"
        return f"{self.name}: {error}; it takes {', '.join(parameters)}."


def _said(value: Any) -> Any:
    """A value in the error of a rule: itself, or the shape of a large array."""
    long = getattr(value, "size", 1) > 8 or len(str(value)) > 200
    return "traced" if not concrete(value) else told(value) if long else value


def scales_of(function: Any) -> dict[str, str]:
    """The parameters of a public function that are one number per sample, or may be."""
    return {name: "sample" for name, check in getattr(function, "kinds", dict)().items() if check is not None and check.guards}


class _Reading:
    """A check of one parameter: `(value, where) -> whether it is static`."""

    def __init__(self, check: Callable[[Any, str], bool | None], hint: str = "", guard: Callable[[Any, str], Any] | None = None) -> None:
        self.check, self.hint, self.guard = check, hint, guard

    def __call__(self, value: Any, where: str) -> bool:
        return bool(self.check(value, where))

    @property
    def guards(self) -> bool:
        """Whether it guards what a user's function returns."""
        return self.guard is not None

    def guarded(self, value: Any, where: str) -> Any:
        """The value, a user's function in it guarded."""
        return value if self.guard is None else self.guard(value, where)


def reading(hint: Any) -> Any:
    """The check of an annotation, or None if it says nothing that can be checked."""
    if isinstance(hint, TypeAliasType | getattr(typing, "TypeAliasType", TypeAliasType)):
        return reading(hint.__value__)
    for kind in getattr(hint, "__metadata__", ()):
        if isinstance(kind, Kind):
            return _of_kind(kind)
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        checks = [check for check in map(reading, inside) if check is not None]
        if type(None) in inside and len(inside) == 2 and checks:
            return _Reading(lambda value, where: None if value is None else checks[0](value, where), checks[0].hint, checks[0].guard)
        return None
    if origin is Mapping:
        return _of_mapping(*map(reading, inside))
    if origin in (Sequence, list) and inside:
        return _of_sequence(reading(inside[0]))
    if isinstance(hint, type) and (mend := CLASSES.get(hint)) is not None:
        return _of_class(hint, mend)
    return None


CLASSES: dict[type, str] = {}
"""Our own classes as annotations, and what to write to have one."""


def _several(check: Any, kind: Any) -> Any:
    """The check of a parameter from that of its annotation: of `*args` and `**kwargs` it is that of each."""
    if check is None or kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
        return check
    places = (lambda values: enumerate(values)) if kind is inspect.Parameter.VAR_POSITIONAL else (lambda values: values.items())

    def guard(values: Any, where: str) -> Any:
        guarded = {place: check.guarded(each, f"{where}[{place!r}]") for place, each in places(values)}
        return guarded if isinstance(values, dict) else tuple(guarded.values())

    every = lambda values, where: any([check(each, f"{where}[{place!r}]") for place, each in places(values)])
    return _Reading(every, check.hint, guard if check.guards else None)


def _of_kind(kind: Kind) -> _Reading:
    def check(value: Any, where: str) -> bool:
        kind.check(kind, value, where)
        return kind.fixed or (kind.zero and isinstance(value, int | float) and value == 0)

    return _Reading(check, kind.hint, kind.guard)


def _of_class(kind: type, mend: str) -> _Reading:
    def check(value: Any, where: str) -> None:
        if not isinstance(value, kind):
            raise TypeError(f"{where} must be {article(kind.__name__)}, got {told(value)}{call_it(value)}; {mend}")

    return _Reading(check, mend)


def _of_mapping(of_key: Any, of_value: Any) -> _Reading:
    def check(value: Any, where: str) -> None:
        if not isinstance(value, Mapping):
            raise TypeError(f'{where} must be a dictionary, got {told(value)}; {{"cond": 3.0}} is one.')
        for key, each in value.items():
            if of_key is not None:
                of_key(key, f"{where}'s key")
            if of_value is not None:
                of_value(each, f"{where}[{key!r}]")

    guard = lambda value, where: {key: of_value.guarded(each, f"{where}[{key!r}]") for key, each in value.items()}
    return _Reading(check, guard=guard if of_value is not None and of_value.guards else None)


def _of_sequence(of_each: Any) -> _Reading:
    def check(value: Any, where: str) -> None:
        if not isinstance(value, list | tuple):
            raise TypeError(f"{where} must be a list or a tuple, got {told(value)}.")
        if of_each is not None:
            for i, each in enumerate(value):
                of_each(each, f"{where}[{i}]")

    guard = lambda value, where: tuple(of_each.guarded(each, f"{where}[{i}]") for i, each in enumerate(value))
    return _Reading(check, guard=guard if of_each is not None and of_each.guards else None)
