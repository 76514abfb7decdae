"""Checks of one value: functions, keys, labels, curves, recorded predictions."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from guidance_jax.base import NoiseLevel
from guidance_jax.checks.numbers import check_shape, of_kind
from guidance_jax.checks.traced import concrete, demand
from guidance_jax.checks.words import call_it, check_takes, described, of_torch
from guidance_jax.programs.parts import Function, Part

SPLIT = "use jax.random.split(jax.random.key(0), B)."
PATH = "use gj.levels(schedule, steps, spacing)."


def is_function(value: object) -> bool:
    """Whether a value is a plain function: not a class, and not a part or function of this library with another use."""
    part = isinstance(value, Part) and not isinstance(value, Function)
    return callable(value) and not part and not isinstance(value, type | tuple) and not call_it(value)


def is_array(value: Any) -> bool:
    """Whether a value is an array of numbers, and not of objects or text."""
    if not hasattr(value, "shape") or not hasattr(value, "dtype") or of_torch(value):
        return False
    return not isinstance(value.dtype, np.dtype) or value.dtype.kind not in "OSU"


def is_key(value: Any) -> bool:
    """Whether a value holds PRNG keys from `jax.random.key`."""
    return of_kind(value, jax.dtypes.prng_key)


def is_any_key(value: Any) -> bool:
    """Whether a value holds PRNG keys, from `jax.random.key` or `jax.random.PRNGKey`."""
    return is_key(value) or (getattr(value, "dtype", None) == jnp.uint32 and value.ndim > 0)


def is_labels(value: Any) -> bool:
    """Whether a value holds integers."""
    return of_kind(value if hasattr(value, "dtype") else np.asarray(value), jnp.integer)


def check_condition(cond: Any, batch: tuple[int, ...], where: str, per: str) -> None:
    """Raises an error unless each leaf of a condition is an array `[B, ...]`. A network would broadcast another silently."""
    (count,) = batch
    for path, leaf in jax.tree_util.tree_leaves_with_path(cond):
        which = f"{where}{jax.tree_util.keystr(path)}"
        if not is_array(leaf):
            one = not path and isinstance(leaf, int | float)
            use = f"jnp.full({count}, {leaf})" if one else "jnp.array(labels), or an encoded text"
            raise TypeError(f"{which} must be an array [B, ...], got {described(leaf)}; use {use}.")
        if jnp.shape(leaf)[:1] != batch:
            use = f"; for one of all, use jnp.full({count}, value)." if jnp.ndim(leaf) == 0 else "."
            raise ValueError(f"{which} must be [B, ...] with B = {count}, {per}, got shape {jnp.shape(leaf)}{use}")


def check_scores(a: Array, b: Array, scale: Any = 1.0) -> None:
    """Raises an error unless two scores have the same shape, and the scale is `()` or `[B]`."""
    one, other = jnp.shape(a), jnp.shape(b)
    demand(one == other, f"the two scores must have one shape, [B, ...], got {one} and {other}.")
    check_shape(scale, a, "the scale of two scores")


def check_recorded(cond: Array, uncond: Array, past: int) -> None:
    """Raises an error unless two branches have recorded predictions of the same path, with more than `past` steps."""
    got, steps = f"got {cond.shape} and {uncond.shape}", len(cond)
    demand(cond.shape == uncond.shape, f"fit_linear: cond and uncond must have one shape, [steps, N, ...], {got}.")
    demand(past < steps, f"fit_linear: past must be below the number of steps, got past={past} and {steps} steps.")


def check_path(value: NoiseLevel, where: str) -> None:
    """Raises an error if a value is one level instead of a path."""
    shape = jnp.shape(value.sigma)
    demand(len(shape) == 1, f"{where} must be a NoiseLevel of [steps + 1] levels, got one of shape {shape}; {PATH}")


def check_keys(value: Array, where: str) -> None:
    """Raises an error unless there is one key per sample, and `jax.vmap` draws with each key."""
    shape = value.shape
    demand(len(shape) == 1 and shape[0], f"{where} must be [B], one per sample and at least one, got shape {shape}; {SPLIT}")
    check_generator(value)


def check_key(value: Array, where: str) -> None:
    """Raises an error if there are several keys."""
    one = value.ndim == (0 if is_key(value) else 1)
    demand(one, f"{where} must be one PRNG key, got keys of shape {value.shape}; use jax.vmap for several.")


def check_bound(value: Any, where: str) -> None:
    """Raises an error if a Linen module has no parameters, or a network takes other arguments."""
    of = getattr(value, "__self__", value)
    if of_torch(of):
        raise TypeError(
            f"{where} must be JAX code, got {described(of)}; write it in Flax, and read its weights with gj.pretrained.load."
        )
    if any(part.__module__.startswith("flax.linen") for part in type(of).__mro__) and getattr(of, "scope", None) is None:
        raise TypeError(
            f"{where} must hold its parameters, got {described(value)}; for a Linen module, use gj.networks.from_linen."
        )
    check_takes(value, where, "x", "t", "cond")


def check_generator(keys: Array) -> None:
    """Raises an error if `jax.vmap` over keys draws with the first key alone, as it does for rbg and unsafe_rbg."""
    generator = jax.random.key_impl(keys)
    demand(
        generator == "threefry2x32" or _draws_by_each(generator),
        f"keys are of the generator {generator}, for which jax.vmap draws with the first key of a batch alone, so samples "
        'have no noise of their own; use jax.random.split(jax.random.key(0, impl="threefry2x32"), B).',
    )


def check_form_of_curve(value: Any, where: str) -> None:
    """Raises an error unless ratio and rho of a curve have the same shape and are in range."""
    ratio, rho = value.ratio, value.rho
    one, other = jnp.shape(ratio), jnp.shape(rho)
    alike = one == other and len(one) == 1 and one[0] > 0
    demand(alike, f"{where} must have ratio and rho of one shape [S], S at least 1, got {one} and {other}.")
    right = lambda: (ratio >= 0) & (rho >= 0) & (rho < np.inf)
    demand(
        right, f"{where} must have ratio >= 0 and finite rho >= 0, got ratio {{ratio}} and rho {{rho}}.", ratio=ratio, rho=rho
    )


def check_curve(curve: Any, scale: Any) -> None:
    """Raises an error if no distribution has this scale. Traced values are not checked."""
    if not concrete((curve.ratio, curve.rho, scale)):
        return
    ratio, rho, w = np.asarray(curve.ratio), np.asarray(curve.rho), np.asarray(scale, np.float64).reshape(-1, 1)
    width = np.where(w == 0, 1, rho + w * (1 - rho))
    i, s = np.unravel_index(width.argmin(), width.shape)
    demand(
        width > 0,
        f"calibrated: scale {w[i, 0]:g} needs rho + scale (1 - rho) > 0, got {width[i, s]:.4g}, since at sigma / alpha = "
        f"{ratio[s]:.4g} rho is {rho[s]:.4g}; use a scale closer to 1. To guide away from a condition, measure in the other "
        "direction: calibrate(cond='uncond', uncond='cond') on unconditional samples.",
    )


@functools.cache
def _draws_by_each(generator: Any) -> bool:
    """Whether a key draws the same numbers under `jax.vmap` as without it."""
    with jax.ensure_compile_time_eval():
        keys = jax.random.split(jax.random.key(0, impl=generator), 2)
        return bool((jax.vmap(jax.random.bits)(keys)[1] == jax.random.bits(keys[1])).all())


def check_labels(labels: Any, classes: int, who: str, lowest: int = 0) -> None:
    """Raises an error unless `lowest <= label < classes`. JAX would silently clamp another index."""
    demand(is_labels(labels), f"{who} takes integer labels, got {described(labels)}; cast them with .astype(int).", TypeError)
    inside = lambda label: (label >= lowest) & (label < classes)
    label = np.asarray(labels) if concrete(labels) else labels
    label = next(iter(label[~inside(label)]), lowest) if concrete(label) else label
    message = f"label {{label}} is outside {lowest}..{classes - 1}, the labels of {who}."
    demand(lambda: inside(label), message, label=label)
