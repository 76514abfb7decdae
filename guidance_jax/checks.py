"""What a person can get wrong, told before anything is computed: what was given, what was expected, how to mend it.

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
from jaxtyping import ArrayLike

from guidance_jax.arrays import LARGEST, check_range, concrete
from guidance_jax.base import Branches, Cond, Guidance, NoiseLevel, Sampler, Schedule, State, Step
from guidance_jax.curves import Calibration, Curve
from guidance_jax.kinds import check_kind, check_numbers, check_takes, told
from guidance_jax.outcomes import predicted
from guidance_jax.traced import all_finite, insist

LEVELS = "make levels with gj.levels(schedule, steps, spacing)."


def check_labels(labels: object, classes: int, what: str, lowest: int = 0) -> None:
    """Raises where a concrete label is outside `lowest <= label < classes`; a JAX gather would silently clamp it.

    Raises:
      ValueError: naming the first label outside.
      TypeError: if the labels are not integers.
    """
    if not hasattr(labels, "dtype"):
        labels = np.asarray(labels)
    assert isinstance(labels, jax.Array | np.ndarray)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"{what} takes integer labels, got {labels.dtype}; cast them with .astype(int).")
    if not concrete(labels):
        right = lambda: ((jnp.asarray(labels) >= lowest) & (jnp.asarray(labels) < classes)).all()
        told_of = f"a label is outside {lowest}..{classes - 1}, which is all that {what} knows, among {{labels}}."
        insist(right, told_of, labels=jnp.asarray(labels))
        return
    values = np.asarray(labels).ravel()
    outside = values[(values < lowest) | (values >= classes)]
    if outside.size:
        raise ValueError(f"label {outside[0]} is outside {lowest}..{classes - 1}, which is all that {what} knows.")


def check_levels(path: NoiseLevel, sampler: Sampler | None = None, start_given: bool = False) -> None:
    """Raises unless a path is `[steps + 1]` arrays along which, where its values are known, the noise strictly decreases; or
    strictly increases, for a sampler that goes that way too and a start that is given.

    Raises:
      ValueError: naming the first step that does not decrease.
      TypeError: if it is no path of floating numbers.
    """
    check_kind(path, NoiseLevel, "levels", LEVELS)
    for name, field in path._asdict().items():
        if not hasattr(field, "dtype") or not jnp.issubdtype(field.dtype, jnp.floating):
            raise TypeError(f"levels.{name} must be an array of floating numbers, got {told(field)}; {LEVELS}")
    shapes = [jnp.shape(field) for field in path]
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
    check_kind(level, NoiseLevel, "the level", "schedule(t) gives one.")
    if jnp.shape(level.sigma) not in ((), x.shape[:1]):
        raise ValueError(f"the level has shape {jnp.shape(level.sigma)}, but must be () or [B] = {x.shape[:1]}.")
    if concrete(level):
        check_finite((level.alpha, level.sigma), "the level's (alpha, sigma)")


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


def check_finite(tree: Any, name: str) -> None:
    """Raises where an array, or a leaf of a pytree, has a known value that is not finite.

    Raises:
      ValueError: telling how many.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            continue
        which = f"{name}{jax.tree_util.keystr(path)}"
        if not concrete(leaf):
            insist(lambda leaf=leaf: all_finite(leaf), f"{which} has NaN or infinite values.")
            continue
        with np.errstate(over="ignore"):
            held = np.asarray(leaf).astype(jax.dtypes.canonicalize_dtype(jnp.result_type(leaf)))
        if bad := (~np.isfinite(held)).sum():
            raise ValueError(f"{which} must be finite, got NaN or infinite values in {bad} of {held.size} places.")


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


def check_generator(keys: Array) -> None:
    """Raises where `jax.vmap` over keys draws by the first of them alone, as it does over those of rbg and unsafe_rbg.

    Raises:
      ValueError: naming the generator, and one that draws by each.
    """
    generator = jax.random.key_impl(keys)
    if generator != "threefry2x32" and not _draws_by_each(generator):
        raise ValueError(
            f"keys are of the generator {generator}, by which jax.vmap draws with the first key of a batch alone, so that no "
            'sample had its own noise; use jax.random.split(jax.random.key(0, impl="threefry2x32"), B).'
        )


@functools.cache
def _draws_by_each(generator: Any) -> bool:
    """Whether a key draws under `jax.vmap` what it draws alone."""
    with jax.ensure_compile_time_eval():
        keys = jax.random.split(jax.random.key(0, impl=generator), 2)
        return bool((jax.vmap(jax.random.bits)(keys)[1] == jax.random.bits(keys[1])).all())


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
        check_kind(branches, Branches, "branches", mend)
        branches = (branches,)
    if not branches:
        raise ValueError(f"branches is an empty {type(branches).__name__}; {mend}")
    for i, network in enumerate(branches):
        check_kind(network, Branches, f"branches[{i}]", mend)
        if not network.conds:
            raise ValueError("branches(denoise) has no condition; name at least one: branches(denoise, cond=labels).")
    return tuple(branches)


def check_named(needs: Iterable[str], networks: tuple[Branches, ...], who: str = "the guidance reads") -> None:
    """Raises where a branch is read that is not there.

    Raises:
      ValueError: naming it, those that are there, and the one that may be meant.
    """
    names = [name for network in networks for name in network.conds]
    for name in sorted(set(needs) - set(names)):
        close = difflib.get_close_matches(name, set(names) - set(needs), n=1)
        hint = f"Did you mean {close[0]!r}? " if close else ""
        hint += f"Name its condition, gj.branches(denoise, {name}=...), or tell the method what it is called."
        raise ValueError(f"{who} a branch {name!r}, but there are only {', '.join(map(repr, names))}. {hint}")


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


def check_branches(networks: tuple[Branches, ...], guidance: Guidance, x: jax.ShapeDtypeStruct, keys: Array) -> None:
    names = [name for network in networks for name in network.conds]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two networks both have a branch {name!r}; name every branch once.")
    check_named(guidance.needs, networks)
    scalar: Any = jax.ShapeDtypeStruct((), x.dtype)
    level = NoiseLevel(scalar, scalar, scalar)
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
    # Tracing each branch alone, its condition known, lets a network check values that it cannot see inside the loop.
    for network in networks:
        for cond in network.conds.values():
            if not callable(cond) and concrete(cond):
                jax.eval_shape(lambda x, at, n=network, c=cond: predicted(n, x, at, c), x, level)


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
