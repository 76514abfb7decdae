"""What `sample` receives: whether keys, branches, guidance, sampler, levels and start fit each other.

Values are checked only where they are known; inside a caller's `jit` the shapes and names still are.
"""

import difflib
import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from guidance_jax.arrays import at_least_float32, concrete
from guidance_jax.base import Branches, Cond, Context, Derivative, Guidance, NoiseLevel, Prediction, Sampler, State, Step
from guidance_jax.checks.known import check_known, has_labels
from guidance_jax.checks.numbers import check_finite, check_shape
from guidance_jax.checks.outcomes import Asked, check_state, predicted
from guidance_jax.checks.traced import all_finite, insist
from guidance_jax.checks.words import article, call_it, check_takes, told, warn
from guidance_jax.parts import calls
from guidance_jax.programs import tracing

LEVELS = "make levels with gj.levels(schedule, steps, spacing)."


def check_labels(labels: Any, classes: int, who: str, lowest: int = 0) -> None:
    """Raises where a known label is outside `lowest <= label < classes`; a JAX gather would silently clamp it.

    Raises:
      ValueError: naming the first label outside.
      TypeError: if the labels are not integers.
    """
    labels = labels if hasattr(labels, "dtype") else np.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"{who} takes integer labels, got {labels.dtype}; cast them with .astype(int).")
    if not concrete(labels):
        right = lambda: ((jnp.asarray(labels) >= lowest) & (jnp.asarray(labels) < classes)).all()
        message = f"a label is outside {lowest}..{classes - 1}, which is all that {who} knows, among {{labels}}."
        insist(right, message, labels=jnp.asarray(labels))
        return
    values = np.asarray(labels).ravel()
    outside = values[(values < lowest) | (values >= classes)]
    if outside.size:
        raise ValueError(f"label {outside[0]} is outside {lowest}..{classes - 1}, which is all that {who} knows.")


def check_run(
    keys: Array,
    branches: Any,
    guidance: Guidance,
    sampler: Sampler,
    levels: NoiseLevel,
    shape_or_x: Any,
    trace: Any = None,
    progress: Any = None,
) -> tuple[tuple[Branches, ...], jax.ShapeDtypeStruct]:
    """Raises unless all that `sample` receives fits together.

    Returns:
      The networks, and what x is like in the loop: of at least float32.
    """
    networks = check_networks(branches)
    before = shape_or_x if isinstance(shape_or_x, State) else None
    start = shape_or_x.x if isinstance(shape_or_x, State) else shape_or_x
    check_levels(levels, sampler, start_given=not isinstance(start, tuple))
    check_schedule_of(sampler, levels)
    shape, dtype = check_start(keys, levels, start)
    like = jax.ShapeDtypeStruct(shape, at_least_float32(dtype))
    check_shapes((guidance, sampler), like)
    check_branches(networks, guidance, like, keys)
    if before is not None:
        check_state(before, sampler, guidance, like)
    if trace is not None and (not callable(trace) or isinstance(trace, type)):
        raise TypeError(f"trace must be a function, got {told(trace)}; lambda state: state.x records the path.")
    if progress is not None:
        if not isinstance(progress, str):
            raise TypeError(f"progress must be a str, got {told(progress)}; it is the name that the bar shows.")
        check_one_device(progress, keys, start)
    if not tracing():
        warn_of_idle(guidance, levels)
    return networks, like


def check_measured(
    keys: Array, branches: Any, guidance: Guidance, x0: Array, levels: NoiseLevel
) -> tuple[tuple[Branches, ...], Any]:
    """Raises unless samples fit the branches that a guidance reads, and the levels at which these are measured.

    Returns:
      The networks, and the dtype to compute in: float32 at least.
    """
    networks = check_networks(branches)
    check_levels(levels)
    shape, dtype = check_start(keys, levels, x0)
    like = jax.ShapeDtypeStruct(shape, at_least_float32(dtype))
    check_branches(networks, guidance, like, keys)
    return networks, like.dtype


def check_shapes(parts: Any, x: jax.ShapeDtypeStruct | Array) -> None:
    """Raises where a number that a guidance or a sampler was made with is neither `()` nor `[B]`."""
    for call in calls(parts):
        for where, value in call.function.entrance.scales(call.arguments):  # pyright: ignore[reportFunctionMemberAccess]
            check_shape(value, x, where)


def warn_of_idle(guidance: Guidance, levels: NoiseLevel) -> None:
    """Warns where a guidance does nothing in this run: an interval without a level, a shaper that has nothing to shape."""
    if guidance.shapes:
        warn(
            f"{guidance!r} only changes what others add, and nothing is added; put a source before it, as in chain(cfg(3.0), "
            "rescale(0.7))."
        )
    if not concrete(levels):
        return
    with np.errstate(divide="ignore"):
        ratio = np.asarray(levels.sigma) / np.asarray(levels.alpha)
    ratio = np.maximum(ratio[:-1], ratio[1:])
    for call in calls(guidance):
        bounds = call.arguments.get("low"), call.arguments.get("high", np.inf)
        if call.function.__name__ == "during" and concrete(bounds) and not ((ratio > bounds[0]) & (ratio <= bounds[1])).any():
            warn(
                f"{call!r} guides nowhere: no step of this run begins in the interval, its sigma / alpha go from "
                f"{ratio.max():.4g} to {ratio.min():.4g}. Bounds are sigma / alpha, and not t."
            )


def check_levels(path: NoiseLevel, sampler: Sampler | None = None, start_given: bool = False) -> None:
    """Raises unless a path is `[steps + 1]` arrays along which, where its values are known, the noise strictly decreases; or
    strictly increases, for a sampler that goes that way too and a start that is given.

    Raises:
      ValueError: naming the first step that does not decrease.
      TypeError: if it is no path of floating numbers.
    """
    if not isinstance(path, NoiseLevel):
        raise TypeError(f"levels must be {article('NoiseLevel')}, got {told(path)}{call_it(path)}; {LEVELS}")
    for name, field in vars(path).items():
        if not hasattr(field, "dtype") or not jnp.issubdtype(field.dtype, jnp.floating):
            raise TypeError(f"levels.{name} must be an array of floating numbers, got {told(field)}; {LEVELS}")
    shapes = [jnp.shape(field) for field in vars(path).values()]
    if len(set(shapes)) > 1 or len(shapes[0]) != 1 or shapes[0][0] < 2:
        raise ValueError(
            f"levels must hold t, alpha and sigma of one shape [steps + 1], at least 2 entries, got {shapes}; "
            "make them with gj.levels(schedule, steps, spacing)."
        )
    if not concrete(path):
        insist(
            lambda: _goes_one_way(path, sampler is not None and sampler.reversible and start_given),
            "levels must be finite and decrease in sigma / alpha, got alpha {alpha} and sigma {sigma}.",
            alpha=path.alpha,
            sigma=path.sigma,
        )
        return
    alpha, sigma = np.asarray(path.alpha), np.asarray(path.sigma)
    if not (np.isfinite(alpha).all() and np.isfinite(sigma).all() and (alpha >= 0).all() and (sigma >= 0).all()):
        raise ValueError(
            f"levels must have finite alpha >= 0 and sigma >= 0, got alpha {alpha} and sigma {sigma}. A spacing in "
            "sigma / alpha needs a schedule whose largest one is finite: flow(t_max=0.99), say."
        )
    tiny = _least_noise(sigma.dtype)
    small = sigma[(sigma > 0) & (sigma < tiny)]
    if small.size:
        raise ValueError(
            f"levels must have sigma 0 or at least {tiny:.2g}, whose square {sigma.dtype} can hold, got {small[0]:.6g}; end "
            "at 0 after a larger one."
        )
    # alpha' sigma > alpha sigma' is sigma / alpha > sigma' / alpha', without dividing by an alpha of zero.
    change = alpha[1:] * sigma[:-1] - alpha[:-1] * sigma[1:]
    if sampler is not None and (change < 0).all():
        check_upward(sampler, float(sigma[0]), start_given)
        return
    bad = np.flatnonzero(~(change > 0))
    if bad.size:
        i = int(bad[0])
        raise ValueError(
            f"levels must decrease in sigma / alpha, but level {i} (alpha {alpha[i]:.6g}, sigma {sigma[i]:.6g}) is "
            f"followed by level {i + 1} (alpha {alpha[i + 1]:.6g}, sigma {sigma[i + 1]:.6g}). Order them from the most "
            "noise to the least, without repeats; ask for fewer steps where the spacing repeats one."
        )


def _goes_one_way(path: NoiseLevel, either: bool) -> Array:
    """Whether the noise of a path is finite and decreases, or else increases throughout, where that is right too."""
    change = path.alpha[1:] * path.sigma[:-1] - path.alpha[:-1] * path.sigma[1:]
    down = (change > 0).all()
    known = all_finite(path.alpha) & all_finite(path.sigma) & (path.alpha >= 0).all()
    known = known & ((path.sigma == 0) | (path.sigma >= _least_noise(path.sigma.dtype))).all()
    return known & (down | (change < 0).all() if either else down)


def _least_noise(dtype: Any) -> float:
    """The least sigma but 0: products of two are no denormal numbers, which are flushed to 0 and divided by."""
    return float(jnp.finfo(dtype).tiny) ** 0.5


def check_schedule_of(sampler: Sampler, path: NoiseLevel) -> None:
    """Raises where a sampler visits levels between those of the run by the schedule of other ones, all of them known."""
    if sampler.schedule is None or not concrete(path):
        return
    alpha, sigma = np.asarray(path.alpha), np.asarray(path.sigma)
    inner = (alpha > 0) & (sigma > 0)
    t, alpha, ratio = np.asarray(path.t)[inner], alpha[inner], sigma[inner] / alpha[inner]
    with jax.ensure_compile_time_eval():
        own = sampler.schedule.at(ratio)
    span = sampler.schedule.t_max - sampler.schedule.t_min
    if not concrete((own, span)) or not inner.any():
        return
    own_t, own_alpha = np.asarray(own.t), np.asarray(own.alpha)
    # A few may be off: rounded times, or the ends of a schedule that stops short of the run's.
    other = (abs(own_t - t) > 0.03 * np.asarray(span)) | (abs(own_alpha - alpha) > 0.03 * alpha)
    if other.mean() > 0.5:
        i = int(np.flatnonzero(other)[0])
        raise ValueError(
            f"the sampler's schedule is not that of the levels: at sigma / alpha = {ratio[i]:.4g} it has t {own_t[i]:.4g} and "
            f"alpha {own_alpha[i]:.4g}, they have t {t[i]:.4g} and alpha {alpha[i]:.4g}; give both the same."
        )


def check_upward(sampler: Sampler, sigma: float, start_given: bool) -> None:
    """Raises unless a run from data to noise has a sampler that goes that way, a start, and some noise there."""
    told = "levels must decrease in sigma / alpha, but these increase throughout, from data to noise"
    if not sampler.reversible:
        raise ValueError(f"{told}, which this sampler does not go; ddim() and heun() do. For samples, turn them round.")
    if not start_given:
        raise ValueError(f"{told}; such a run starts at the data: give x, [B, ...], and not a shape.")
    if sigma == 0:
        raise ValueError(f"{told}; such a run starts with sigma > 0: gj.schedules.reverse(levels) makes its levels.")


def check_level(level: NoiseLevel, x: Array) -> None:
    """Raises unless it is a noise level, one for all samples or one a sample.

    Raises:
      TypeError: if it is none.
      ValueError: naming its shape.
    """
    if not isinstance(level, NoiseLevel):
        raise TypeError(f"the level must be a NoiseLevel, got {told(level)}{call_it(level)}; schedule(t) returns one.")
    shape = jnp.shape(level.sigma)
    if shape not in ((), x.shape[:1]):
        path = "; of a whole path, take one level: levels[0]" if len(shape) == 1 else ""
        raise ValueError(f"the level has shape {shape}, but must be () or [B] = {x.shape[:1]}{path}.")
    if concrete(level):
        check_finite((level.alpha, level.sigma), "the level's (alpha, sigma)")


def check_start(keys: Array, levels: NoiseLevel, shape_or_x: tuple[int, ...] | Array) -> tuple[tuple[int, ...], Any]:
    """The shape and dtype of the samples."""
    if isinstance(shape_or_x, State):
        raise TypeError("got a State, from which only sample, run and evaluations go on; give x, [B, ...]: state.x.")
    if isinstance(shape_or_x, tuple):
        for size in shape_or_x:
            if not isinstance(size, int | np.integer):
                raise TypeError(f"the shape of one sample must be of integers, such as (28, 28, 1), got {shape_or_x}.")
        if not shape_or_x or min(shape_or_x) < 1:
            raise ValueError(f"the shape of one sample must have axes of at least 1, got {shape_or_x}; (1,) is a number.")
        return (len(keys), *shape_or_x), jax.dtypes.canonicalize_dtype(levels.sigma.dtype)
    x = shape_or_x
    if not hasattr(x, "dtype"):
        raise TypeError(f"shape_or_x must be the shape of one sample, a tuple such as (28, 28, 1), or x itself, got {x!r}.")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"x has dtype {x.dtype}, but must be floating; scale images to [-1, 1] first.")
    if x.ndim < 2 or len(x) != len(keys):
        raise ValueError(f"x has shape {x.shape}, but must be [B, ...] with one sample a key, B = {len(keys)}.")
    if concrete(x):
        bad = np.flatnonzero(~np.isfinite(np.asarray(x, np.float32)).reshape(len(x), -1).all(1))
        if bad.size:
            raise ValueError(f"x has NaN or infinite values in {bad.size} of {len(x)} samples, the first is {bad[0]}.")
    else:
        insist(lambda: all_finite(x), "x has NaN or infinite values where the run starts.")
    return x.shape, jax.dtypes.canonicalize_dtype(x.dtype)


def check_one_device(progress: str, *arrays: object) -> None:
    """Raises where an array is known to lie on several devices: a progress bar's callbacks come in order, from one alone."""
    for array in arrays:
        devices = array.sharding.device_set if isinstance(array, jax.Array) and concrete(array) else ()
        if len(devices) > 1:
            raise ValueError(
                f"progress={progress!r} is for runs on one device, but this batch lies on {len(devices)}; leave it out, or "
                "call sample in a loop of smaller batches and show that loop's progress."
            )


def check_networks(branches: Any) -> tuple[Branches, ...]:
    """The networks as a tuple, each with a condition at least.

    Raises:
      TypeError: if they are no `Branches`.
      ValueError: if there is none, or one has no condition.
    """
    mend = "make them with gj.branches(denoise, cond=labels, uncond=null)."
    if not isinstance(branches, list | tuple) or isinstance(branches, Branches):
        _check_network(branches, "branches", mend)
        branches = (branches,)
    if not branches:
        raise ValueError(f"branches is an empty {type(branches).__name__}; {mend}")
    for i, network in enumerate(branches):
        _check_network(network, f"branches[{i}]", mend)
        if not network.conds:
            raise ValueError("branches(denoise) has no condition; name at least one: branches(denoise, cond=labels).")
    return tuple(branches)


def _check_network(network: Any, name: str, mend: str) -> None:
    if not isinstance(network, Branches):
        raise TypeError(f"{name} must be a Branches, got {told(network)}{call_it(network)}; {mend}")


def check_named(needs: Iterable[str | None], networks: tuple[Branches, ...], who: str = "the guidance reads") -> None:
    """Raises where a branch is read that is not there.

    Raises:
      ValueError: naming it, those that are there, and the one that may be meant.
    """
    names = [name for network in networks for name in network.conds]
    for name in sorted(set(needs) - {None, *names}, key=str):
        close = difflib.get_close_matches(name, set(names) - set(needs), n=1)
        hint = f"Did you mean {close[0]!r}? " if close else ""
        hint += f"Name its condition, gj.branches(denoise, {name}=...), or tell the method what it is called."
        raise ValueError(f"{who} a branch {name!r}, but there are only {', '.join(map(repr, names))}. {hint}")


def check_branches(networks: tuple[Branches, ...], guidance: Guidance, x: jax.ShapeDtypeStruct, keys: Array) -> None:
    names = [name for network in networks for name in network.conds]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two networks both have a branch {name!r}; name every branch once.")
    check_named(guidance.needs | guidance.derivatives, networks)
    scalar: Any = jax.ShapeDtypeStruct((), x.dtype)
    level = jax.eval_shape(lambda t: NoiseLevel(t, t, t), scalar)
    step = Step(jax.ShapeDtypeStruct((), jnp.int32), level, level, keys)  # pyright: ignore[reportArgumentType]
    for network in networks:
        conds = {name: _drawn(name, cond, step) if callable(cond) else cond for name, cond in network.conds.items()}
        first, *others = conds.items()
        for name, cond in conds.items():
            for path, leaf in jax.tree_util.tree_leaves_with_path(cond):
                if not hasattr(leaf, "dtype") or (isinstance(leaf.dtype, np.dtype) and leaf.dtype.kind in "OSU"):
                    raise TypeError(
                        f"branch {name!r}{jax.tree_util.keystr(path)} holds {told(leaf)}, but every leaf of a condition is an "
                        "array [B, ...]: jnp.array(labels), or what encodes a text."
                    )
                if jnp.shape(leaf)[:1] != x.shape[:1]:
                    raise ValueError(
                        f"branch {name!r}{jax.tree_util.keystr(path)} has shape {jnp.shape(leaf)}, but every leaf of a "
                        f"condition is [B, ...] with B = {x.shape[0]}, the number of keys."
                    )
        for name, cond in others:
            if _spec(cond) != _spec(first[1]):
                one, other = (str(jax.tree.map(told, some)).replace("'", "") for some in (first[1], cond))
                raise ValueError(
                    f"branches {first[0]!r} and {name!r} differ in structure, shape or dtype, so they cannot share a "
                    f"batch: {one} and {other}; make them alike, or give the network twice: (gj.branches(denoise, "
                    f"{first[0]}=...), gj.branches(denoise, {name}=...))."
                )
    for network in networks:
        for name, cond in network.conds.items():
            if not callable(cond):
                # The condition is a constant of the trace, so its values are known in it.
                ask = lambda x, at, n=network, c=cond: predicted(n, x, at, c)
                check_known((name, network.denoise), cond, x, lambda ask=ask: jax.eval_shape(ask, x, level))
    if has_labels(guidance):
        check_known((), guidance, x, lambda: jax.eval_shape(functools.partial(_updated, guidance), x, step))


def _updated(guidance: Guidance, x: Array, step: Step) -> Any:
    """One update of a guidance, by predictions of 0."""
    zero = Prediction(jnp.zeros_like(x), jnp.zeros_like(x))
    slopes = {name: Derivative(jnp.zeros_like, jnp.zeros_like) for name in guidance.derivatives}
    context = Context(x, step.level, step, zero, Asked(dict.fromkeys(guidance.needs, zero)), slopes)
    return guidance.update(zero, guidance.init(x), context)


def _drawn(name: str, cond: Callable[[Step], Cond], step: Step) -> Any:
    """The shapes of a condition that is a function of the step."""
    check_takes(cond, f"the condition of branch {name!r}", "step")

    def drawn(step: Step) -> Cond:
        if callable(given := cond(step)):
            raise TypeError(f"branch {name!r} has a condition, {told(cond)}, that gives {told(given)} for a step, not arrays.")
        return given

    return jax.eval_shape(drawn, step)


def _spec(cond: Cond) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), leaf.dtype), cond)


def check_conditions(conds: dict[str, Cond]) -> None:
    """Raises where there is no condition."""
    if not conds:
        raise ValueError("branches(denoise) has no condition; name at least one: branches(denoise, cond=labels).")


def check_inputs(x: Any, level: Any, who: str) -> None:
    """Raises unless x and its level fit each other.

    Raises:
      TypeError: if x is no array of floating numbers.
      ValueError: if the level has another shape.
    """
    if not hasattr(x, "dtype") or not hasattr(x, "ndim") or not jnp.issubdtype(x.dtype, jnp.floating) or x.ndim < 2:
        raise TypeError(f"{who}: x must be an array [B, ...] of floating numbers, got {told(x)}; a State has one, state.x.")
    check_level(level, x)


def check_memory(guidance: Guidance, x: Array, memory: Any) -> None:
    """Raises where a guidance that remembers is called without its memory.

    Raises:
      ValueError: naming how to make it.
      TypeError: if it is something else.
    """
    begun = jax.eval_shape(guidance.init, x)
    if memory is None:
        if jax.tree.leaves(begun):
            raise ValueError(
                f"guided: {guidance!r} remembers what it did from step to step; make its memory once, "
                "memory = denoise.init(x), and pass it on: prediction, memory = denoise(x, level, memory)."
            )
    elif not (isinstance(memory, tuple) and hasattr(memory, "number")):
        raise TypeError(f"guided: memory must be what denoise.init(x) returns, or the call before, got {told(memory)}.")
    elif jax.tree.map(jnp.shape, memory.guidance) != jax.tree.map(jnp.shape, begun):
        raise ValueError(
            f"guided: memory must be of this guidance, {guidance!r}, and of x {x.shape}: denoise.init(x) makes it, and each "
            "call returns the next one."
        )


def check_state_given(state: Any, guidance: Guidance) -> None:
    """Raises unless a sampler gives its state to the guided denoiser, and in it what the guidance remembers.

    Raises:
      TypeError: telling what it gave.
      ValueError: if the guidance remembers something else.
    """
    if not isinstance(state, State):
        raise TypeError(
            f"the denoiser of a step takes (state, level), got {told(state)} for the state; state._replace(x=x) has another x. "
            "In a loop of your own, use gj.guided(branches, guidance)(x, level)."
        )
    begun = jax.eval_shape(guidance.init, state.x)
    if jax.tree.structure(state.guidance) != jax.tree.structure(begun):
        raise ValueError(
            f"state.guidance is {jax.tree.map(told, state.guidance)}, but {guidance!r} remembers {jax.tree.map(told, begun)}; "
            "a run begins with State(x, ..., guidance=guidance.init(x), ...)."
        )
