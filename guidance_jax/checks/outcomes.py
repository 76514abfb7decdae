"""What the functions that a user writes give back, checked while it is traced."""

import contextlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from guidance_jax.arrays import concrete
from guidance_jax.base import Branches, Cond, Derivative, Guidance, NoiseLevel, Prediction, Sampler, State, Step
from guidance_jax.checks.numbers import check_range
from guidance_jax.checks.traced import insist
from guidance_jax.checks.words import noting, told, warn
from guidance_jax.programs import tracing


def predicted(network: Branches, x: Array, level: NoiseLevel, cond: Cond) -> Prediction:
    """What the denoiser of a network says, checked, in x's dtype."""
    denoise = network.denoise
    ours = (getattr(denoise, "__module__", None) or "").startswith("guidance_jax.")
    who = "the denoiser (gj.denoiser(network, predicts=...) makes one of a network)"
    with contextlib.nullcontext() if ours else noting(who, x=x, level=level, cond=cond):
        prediction = denoise(x, level, cond)
    check_prediction(prediction, x, "the denoiser")
    return jax.tree.map(lambda field: field.astype(x.dtype), prediction)


def network_output(network: Any, x: Array, t: Array, cond: Cond, like: Array, *, times: int = 1) -> Array:
    """What a network returns, in the dtype of the data; where it gives a variance too, with two times the channels.

    Raises:
      TypeError: if it is no array of floating numbers.
      ValueError: if it has another shape.
    """
    t = jnp.broadcast_to(t, x.shape[:1])
    with noting("the network", x=x, t=t, cond=cond):
        out = network(x, t, cond)
    if not hasattr(out, "shape") or not jnp.issubdtype(getattr(out, "dtype", bool), jnp.floating):
        raise TypeError(f"what the network gives must be an array of floating numbers, got {told(out)}.")
    shape = (*x.shape[:-1], times * x.shape[-1])
    if out.shape != shape:
        mend = "its output must be shaped as x. If it predicts a variance too, use gj.denoisers.learned_variance."
        twice = (
            f"learned_variance takes twice the channels, {shape}: what is predicted, then the variance, along the last axis."
        )
        raise ValueError(f"the network gave {out.shape} for x of shape {x.shape}, but {mend if times == 1 else twice}")
    return out.astype(like.dtype)


def check_prediction(prediction: object, x: Array, who: str) -> None:
    """Raises unless it is a `Prediction` whose halves are shaped as x.

    Raises:
      TypeError: if it is none, or not of floating numbers.
      ValueError: if a half has another shape.
    """
    if not isinstance(prediction, Prediction):
        raise TypeError(f"{who} must return a Prediction, got {told(prediction)}; gj.denoiser(network, predicts=...) does.")
    for half, value in (("x0", prediction.x0), ("eps", prediction.eps)):
        if not jnp.issubdtype(jnp.result_type(value), jnp.floating):
            raise TypeError(f"the {half} that {who} gives must be of floating numbers, got {told(value)}.")
        if jnp.shape(value) != x.shape:
            raise ValueError(f"the {half} that {who} gives has shape {jnp.shape(value)}, but must be shaped as x, {x.shape}.")


def check_update(after: Any, state: Any, x: Array) -> None:
    """Raises unless a guidance's update gave a prediction and a state like the one before.

    Raises:
      TypeError: if it gave something else.
      ValueError: if the prediction is not shaped as x, or the state not as the one before.
    """
    pair = isinstance(after, tuple) and len(after) == 2 and isinstance(after[0], Prediction)
    if not pair:
        raise TypeError(
            f"a guidance's update must return (prediction, state), got {told(after)}; gj.stateless makes a guidance of one "
            "that returns the prediction alone."
        )
    check_prediction(after[0], x, "the guidance")
    if not jax.tree.leaves(state) and jax.tree.leaves(after[1]):
        raise ValueError(
            f"the guidance's update returns a state, {_kinds(after[1])}, but its init gives {state!r}, nothing to remember; "
            "its init must give the state at the start of a run: gj.Guidance(needs, init=jnp.zeros_like, update=update)."
        )
    _check_alike(after[1], state, "the guidance remembers", "init")


def check_x0(x0: Any, x: Array, who: str) -> None:
    """Raises unless what an update or a formula returned is a `Prediction`, or the new x0 as an array, shaped as x.

    Raises:
      TypeError: if it is something else, or not of floating numbers.
      ValueError: if it is not shaped as x.
    """
    if isinstance(x0, Prediction):
        check_prediction(x0, x, who)
    elif not hasattr(x0, "dtype") or not jnp.issubdtype(x0.dtype, jnp.floating):
        raise TypeError(f"{who} must return a Prediction, or an array of floating numbers, the new x0, got {told(x0)}.")
    elif x0.shape != x.shape:
        raise ValueError(f"{who} must return an x0 shaped as x, {x.shape}, got {told(x0)}.")


def check_elements(value: Any, x: Array, where: str) -> None:
    """Raises unless a value is one finite number for all samples, one per sample, or one per element of x or of one sample.

    Raises:
      TypeError: if it is no number.
      ValueError: naming its shape or its value.
    """
    check_range(value, where)
    if jnp.shape(value) not in ((), x.shape[:1], x.shape, x.shape[1:]):
        raise ValueError(
            f"{where} has shape {jnp.shape(value)}, but must be (), [B] = {x.shape[:1]}, or shaped as x, {x.shape}, or as one "
            "sample."
        )


def check_spread(x: Array) -> None:
    """Raises where a sample has one element only.

    Raises:
      ValueError: naming the shape of x.
    """
    if x[0].size < 2:
        raise ValueError(f"rescale: a sample needs at least two elements to have a spread, but x is {x.shape}.")


def check_spatial(x: Array, who: str) -> None:
    """Raises unless x has axes between the batch and the channels.

    Raises:
      ValueError: naming its shape.
    """
    if x.ndim < 3:
        raise ValueError(f"{who} acts on frequencies and needs x of [B, T, C] or [B, H, W, C], but x is {x.shape}.")


def check_halvings(x: Array, levels: int) -> None:
    """Raises unless every spatial axis halves once for each level of `fdg` but one, down to 2 or more.

    Raises:
      ValueError: naming the shape of x.
    """
    check_spatial(x, "fdg")
    halvings = 2 ** (levels - 1)
    if any(size % halvings or size // halvings < (2 if halvings > 1 else 1) for size in x.shape[1:-1]):
        raise ValueError(
            f"fdg with {levels} levels halves every spatial axis {levels - 1} times, down to 2 or more, but x is {x.shape}."
        )


def check_one_level(level: NoiseLevel, who: str) -> None:
    """Raises where a guidance that is in or out for all samples together is called at one level per sample.

    Raises:
      ValueError: naming the level's shape.
    """
    if jnp.shape(level.sigma) != ():
        raise ValueError(
            f"{who}: expected one level for all samples, got a level of shape {jnp.shape(level.sigma)}; use gj.sample, or "
            "jax.vmap over the samples."
        )


def check_channels(channels: int, x: Array) -> None:
    """Raises where more channels are guided than there are.

    Raises:
      ValueError: naming both.
    """
    if channels > x.shape[-1]:
        raise ValueError(f"on_channels: channels must be at most those of x, {x.shape[-1]} of shape {x.shape}, got {channels}.")


def check_mask(mask: Any, x: Array) -> None:
    """Raises unless a mask broadcasts against x.

    Raises:
      ValueError: naming both shapes.
    """
    shape = jnp.shape(mask)
    if len(shape) > x.ndim or any(size not in (1, n) for size, n in zip(shape[::-1], x.shape[::-1], strict=False)):
        raise ValueError(f"masked: mask has shape {shape}, which does not broadcast against x, {x.shape}; use [B, H, W, 1].")


def warn_of_order(parts: tuple[Guidance, ...]) -> None:
    """Warns where a shaper stands before every source of a chain, and so has nothing to shape."""
    first = next((i for i, part in enumerate(parts) if not part.shapes), 0)
    if first and not tracing():
        said = ", ".join(map(repr, parts))
        better = ", ".join(map(repr, (*parts[first:], *parts[:first])))
        warn(f"chain({said}): {parts[0]!r} has nothing to change yet; put it after what guides: chain({better}).")


class Asked(dict[str, Prediction]):
    """The predictions by the name of their branch."""

    def __missing__(self, name: str) -> Prediction:
        raise KeyError(
            f"there is no prediction of a branch {name!r}, only of {', '.join(map(repr, self))}. A guidance reads only "
            f"branches that it asks for: stateless(update, needs=({name!r},))."
        )


class Slopes(dict[str | None, Derivative]):
    """The derivatives by the name of their branch, None for the base."""

    def __missing__(self, name: str | None) -> Derivative:
        which = "the base" if name is None else f"the branch {name!r}"
        raise KeyError(
            f"there is no derivative of {which}, only of {', '.join(map(repr, self)) or 'none'}. A guidance takes only those "
            f"that it asks for: stateless(update, derivatives=({name!r},))."
        )


def check_step(after: Any, before: State, step: Step) -> None:
    """Raises unless a sampler's step gave a state like the one before.

    Raises:
      TypeError: if it gave something else.
      ValueError: if x or the memory changed its structure or shapes.
    """
    if not isinstance(after, State):
        raise TypeError(f"a sampler's step must return a State, got {told(after)}; state._replace(x=...) is one.")
    _check_alike(after.x, before.x, "a sampler's step gives an x", "shape_or_x")
    _check_alike(after.memory, before.memory, "a sampler's step gives a memory", "init")
    insist(
        lambda: jnp.isfinite(after.x).all(),
        "x is not finite after step {number}, counted from 0, from sigma {sigma} on.",
        number=step.number,
        sigma=step.level.sigma,
    )


def warn_if_not_finite(x: Array) -> None:
    """Warns of the samples of an eager run that are not finite."""
    if tracing() or not concrete(x):
        return
    bad = ~np.isfinite(np.asarray(x)).reshape(len(x), -1).all(1)
    if bad.any():
        warn(f"{bad.sum()} of {len(x)} samples are not finite, the first is sample {bad.argmax()}; gj.checked tells the step.")


def check_state(state: State, sampler: Sampler, guidance: Guidance, x: jax.ShapeDtypeStruct) -> None:
    """Raises unless a run of this sampler and guidance can go on from a state: it is like the one that they begin with.

    Raises:
      ValueError: naming the part that differs, and how.
    """
    number: Any = jax.ShapeDtypeStruct((), jnp.int32)
    parts = {"memory": sampler.init, "guidance": guidance.init}
    begun: dict[str, Any] = {name: jax.eval_shape(init, x) for name, init in parts.items()}
    begun |= {"evaluations": number, "x0": x, "number": number}
    state = state._replace(number=np.int32(state.number)) if isinstance(state.number, int) else state
    for name, wanted in begun.items():
        own = jax.tree.map(lambda leaf: (jnp.shape(leaf), str(jnp.result_type(leaf))), getattr(state, name))
        other = jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), wanted)
        if own != other:
            raise ValueError(
                f"a run goes on from the State of a run of the same sampler and guidance, of x {x.shape}, but its {name} is "
                f"{_kinds(getattr(state, name))}, here {_kinds(wanted)}; to begin anew, give state.x."
            )


def check_each(each: Any, x: Array, who: str, hint: str = "") -> None:
    """Raises unless a function gave one floating number per sample.

    Raises:
      ValueError: naming its shape.
      TypeError: naming its dtype.
    """
    if jnp.shape(each) != x.shape[:1]:
        mend = f"; {hint}." if hint and jnp.ndim(each) == 2 else "."
        raise ValueError(f"{who} gave shape {jnp.shape(each)} for x {x.shape}, but must give one number per sample, [B]{mend}")
    if not hasattr(each, "dtype") or not jnp.issubdtype(each.dtype, jnp.floating):
        raise TypeError(f"{who} must return floating numbers, got {told(each)}.")


NOISY = "gj.scores.class_log_prob(classify, labels) makes one of a classifier (x, t) -> logits [B, classes]"
CLEAN = "of a classifier's logits take jax.nn.log_softmax(logits)[jnp.arange(B), labels]"


def given_log_prob(log_prob: Callable[..., Any], x: Array, *level: NoiseLevel) -> Array:
    """What a user's log_prob gives of x and its level, or of x0 alone, checked: one floating number per sample."""
    ours = (getattr(log_prob, "__module__", None) or "").startswith("guidance_jax.")
    who = f"log_prob, which takes a noise level and not a time ({NOISY})" if level else "log_prob"
    given = {"x": x, "level": level[0]} if level else {"x0": x}
    with contextlib.nullcontext() if ours else noting(who, **given):
        each = log_prob(x, *level)
    check_each(each, x, "log_prob", NOISY if level else CLEAN)
    return each


def given_logits(classify: Callable[[Array, Array], Any], x: Array, t: Array, labels: Array, classes: int | None) -> Array:
    """What a user's classifier gives of x and its times, checked: logits in which every label has its own.

    Raises:
      ValueError: if they are not `[B, C]`, or of other classes, or the labels do not fit x or are outside.
      TypeError: if they are no floating numbers.
    """
    from guidance_jax.checks.running import check_labels

    with noting("the classifier", x=x, t=t):
        logits = classify(x, t)
    shape = jnp.shape(logits)
    if len(shape) != 2 or shape[0] != x.shape[0]:
        raise ValueError(f"the classifier gave logits {shape} for x {x.shape}, but must give [B, classes].")
    if not hasattr(logits, "dtype") or not jnp.issubdtype(logits.dtype, jnp.floating):
        raise TypeError(f"the classifier must return logits, floating numbers, got {told(logits)}.")
    if classes is not None and shape[1] != classes:
        raise ValueError(f"the classifier gives {shape[1]} logits, but there are {classes} classes.")
    if labels.shape != x.shape[:1]:
        raise ValueError(f"labels have shape {labels.shape}, but x {x.shape} needs one per sample: {x.shape[:1]}.")
    check_labels(labels, shape[1], f"a classifier of {shape[1]} logits")
    return logits


def given_residual(measure: Callable[[Array], Any], measurement: Any, x0: Array) -> Any:
    """A measurement less what a user's measure gives of x0, checked: the two match, leaf by leaf.

    Raises:
      ValueError: naming the shapes of both.
    """
    with noting("measure", x0=x0):
        measured = measure(x0)
    shapes = [jax.tree.map(jnp.shape, tree) for tree in (measurement, measured)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"measure(x0) gives {shapes[1]}, but the measurement is {shapes[0]}; they must match, leaf by leaf.")
    return jax.tree.map(lambda y, a: jnp.asarray(y, a.dtype) - a, measurement, measured)


def given_back(pseudoinverse: Callable[[Any], Any], residual: Any, x0: Array) -> Array:
    """What a user's pseudoinverse gives of a residual, checked: it is shaped as x0.

    Raises:
      ValueError: naming its shape.
    """
    with noting("pseudoinverse", measurement=residual):
        back = pseudoinverse(residual)
    if jnp.shape(back) != x0.shape:
        raise ValueError(f"the pseudoinverse must give the shape of x0, but gave {jnp.shape(back)} for {x0.shape}.")
    return back


def check_retimed(cond: Any) -> None:
    """Raises unless the condition of a retimed denoiser is a pair.

    Raises:
      TypeError: naming what it is.
    """
    if not isinstance(cond, tuple) or len(cond) != 2:
        raise TypeError(f"the condition of a retimed denoiser must be a tuple, got {told(cond)}; (cond, offset [B]) is one.")


def _kinds(tree: Any) -> str:
    return str(jax.tree.map(told, tree)).replace("'", "") if jax.tree.leaves(tree) else "nothing"


def _check_alike(after: Any, before: Any, what: str, where: str) -> None:
    specs = [jax.tree.map(jnp.shape, tree) for tree in (after, before)]
    if specs[0] != specs[1]:
        raise ValueError(
            f"{what} of shapes {specs[0]}, but it was of {specs[1]} before, as {where} gave it; a loop keeps them."
        )
