"""Checks of numbers and arrays: type, shape, range and finiteness. A range is checked in the dtype of the run."""

import dataclasses
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from guidance_jax.checks.door import Kind
from guidance_jax.checks.traced import concrete, demand, insist
from guidance_jax.checks.words import described, of_torch

LARGEST = sys.float_info.max
Real = float | int


def of_kind(value: Any, *kinds: Any) -> bool:
    """Whether the dtype of an array is of one of these kinds. That of a PyTorch tensor is of none."""
    dtype = getattr(value, "dtype", None)
    try:
        return dtype is not None and any(jnp.issubdtype(dtype, kind) for kind in kinds)
    except TypeError:
        return False


def real(value: object) -> bool:
    """Whether a value is a real number, or an array or list of them."""
    if hasattr(value, "dtype"):
        return of_kind(value, jnp.floating, jnp.integer, jnp.bool_)
    return all(map(real, value)) if isinstance(value, list) else isinstance(value, bool | int | float)


def bounds(low: Real = -LARGEST, high: Real = LARGEST, above: Real | None = None) -> str:
    """The description of a range for an error message."""
    if above is not None:
        below = f" and at most {high:g}" if high < LARGEST else ""
        return "positive" if (above, high) == (0, LARGEST) else f"above {above:g}{below}"
    if (low, high) == (-LARGEST, LARGEST):
        return "finite"
    return f"in [{low:g}, inf)" if high == LARGEST else f"in [{low:g}, {high:g}]"


def check_range(
    value: Any,
    where: str,
    low: Real = -LARGEST,
    high: Real = LARGEST,
    above: Real | None = None,
    expected: str = "",
    hint: str = "",
) -> None:
    """Raises an error unless a number is in range in the dtype of the run. In float32, 1e39 is infinite and 1e-40 is 0."""
    if not real(value):
        raise TypeError(f"{where} must be a real number or an array of them, got {described(value)}.")
    held, expected = jnp.finfo(jnp.result_type(float)), expected or bounds(low, high, above)
    # A finite bound beyond the dtype becomes the largest finite number, so that infinity is out of range.
    low, high = (end if np.isinf(end) else float(np.clip(end, held.min, held.max)) for end in (low, high))

    def inside(given: Any) -> Any:
        right = (given >= low) & (given <= high)
        return (right if above is None else right & (given >= held.tiny if above == 0 else given > above)).all()

    if not concrete(value):
        given = jnp.asarray(value)
        insist(lambda: inside(given.astype(held.dtype)), f"{where} must be {expected}, got {{given}}.", given=given)
        return
    with np.errstate(over="ignore", under="ignore"):
        given, exact = np.asarray(value).astype(held.dtype), np.asarray(value).astype(np.float64)
    beyond = (np.isinf(given) & np.isfinite(exact)).any()
    if not inside(given) or beyond:
        lost = beyond or ((abs(given) < held.tiny) & (exact != 0)).any()
        as_held = f", in {held.dtype} as {np.where(abs(given) < held.tiny, 0, given)}" if lost else ""
        raise ValueError(f"{where} must be {expected}, got {value}{as_held}{f'; {hint}' if hint else '.'}")


def check_time(t: Any, t_min: Any, t_max: Any, steps: int | None) -> None:
    """Raises an error if a time is not finite, or is far outside of the schedule, as a sigma may be.

    A continuous schedule may be used a little beyond its ends, for example at t = 0. A discrete one has no steps there.
    """
    check_range(t, "the schedule's time")
    if concrete((t, t_min, t_max)):
        times, low, high = map(np.asarray, (t, t_min, t_max))
        if steps is not None:
            # A time in half precision is rounded by more than a hundredth of a step.
            eps = float(jnp.finfo(times.dtype).eps) if jnp.issubdtype(times.dtype, jnp.floating) else 0.0
            margin = max(0.01, eps * float(high))
            beyond = times[(times < low - margin) | (times > high + margin)]
            if beyond.size:
                raise ValueError(f"the time {beyond[0]:g} must be one of the {steps} training steps, 0 to {steps - 1}.")
            return
        # Where times begin at 0 or above, none is negative: formulae of t^2 or sin(t) rise again there.
        least, most = low - (high - low) / 2 if low < 0 else -1e-6, high + (high - low) / 2
        beyond = times[(times < least) | (times > most)]
        if beyond.size:
            mend = "for a ratio sigma / alpha, use schedule.at(ratio)."
            raise ValueError(f"the time {beyond[0]:g} is outside of this schedule, {low:g} to {high:g}; {mend}")


def check_positive(t: Any, alpha: Any, sigma: Any) -> None:
    """Raises an error if a schedule's alpha or sigma is negative: beyond its ends, the formula of a schedule may be wrong."""
    if concrete((t, alpha, sigma)):
        # A time that is rounded may be a little beyond the end.
        wrong = ~((np.asarray(alpha) >= -1e-6) & (np.asarray(sigma) >= -1e-6) & np.ones(np.shape(t), bool))
        if wrong.any():
            time, a, s = (value[wrong][0] for value in np.broadcast_arrays(t, alpha, sigma))
            raise ValueError(f"the time {time:g} is outside of this schedule, where alpha would be {a:.4g} and sigma {s:.4g}.")


def check_shape(value: Any, x: Any, where: str) -> None:
    """Raises an error unless a value is one number for all samples, `()`, or one per sample, `[B]`."""
    mend = (
        "one number for all samples, or one per sample. For one per noise level, use a function of the level; for a grid of "
        "values, jax.vmap."
    )
    shape = jnp.shape(value)
    demand(shape in ((), x.shape[:1]), f"{where} has shape {shape}, but must be () or [B] = {x.shape[:1]}: {mend}")


def check_scalar(value: Any, where: str) -> None:
    """Raises an error unless a value is a scalar."""
    shape = jnp.shape(value)
    demand(shape == (), f"{where} has shape {shape}, but must be a scalar; use jax.vmap for several.")


def check_form(value: Any, where: str, form: str, kind: Any = jnp.floating, hint: str = "") -> None:
    """Raises an error unless a value is an array of this form, such as `"B h w 4"`. A letter is an axis of length 1 or more."""
    axes = form.split()
    array = hasattr(value, "shape") and hasattr(value, "dtype") and not of_torch(value)
    mend = f"; {hint}" if hint else "."
    if array and (value.ndim != len(axes) or any(a.isdigit() and int(a) != n for a, n in zip(axes, value.shape, strict=True))):
        raise ValueError(f"{where} must be [{', '.join(axes)}], got {described(value)}{mend}")
    if array and 0 in value.shape:
        raise ValueError(f"{where} is empty, got {described(value)}.")
    if not array or not of_kind(value, kind):
        raise TypeError(
            f"{where} must be an array of {kind.__name__} numbers, [{', '.join(axes)}], got {described(value)}{mend}"
        )


def check_finite(tree: Any, where: str) -> None:
    """Raises an error if a leaf of a pytree has NaN or infinite values."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        which = f"{where}{jax.tree_util.keystr(path)}"
        if of_torch(leaf):
            raise TypeError(f"{which} must be an array of numbers, got {described(leaf)}.")
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.inexact):
            continue
        if not concrete(leaf):
            insist(lambda leaf=leaf: jnp.isfinite(leaf), f"{which} has NaN or infinite values.")
            continue
        with np.errstate(over="ignore"):
            bad = ~np.isfinite(np.asarray(leaf).astype(jax.dtypes.canonicalize_dtype(dtype)))
        demand(~bad, f"{which} must be finite, got NaN or infinite values in {bad.sum()} of {bad.size} places.")


def check_addable(one: Any, other: Any) -> None:
    """Raises an error unless both are calibrations at the same noise levels."""
    if not isinstance(other, type(one)):
        raise TypeError(f"a Calibration is added to another Calibration, got {described(other)}; use gj.calibrate.")
    a, b = one.ratio, other.ratio
    alike = lambda: abs(a - b) <= 1e-3 * abs(b) if a.shape == b.shape else False
    message = "two calibrations must have the same levels, got sigma / alpha {a} and {b}; calibrate at the same levels."
    demand(alike, message, a=a, b=b)


def number(
    words: str = "", low: Real = -LARGEST, high: Real = LARGEST, *, above: Real | None = None, scalar: bool = True, **more: Any
) -> Kind:
    """The kind of a number in a range: `number("a fraction", 0, 1)`."""
    range = bounds(low, high, above)
    expected = f"{words}, {range}" if words else f"a {range} number" if range in ("finite", "positive") else f"a number {range}"

    def also(value: Any, where: str) -> None:
        plain = type(value) in (float, int) and low <= value <= high and (above is None or value > above)
        if plain and (value == 0 or 1e-37 < abs(value) < 3e38):
            return
        if scalar:
            check_scalar(value, where)
        check_range(value, where, low, high, above, expected, more.get("hint", ""))

    return Kind(expected, real, also=also, **more)


def known(kind: Kind) -> Kind:
    """The kind of a static number. The call itself computes with it in float64."""
    return dataclasses.replace(kind, fixed=True)


def whole(value: Any) -> bool:
    """Whether a value is an integer and not a bool."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def count(low: int = 1, expected: str = "", hint: str = "", high: int = sys.maxsize) -> Kind:
    """The kind of a static integer."""
    return Kind(expected or f"an integer, at least {low}", whole, lambda value: low <= value <= high, hint, fixed=True)


AS_X = "it must be shaped as x."


def floating(value: Any) -> bool:
    """Whether a value is an array of floating-point numbers."""
    return hasattr(value, "shape") and of_kind(value, jnp.floating)


def check_shaped(value: Any, shape: tuple[int, ...], where: str, hint: str = AS_X, kind: Any = jnp.floating) -> None:
    """Raises an error unless a value is an array of this shape."""
    check_form(value, where, " ".join(map(str, shape)), kind, hint)


def check_broadcasts(to: Any, who: str, what: str = "x", hint: str = ".", **values: Any) -> None:
    """Raises an error unless all values broadcast to the shape of an array."""
    for name, value in values.items():
        shape, other = jnp.shape(value), to.shape
        fits = len(shape) <= len(other) and all(n in (1, m) for n, m in zip(shape[::-1], other[::-1], strict=False))
        demand(fits, f"{who}: {name} has shape {shape}, which does not broadcast to {what}, {other}{hint}")
