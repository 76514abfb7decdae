"""`door` and `part`: decorators that check the arguments of a public function against its annotations."""

import dataclasses
import functools
import inspect
import re
import types
import typing
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NoReturn, ParamSpec, TypeVar

from guidance_jax.checks.foreign import translated
from guidance_jax.checks.traced import concrete, demand
from guidance_jax.checks.words import call_it, described, shown
from guidance_jax.programs.parts import Call, remembering, signature

P = ParamSpec("P")
R = TypeVar("R")
Rule = tuple[str, Callable[..., Any]]
KEYWORDS, SEVERAL = inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL
F = TypeVar("F", bound=Callable[..., Any])


@dataclasses.dataclass(frozen=True, eq=False)
class Kind:
    """What a parameter accepts. `typing.Annotated` attaches it to a type, and type checkers see only the type.

    Args:
      expected: Completes the sentence "scale must be ...".
      is_type: Whether a value has the right type. If not, `check` raises a TypeError.
      holds: Whether a value of that type is in range. If not, `check` raises a ValueError.
      hint: What to use instead. It ends the sentence.
      also: `(value, where) -> None`: another check, which raises its own error.
      fixed: Whether the value is static instead of a pytree leaf. Counts are static, and so are numbers that the call itself
        computes with in float64.
      zero: Whether a Python 0 is static. The 0 turns a computation off: no noise is drawn.
      guard: `(value, where) -> function`: wraps a user's function and checks what it returns.
      each: Whether the value may be one number per sample, `[B]`.
    """

    expected: str
    is_type: Callable[[Any], bool]
    holds: Callable[[Any], Any] | None = None
    hint: str = ""
    also: Callable[[Any, str], Any] | None = None
    fixed: bool = False
    zero: bool = False
    guard: Callable[[Any, str], Any] | None = None
    each: bool = False

    def check(self, value: Any, where: str) -> None:
        """Raises if the value is wrong."""
        if not self.is_type(value):
            self.refuse(value, where, TypeError, f"{described(value)}{call_it(value)}")
        if self.holds is not None and not self.holds(value):
            self.refuse(value, where, ValueError, repr(value) if isinstance(value, str) else str(shown(value)))
        if self.also is not None:
            self.also(value, where)

    def refuse(self, value: Any, where: str, error: type[Exception] = ValueError, got: str = "") -> NoReturn:
        """Raises the error: WHERE must be EXPECTED, got X; HINT."""
        raise error(f"{where} must be {self.expected}, got {got or described(value)}{f'; {self.hint}' if self.hint else '.'}")


CLASSES: dict[Any, Kind] = {}
"""The kinds of this library's classes. A class in an annotation is checked by its kind."""


def rule(words: str, holds: Callable[..., Any]) -> Rule:
    """A rule between the parameters of one function: `rule("low must be below high", lambda low, high: low < high)`.

    It is checked if all its values are known. Traced values are checked in a `checked` program.
    """
    return words, holds


def also(check: Callable[..., None]) -> Rule:
    """A check of several parameters, which raises its own error."""
    return "", check


def door(*rules: Rule) -> Callable[[F], F]:
    """Checks the arguments of a public function against its annotations, then calls it.

    Errors name the function and the parameter: `cfg: scale must be a finite number, ..., got the str '7.5'.` For a class, it
    checks the constructor.

    Args:
      *rules: Rules between parameters, `rule(words, holds)`.

    Raises:
      TypeError: If an argument is missing, unknown, or of the wrong type.
      ValueError: If an argument is out of range, or the arguments break a rule.
    """
    return functools.partial(_decorated, rules, False)


def part(*rules: Rule) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """As `door`, for a function whose result remembers the call that made it (`guidance_jax.programs.parts`)."""
    return functools.partial(_decorated, rules, True)


def _decorated(rules: tuple[Rule, ...], remembers: bool, function: Callable[..., Any]) -> Any:
    if inspect.isclass(function):
        function.__init__ = _decorated(rules, False, function.__init__)
        return function
    entrance = Entrance(function, rules)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        arguments, guarded, fixed = entrance.check(args, kwargs)
        made = entrance.call(guarded)
        return remembering(made, Call(call, arguments, fixed)) if remembers else made

    call.entrance = entrance  # pyright: ignore[reportAttributeAccessIssue]
    return call


class Entrance:
    """The checks of one function.

    Args:
      function: The public function.
      rules: Its rules between parameters.
    """

    def __init__(self, function: Callable[..., Any], rules: tuple[Rule, ...]) -> None:
        # The constructor `UNet.__init__` is checked under the name UNet.
        self.function, self.name = function, getattr(function, "__qualname__", "?").removesuffix(".__init__").rpartition(".")[2]
        self.rules = [(words, holds, tuple(inspect.signature(holds).parameters)) for words, holds in rules]

    @functools.cached_property
    def hints(self) -> dict[str, Any]:
        """The annotations that can be checked. They are read at the first call, when all names of the file are defined."""
        hints = typing.get_type_hints(inspect.unwrap(self.function), include_extras=True)
        several = {KEYWORDS: lambda hint: Mapping[str, hint], SEVERAL: lambda hint: Sequence[hint]}
        parameters = signature(self.function).parameters.items()
        hints = {name: several.get(p.kind, lambda hint: hint)(hints[name]) for name, p in parameters if name in hints}
        return {name: hint for name, hint in hints.items() if _says(hint)}

    def check(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], frozenset[str]]:
        """The arguments by name; the arguments with guarded functions; the names of the static arguments."""
        try:
            arguments = signature(self.function).bind(*args, **kwargs).arguments
        except TypeError as error:
            raise TypeError(self._unbound(str(error), args, kwargs)) from None
        fixed: list[str] = []

        def enter(kind: Kind, value: Any, where: str) -> Any:
            kind.check(value, where)
            if kind.fixed and not concrete(value):
                raise ValueError(f"{where} must be known, got a traced value; call {self.name} outside of jit.")
            if kind.fixed or (kind.zero and isinstance(value, int | float) and value == 0):
                fixed.append(name)
            return kind.guard(value, where) if kind.guard else value

        guarded = dict(arguments)
        for name, hint in self.hints.items():
            if name in arguments:
                guarded[name] = _over(hint, arguments[name], f"{self.name}: {name}", enter)
        for words, holds, names in self.rules:
            self._hold(words, holds, names, arguments)
        return arguments, guarded, frozenset(fixed)

    def call(self, arguments: dict[str, Any]) -> Any:
        """Calls the function with checked arguments."""
        bound = inspect.BoundArguments(signature(self.function), arguments)  # pyright: ignore[reportArgumentType]
        return self.function(*bound.args, **bound.kwargs)

    def again(self, arguments: dict[str, Any]) -> Any:
        """Calls the function again with other numbers in arguments that were already checked."""
        guard = lambda kind, value, where: kind.guard(value, where) if kind.guard else value
        guarded = {n: _over(self.hints[n], v, f"{self.name}: {n}", guard) for n, v in arguments.items() if n in self.hints}
        return self.call(arguments | guarded)

    def scales(self, arguments: dict[str, Any]) -> list[tuple[str, Any]]:
        """The arguments that may be one number per sample, each with the function's name and its own: `(where, value)`."""
        found: list[tuple[str, Any]] = []

        def keep(kind: Kind, value: Any, where: str) -> None:
            if (kind.guard or kind.each) and hasattr(value, "shape"):
                found.append((where, value))

        for name in self.hints.keys() & arguments.keys():
            _over(self.hints[name], arguments[name], f"{self.name}: {name}", keep)
        return found

    def _hold(self, words: str, holds: Callable[..., Any], names: tuple[str, ...], arguments: dict[str, Any]) -> None:
        parameters = signature(self.function).parameters
        absent = {SEVERAL: (), KEYWORDS: {}}
        values = {name: arguments.get(name, absent.get(parameters[name].kind, parameters[name].default)) for name in names}
        if words:
            quoted: dict[str, Any] = {name: repr(value) for name, value in values.items() if isinstance(value, str)}
            got = " and ".join(f"{name} {{{name}}}" for name in names)
            must, _, use = words.partition("; ")
            demand(lambda: holds(**values), f"{self.name}: {must}, got {got}{f'; {use}.' if use else '.'}", **values | quoted)
        else:
            holds(**values)

    def _unbound(self, error: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        """The error message for an unknown or a missing argument. The unknown one is named first: it may be the missing one."""
        parameters = {name: each for name, each in signature(self.function).parameters.items() if name != "self"}
        unknown = [name for name in kwargs if name not in parameters]
        if unknown and not any(each.kind is KEYWORDS for each in parameters.values()):
            error = f"got an unexpected keyword argument {unknown[0]!r}"
            return f"{self.name}: {error}; {translated(unknown[0], [*parameters])}it takes {self._taken(parameters)}."
        if "missing" not in error:
            return f"{self.name}: {error}; it takes {self._taken(parameters)}."
        # A forgotten argument shifts those after it. The first of a wrong type is where it was forgotten.
        for name, value in signature(self.function).bind_partial(*args, **kwargs).arguments.items():
            if name in self.hints:
                _over(self.hints[name], value, f"{self.name}: {name}", lambda kind, each, where: kind.check(each, where))
        name = (re.findall(r"'(\w+)'", error) or [""])[0]
        kind, _, _ = _read(self.hints.get(name))
        return f"{self.name}: {name} is missing" + (f"; {kind.hint or f'it must be {kind.expected}.'}" if kind else ".")

    def _taken(self, parameters: Mapping[str, inspect.Parameter]) -> str:
        """The names of the parameters, for an error message."""
        by_name = [name for name, each in parameters.items() if each.kind is inspect.Parameter.KEYWORD_ONLY]
        open_ended = [name for name, each in parameters.items() if each.kind is KEYWORDS]
        first = [name for name in parameters if name not in (*by_name, *open_ended)]
        by_name += [f"the {name}" for name in open_ended]
        words = [", ".join(first)] * bool(first) + [f"by name {', '.join(by_name)}"] * bool(by_name)
        made = CLASSES.get(typing.get_type_hints(inspect.unwrap(self.function)).get("return"))
        usage = f"; {made.hint.removesuffix('.')}" if made and open_ended else ""
        return ", and ".join(words) + usage or "no arguments"


@functools.cache
def _read(hint: Any) -> tuple[Kind | None, Any, tuple[Any, ...]]:
    """The kind of an annotation, its origin, and the annotations inside it."""
    hint = getattr(hint, "__value__", hint)
    own = CLASSES.get(hint) if isinstance(hint, type) else None
    kind = next((kind for kind in getattr(hint, "__metadata__", ()) if isinstance(kind, Kind)), own)
    return kind, typing.get_origin(hint), typing.get_args(hint)


def _says(hint: Any) -> bool:
    """Whether an annotation can be checked: it has a kind, or an annotation inside it has one."""
    kind, origin, inside = _read(hint)
    return kind is not None or origin is Mapping or any(_says(each) for each in inside if isinstance(each, Hashable))


def _over(hint: Any, value: Any, where: str, act: Callable[[Kind, Any, str], Any]) -> Any:
    """The value, with `act(kind, part, where)` in place of each part whose annotation has a kind."""
    kind, origin, inside = _read(hint)
    if kind is not None:
        return act(kind, value, where)
    if origin in (typing.Union, types.UnionType) and len(inside) == 2 and types.NoneType in inside:
        return None if value is None else _over(inside[0], value, where, act)
    if origin is Mapping:
        if not isinstance(value, Mapping):
            use = '; use {"cond": 3.0}.' if _says(inside[1]) else "."
            raise TypeError(f"{where} must be a dictionary, got {described(value)}{use}")
        return {
            _over(inside[0], k, f"{where}'s key", act): _over(inside[1], v, f"{where}[{k!r}]", act) for k, v in value.items()
        }
    if origin is Sequence:
        if not isinstance(value, list | tuple):
            raise TypeError(f"{where} must be a list or a tuple, got {described(value)}.")
        return tuple([_over(inside[0], each, f"{where}[{i}]", act) for i, each in enumerate(value)])
    return value
