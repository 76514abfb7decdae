"""The annotations of parameters: what each accepts, said once. `door` reads them.

A function documents what a parameter does. What a `Scale` or a `Count` is, is documented here.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Collection, Hashable, Sequence
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import ArrayLike
from typing_extensions import TypeAliasType

from guidance_jax.arrays import concrete
from guidance_jax.base import Branches, Denoiser, Guidance, NoiseLevel, Prediction, Sampler, Schedule, Step
from guidance_jax.checks.door import CLASSES, Kind
from guidance_jax.checks.numbers import (
    LARGEST,
    check_finite,
    check_range,
    check_scalar,
    check_shape,
    count,
    known,
    number,
    real,
)
from guidance_jax.checks.words import article, call_it, check_takes, noting, told
from guidance_jax.curves import Calibration, Curve
from guidance_jax.parts import Function


def class_kind(kind_of: type, hint: str) -> Kind:
    """The kind of an instance of one of our classes."""

    def check(kind: Kind, value: Any, where: str) -> None:
        if not isinstance(value, kind_of):
            kind.refuse(value, where)

    return Kind(article(kind_of.__name__), check, hint)


CLASSES |= {
    Branches: class_kind(Branches, "use gj.branches(denoise, cond=labels, uncond=null)."),
    Guidance: class_kind(
        Guidance,
        "cfg(3.0) is one, chain(*parts) makes one of several, chain() is none. gj.feynman_kac samples a target, whose "
        "guidance is gj.targets.drift(target).",
    ),
    Prediction: class_kind(Prediction, "denoise(x, level, cond) returns one."),
    Sampler: class_kind(Sampler, "ddim() is one."),
    Schedule: class_kind(Schedule, "gj.schedules.cosine() is one."),
    Step: class_kind(Step, "gj.Step(number, level, next, keys) is one."),
}


def is_function(value: object) -> bool:
    """Whether a value can be called as a function: no class, and nothing of ours that is called otherwise."""
    return callable(value) and not isinstance(value, type | tuple | Guidance | Sampler | Schedule)


def scale_kind(
    words: str = "", low: float | int = -LARGEST, high: float | int = LARGEST, *, above: float | int | None = None
) -> Kind:
    """The kind of a number for all samples, one per sample, or a function of the level, in a range."""
    of = number(words, low, high, above=above, scalar=False)

    def check(kind: Kind, value: Any, where: str) -> None:
        if type(value) is float or not is_function(value):
            if not real(value):
                kind.refuse(value, where)
            of.check(of, value, where)
        elif not isinstance(value, Function | Guarded):
            if call_it(value):
                kind.refuse(value, where)
            check_takes(value, where, "level")

    def guard(value: Any, where: str) -> Any:
        if not callable(value) or isinstance(value, Guarded):
            return value

        def guarded(level: NoiseLevel) -> Any:
            with noting(where, level=level):
                given = value(level)
            if not real(given):
                kind.refuse(given, f"{where}, a function,")
            check_range(given, where, low, high, above)
            return given

        return Guarded(guarded, where)

    kind = Kind(f"{of.expected}, an array [B] of them, or a function of the level", check, guard=guard, each=True)
    return kind


@dataclasses.dataclass(frozen=True)
class Guarded:
    """A user's scale, its values checked."""

    function: Callable[[NoiseLevel], Any]
    where: str
    """The function and the parameter that it is, for errors."""

    def __call__(self, level: NoiseLevel) -> Any:
        return self.function(level)


def function_kind(*takes: str, hint: str) -> Kind:
    """The kind of a user's function of these arguments."""

    def check(kind: Kind, value: Any, where: str) -> None:
        if not is_function(value) or (inspect.isfunction(value) and "<locals>" not in value.__qualname__ and call_it(value)):
            kind.refuse(value, where)
        if takes:
            check_takes(value, where, *takes)

    return Kind("a function", check, hint)


def choice(*names: str) -> Kind:
    """The kind of a string among a few."""

    def check(kind: Kind, value: Any, where: str) -> None:
        if not isinstance(value, Hashable) or value not in names:
            kind.refuse(
                value, where, ValueError if isinstance(value, str) else TypeError, repr(value) if isinstance(value, str) else ""
            )

    return Kind(" or ".join(map(repr, names)), check)


def array_kind(words: str, kind_of: Any, *, finite: bool = False, hint: str = "") -> Kind:
    """The kind of an array of numbers: `array_kind("floating numbers, [B]", jnp.floating)`."""

    def check(kind: Kind, value: Any, where: str) -> None:
        dtype = getattr(value, "dtype", None)
        if not hasattr(value, "shape") or dtype is None or not jnp.issubdtype(dtype, kind_of):
            kind.refuse(value, where)
        if finite:
            check_finite(value, where)

    return Kind(f"an array of {words}", check, hint)


def _curve(kind: Kind, value: Any, where: str) -> None:
    if not isinstance(value, Calibration | Curve):
        kind.refuse(value, where)
    shapes = jnp.shape(value.ratio), jnp.shape(value.rho)
    if len(set(shapes)) > 1 or len(shapes[0]) != 1 or not shapes[0][0]:
        raise ValueError(f"{where} must have ratio and rho of one shape [S], S at least 1, got {shapes[0]} and {shapes[1]}.")
    if concrete((value.ratio, value.rho)):
        ratio, rho = np.asarray(value.ratio), np.asarray(value.rho)
        if not ((ratio >= 0).all() and np.isfinite(rho).all() and (rho >= 0).all()):
            raise ValueError(f"{where} must have ratio >= 0 and finite rho >= 0, got ratio {ratio} and rho {rho}.")


def check_curve(curve: Calibration | Curve, scale: Any) -> None:
    """Raises where a curve and a scale are known, and no law has that scale.

    Raises:
      ValueError: naming the level at which it has none.
    """
    if not concrete((curve.ratio, curve.rho, scale)):
        return
    ratio, rho, w = np.asarray(curve.ratio), np.asarray(curve.rho), np.asarray(scale, np.float64).reshape(-1, 1)
    below = np.where(w == 0, 1, rho + w * (1 - rho))
    if not (below > 0).all():
        i, s = np.unravel_index(below.argmin(), below.shape)
        raise ValueError(
            f"calibrated: scale {w[i, 0]:g} needs rho + scale (1 - rho) > 0, but at sigma / alpha = {ratio[s]:.4g} rho is "
            f"{rho[s]:.4g}, and this is {below[i, s]:.4g}: no law is that narrow. Use a scale nearer to 1; to guide away from "
            "a condition, measure in the other direction, calibrate(cond='uncond', uncond='cond') on unconditional samples."
        )


def check_scores(a: Array, b: Array, scale: Any = 1.0) -> None:
    """Raises unless two scores have one shape, and a scale fits them.

    Raises:
      ValueError: naming the shapes.
    """
    if jnp.shape(a) != jnp.shape(b):
        raise ValueError(f"the two scores must have one shape, [B, ...], got {jnp.shape(a)} and {jnp.shape(b)}.")
    check_shape(scale, a, "the scale of two scores")


def check_recorded(cond: Array, uncond: Array, past: int) -> None:
    """Raises unless the predictions of two branches were recorded along one path, of more than `past` steps.

    Raises:
      ValueError: naming the shapes, or the numbers of steps.
    """
    if cond.shape != uncond.shape:
        raise ValueError(
            "fit_linear: cond and uncond must be recorded along one path, [steps, N, ...], got "
            f"{cond.shape} and {uncond.shape}."
        )
    if past >= len(cond):
        raise ValueError(f"fit_linear: past={past} must be below the number of steps, but there are {len(cond)} steps.")


def _coefficients(kind: Kind, value: Any, where: str) -> None:
    if not real(value):
        kind.refuse(value, where)
    check_range(value, where)
    shape = jnp.shape(value)
    if len(shape) not in (1, 2) or shape[-1] < 3 or shape[-1] % 2 == 0:
        kind.refuse(value, where, ValueError, f"shape {shape}")


def _name(kind: Kind, value: Any, where: str) -> None:
    if not isinstance(value, str):
        kind.refuse(value, where)


def _names(base: bool) -> Kind:
    def check(kind: Kind, value: Any, where: str) -> None:
        if isinstance(value, str) or not isinstance(value, Collection):
            kind.refuse(value, where)
        for each in value:
            if each is not None or not base:
                _BRANCH.check(_BRANCH, each, where)

    return Kind("the names of branches, in a tuple", check, "of one branch, ('cond',).")


def _integer(kind: Kind, value: Any, where: str) -> None:
    if real(value):
        check_scalar(value, where)
    whole = real(value) and jnp.issubdtype(jnp.result_type(value), jnp.integer)
    if not whole or (concrete(value) and np.asarray(value) < 0):
        kind.refuse(value, where, TypeError if not whole else ValueError, str(value) if real(value) else "")


def _period(kind: Kind, value: Any, where: str) -> None:
    whole = real(value) and jnp.shape(value) == () and jnp.issubdtype(jnp.result_type(value), jnp.integer)
    if not whole or (concrete(value) and np.asarray(value) < 1):
        kind.refuse(value, where, TypeError if not real(value) else ValueError, str(value) if real(value) else "")


def _labels(kind: Kind, value: Any, where: str) -> None:
    value = value if hasattr(value, "dtype") else np.asarray(value)
    if not jnp.issubdtype(value.dtype, jnp.integer):
        kind.refuse(value, where)


def _path(kind: Kind, value: Any, where: str) -> None:
    if not isinstance(value, NoiseLevel):
        kind.refuse(value, where)
    if jnp.ndim(value.sigma) != 1:
        kind.refuse(value, where, ValueError, f"one of shape {jnp.shape(value.sigma)}")


def _rates(kind: Kind, value: Any, where: str) -> None:
    if not real(list(value) if isinstance(value, tuple) else value):
        kind.refuse(value, where)
    if not concrete(value):
        return
    rates = np.asarray(value, np.float64)
    if rates.ndim != 1 or not rates.size or not ((rates > 0) & (rates < 1)).all():
        kind.refuse(value, where, ValueError, f"shape {rates.shape}: {rates}")


def _level(kind: Kind, value: Any, where: str) -> None:
    if not isinstance(value, NoiseLevel):
        kind.refuse(value, where)
    check_finite((value.alpha, value.sigma), f"{where}'s (alpha, sigma)")


def _keys(kind: Kind, value: Any, where: str) -> None:
    if not hasattr(value, "dtype") or not jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        kind.refuse(value, where)
    if value.ndim != 1 or not len(value):
        raise ValueError(f"{where} has shape {value.shape}, but must be [B], one per sample and at least one; {kind.hint}")
    check_generator(value)


def _key(kind: Kind, value: Any, where: str) -> None:
    typed = hasattr(value, "dtype") and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
    if not typed and not (hasattr(value, "ndim") and value.dtype == jnp.uint32 and value.ndim):
        kind.refuse(value, where)
    if value.ndim != (0 if typed else 1):
        raise ValueError(f"{where} must be one PRNG key, got keys of shape {value.shape}; jax.vmap goes over them.")


def check_generator(keys: Array) -> None:
    """Raises where `jax.vmap` over keys draws by the first of them alone, as it does over those of rbg and unsafe_rbg.

    Raises:
      ValueError: naming the generator, and one that draws by each.
    """
    generator = jax.random.key_impl(keys)
    if generator != "threefry2x32" and not _draws_by_each(generator):
        raise ValueError(
            f"keys are of the generator {generator}, by which jax.vmap draws with the first key of a batch alone, so no "
            'sample would have its own noise; use jax.random.split(jax.random.key(0, impl="threefry2x32"), B).'
        )


@functools.cache
def _draws_by_each(generator: Any) -> bool:
    """Whether a key draws under `jax.vmap` what it draws alone."""
    with jax.ensure_compile_time_eval():
        keys = jax.random.split(jax.random.key(0, impl=generator), 2)
        return bool((jax.vmap(jax.random.bits)(keys)[1] == jax.random.bits(keys[1])).all())


def _network(kind: Kind, value: Any, where: str) -> None:
    if not is_function(value) or call_it(value):
        kind.refuse(value, where)
    of = getattr(value, "__self__", value)
    linen = any(part.__module__.startswith("flax.linen") for part in type(of).__mro__)
    if linen and getattr(of, "scope", None) is None:
        raise TypeError(f"{where} must hold its parameters, got {told(value)}; gj.networks.from_linen binds a Linen module.")
    check_takes(value, where, "x", "t", "cond")


Level = Callable[[NoiseLevel], ArrayLike]
"""A number as a function of the noise level."""

Scale = TypeAliasType("Scale", Annotated[ArrayLike | Level, scale_kind()])
"""How strongly a guidance acts: one number, one per sample `[B]`, or a function of the noise level that returns either."""
PositiveScale = TypeAliasType("PositiveScale", Annotated[ArrayLike | Level, scale_kind(above=0)])
"""As `Scale`, and positive."""
NonNegativeScale = TypeAliasType("NonNegativeScale", Annotated[ArrayLike | Level, scale_kind(low=0)])
"""As `Scale`, and not negative."""
FractionScale = TypeAliasType("FractionScale", Annotated[ArrayLike | Level, scale_kind(low=0, high=1)])
"""As `Scale`, in [0, 1]."""
BoundScale = TypeAliasType("BoundScale", Annotated[ArrayLike | Level, scale_kind(low=0, high=np.inf)])
"""As `Scale`, not negative, and infinite for no bound."""
ElementScale = TypeAliasType("ElementScale", Annotated[ArrayLike | Level, dataclasses.replace(scale_kind(), guard=None)])
"""As `Scale`, or shaped as x or as one sample. Its values are checked where it is evaluated, by `check_elements`."""
PerSample = TypeAliasType("PerSample", Annotated[ArrayLike, dataclasses.replace(number(scalar=False), each=True)])
"""One number, or one per sample `[B]`."""
NonNegativePerSample = TypeAliasType(
    "NonNegativePerSample", Annotated[ArrayLike, dataclasses.replace(number(low=0, scalar=False), each=True)]
)
"""As `PerSample`, and not negative."""
PositivePerSample = TypeAliasType("PositivePerSample", Annotated[ArrayLike, number(above=0, scalar=False)])
"""As `PerSample`, and positive."""

Number = TypeAliasType("Number", Annotated[ArrayLike, number()])
"""One finite number."""
Positive = TypeAliasType("Positive", Annotated[ArrayLike, number(above=0)])
"""One positive number."""
NonNegative = TypeAliasType("NonNegative", Annotated[ArrayLike, number(low=0, zero=True)])
"""One number that is not negative. A plain 0 leaves work out: nothing is drawn."""
Fraction = TypeAliasType("Fraction", Annotated[ArrayLike, number(low=0, high=1, zero=True)])
"""One number in [0, 1]. A plain 0 leaves work out: nothing is drawn."""
Ratio = TypeAliasType(
    "Ratio",
    Annotated[ArrayLike, number("one number, sigma / alpha", -np.inf, np.inf, hint="bounds are sigma / alpha, and not t.")],
)
"""A bound on the noise, in `sigma / alpha`: one number, possibly infinite."""

AtLeastZero = TypeAliasType("AtLeastZero", Annotated[ArrayLike, number(low=0)])
"""One number, at least 0, which is data even if it is 0."""
Known = TypeAliasType("Known", Annotated[float, known(number(above=0))])
"""One positive number that is part of the structure: it is computed with in float64 when the call is made."""
KnownFromZero = TypeAliasType("KnownFromZero", Annotated[float, known(number(low=0))])
"""As `Known`, or 0."""
AtLeastOne = TypeAliasType("AtLeastOne", Annotated[ArrayLike, number(low=1)])
"""One number, at least 1."""

Count = TypeAliasType("Count", Annotated[int, count()])
"""A whole number, at least 1. It is part of the structure: another one compiles another program."""
CountFromZero = TypeAliasType("CountFromZero", Annotated[int, count(0)])
"""A whole number, at least 0, likewise."""
Integer = TypeAliasType("Integer", Annotated[ArrayLike, Kind("an integer, at least 0", _integer)])
"""One integer that is data: another one compiles nothing."""
Period = TypeAliasType("Period", Annotated[ArrayLike, Kind("an integer of at least 1", _period)])
"""One integer, at least 1, that is data."""


def sizes(expected: str, low: int = 1, length: int | None = None) -> Kind:
    """The kind of a sequence of whole numbers: shapes, widths, levels."""

    def check(kind: Kind, value: Any, where: str) -> None:
        whole = lambda each: isinstance(each, int | np.integer) and not isinstance(each, bool)
        if not isinstance(value, list | tuple | np.ndarray) or not all(map(whole, value)):
            kind.refuse(value, where)
        if len(value) != (len(value) if length is None else length) or min(value, default=low) < low:
            kind.refuse(value, where, ValueError, str(value))

    return Kind(expected, check, fixed=True)


Sizes = TypeAliasType("Sizes", Annotated[Sequence[int], sizes("a tuple of integers, each at least 1")])
"""Several whole numbers, each at least 1."""
Places = TypeAliasType("Places", Annotated[Sequence[int], sizes("a tuple of integers, each at least 0", 0)])
"""Several whole numbers, counted from 0."""
ImageShape = TypeAliasType("ImageShape", Annotated[Sequence[int], sizes("(height, width, channels) of one image", length=3)])
"""`(H, W, C)`."""
Compute = TypeAliasType("Compute", Annotated[str, choice("float32", "bfloat16")])
"""What dense layers compute in."""

Mask = TypeAliasType("Mask", Annotated[ArrayLike, number("a mask", 0, 1, scalar=False)])
"""A mask that broadcasts against x, its values in [0, 1]."""

_BRANCH = Kind("the name of a branch", _name, "conditions go to gj.branches(denoise, cond=labels, uncond=null).")
Branch = TypeAliasType("Branch", Annotated[str, _BRANCH])
"""The name of a branch."""
BranchNames = TypeAliasType("BranchNames", Annotated[Collection[str], _names(base=False)])
"""The names of branches, in a tuple or a set."""
BranchesOrBase = TypeAliasType("BranchesOrBase", Annotated[Collection[str | None], _names(base=True)])
"""As `BranchNames`; None stands for the base."""
Predicts = TypeAliasType("Predicts", Annotated[str, choice("eps", "x0", "v", "score", "velocity")])
"""A parameterisation: what a network predicts."""
ReverseVariance = TypeAliasType("ReverseVariance", Annotated[str, choice("small", "large", "learned")])
"""The variance of a reverse step, as in `ddpm`."""

LogProb = TypeAliasType(
    "LogProb",
    Annotated[
        Callable[[Array, NoiseLevel], Array],
        function_kind("x", "level", hint="it is (x, level) -> [B], as gj.scores.class_log_prob(classify, labels) makes it."),
    ],
)
"""`(x [B, ...], level) -> [B]`: `log p(y | x_t)`, or any other log-probability or reward of noisy data."""
CleanLogProb = TypeAliasType(
    "CleanLogProb", Annotated[Callable[[Array], Array], function_kind("x0", hint="it is x0 [B, ...] -> [B].")]
)
"""`x0 [B, ...] -> [B]`: a classifier of clean data, a negative loss, a reward."""
Classify = TypeAliasType(
    "Classify", Annotated[Callable[[Array, Array], Array], function_kind("x", "t", hint="it is (x, t) -> logits [B, classes].")]
)
"""`(x [B, ...], t [B]) -> logits [B, classes]`, trained on noisy data."""
LogReward = TypeAliasType(
    "LogReward", Annotated[Callable[[Array, NoiseLevel], Array], function_kind("x0", "level", hint="it is (x0, level) -> [B].")]
)
"""`(x0 [B, ...], level) -> [B]`: of the x0-prediction along a run, of x itself at its end."""
Measure = TypeAliasType(
    "Measure", Annotated[Callable[[Array], Any], function_kind("x0", hint="it is x0 [B, ...] -> the measurement.")]
)
"""`x0 [B, ...] -> ` a measurement: any pytree of `[B, ...]` leaves."""
Pseudoinverse = TypeAliasType(
    "Pseudoinverse",
    Annotated[Callable[[Any], Array], function_kind("measurement", hint="it goes from the measurement back to [B, ...].")],
)
"""From a measurement back to `[B, ...]`."""
Measurement = TypeAliasType(
    "Measurement", Annotated[Any, Kind("finite numbers", lambda kind, value, where: check_finite(value, where))]
)
"""A measurement: any pytree of `[B, ...]` leaves, finite."""
Denoise = TypeAliasType(
    "Denoise",
    Annotated[Denoiser, function_kind("x", "level", "cond", hint="gj.denoiser(network, predicts=...) makes one of a network.")],
)
"""`(x [B, ...], level, cond) -> Prediction`."""
Network = TypeAliasType(
    "Network",
    Annotated[
        Callable[[Array, Array, Any], Array],
        Kind("a function", _network, "it is (x, t, cond) -> output; of a class, an instance: UNet(config, rngs=nnx.Rngs(0))."),
    ],
)
"""`(x [B, ...], t [B], cond) -> output [B, ...]`, its parameters bound."""

Spacing = TypeAliasType(
    "Spacing",
    Annotated[Callable[[Schedule, int], Array], function_kind("schedule", "steps", hint="gj.spacings.karras() is one.")],
)
"""`(schedule, steps) -> t [steps]`, decreasing."""
Path = TypeAliasType(
    "Path",
    Annotated[NoiseLevel, Kind("a NoiseLevel of [steps + 1] levels", _path, "gj.levels(schedule, steps, spacing) makes one.")],
)
"""Noise levels, `[steps + 1]`."""
Rates = TypeAliasType(
    "Rates", Annotated[ArrayLike | Sequence[float], known(Kind("one-dimensional with every rate a number in (0, 1)", _rates))]
)
"""Noise rates in (0, 1), `[steps]`, which are part of the structure."""
Coefficients = TypeAliasType(
    "Coefficients",
    Annotated[
        ArrayLike,
        Kind("numbers, [1 + 2 K] or [steps, 1 + 2 K], K at least 1", _coefficients, "gj.fit_linear measures them."),
    ],
)
"""The coefficients of `linear_reuse`."""
Classify = TypeAliasType(
    "Classify", Annotated[Callable[[Array, Array], Array], function_kind("x", "t", hint="it is (x, t) -> logits [B, classes].")]
)
"""`(x [B, ...], t [B]) -> logits [B, C]`: a noise-aware classifier."""
TreeNetwork = TypeAliasType(
    "TreeNetwork",
    Annotated[
        Callable[[Any, Array, Any], Any],
        Kind("a function", _network, "it is (tree of [B, ...], t [B], cond) -> tree of the same structure."),
    ],
)
"""`(tree of [B, ...], t [B], cond) -> tree`, its parameters bound."""

CurveLike = TypeAliasType(
    "CurveLike",
    Annotated[
        Calibration | Curve, Kind("a Calibration or a Curve", _curve, "gj.calibrate(keys, branches, x0, levels) measures one.")
    ],
)
"""Where guidance helps, measured or known."""

Labels = TypeAliasType("Labels", Annotated[Array, Kind("integer labels", _labels, "cast them with .astype(int).")])
"""Integer labels, `[B]`."""
Keys = TypeAliasType(
    "Keys",
    Annotated[
        Array,
        Kind(
            "an array of PRNG keys made by jax.random.key (not PRNGKey), one per sample",
            _keys,
            "jax.random.split(jax.random.key(0), B).",
        ),
    ],
)
"""PRNG keys, `[B]`, one per sample."""
Key = TypeAliasType("Key", Annotated[Array, Kind("one PRNG key", _key, "jax.random.key(0) is one.")])
"""One PRNG key."""
AtLevel = TypeAliasType("AtLevel", Annotated[NoiseLevel, Kind("a noise level", _level, "schedule(t) returns one.")])
"""One noise level for all samples, or one per sample."""
Samples = TypeAliasType(
    "Samples", Annotated[Array, array_kind("floating numbers, [B, ...]", jnp.floating, hint="scale images to [-1, 1] first.")]
)
"""Clean data, `[B, ...]`."""
