"""What the functions that a user writes give back, checked while it is traced."""

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
from guidance_jax.checks.words import noting, told, warn
from guidance_jax.interfaces import Guidance, Sampler
from guidance_jax.programs.compiled import tracing

OUTPUT = "it must be shaped as x. If it predicts a variance too, use gj.denoisers.learned_variance."
TWICE = "learned_variance needs twice the channels of x: what is predicted, then the variance, along the last axis."
NOISY = "gj.scores.class_log_prob(classify, labels) makes one of a classifier (x, t) -> logits [B, classes]"
CLEAN = "of a classifier's logits take jax.nn.log_softmax(logits)[jnp.arange(B), labels]"


def ask(who: str, function: Callable[..., Any], *, quiet: bool = False, **given: Any) -> Any:
    """What a function gives; an error in it tells what it was called with, but with `quiet` not where the function is ours."""
    ours = (getattr(function, "__module__", None) or "").startswith("guidance_jax.")
    with contextlib.nullcontext() if quiet and ours else noting(who, **given):
        return function(*given.values())


def predicted(network: Branches, x: Array, level: NoiseLevel, cond: Cond) -> Prediction:
    """The prediction of a network's denoiser, checked, in x's dtype."""
    who = "the denoiser (gj.denoiser(network, predicts=...) makes one of a network)"
    prediction = ask(who, network.denoise, quiet=True, x=x, level=level, cond=cond)
    check_prediction(prediction, x, "the denoiser")
    return jax.tree.map(lambda field: field.astype(x.dtype), prediction)


def network_output(network: Any, x: Array, t: Array, cond: Cond, like: Array, *, times: int = 1) -> Array:
    """What a network returns, in the dtype of the data; where it gives a variance too, with two times the channels."""
    out = ask("the network", network, x=x, t=jnp.broadcast_to(t, x.shape[:1]), cond=cond)
    check_shaped(out, (*x.shape[:-1], times * x.shape[-1]), "what the network gives", OUTPUT if times == 1 else TWICE)
    return out.astype(like.dtype)


def check_prediction(given: Any, x: Array, who: str, *, or_x0: bool = False) -> None:
    """Raises unless a function gave a prediction, or with `or_x0` an array in its place, shaped as x."""
    if isinstance(given, Prediction):
        check_shaped(given.eps, x.shape, f"the eps that {who} gives")
    elif not (or_x0 and floating(given)):
        also, mend = (", or an array of floating numbers, the new x0", ".") if or_x0 else ("", "; gj.denoiser makes it so.")
        raise TypeError(f"{who} must return a Prediction{also}, got {told(given)}{mend}")
    check_shaped(given.x0 if isinstance(given, Prediction) else given, x.shape, f"the x0 that {who} gives")


def check_pair(value: Any, where: str, form: str) -> None:
    """Raises unless a value is a tuple of two."""
    if not isinstance(value, tuple) or len(value) != 2:
        raise TypeError(f"{where} must be a tuple {form}, got {told(value)}.")


def check_update(after: Any, state: Any, x: Array) -> None:
    """Raises unless a guidance's update gave a prediction and a state like the one before."""
    if not isinstance(after, tuple) or len(after) != 2 or not isinstance(after[0], Prediction):
        mend = "gj.stateless makes a guidance of an update that returns the prediction alone."
        raise TypeError(f"a guidance's update must return (prediction, state), got {told(after)}; {mend}")
    check_prediction(after[0], x, "the guidance")
    mend = "; its init must give the first one: gj.Guidance(needs, init=jnp.zeros_like, update=update)."
    check_match(after[1], state, "the state that a guidance's update returns", "the one before", mend)


def check_step(after: Any, before: State, step: Step) -> None:
    """Raises unless a sampler's step gave a state like the one before; insists that its x is finite."""
    if not isinstance(after, State):
        raise TypeError(f"a sampler's step must return a State, got {told(after)}; state._replace(x=...) is one.")
    check_match(after.x, before.x, "the x that a sampler's step gives", "the one before")
    mend = "; its init must give the first one: gj.Sampler(init, step)."
    check_match(after.memory, before.memory, "the memory that a sampler's step gives", "the one before", mend)
    message = "x is not finite after step {number}, counted from 0, from sigma {sigma} on."
    insist(lambda: all_finite(after.x), message, number=step.number, sigma=step.level.sigma)


def check_match(given: Any, like: Any, what: str, which: str, mend: str = ".") -> None:
    """Raises unless two trees are of one structure and of the same shapes."""
    if jax.tree.map(jnp.shape, given) != jax.tree.map(jnp.shape, like):
        raise ValueError(f"{what} must match {which}, {_kinds(like)}, leaf by leaf, got {_kinds(given)}{mend}")


def _kinds(tree: Any) -> str:
    """A tree in words: the dtype and the shape of each leaf."""
    kinds = jax.tree.map(lambda leaf: told(jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf))), tree)
    return str(kinds).replace("'", "")


def check_state(state: State, sampler: Sampler, guidance: Guidance, x: jax.ShapeDtypeStruct) -> None:
    """Raises unless a run of this sampler and guidance can go on from a state: it is like the one that they begin with."""
    state = state._replace(number=np.int32(state.number)) if isinstance(state.number, int) else state
    begun = {"memory": jax.eval_shape(sampler.init, x), "guidance": jax.eval_shape(guidance.init, x), "x0": x}
    mend = f"as this sampler and guidance have it for x {x.shape}, got {{own}}; to begin anew, give state.x."
    for name, wanted in (begun | {"evaluations": np.int32(0), "number": np.int32(0)}).items():
        own, wanted = _kinds(getattr(state, name)), _kinds(wanted)
        demand(
            own == wanted, f"the State that a run goes on from: its {name} must be {{wanted}}, {mend}", own=own, wanted=wanted
        )


def check_elements(value: Any, x: Array, where: str) -> None:
    """Raises unless a value is one finite number for all samples, one per sample, or one per element of x or of one sample."""
    check_range(value, where)
    shape, each = jnp.shape(value), x.shape
    wanted = f"(), [B] = {each[:1]}, or shaped as x, {each}, or as one sample"
    demand(shape in ((), each[:1], each, each[1:]), f"{where} has shape {shape}, but must be {wanted}.")


def check_spread(x: Array) -> None:
    """Raises where a sample has one element only."""
    demand(x.size > len(x), f"rescale: a sample needs at least two elements to have a spread, but x is {x.shape}.")


def check_spatial(x: Array, who: str) -> None:
    """Raises unless x has axes between the batch and the channels."""
    demand(x.ndim > 2, f"{who} acts on frequencies and needs x of [B, T, C] or [B, H, W, C], but x is {x.shape}.")


def check_halvings(x: Array, levels: int) -> None:
    """Raises unless every spatial axis halves once for each level of `fdg` but one, down to 2 or more."""
    check_spatial(x, "fdg")
    parts = 2 ** (levels - 1)
    halves = all(size % parts == 0 and size // parts >= min(parts, 2) for size in x.shape[1:-1])
    mend = f"{levels - 1} times, down to 2 or more, but x is {x.shape}."
    demand(halves, f"fdg with {levels} levels halves every spatial axis {mend}")


def check_one_level(level: NoiseLevel, who: str) -> None:
    """Raises where a guidance that is in or out for all samples together is called at one level per sample."""
    shape, mend = jnp.shape(level.sigma), "use gj.sample, or jax.vmap over the samples."
    demand(shape == (), f"{who}: expected one level for all samples, got a level of shape {shape}; {mend}")


def check_channels(channels: int, x: Array) -> None:
    """Raises where more channels are guided than there are."""
    most = x.shape[-1]
    demand(channels <= most, f"on_channels: channels must be at most those of x, {most} of {x.shape}, got {channels}.")


def warn_of_order(parts: tuple[Guidance, ...]) -> None:
    """Warns where a shaper stands before every source of a chain, and so has nothing to shape."""
    first = next((i for i, part in enumerate(parts) if not part.shapes), 0)
    if first and not tracing():
        said, better = (", ".join(map(repr, order)) for order in (parts, (*parts[first:], *parts[:first])))
        warn(f"chain({said}): {parts[0]!r} has nothing to change yet; put it after what guides: chain({better}).")


def warn_if_not_finite(x: Array) -> None:
    """Warns of the samples of an eager run that are not finite."""
    if concrete(x) and not tracing():
        bad = ~np.isfinite(np.asarray(x)).reshape(len(x), -1).all(1)
        if bad.any():
            which = f"{bad.sum()} of {len(x)} samples are not finite, the first is sample {bad.argmax()}"
            warn(f"{which}; gj.checked tells the step.")


class Asked(dict[Any, Any]):
    """The predictions by the name of their branch."""

    what, needs = "prediction", "needs"

    def __missing__(self, name: str | None) -> Any:
        which, others = "the base" if name is None else f"the branch {name!r}", ", ".join(map(repr, self)) or "none"
        mend = f"A guidance has only those that it asks for: stateless(update, {self.needs}=({name!r},))."
        raise KeyError(f"there is no {self.what} of {which}, only of {others}. {mend}")


class Slopes(Asked):
    """The derivatives by the name of their branch, None for the base."""

    what, needs = "derivative", "derivatives"


def check_each(each: Any, x: Array, who: str, hint: str = "") -> None:
    """Raises unless a function gave one floating number per sample."""
    mend = f"it must be one number per sample, [B]; {hint}." if hint else "it must be one number per sample, [B]."
    check_shaped(each, x.shape[:1], f"what {who} gives", mend)


def given_log_prob(log_prob: Callable[..., Any], x: Array, *level: NoiseLevel) -> Array:
    """What a user's log_prob gives of x and its level, or of x0 alone, checked: one floating number per sample."""
    who = f"log_prob, which takes a noise level and not a time ({NOISY})" if level else "log_prob"
    given: dict[str, Any] = {"x": x, "level": level[0]} if level else {"x0": x}
    each = ask(who, log_prob, quiet=True, **given)
    check_each(each, x, "log_prob", NOISY if level else CLEAN)
    return each


def given_logits(classify: Callable[[Array, Array], Any], x: Array, t: Array, labels: Array, classes: int | None) -> Array:
    """What a user's classifier gives of x and its times, checked: logits in which every label has its own."""
    logits = ask("the classifier", classify, x=x, t=t)
    check_form(logits, "the classifier's logits", f"{len(x)} {classes or 'classes'}", hint="they must be [B, classes].")
    check_shaped(labels, x.shape[:1], "labels", "one per sample.", jnp.integer)
    check_labels(labels, logits.shape[1], f"a classifier of {logits.shape[1]} logits")
    return logits


def given_residual(measure: Callable[[Array], Any], measurement: Any, x0: Array) -> Any:
    """A measurement less what a user's measure gives of x0, checked: the two match, leaf by leaf."""
    measured = ask("measure", measure, x0=x0)
    check_match(measured, measurement, "measure(x0)", "the measurement")
    return jax.tree.map(lambda y, a: jnp.asarray(y, a.dtype) - a, measurement, measured)


def given_back(pseudoinverse: Callable[[Any], Any], residual: Any, x0: Array) -> Array:
    """What a user's pseudoinverse gives of a residual, checked: it is shaped as x0."""
    back = ask("pseudoinverse", pseudoinverse, measurement=residual)
    check_shaped(back, x0.shape, "what the pseudoinverse gives", "it must be shaped as x0.")
    return back
