"""Checks of what a user's functions return. They run while the functions are traced."""

import contextlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from guidance_jax.base import Branches, Cond, NoiseLevel, Prediction, State, Step
from guidance_jax.checks.numbers import check_form, check_range, check_shaped, floating
from guidance_jax.checks.traced import all_finite, concrete, demand, insist
from guidance_jax.checks.values import check_labels
from guidance_jax.checks.words import described, noting, warn
from guidance_jax.interfaces import Guidance, Sampler
from guidance_jax.programs.compiled import tracing

OUTPUT = "it must be shaped as x. For a network that also predicts a variance, use gj.denoisers.learned_variance."
TWICE = "learned_variance needs twice the channels of x: first the prediction, then the variance, along the last axis."
NOISY = "for a classifier (x, t) -> logits [B, classes], use gj.scores.class_log_prob(classify, labels)"
CLEAN = "for a classifier's logits, use jax.nn.log_softmax(logits)[jnp.arange(B), labels]"


def ask(who: str, function: Callable[..., Any], *, quiet: bool = False, **given: Any) -> Any:
    """Calls a function. A note on its errors lists its arguments; with `quiet`, functions of this library get no note."""
    ours = (getattr(function, "__module__", None) or "").startswith("guidance_jax.")
    with contextlib.nullcontext() if quiet and ours else noting(who, **given):
        return function(*given.values())


def predicted(network: Branches, x: Array, level: NoiseLevel, cond: Cond) -> Prediction:
    """The checked prediction of a network's denoiser, in the dtype of x."""
    who = "the denoiser (for a network, use gj.denoiser(network, predicts=...))"
    prediction = ask(who, network.denoise, quiet=True, x=x, level=level, cond=cond)
    check_prediction(prediction, x, "the denoiser")
    return jax.tree.map(lambda field: field.astype(x.dtype), prediction)


def network_output(network: Any, x: Array, t: Array, cond: Cond, like: Array, *, times: int = 1) -> Array:
    """The checked output of a network, in the dtype of the data. With a variance, it has `times=2` times the channels of x."""
    out = ask("the network", network, x=x, t=jnp.broadcast_to(t, x.shape[:1]), cond=cond)
    check_shaped(out, (*x.shape[:-1], times * x.shape[-1]), "the network's output", OUTPUT if times == 1 else TWICE)
    return out.astype(like.dtype)


def check_prediction(given: Any, x: Array, who: str, *, or_x0: bool = False) -> None:
    """Raises an error unless a function returned a prediction shaped as x. With `or_x0`, it may return the new x0 instead."""
    if isinstance(given, Prediction):
        check_shaped(given.eps, x.shape, f"the eps that {who} returns")
    elif not (or_x0 and floating(given)):
        also, mend = (", or an array of floating numbers, the new x0", ".") if or_x0 else ("", "; use gj.denoiser.")
        raise TypeError(f"{who} must return a Prediction{also}, got {described(given)}{mend}")
    check_shaped(given.x0 if isinstance(given, Prediction) else given, x.shape, f"the x0 that {who} returns")


def check_pair(value: Any, where: str, form: str) -> None:
    """Raises an error unless a value is a tuple of two elements."""
    if not isinstance(value, tuple) or len(value) != 2:
        raise TypeError(f"{where} must be a tuple {form}, got {described(value)}.")


def check_update(after: Any, state: Any, x: Array) -> None:
    """Raises an error unless a guidance's update returned a prediction and a state with the same structure as before."""
    if not isinstance(after, tuple) or len(after) != 2 or not isinstance(after[0], Prediction):
        mend = "if it returns only the prediction, use gj.stateless."
        raise TypeError(f"a guidance's update must return (prediction, state), got {described(after)}; {mend}")
    check_prediction(after[0], x, "the guidance")
    mend = "; its init must return the first state: gj.Guidance(needs, init=jnp.zeros_like, update=update)."
    check_match(after[1], state, "the state that a guidance's update returns", "the state before", mend)


def check_step(after: Any, before: State, step: Step) -> None:
    """Raises an error unless a sampler's step returned a state with the same structure. Its x must be finite."""
    if not isinstance(after, State):
        raise TypeError(f"a sampler's step must return a State, got {described(after)}; use state._replace(x=...).")
    check_match(after.x, before.x, "the x that a sampler's step returns", "the x before")
    mend = "; its init must return the first memory: gj.Sampler(init, step)."
    check_match(after.memory, before.memory, "the memory that a sampler's step returns", "the memory before", mend)
    message = "x is not finite after step {number} (counted from 0), which begins at sigma {sigma}."
    insist(lambda: all_finite(after.x), message, number=step.number, sigma=step.level.sigma)


def check_match(given: Any, like: Any, what: str, which: str, mend: str = ".") -> None:
    """Raises an error unless two trees have the same structure and shapes."""
    if jax.tree.map(jnp.shape, given) != jax.tree.map(jnp.shape, like):
        raise ValueError(f"{what} must match {which}, {_kinds(like)}, leaf by leaf, got {_kinds(given)}{mend}")


def _kinds(tree: Any) -> str:
    """The description of a tree: the dtype and shape of each leaf."""
    kinds = jax.tree.map(lambda leaf: described(jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf))), tree)
    return str(kinds).replace("'", "")


def check_state(state: State, sampler: Sampler, guidance: Guidance, x: jax.ShapeDtypeStruct) -> None:
    """Raises an error unless a run can continue from a state. The state must match the one that a new run starts from."""
    state = state._replace(number=np.int32(state.number)) if isinstance(state.number, int) else state
    begun = {"memory": jax.eval_shape(sampler.init, x), "guidance": jax.eval_shape(guidance.init, x), "x0": x}
    mend = f"for this sampler and guidance and x {x.shape}, got {{own}}; for a new run, use state.x."
    for name, wanted in (begun | {"evaluations": np.int32(0), "number": np.int32(0)}).items():
        own, wanted = _kinds(getattr(state, name)), _kinds(wanted)
        message = f"the State that a run continues from: its {name} must be {{wanted}}, {mend}"
        demand(own == wanted, message, own=own, wanted=wanted)


def check_elements(value: Any, x: Array, where: str) -> None:
    """Raises an error unless a value is finite and has one number for all samples, per sample, or per element."""
    check_range(value, where)
    shape, each = jnp.shape(value), x.shape
    wanted = f"(), [B] = {each[:1]}, or shaped as x, {each}, or as one sample"
    demand(shape in ((), each[:1], each, each[1:]), f"{where} has shape {shape}, but must be {wanted}.")


def check_spread(x: Array) -> None:
    """Raises an error if a sample has only one element."""
    demand(
        x.size > len(x),
        f"rescale: a sample must have at least two elements for its deviation, got x of shape {x.shape}.",
    )


def check_spatial(x: Array, who: str) -> None:
    """Raises an error unless x has axes between the batch and the channels."""
    demand(x.ndim > 2, f"{who}: x must be [B, T, C] or [B, H, W, C] to have frequencies, got x of shape {x.shape}.")


def check_halvings(x: Array, levels: int) -> None:
    """Raises an error unless each spatial axis of x can be halved `levels - 1` times, to a size of at least 2."""
    check_spatial(x, "fdg")
    parts = 2 ** (levels - 1)
    halves = all(size % parts == 0 and size // parts >= min(parts, 2) for size in x.shape[1:-1])
    times = f"{levels - 1} times to at least 2 for {levels} levels"
    demand(halves, f"fdg: each spatial axis of x must halve {times}, got x of shape {x.shape}.")


def check_one_level(level: NoiseLevel, who: str) -> None:
    """Raises an error if there is one level per sample: this guidance is on or off for the whole batch."""
    shape, mend = jnp.shape(level.sigma), "use gj.sample, or jax.vmap over the samples."
    demand(shape == (), f"{who}: the level must be one for all samples, got a level of shape {shape}; {mend}")


def check_channels(channels: int, x: Array) -> None:
    """Raises an error if more channels are guided than x has."""
    count = x.shape[-1]
    demand(channels <= count, f"on_channels: channels must be at most those of x, {count} of {x.shape}, got {channels}.")


def warn_of_order(parts: tuple[Guidance, ...]) -> None:
    """Warns if a chain begins with a shaper, which has nothing to change there."""
    first = next((i for i, part in enumerate(parts) if not part.shapes), 0)
    if first and not tracing():
        said, better = (", ".join(map(repr, order)) for order in (parts, (*parts[first:], *parts[:first])))
        warn(f"chain({said}): {parts[0]!r} has nothing to change yet; put it after a source: chain({better}).")


def warn_if_not_finite(x: Array) -> None:
    """Warns if samples are not finite. Traced samples are not checked."""
    if concrete(x) and not tracing():
        bad = ~np.isfinite(np.asarray(x)).reshape(len(x), -1).all(1)
        if bad.any():
            which = f"{bad.sum()} of {len(x)} samples are not finite, the first is sample {bad.argmax()}"
            warn(f"{which}; gj.checked reports the step.")


class Asked(dict[Any, Any]):
    """The predictions by branch name. A missing name raises an error that says how to ask for it.

    Args:
      what: What the dictionary holds, for the error message.
      needs: The parameter of `stateless` that asks for it.
    """

    what, needs = "prediction", "needs"

    def __missing__(self, name: str | None) -> Any:
        which, others = "the base" if name is None else f"the branch {name!r}", ", ".join(map(repr, self)) or "none"
        mend = f"A guidance reads only the branches that it names: use stateless(update, {self.needs}=({name!r},))."
        raise KeyError(f"there is no {self.what} of {which}, only of {others}. {mend}")


class Slopes(Asked):
    """The derivatives by branch name; None stands for the base."""

    what, needs = "derivative", "derivatives"


def check_each(each: Any, x: Array, who: str, hint: str = "") -> None:
    """Raises an error unless a function returned one floating-point number per sample."""
    mend = f"it must be one number per sample, [B]; {hint}." if hint else "it must be one number per sample, [B]."
    check_shaped(each, x.shape[:1], f"what {who} returns", mend)


def given_log_prob(log_prob: Callable[..., Any], x: Array, *level: NoiseLevel) -> Array:
    """The checked result of a user's log_prob of x and its level, or of x0 alone: one number per sample."""
    who = f"log_prob, which receives a noise level and not a time ({NOISY})" if level else "log_prob"
    given: dict[str, Any] = {"x": x, "level": level[0]} if level else {"x0": x}
    each = ask(who, log_prob, quiet=True, **given)
    check_each(each, x, "log_prob", NOISY if level else CLEAN)
    return each


def given_logits(classify: Callable[[Array, Array], Any], x: Array, t: Array, labels: Array, classes: int | None) -> Array:
    """The checked logits of a user's classifier of x and its times. Each label must have a logit."""
    logits = ask("the classifier", classify, x=x, t=t)
    check_form(logits, "the classifier's logits", f"{len(x)} {classes or 'classes'}", hint="they must be [B, classes].")
    check_shaped(labels, x.shape[:1], "labels", "one per sample.", jnp.integer)
    check_labels(labels, logits.shape[1], f"a classifier of {logits.shape[1]} logits")
    return logits


def given_residual(measure: Callable[[Array], Any], measurement: Any, x0: Array) -> Any:
    """The measurement minus the checked result of a user's measure of x0. Both must match leaf by leaf."""
    measured = ask("measure", measure, x0=x0)
    check_match(measured, measurement, "measure(x0)", "the measurement")
    return jax.tree.map(lambda y, a: jnp.asarray(y, a.dtype) - a, measurement, measured)


def given_back(pseudoinverse: Callable[[Any], Any], residual: Any, x0: Array) -> Array:
    """The checked result of a user's pseudoinverse of a residual. It must be shaped as x0."""
    back = ask("pseudoinverse", pseudoinverse, measurement=residual)
    check_shaped(back, x0.shape, "what the pseudoinverse returns", "it must be shaped as x0.")
    return back
