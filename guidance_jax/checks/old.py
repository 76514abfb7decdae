"""The checks of before, until every room has its door. Delete."""

import contextlib, difflib, functools, inspect, reprlib, sys
from typing import Any
import jax
import jax.numpy as jnp
import numpy as np
from guidance_jax.arrays import concrete, expand
from guidance_jax.base import *
from guidance_jax.base import Branches, Guidance, NoiseLevel, Sampler, Schedule
from guidance_jax.checks.kinds import check_generator
from guidance_jax.checks.numbers import check_finite, real
from guidance_jax.checks.outcomes import *
from guidance_jax.checks.running import *
from guidance_jax.checks.running import (
    check_level,
    check_levels,
    check_networks,
    check_branches,
    check_start,
    check_labels,
    LEVELS,
)
from guidance_jax.checks.traced import all_finite, insist
from guidance_jax.checks.words import article as _article, call_it as _call, check_takes, noting, told
from guidance_jax.curves import Calibration, Curve

LARGEST = sys.float_info.max


def check_kind(value: object, kind: Any, name: str, mend: str) -> None:
    """Raises unless a value is of a kind.

    Raises:
      TypeError: telling what it is, and the mend: to call it, where it is a function of this library.
    """
    if isinstance(value, kind):
        return
    raise TypeError(f"{name} must be {_article(kind.__name__)}, got {told(value)}{_call(value)}; {mend}")


def check_callable(value: object, name: str, mend: str) -> None:
    """Raises unless a value can be called: a function or a module, but no class, and nothing that is called otherwise.

    Raises:
      TypeError: telling what it is, and the mend.
    """
    uncalled = _call(value) if inspect.isfunction(value) and "<locals>" not in value.__qualname__ else ""
    if not callable(value) or isinstance(value, type | tuple) or uncalled:
        raise TypeError(f"{name} must be a function, got {told(value)}{uncalled}; {mend}")


def check_network(network: object) -> None:
    """Raises unless a network can be called.

    Raises:
      TypeError: telling what it is; of a Linen module without parameters, how it gets them.
    """
    check_callable(
        network, "the network", "it is (x, t, cond) -> output; of a class, an instance: UNet(config, rngs=nnx.Rngs(0))."
    )
    of = getattr(network, "__self__", network)
    linen = any(part.__module__.startswith("flax.linen") for part in type(of).__mro__)
    if linen and getattr(of, "scope", None) is None:
        raise TypeError(
            f"the network must hold its parameters, got {told(network)}; gj.networks.from_linen binds a Linen module."
        )


def check_count(value: object, name: str, least: int = 1) -> None:
    """Raises unless a value is a whole number, known, and not below the least.

    Raises:
      TypeError: if it is no integer.
      ValueError: if it is too small.
    """
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, got {told(value)}.")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}.")


def check_numbers(value: object, name: str) -> None:
    """Raises unless a value is a real number, or an array or list of them.

    Raises:
      TypeError: telling what it is.
    """
    if not _real(value):
        raise TypeError(f"{name} must be a real number or an array of them, got {told(value)}.")


def check_name(name: object) -> None:
    """Raises unless it is a string: the name of a branch.

    Raises:
      TypeError: telling what it is.
    """
    check_kind(name, str, "the name of a branch", "conditions go to gj.branches(denoise, cond=labels, uncond=null).")


def check_array(value: object, name: str, kind: Any, words: str) -> None:
    """Raises unless a value is an array of a kind of numbers, `jnp.floating` say.

    Raises:
      TypeError: telling what it is.
    """
    dtype = getattr(value, "dtype", None)
    if not hasattr(value, "shape") or dtype is None or not jnp.issubdtype(dtype, kind):
        raise TypeError(f"{name} must be an array of {words}, got {told(value)}.")


_real = real


def check_range(
    value: object,
    name: str,
    least: float | int = -LARGEST,
    most: float | int = LARGEST,
    *,
    above: float | int | None = None,
    dtype: Any = None,
) -> None:
    """Raises where a value is no real number, or known and outside `least <= value <= most`, or not above a bound.

    It is checked as the run holds it: in float32 1e39 is infinite, and 1e-40 is 0.

    Args:
      value: a number or several.
      name: of the parameter, and of the function that it belongs to.
      least: the least value; the default is any that is finite.
      most: the greatest, likewise.
      above: a bound that no value may have.
      dtype: that the values are cast to; that of a new array where None.

    Raises:
      TypeError: if it is no number and no array of them.
      ValueError: telling the range, and the value.
    """
    check_numbers(value, name)
    words = "finite"
    if above is not None:
        words = f"above {above:g}" + (f" and at most {most:g}" if most < LARGEST else "")
    elif (least, most) != (-LARGEST, LARGEST):
        words = f"in [{least:g}, inf)" if most == LARGEST else f"in [{least:g}, {most:g}]"
    held = jnp.finfo(jnp.result_type(float) if dtype is None else dtype)

    def inside(given: Any) -> Any:
        right = abs(given) < np.inf if LARGEST in (most, -least) else given == given
        right = right if least == -LARGEST else right & (given >= least)
        right = right if most == LARGEST else right & (given <= most)
        right = right if above is None else right & (given > above)
        # Denormal numbers are flushed to 0.
        return (right & (given >= held.tiny) if above == 0 else right).all()

    if concrete(value):
        with np.errstate(over="ignore", under="ignore"):
            given = np.asarray(value).astype(held.dtype)
        exact = np.asarray(value).astype(np.float64)
        lost = np.isinf(given) & np.isfinite(exact)
        if lost.any() or not inside(given):
            lost = lost | ((abs(given) < held.tiny) & (exact != 0))
            held_as = f", in {held.dtype} as {np.where(abs(given) < held.tiny, 0, given)}" if lost.any() else ""
            raise ValueError(f"{name} must be {words}, got {value}{held_as}.")
        return
    given = jnp.asarray(value)
    insist(lambda: inside(given.astype(held.dtype)), f"{name} must be {words}, got {{given}}.", given=given)


def per_sample(value: ArrayLike, x: Array, name: str, *bounds: float | int, above: float | int | None = None) -> Array:
    """`value`, a number for all samples or one a sample, checked, in x's dtype and broadcastable against `x: [B, ...]`.

    Raises:
      ValueError: if its shape is neither `()` nor `[B]`, or it is known and not finite, or outside the bounds.
      TypeError: if it is no real number and no array of them.
    """
    check_range(value, name, *bounds, above=above, dtype=jnp.result_type(x))
    value = jnp.asarray(value, jnp.result_type(x))
    if value.shape not in ((), x.shape[:1]):
        raise ValueError(
            f"{name} has shape {value.shape}, but must be () or [B] = {x.shape[:1]}: one number for all samples, or one "
            "a sample. For a grid of values, jax.vmap over them."
        )
    return expand(value, x)


def check_scalar(
    value: ArrayLike, name: str, least: float | int = 0, most: float | int = LARGEST, *, above: float | int | None = None
) -> None:
    """Raises where a number is none, or is known and outside `least <= value <= most`, or not above a bound.

    Raises:
      ValueError: naming it.
      TypeError: if it is no number at all.
    """
    check_numbers(value, name)
    if jnp.shape(value) != ():
        raise ValueError(f"{name} has shape {jnp.shape(value)}, but must be a scalar; vmap for several.")
    check_range(value, name, least, most, above=above)


def check_order(low: ArrayLike, high: ArrayLike, name: str, words: str = "low must be below high") -> None:
    """Raises where two bounds are known and in no order.

    Raises:
      ValueError: naming both.
    """
    if not concrete((low, high)):
        right = lambda: (jnp.asarray(low) < jnp.asarray(high)).all()
        insist(right, f"{name} got {{low}} and {{high}}, but {words}.", low=jnp.asarray(low), high=jnp.asarray(high))
    elif not (np.asarray(low) < np.asarray(high)).all():
        raise ValueError(f"{name} got {low} and {high}, but {words}.")


def check_keys(keys: Array) -> None:
    """Raises unless they are PRNG keys, one a sample, by each of which a sample can be drawn.

    Raises:
      TypeError: if they are none.
      ValueError: if there are none or not one a sample, or `jax.vmap` draws by the first of them alone.
    """
    if not hasattr(keys, "dtype") or not jnp.issubdtype(keys.dtype, jax.dtypes.prng_key):
        raise TypeError(
            f"keys must be an array of PRNG keys made by jax.random.key (not PRNGKey), one a sample, got {told(keys)}: "
            "jax.random.split(jax.random.key(0), B)."
        )
    if keys.ndim != 1 or not len(keys):
        raise ValueError(
            f"keys have shape {keys.shape}, but must be [B], one a sample and at least one: jax.random.split(key, B)."
        )
    check_generator(keys)


def check_key(key: Array) -> None:
    """Raises unless it is one PRNG key.

    Raises:
      TypeError: if it is none.
      ValueError: if there are several.
    """
    typed = hasattr(key, "dtype") and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if not typed and not (hasattr(key, "ndim") and key.dtype == jnp.uint32 and key.ndim):
        raise TypeError(f"key must be one PRNG key, got {told(key)}: jax.random.key(0) is one.")
    if key.ndim != (0 if typed else 1):
        raise ValueError(f"key must be one PRNG key, got keys of shape {key.shape}; jax.vmap goes over them.")


def check_guidance(guidance: object, name: str = "the guidance") -> None:
    """Raises unless it is a guidance.

    Raises:
      TypeError: naming it.
    """
    mend = "cfg(3.0) is one, chain(...) makes one of several, and chain() is none."
    if type(guidance).__name__ == "Target":
        mend = "gj.feynman_kac samples a target, and its guidance is gj.targets.drift(target)."
    check_kind(guidance, Guidance, name, mend)


def check_sampler(sampler: object, name: str = "the sampler") -> None:
    """Raises unless it is a sampler.

    Raises:
      TypeError: naming it.
    """
    check_kind(sampler, Sampler, name, "ddim() is one.")


def check_schedule(schedule: object, name: str = "the schedule") -> None:
    """Raises unless it is a schedule.

    Raises:
      TypeError: naming it.
    """
    check_kind(schedule, Schedule, name, "gj.schedules.cosine() is one.")


def check_curve(curve: object, scale: ArrayLike) -> None:
    """Raises unless it is a curve by which a scale can be calibrated.

    Raises:
      TypeError: if it is none.
      ValueError: if its fields do not fit each other, or, where they and the scale are known, if they are out of range.
    """
    if not isinstance(curve, Curve):
        check_kind(curve, Calibration, "calibrated's curve", "gj.calibrate(keys, branches, x0, levels) measures one.")
    assert isinstance(curve, Calibration | Curve)
    ratio, rho = curve.ratio, curve.rho
    shapes = jnp.shape(ratio), jnp.shape(rho)
    if len(set(shapes)) > 1 or len(shapes[0]) != 1 or not shapes[0][0]:
        raise ValueError(f"a curve must have ratio and rho of one shape [S], S at least 1, got {shapes[0]} and {shapes[1]}.")
    if not concrete((ratio, rho)):
        return
    ratio, rho = np.asarray(ratio), np.asarray(rho)
    if not ((ratio >= 0).all() and np.isfinite(rho).all() and (rho >= 0).all()):
        raise ValueError(f"a curve must have ratio >= 0 and finite rho >= 0, got ratio {ratio} and rho {rho}.")
    if not concrete(scale):
        return
    w = np.asarray(scale, np.float64).reshape(-1, 1)
    below = np.where(w == 0, 1, rho + w * (1 - rho))
    if not (below > 0).all():
        i, s = np.unravel_index(below.argmin(), below.shape)
        raise ValueError(
            f"calibrated's scale {w[i, 0]:g} needs rho + scale (1 - rho) > 0, but at sigma / alpha = {ratio[s]:.4g} rho is "
            f"{rho[s]:.4g}, and this {below[i, s]:.4g}: no law is that narrow. Take a scale nearer to 1; to go away from a "
            "condition, measure the other way round, calibrate(..., cond='uncond', uncond='cond') on unconditional samples."
        )
