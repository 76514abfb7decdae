"""Argument validation for `sample`: keys, branches, guidance, sampler, levels and start.

Shapes and names are always checked. Values are checked if they are known, or in a `checked` program.
"""

import difflib
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from guidance_jax.arrays import at_least_float32
from guidance_jax.base import Branches, Cond, Context, Derivative, NoiseLevel, Prediction, State, Step
from guidance_jax.checks.door import Kind
from guidance_jax.checks.kinds import CLASSES, array_kind
from guidance_jax.checks.known import check_known, has_labels
from guidance_jax.checks.numbers import check_shape, of_kind, whole
from guidance_jax.checks.outcomes import Asked, check_state, predicted
from guidance_jax.checks.paths import check_level, check_levels, check_schedule_of
from guidance_jax.checks.traced import all_finite, concrete, demand, insist
from guidance_jax.checks.values import check_condition
from guidance_jax.checks.words import check_takes, described, noting, warn
from guidance_jax.interfaces import Guidance, Sampler
from guidance_jax.programs.compiled import tracing
from guidance_jax.programs.parts import Call, calls

AXES = "the shape of one sample, a tuple of integers of at least 1, such as (28, 28, 1) or (1,)"
SHAPE = Kind(AXES, lambda shape: all(map(whole, shape)), lambda shape: min(shape, default=0) > 0)
EITHER = f"floating numbers, [B, ...], or shape_or_x {AXES}"
START = array_kind(EITHER, jnp.floating, hint="scale images to [-1, 1]; for a State, use state.x.")


def check_run(
    keys: Array,
    branches: Any,
    guidance: Guidance,
    levels: NoiseLevel,
    shape_or_x: Any,
    sampler: Sampler | None = None,
    intervals: Sequence[Call] = (),
) -> tuple[tuple[Branches, ...], jax.ShapeDtypeStruct]:
    """Raises an error unless the arguments of a run match each other.

    Args:
      keys: As of `sample`.
      branches: As of `sample`.
      guidance: As of `sample`.
      levels: As of `sample`.
      shape_or_x: As of `sample`.
      sampler: As of `sample`. None for a measurement at the levels (`calibrate`).
      intervals: The calls of `during` in the guidance.

    Returns:
      The networks, and the shape and dtype of x in the loop, at least float32.
    """
    networks = check_networks(branches)
    start = shape_or_x.x if isinstance(shape_or_x, State) and sampler is not None else shape_or_x
    check_levels(levels, sampler, start_given=not isinstance(start, tuple))
    check_schedule_of(sampler, levels)
    idle = [] if tracing() else list(idle_parts(guidance, intervals, levels))
    like = check_start(keys, levels, start)
    check_branches(networks, guidance, like, keys)
    check_shapes((guidance, sampler), like)
    if isinstance(shape_or_x, State) and sampler is not None:
        check_state(shape_or_x, sampler, guidance, like)
    for message in idle:
        warn(message)
    return networks, like


def check_progress(progress: str | None, keys: Array, shape_or_x: Any) -> None:
    """Raises an error if a run with a progress bar is on several devices. The callbacks of the bar need a single device."""
    for array in jax.tree.leaves((keys, shape_or_x)) if progress is not None else ():
        devices = array.sharding.device_set if isinstance(array, Array) and concrete(array) else ()
        demand(len(devices) < 2, f"progress needs a run on one device, but this batch is on {len(devices)}; leave it out.")


def check_shapes(parts: Any, x: jax.ShapeDtypeStruct | Array) -> None:
    """Raises an error if a number in the calls of guidances and samplers is neither `()` nor `[B]`."""
    for call in calls(parts):
        for where, value in call.function.entrance.scales(call.arguments):  # pyright: ignore[reportFunctionMemberAccess]
            check_shape(value, x, where)


def idle_parts(guidance: Guidance, intervals: Sequence[Call], levels: NoiseLevel) -> Iterator[str]:
    """Warnings if a guidance does nothing in this run: no step is in its interval, or it is a shaper without a source."""
    if guidance.shapes:
        yield f"{guidance!r} only changes what others add; put a source before it, as in chain(cfg(3.0), rescale(0.7))."
    for call in intervals:
        low, high = call.arguments["low"], call.arguments.get("high", np.inf)
        if concrete((low, high, levels)):
            ratio = np.asarray(levels.ratio)
            ratio = np.maximum(ratio[:-1], ratio[1:])
            if not ((ratio > low) & (ratio <= high)).any():
                span = f"no step of this run, from {ratio.max():.4g} to {ratio.min():.4g}, begins there"
                yield f"{call!r} guides nowhere: {span}. Its bounds must be sigma / alpha, not t."


def check_start(keys: Array, levels: NoiseLevel, x: Any) -> jax.ShapeDtypeStruct:
    """The shape and dtype of x in the loop. Raises an error unless x is the shape of one sample, or one sample per key."""
    if isinstance(x, tuple) and not isinstance(x, State):
        SHAPE.check(x, "shape_or_x")
        return jax.ShapeDtypeStruct((len(keys), *x), at_least_float32(levels.sigma.dtype))
    START.check(x, "x")
    x = cast(Array, x)
    demand(x.ndim > 1 and len(x) == len(keys), f"x must be [B, ...] with B = {len(keys)} keys, got x of shape {x.shape}.")
    bad = np.flatnonzero(~np.isfinite(np.asarray(x, np.float32)).reshape(len(x), -1).all(1)) if concrete(x) else ()
    demand(len(bad) == 0, f"x must be finite, got NaN or infinite values in {len(bad)} of {len(x)} samples: {bad}.")
    insist(lambda: all_finite(x), "x must be finite at the start of the run, got NaN or infinite values.")
    return jax.ShapeDtypeStruct(x.shape, at_least_float32(x.dtype))


def check_conditions(conds: dict[str, Cond]) -> None:
    """Raises an error if there is no condition, or if the only one is a dictionary of conditions."""
    demand(len(conds) > 0, "branches must have at least one condition, got no condition; use branches(denoise, cond=labels).")
    if set(conds) == {"conds"} and isinstance(conds["conds"], dict) and {"cond", "uncond"} & set(conds["conds"]):
        names = ", ".join(f"{name}=..." for name in conds["conds"])
        raise TypeError(
            f"branches: conditions go by name, got a dictionary under the name conds; use branches(denoise, {names})."
        )


def check_networks(branches: Any) -> tuple[Branches, ...]:
    """The networks as a tuple. Raises an error unless each has a condition."""
    several = isinstance(branches, list | tuple) and not isinstance(branches, Branches)
    named: dict[str, Any] = {f"branches[{i}]": each for i, each in enumerate(branches)} if several else {"branches": branches}
    demand(len(named) > 0, "branches must hold a network, got none; use gj.branches(denoise, cond=labels, uncond=null).")
    for name, network in named.items():
        CLASSES[Branches].check(network, name)
        check_conditions(network.conds)
    return tuple(named.values())


def check_named(needs: Iterable[str | None], networks: tuple[Branches, ...], who: str = "the guidance reads") -> None:
    """Raises an error if a branch is read but does not exist. The error lists the branches and suggests the closest name."""
    names = [name for network in networks for name in network.conds]
    needed = {name for name in needs if name is not None}
    for name in sorted(needed.difference(names), key=str):
        close = difflib.get_close_matches(name, set(names) - needed, n=1)
        rename = f"gj.branches(denoise, {name}=...)"
        mend = (
            f"Did you mean {close[0]!r}? Rename the branch, {rename}, or ask for {close[0]!r}." if close else f"Use {rename}."
        )
        raise ValueError(f"{who} a branch {name!r}, but there are only {', '.join(map(repr, names))}. {mend}")


def check_branches(networks: tuple[Branches, ...], guidance: Guidance, x: jax.ShapeDtypeStruct, keys: Array) -> None:
    """Raises an error unless the branches match the guidance and x. All conditions of a network must have the same form."""
    names = [name for network in networks for name in network.conds]
    twice = {name for name in names if names.count(name) > 1}
    demand(not twice, "names of branches must be unique, but two networks have {twice}; use other names.", twice=twice)
    check_named(guidance.needs | guidance.derivatives, networks)
    level = jax.eval_shape(lambda: NoiseLevel(*jnp.zeros(3, x.dtype)))
    step = Step(jax.ShapeDtypeStruct((), jnp.int32), level, level, keys)  # pyright: ignore[reportArgumentType]
    for network in networks:
        forms: dict[str, Any] = {}
        for name, cond in network.conds.items():
            forms[name] = _form(name, _drawn(name, cond, step) if callable(cond) else cond, x)
            first, form = next(iter(forms.items()))
            mend = f"make them equal, or use the network twice: (gj.branches(denoise, {first}=...), gj.branches(...))."
            message = f"branches {first!r} and {name!r} differ in structure, shape or dtype, {{one}} and {{other}}; {mend}"
            demand(jax.tree.flatten(form) == jax.tree.flatten(forms[name]), message, one=form, other=forms[name])
            if not callable(cond):
                # The condition is a constant in this trace, so its values are known.
                ask = lambda x, at, n=network, c=cond: predicted(n, x, at, c)
                check_known((name, network.denoise), cond, ask, x, level)
    if has_labels(guidance):
        check_known((), guidance, functools.partial(_updated, guidance), x, step)


def _form(name: str, cond: Cond, x: jax.ShapeDtypeStruct) -> Any:
    """The description of a condition: `{"y": "int32[2]"}`. Raises an error unless each leaf is an array `[B, ...]`."""
    check_condition(cond, x.shape[:1], f"branch {name!r}", "one per key")
    return jax.tree.map(described, cond)


def _updated(guidance: Guidance, x: Array, step: Step) -> Any:
    """One update of a guidance. All predictions are 0."""
    zero = Prediction(jnp.zeros_like(x), jnp.zeros_like(x))
    slopes = {name: Derivative(jnp.zeros_like, jnp.zeros_like) for name in guidance.derivatives}
    context = Context(x, step.level, step, zero, Asked(dict.fromkeys(guidance.needs, zero)), slopes)
    return guidance.update(zero, guidance.init(x), context)


def _drawn(name: str, cond: Callable[[Step], Cond], step: Step) -> Any:
    """The shapes and dtypes of a condition that is a function of the step."""
    who = f"the condition of branch {name!r}"
    check_takes(cond, who, "step")
    with noting(who, step=step):
        return jax.eval_shape(cond, step)


def check_inputs(x: Any, level: Any, who: str) -> None:
    """Raises an error unless x is a batch and its level matches it."""
    if not hasattr(x, "ndim") or not of_kind(x, jnp.floating) or x.ndim < 2:
        raise TypeError(
            f"{who}: x must be an array [B, ...] of floating numbers, got {described(x)}; for a State, use state.x."
        )
    check_level(level, x)


def check_conditions_of(networks: tuple[Branches, ...], x: Array) -> None:
    """Raises an error unless the conditions of all branches have the batch of x. Functions of the step are not called."""
    for network in networks:
        for name, cond in network.conds.items():
            if not callable(cond):
                check_condition(cond, x.shape[:1], f"branch {name!r}", "one per sample of x")


def check_memory(guidance: Guidance, x: Array, memory: Any) -> None:
    """Raises an error if a guidance with a memory is called without it, or with another memory."""
    begun = jax.eval_shape(guidance.init, x)
    values = {"guidance": guidance, "x": described(x), "got": described(memory)}
    wanted = "guided: memory must be of {guidance!r} and x {x}, got {got}; use denoise.init(x), then what each call returns."
    if memory is None:
        demand(not jax.tree.leaves(begun), wanted, **values)
    else:
        demand(getattr(memory, "_fields", ()) == ("guidance", "number"), wanted, TypeError, **values)
        demand(jax.tree.map(jnp.shape, memory.guidance) == jax.tree.map(jnp.shape, begun), wanted, **values)


def check_state_given(state: Any, guidance: Guidance) -> None:
    """Raises an error unless a sampler passes its state to the denoiser, with the guidance's own state in it."""
    if not isinstance(state, State):
        mend = "use state._replace(x=x). In a loop of your own, use gj.guided(branches, guidance)(x, level)."
        raise TypeError(f"the denoiser of a step takes (state, level), got {described(state)} for the state; {mend}")
    same = jax.tree.structure(state.guidance) == jax.tree.structure(jax.eval_shape(guidance.init, state.x))
    message = "state.guidance must be what {guidance!r} remembers, got {given}; use guidance.init(x)."
    demand(same, message, guidance=guidance, given=jax.tree.map(described, state.guidance))
