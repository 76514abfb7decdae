"""Checks of one value: keys, labels, curves, recorded predictions."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from guidance_jax.base import NoiseLevel
from guidance_jax.checks.numbers import (
    check_shape,
)
from guidance_jax.checks.traced import concrete, demand
from guidance_jax.checks.words import call_it, check_takes, told
from guidance_jax.programs.parts import Function, Part

SPLIT = "jax.random.split(jax.random.key(0), B)."
PATH = "gj.levels(schedule, steps, spacing) makes one."


def is_function(value: object) -> bool:
    """Whether a value can be called as a function: no class, nothing of ours that is called otherwise, or should be first."""
    part = isinstance(value, Part) and not isinstance(value, Function)
    return callable(value) and not part and not isinstance(value, type | tuple) and not call_it(value)


def is_array(value: Any) -> bool:
    """Whether a value is an array, and not one of objects or text."""
    if not hasattr(value, "shape") or not hasattr(value, "dtype"):
        return False
    return not isinstance(value.dtype, np.dtype) or value.dtype.kind not in "OSU"


def is_key(value: Any) -> bool:
    """Whether a value holds PRNG keys made by `jax.random.key`."""
    return hasattr(value, "dtype") and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)


def is_any_key(value: Any) -> bool:
    """Whether a value holds PRNG keys, the raw ones of `jax.random.PRNGKey` too."""
    return is_key(value) or (getattr(value, "dtype", None) == jnp.uint32 and value.ndim > 0)


def is_labels(value: Any) -> bool:
    """Whether a value holds integers."""
    return jnp.issubdtype((value if hasattr(value, "dtype") else np.asarray(value)).dtype, jnp.integer)


def check_scores(a: Array, b: Array, scale: Any = 1.0) -> None:
    """Raises unless two scores have one shape, and a scale fits them."""
    one, other = jnp.shape(a), jnp.shape(b)
    demand(one == other, f"the two scores must have one shape, [B, ...], got {one} and {other}.")
    check_shape(scale, a, "the scale of two scores")


def check_recorded(cond: Array, uncond: Array, past: int) -> None:
    """Raises unless the predictions of two branches were recorded along one path, of more than `past` steps."""
    got, steps = f"got {cond.shape} and {uncond.shape}", len(cond)
    demand(cond.shape == uncond.shape, f"fit_linear: cond and uncond must be recorded along one path, [steps, N, ...], {got}.")
    demand(past < steps, f"fit_linear: past={past} must be below the number of steps, but there are {steps} steps.")


def check_path(value: NoiseLevel, where: str) -> None:
    """Raises where one level stands for a path."""
    shape = jnp.shape(value.sigma)
    demand(len(shape) == 1, f"{where} must be a NoiseLevel of [steps + 1] levels, got one of shape {shape}; {PATH}")


def check_keys(value: Array, where: str) -> None:
    """Raises unless keys are one per sample, of a generator that draws by each."""
    shape = value.shape
    demand(
        len(shape) == 1 and shape[0], f"{where} has shape {shape}, but must be [B], one per sample and at least one; {SPLIT}"
    )
    check_generator(value)


def check_key(value: Array, where: str) -> None:
    """Raises where there are several keys."""
    one = value.ndim == (0 if is_key(value) else 1)
    demand(one, f"{where} must be one PRNG key, got keys of shape {value.shape}; jax.vmap goes over them.")


def check_bound(value: Any, where: str) -> None:
    """Raises where a Linen module has no parameters, or a network takes other arguments."""
    of = getattr(value, "__self__", value)
    if any(part.__module__.startswith("flax.linen") for part in type(of).__mro__) and getattr(of, "scope", None) is None:
        raise TypeError(f"{where} must hold its parameters, got {told(value)}; gj.networks.from_linen binds a Linen module.")
    check_takes(value, where, "x", "t", "cond")


def check_generator(keys: Array) -> None:
    """Raises where `jax.vmap` over keys draws by the first of them alone, as it does over those of rbg and unsafe_rbg."""
    generator = jax.random.key_impl(keys)
    demand(
        generator == "threefry2x32" or _draws_by_each(generator),
        f"keys are of the generator {generator}, by which jax.vmap draws with the first key of a batch alone, so no sample "
        'would have its own noise; use jax.random.split(jax.random.key(0, impl="threefry2x32"), B).',
    )


def check_form_of_curve(value: Any, where: str) -> None:
    """Raises unless ratio and rho of a curve fit each other and are in range."""
    ratio, rho = value.ratio, value.rho
    one, other = jnp.shape(ratio), jnp.shape(rho)
    alike = one == other and len(one) == 1 and one[0] > 0
    demand(alike, f"{where} must have ratio and rho of one shape [S], S at least 1, got {one} and {other}.")
    right = lambda: (ratio >= 0) & (rho >= 0) & (rho < np.inf)
    demand(
        right, f"{where} must have ratio >= 0 and finite rho >= 0, got ratio {{ratio}} and rho {{rho}}.", ratio=ratio, rho=rho
    )


def check_curve(curve: Any, scale: Any) -> None:
    """Raises where a curve and a scale are known, and no law has that scale."""
    if not concrete((curve.ratio, curve.rho, scale)):
        return
    ratio, rho, w = np.asarray(curve.ratio), np.asarray(curve.rho), np.asarray(scale, np.float64).reshape(-1, 1)
    width = np.where(w == 0, 1, rho + w * (1 - rho))
    i, s = np.unravel_index(width.argmin(), width.shape)
    demand(
        width > 0,
        f"calibrated: scale {w[i, 0]:g} needs rho + scale (1 - rho) > 0, but at sigma / alpha = {ratio[s]:.4g} rho is "
        f"{rho[s]:.4g}, and this is {width[i, s]:.4g}: no law is that narrow. Use a scale nearer to 1; to guide away from a "
        "condition, measure in the other direction, calibrate(cond='uncond', uncond='cond') on unconditional samples.",
    )


@functools.cache
def _draws_by_each(generator: Any) -> bool:
    """Whether a key draws under `jax.vmap` what it draws alone."""
    with jax.ensure_compile_time_eval():
        keys = jax.random.split(jax.random.key(0, impl=generator), 2)
        return bool((jax.vmap(jax.random.bits)(keys)[1] == jax.random.bits(keys[1])).all())


def check_labels(labels: Any, classes: int, who: str, lowest: int = 0) -> None:
    """Raises where a label is outside `lowest <= label < classes`; a gather of JAX would silently clamp it."""
    demand(is_labels(labels), f"{who} takes integer labels, got {told(labels)}; cast them with .astype(int).", TypeError)
    inside = lambda label: (label >= lowest) & (label < classes)
    label = np.asarray(labels) if concrete(labels) else labels
    label = next(iter(label[~inside(label)]), lowest) if concrete(label) else label
    message = f"label {{label}} is outside {lowest}..{classes - 1}, which is all that {who} knows."
    demand(lambda: inside(label), message, label=label)
