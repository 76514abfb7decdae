"""The annotations of parameters, which `door` checks.

A function documents what its parameter does. This file documents what a `Scale` or a `Count` accepts.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Annotated, Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import ArrayLike
from typing_extensions import TypeAliasType

from guidance_jax.base import Branches, Denoiser, NoiseLevel, Prediction, Step
from guidance_jax.checks.door import CLASSES, Kind
from guidance_jax.checks.foreign import CHOICES
from guidance_jax.checks.numbers import (
    LARGEST,
    Real,
    check_finite,
    check_range,
    check_scalar,
    count,
    known,
    number,
    of_kind,
    real,
    whole,
)
from guidance_jax.checks.traced import concrete
from guidance_jax.checks.values import (
    PATH,
    SPLIT,
    check_bound,
    check_key,
    check_keys,
    check_path,
    is_any_key,
    is_function,
    is_key,
    is_labels,
)
from guidance_jax.checks.words import article, check_takes, described, noting
from guidance_jax.interfaces import Guidance, Sampler
from guidance_jax.programs.parts import Function


def class_kind(kind_of: type, hint: str, also: Callable[[Any, str], None] | None = None) -> Kind:
    """The kind of an instance of a class."""
    return Kind(article(kind_of.__name__), lambda value: isinstance(value, kind_of), hint=hint, also=also)


CLASSES |= {
    Branches: class_kind(Branches, "use gj.branches(denoise, cond=labels, uncond=null)."),
    Guidance: class_kind(
        Guidance, "use cfg(3.0), chain(*parts) for several, chain() for none; for a target, use gj.feynman_kac."
    ),
    Prediction: class_kind(Prediction, "use what denoise(x, level, cond) returns."),
    Sampler: class_kind(Sampler, "use ddim()."),
    Step: class_kind(Step, "use gj.Step(number, level, next, keys)."),
}


@dataclasses.dataclass(frozen=True)
class Guarded:
    """A user's scale function whose values are checked.

    Args:
      function: The function of the level, with the check.
      where: The names of the public function and its parameter, for error messages.
    """

    function: Callable[[NoiseLevel], Any]
    where: str

    def __call__(self, level: NoiseLevel) -> Any:
        return self.function(level)


def scale_kind(words: str = "", low: Real = -LARGEST, high: Real = LARGEST, *, above: Real | None = None) -> Kind:
    """The kind of a number in a range: one for all samples, one per sample, or a function of the level."""
    of = number(words, low, high, above=above, scalar=False)
    assert of.also is not None
    expected, in_range = f"{of.expected}, an array [B] of them, or a function of the level", of.also

    def also(value: Any, where: str) -> None:
        if not callable(value):
            in_range(value, where)
        elif not isinstance(value, Function | Guarded):
            check_takes(value, where, "level")

    def guard(value: Any, where: str) -> Any:
        def guarded(level: NoiseLevel) -> Any:
            with noting(where, level=level):
                given = value(level)
            if not real(given):
                raise TypeError(f"{where}, a function, must be {expected}, got {described(given)}.")
            check_range(given, where, low, high, above)
            return given

        return Guarded(guarded, where) if callable(value) and not isinstance(value, Guarded) else value

    return Kind(
        expected,
        lambda value: is_function(value) or (real(value) and not isinstance(value, list)),
        also=also,
        guard=guard,
        each=True,
    )


def function_kind(*takes: str, hint: str) -> Kind:
    """The kind of a user's function with these parameters."""
    also = lambda value, where: check_takes(value, where, *takes) if takes else None
    return Kind("a function", is_function, hint=hint, also=also)


def choice(*names: str) -> Kind:
    """The kind of a string that is one of these."""

    def also(value: Any, where: str) -> None:
        here = CHOICES.get(value)
        if value not in names:
            mend = f"; it is {here!r} here." if here in names else "."
            raise ValueError(f"{where} must be {' or '.join(map(repr, names))}, got {value!r}{mend}")

    return Kind(" or ".join(map(repr, names)), lambda value: isinstance(value, str), also=also)


def array_kind(words: str, of: Any, *, finite: bool = False, hint: str = "") -> Kind:
    """The kind of an array of numbers: `array_kind("floating numbers, [B]", jnp.floating)`."""
    is_array = lambda value: hasattr(value, "shape") and of_kind(value, of)
    return Kind(f"an array of {words}", is_array, hint=hint, also=check_finite if finite else None)


def integer(low: int) -> Kind:
    """The kind of one integer. It is data, so another value compiles nothing."""
    is_integer = lambda value: real(value) and jnp.issubdtype(jnp.result_type(value), jnp.integer)
    at_least = lambda value: not concrete(value) or (np.asarray(value) >= low).all()
    return Kind(f"an integer, at least {low}", is_integer, at_least, also=check_scalar)


def sizes(expected: str, low: int = 1, length: int | None = None) -> Kind:
    """The kind of a sequence of integers: shapes, widths, levels."""
    several = lambda value: isinstance(value, list | tuple | np.ndarray) and all(map(whole, value))
    fits = lambda value: length in (None, len(value)) and min(value, default=low) >= low
    return Kind(expected, several, fits, fixed=True)


def names(none: bool) -> Kind:
    """The kind of a collection of branch names. With `none`, None stands for the base."""
    several = lambda value: isinstance(value, Collection) and not isinstance(value, str)
    each = lambda value, where: [BRANCH.check(one, where) for one in value if one is not None or not none]
    return Kind("the names of branches, in a tuple", several, hint="for one branch, use ('cond',).", also=each)


def check_rates(value: Any, where: str) -> None:
    """Raises an error unless rates are one-dimensional, each is in (0, 1), and their product leaves some signal."""
    rates = np.asarray(value, np.float64) if concrete(value) else np.full(1, 0.5)
    wrong = rates[~((rates > 0) & (rates < 1))]
    if rates.ndim != 1 or not rates.size or wrong.size:
        RATES.refuse(value, where, got=f"shape {rates.shape}{f' with {wrong.flat[0]:g}' if wrong.size else ''}")
    if np.log1p(-rates).sum() < np.log(np.finfo(np.float32).tiny):
        mend = "for alphas_cumprod a, use 1 - a / np.concatenate([[1.0], a[:-1]])."
        raise ValueError(f"{where} must leave alpha^2 = prod(1 - betas) above 0, got 0 in float32; {mend}")


def check_coefficients(value: Any, where: str) -> None:
    """Raises an error unless coefficients are finite and have the shape that `linear_reuse` expects."""
    check_range(value, where)
    shape = jnp.shape(value)
    if len(shape) not in (1, 2) or shape[-1] < 3 or shape[-1] % 2 == 0:
        COEFFICIENTS.refuse(value, where, got=f"shape {shape}")


Level = Callable[[NoiseLevel], Array]
"""A number as a function of the noise level, as a user writes it."""
Numeric = ArrayLike | Callable[[NoiseLevel], ArrayLike]

Scale = TypeAliasType("Scale", Annotated[Numeric, scale_kind()])
"""How strongly a guidance acts: one number, one per sample `[B]`, or a function of the noise level that returns either."""
NonNegativeScale = TypeAliasType("NonNegativeScale", Annotated[Numeric, scale_kind(low=0)])
"""As `Scale`, at least 0."""
FractionScale = TypeAliasType("FractionScale", Annotated[Numeric, scale_kind(low=0, high=1)])
"""As `Scale`, in [0, 1]."""
BoundScale = TypeAliasType("BoundScale", Annotated[Numeric, scale_kind(low=0, high=np.inf)])
"""As `Scale`, at least 0; infinity means no bound."""
ElementScale = TypeAliasType("ElementScale", Annotated[Numeric, dataclasses.replace(scale_kind(), guard=None, each=False)])
"""As `Scale`; it may also have the shape of x or of one sample. `check_elements` checks its values when it is evaluated."""
PerSample = TypeAliasType("PerSample", Annotated[ArrayLike, number(scalar=False, each=True)])
"""One number, or one per sample `[B]`."""
NonNegativePerSample = TypeAliasType("NonNegativePerSample", Annotated[ArrayLike, number(low=0, scalar=False, each=True)])
"""As `PerSample`, at least 0."""
PositivePerSample = TypeAliasType("PositivePerSample", Annotated[ArrayLike, number(above=0, scalar=False, each=True)])
"""As `PerSample`, and positive."""

Number = TypeAliasType("Number", Annotated[ArrayLike, number()])
"""One finite number."""
Positive = TypeAliasType("Positive", Annotated[ArrayLike, number(above=0)])
"""One positive number."""
NonNegative = TypeAliasType("NonNegative", Annotated[ArrayLike, number(low=0, zero=True)])
"""One number, at least 0. A Python 0 is static and turns a computation off: no noise is drawn."""
Fraction = TypeAliasType("Fraction", Annotated[ArrayLike, number(low=0, high=1, zero=True)])
"""One number in [0, 1]. A Python 0 is static and turns a computation off: no noise is drawn."""
RATIO = number("one number, sigma / alpha", -np.inf, np.inf, hint="use sigma / alpha instead of t.")
Ratio = TypeAliasType("Ratio", Annotated[ArrayLike, RATIO])
"""A bound on the noise level, in `sigma / alpha`: one number, which may be infinite."""
AtLeastZero = TypeAliasType("AtLeastZero", Annotated[ArrayLike, number(low=0)])
"""One number, at least 0. It is data, even if it is 0."""
AtLeastOne = TypeAliasType("AtLeastOne", Annotated[ArrayLike, number(low=1)])
"""One number, at least 1."""
Known = TypeAliasType("Known", Annotated[float, known(number(above=0))])
"""One positive number. It is static, because the call itself computes with it in float64."""
KnownFromZero = TypeAliasType("KnownFromZero", Annotated[float, known(number(low=0))])
"""As `Known`, but it may be 0."""
Share = TypeAliasType("Share", Annotated[float, known(number("a share", 0, 1, above=0))])
"""As `Known`, at most 1: a fraction of a whole."""
is_rates = lambda value: real(list(value) if isinstance(value, tuple) else value)
RATES = Kind("one-dimensional with every rate a number in (0, 1)", is_rates, also=check_rates, fixed=True)
Rates = TypeAliasType("Rates", Annotated[ArrayLike | Sequence[float], RATES])
"""Noise rates in (0, 1), `[steps]`. They are static."""
_FORM = "numbers, [1 + 2 K] or [steps, 1 + 2 K], K at least 1"
COEFFICIENTS = Kind(_FORM, real, hint="use gj.fit_linear.", also=check_coefficients)
Coefficients = TypeAliasType("Coefficients", Annotated[ArrayLike, COEFFICIENTS])
"""The coefficients of `linear_reuse`."""
Mask = TypeAliasType("Mask", Annotated[ArrayLike, number("a mask", 0, 1, scalar=False)])
"""A mask with values in [0, 1], which broadcasts against x."""

Count = TypeAliasType("Count", Annotated[int, count()])
"""An integer, at least 1. It is static, so another value compiles another program."""
CountFromZero = TypeAliasType("CountFromZero", Annotated[int, count(0)])
"""An integer, at least 0. It is static, so another value compiles another program."""
Integer = TypeAliasType("Integer", Annotated[ArrayLike, integer(0)])
"""One integer, at least 0. It is data, so another value compiles nothing."""
Period = TypeAliasType("Period", Annotated[ArrayLike, integer(1)])
"""One integer, at least 1. It is data, so another value compiles nothing."""
Sizes = TypeAliasType("Sizes", Annotated[Sequence[int], sizes("a tuple of integers, each at least 1")])
"""Several integers, each at least 1."""
Places = TypeAliasType("Places", Annotated[Sequence[int], sizes("a tuple of integers, each at least 0", 0)])
"""Several indices, counted from 0."""
ImageShape = TypeAliasType("ImageShape", Annotated[Sequence[int], sizes("(height, width, channels) of one image", length=3)])
"""The shape `(H, W, C)` of one image."""

_CONDITIONS = "for conditions, use gj.branches(denoise, cond=labels, uncond=null)."
BRANCH = Kind("the name of a branch", lambda value: isinstance(value, str), hint=_CONDITIONS)
Branch = TypeAliasType("Branch", Annotated[str, BRANCH])
"""The name of a branch."""
BranchNames = TypeAliasType("BranchNames", Annotated[Collection[str], names(none=False)])
"""The names of branches, in a tuple or a set."""
BranchesOrBase = TypeAliasType("BranchesOrBase", Annotated[Collection[str | None], names(none=True)])
"""As `BranchNames`; None stands for the base."""
Predicts = TypeAliasType("Predicts", Annotated[str, choice("eps", "x0", "v", "score", "velocity")])
"""A parameterisation: the quantity that a network predicts."""
ReverseVariance = TypeAliasType("ReverseVariance", Annotated[str, choice("small", "large", "learned")])
"""The variance of a reverse step, as in `ddpm`."""
Compute = TypeAliasType("Compute", Annotated[str, choice("float32", "bfloat16")])
"""The dtype that dense layers compute in."""

Flag = TypeAliasType("Flag", Annotated[bool, Kind("True or False", lambda value: isinstance(value, bool | np.bool_))])
"""True or False. It is static."""
_WANTED = Kind("a dictionary", lambda value: isinstance(value, Mapping), hint='use {"cond": True}.')
Wanted = TypeAliasType("Wanted", Annotated[Mapping[str, Any], _WANTED])
"""The branches to evaluate: `{name: True, or a boolean scalar}`."""

_OF_LEVEL = function_kind("x", "level", hint="use gj.scores.class_log_prob(classify, labels), or a function (x, level) -> [B].")
LogProb = TypeAliasType("LogProb", Annotated[Callable[[Array, NoiseLevel], Array], _OF_LEVEL])
"""`(x [B, ...], level) -> [B]`: `log p(y | x_t)`, or any other log-probability or reward of noisy data."""
_OF_X0 = function_kind("x0", hint="use a function x0 [B, ...] -> [B].")
CleanLogProb = TypeAliasType("CleanLogProb", Annotated[Callable[[Array], Array], _OF_X0])
"""`x0 [B, ...] -> [B]`: a classifier of clean data, a negative loss, a reward."""
_LOGITS = function_kind("x", "t", hint="use a function (x, t) -> logits [B, classes].")
Classify = TypeAliasType("Classify", Annotated[Callable[[Array, Array], Array], _LOGITS])
"""`(x [B, ...], t [B]) -> logits [B, classes]`, trained on noisy data."""
_REWARD = function_kind("x0", "level", hint="use a function (x0, level) -> [B].")
LogReward = TypeAliasType("LogReward", Annotated[Callable[[Array, NoiseLevel], Array], _REWARD])
"""`(x0 [B, ...], level) -> [B]`. Along a run it receives the x0-prediction, at the end x itself."""
_MEASURE = function_kind("x0", hint="use a function x0 [B, ...] -> measurement.")
Measure = TypeAliasType("Measure", Annotated[Callable[[Array], Any], _MEASURE])
"""`x0 [B, ...] -> measurement`. A measurement is any pytree of `[B, ...]` leaves."""
_BACK = function_kind("measurement", hint="use a function measurement -> [B, ...].")
Pseudoinverse = TypeAliasType("Pseudoinverse", Annotated[Callable[[Any], Array], _BACK])
"""`measurement -> [B, ...]`."""
Measurement = TypeAliasType("Measurement", Annotated[Any, Kind("finite numbers", lambda v: True, also=check_finite)])
"""A measurement: any pytree of finite `[B, ...]` leaves."""
_DENOISE = function_kind("x", "level", "cond", hint="for a network, use gj.denoiser(network, predicts=...).")
Denoise = TypeAliasType("Denoise", Annotated[Denoiser, _DENOISE])
"""`(x [B, ...], level, cond) -> Prediction`."""
_NETWORK = (
    "use a function (x, t, cond) -> output, jax.tree_util.Partial(apply, params), or an instance of a class: "
    "UNet(config, rngs=nnx.Rngs(0))."
)
Network = TypeAliasType(
    "Network", Annotated[Callable[[Array, Array, Any], Array], Kind("a function", is_function, hint=_NETWORK, also=check_bound)]
)
"""`(x [B, ...], t [B], cond) -> output [B, ...]`, with bound parameters."""
_TREES = Kind("a function", is_function, hint="use a function (tree of [B, ...], t [B], cond) -> tree.", also=check_bound)
TreeNetwork = TypeAliasType("TreeNetwork", Annotated[Callable[[Any, Array, Any], Any], _TREES])
"""`(tree of [B, ...], t [B], cond) -> tree of the same structure`, with bound parameters."""
_SPACING = function_kind("schedule", "steps", hint="use gj.spacings.karras().")
Spacing = TypeAliasType("Spacing", Annotated[Callable[[Any, int], Array], _SPACING])
"""`(schedule, steps) -> t [steps]`, with decreasing times."""

Path = TypeAliasType("Path", Annotated[NoiseLevel, class_kind(NoiseLevel, PATH, check_path)])
"""A path of noise levels, `[steps + 1]`."""
finite_level = lambda value, where: check_finite((value.alpha, value.sigma), f"{where}'s (alpha, sigma)")
AtLevel = TypeAliasType("AtLevel", Annotated[NoiseLevel, class_kind(NoiseLevel, "use schedule(t).", finite_level)])
"""One noise level for all samples, or one per sample."""
Labels = TypeAliasType("Labels", Annotated[Array, Kind("integer labels", is_labels, hint="cast them with .astype(int).")])
"""Integer labels, `[B]`."""
KEYS = Kind("an array of PRNG keys made by jax.random.key (not PRNGKey), one per sample", is_key, hint=SPLIT, also=check_keys)
Keys = TypeAliasType("Keys", Annotated[Array, KEYS])
"""PRNG keys, `[B]`, one per sample."""
Key = TypeAliasType("Key", Annotated[Array, Kind("one PRNG key", is_any_key, hint="use jax.random.key(0).", also=check_key)])
"""One PRNG key."""
_SAMPLES = array_kind("floating numbers, [B, ...]", jnp.floating, hint="scale images to [-1, 1] first.")
Samples = TypeAliasType("Samples", Annotated[Array, _SAMPLES])
"""Clean data, `[B, ...]`."""
