"""How guidances combine: one after the other, side by side, in an interval of noise levels, in another space."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import ArrayLike

from guidance_jax.arrays import check_range, divide, expand
from guidance_jax.base import Context, Guidance, NoiseLevel, Prediction, Step
from guidance_jax.checks import check_guidance, check_order, check_scalar
from guidance_jax.denoisers import OUTPUTS, PREDICTS, parameterisation
from guidance_jax.kinds import check_callable, check_count, check_kind, check_name, told
from guidance_jax.scales import Scale, at_level


def stateless(
    update: Callable[[Prediction, Context], Prediction], needs: Iterable[str] = (), pullback: bool = False
) -> Guidance:
    """A guidance that remembers nothing, from its formula alone.

    Args:
      update: `(prediction, context) -> prediction`.
      needs: the names of the branches it reads.
      pullback: whether it takes gradients through the base's prediction, by `context.pullback`.

    Raises:
      TypeError: if update is no function, or needs is a single string; when called, if update gives no `Prediction`.

    Example:
      >>> halve = stateless(lambda prediction, context: prediction._replace(x0=prediction.x0 / 2))
      >>> sorted(halve.needs)
      []
    """
    check_callable(update, "stateless's update", "it is (prediction, context) -> prediction.")
    if isinstance(needs, str):
        raise TypeError(f"needs must be names of branches, got the str {needs!r}; a single one is ({needs!r},).")
    names = needed(*needs)

    def remember(prediction: Prediction, state: Any, context: Context) -> tuple[Prediction, Any]:
        try:
            guided = update(prediction, context)
        except KeyError as error:
            error.add_note(f"A guidance reads only branches that it asks for: stateless(update, needs=({error},)).")
            raise
        check_kind(guided, Prediction, "what stateless's update gives", "prediction._replace(x0=..., eps=...) is one.")
        return guided, state

    return Guidance(names, lambda x: (), remember, pullback=pullback)


def chain(*parts: Guidance) -> Guidance:
    """One guidance after another: each acts on what those before it made of the base prediction. `chain()` guides nothing.

    Args:
      *parts: sources, which add to the prediction, and shapers, which change what is there so far.

    Example:
      >>> denoise = denoiser(lambda x, t, c: 0 * x + c, predicts="x0")  # it says what it is told
      >>> two = branches(denoise, cond=jnp.array([[1.0, 1.0]]), uncond=jnp.array([[0.0, 1.0]]))
      >>> path, keys = levels(schedules.flow(), 4, spacings.trailing()), jax.random.split(jax.random.key(0), 1)
      >>> print(sample(keys, two, chain(cfg(3.0), clip_norm(1.0)), ddim(), path, (2,)))
      [[2. 1.]]
    """
    _check_parts(parts, "chain")

    def update(prediction: Prediction, states: tuple[Any, ...], context: Context) -> tuple[Prediction, tuple[Any, ...]]:
        after = []
        for part, state in zip(parts, states, strict=True):
            prediction, state = part.update(prediction, state, context)
            after.append(state)
        return prediction, tuple(after)

    return _together(parts, update)


def add(*parts: Guidance) -> Guidance:
    """Guidances side by side: each sees the same prediction, and what each of them changes is added up.

    Unlike in a `chain`, no part's shapers act on what another one added.

    Args:
      *parts: guidances, chains among them.

    Example:
      >>> guidance = add(cfg(2.0), chain(cfg(2.0, cond="style"), rescale(0.7)))
      >>> sorted(guidance.needs)
      ['cond', 'style', 'uncond']
    """
    _check_parts(parts, "add")

    def update(prediction: Prediction, states: tuple[Any, ...], context: Context) -> tuple[Prediction, tuple[Any, ...]]:
        x0, eps, after = prediction.x0, prediction.eps, []
        for part, state in zip(parts, states, strict=True):
            guided, state = part.update(prediction, state, context)
            x0, eps = x0 + (guided.x0 - prediction.x0), eps + (guided.eps - prediction.eps)
            after.append(state)
        return prediction._replace(x0=x0, eps=eps), tuple(after)

    return _together(parts, update)


def during(guidance: Guidance, low: ArrayLike, high: ArrayLike = jnp.inf) -> Guidance:
    """A guidance in the interval `low < sigma / alpha <= high` only; elsewhere its branches are not even evaluated.

    A step is inside if its noisier end is, where it begins (in inversion, where it ends), and all evaluations of a step are
    treated alike, so a run whose levels include `low` and `high` switches exactly there, at no loss of order but for multistep
    samplers, which extrapolate across the jump: `samplers.restart` keeps theirs.

    Args:
      guidance: what to confine.
      low: the lower bound in `sigma / alpha`, `()`, excluded.
      high: the upper bound in `sigma / alpha`, `()`, included.

    Raises:
      ValueError: if a bound is no scalar, or low is not below high.

    Example:
      >>> denoise = denoiser(lambda x, t, c: 0 * x + c, predicts="x0")  # it says what it is told
      >>> two = branches(denoise, cond=jnp.array([[1.0, 1.0]]), uncond=jnp.array([[0.0, 1.0]]))
      >>> path, keys = levels(schedules.flow(), 4, spacings.trailing()), jax.random.split(jax.random.key(0), 1)
      >>> print(evaluations(keys, two, during(cfg(3.0), 0.19, 1.61), ddim(), path, (2,)))
      6

    Reference: Kynkaanniemi et al. 2024, arXiv:2404.07724.
    """
    check_guidance(guidance, "during's guidance")
    for name, bound in {"low": low, "high": high}.items():
        check_scalar(bound, f"during's {name}", -np.inf, np.inf)
    check_order(low, high, "during", "the interval is empty: low must be below high, both in sigma / alpha")

    def inside(step: Step) -> Array:
        ratio = jnp.maximum(step.level.ratio, step.next.ratio)
        return (ratio > jnp.asarray(low, ratio.dtype)) & (ratio <= jnp.asarray(high, ratio.dtype))

    return _where(inside, guidance)


def unless_one(guidance: Guidance, scale: Scale) -> Guidance:
    """A guidance where its scale is not 1; elsewhere its branches are not even evaluated.

    `D <- g(D) if scale != 1 else D`, of any sample in the batch, at the level where the step begins.

    `scales.calibrated(curve, w, threshold=0.05)` is 1 where it is near it. At 1 the conditional branch is left: it is the base.

    Args:
      guidance: of whose branches the base is the one at scale 1, `cfg(scale)` say.
      scale: that of the guidance, `()` or `[B]`, or a function of the level.

    Raises:
      TypeError: if there is no guidance, or the scale is no number.
      ValueError: if the scale is known and not finite.

    Example:
      >>> denoise = denoiser(lambda x, t, c: 0 * x + c, predicts="x0")  # it says what it is told
      >>> two = branches(denoise, cond=jnp.array([[1.0, 1.0]]), uncond=jnp.array([[0.0, 1.0]]))
      >>> path, keys = levels(schedules.flow(), 4, spacings.trailing()), jax.random.split(jax.random.key(0), 1)
      >>> scale = lambda level: jnp.where(level.ratio > 2.0, 1.0, 3.0)
      >>> print(evaluations(keys, two, unless_one(cfg(scale), scale), ddim(), path, (2,)))
      6
    """
    check_guidance(guidance, "unless_one's guidance")

    def guided(step: Step) -> Array:
        w = at_level(scale, step.level, "unless_one's scale")
        check_range(w, "unless_one's scale")
        return jnp.asarray(w) != 1

    gated = _where(lambda step: guided(step).any(), guidance)

    def update(prediction: Prediction, state: Any, context: Context) -> tuple[Prediction, Any]:
        on = guided(context.step)
        rows = lambda leaf: expand(on, leaf) if on.ndim and leaf.shape[:1] == on.shape else on.any()
        after = gated.update(prediction, state, context)
        return jax.tree.map(lambda new, old: jnp.where(rows(new), new, old), after, (prediction, state))

    return gated._replace(update=update)


def in_space(predicts: str, guidance: Guidance) -> Guidance:
    """A guidance that acts on another parameterisation in place of x0.

    `x0 <- x0 + L(g(o) - o)`, o what a network of that kind would have said of x, L the linear map from a change of o to x0's.

    It finds o in the x0 of every prediction, and its change is turned back.
    It matters to what is not linear: `rescale`, `project`, `momentum`, `apg`, `cfg_zero_star`.

    Args:
      predicts: "eps", "x0", "v", "score" or "velocity".
      guidance: what is to act there; gradients have no place in it.

    Raises:
      ValueError: if `predicts` is none of these, or the guidance takes gradients or is in a space already.

    Example:
      >>> guidance = in_space("v", chain(cfg(7.5), rescale(0.7)))
      >>> sorted(guidance.needs)
      ['cond', 'uncond']

    Reference: Lin et al. 2024, arXiv:2305.08891, whose rescaling acts on v.
    """
    check_guidance(guidance, "in_space's guidance")
    parameterisation(predicts)

    def update(prediction: Prediction, state: Any, context: Context) -> tuple[Prediction, Any]:
        own_space("in_space", context)
        alpha, sigma = expand(context.level.alpha, context.x), expand(context.level.sigma, context.x)

        def view(p: Prediction) -> Prediction:
            return p._replace(x0=OUTPUTS[predicts](p.x0, p.eps, alpha, sigma))

        seen, branches = view(prediction), {name: view(p) for name, p in context.branches.items()}
        inside = context._replace(base=view(context.base), branches=branches, pullback=None, space=predicts)
        guided, state = guidance.update(seen, state, inside)
        change = PREDICTS[predicts](guided.x0 - seen.x0, jnp.zeros_like(context.x), alpha, sigma)
        return prediction._replace(x0=prediction.x0 + change.x0, eps=prediction.eps + change.eps), state

    return guidance._replace(update=update)


def relative_to(branch: str, guidance: Guidance) -> Guidance:
    """A guidance that starts from a branch of its own, whatever the base is and whatever guides before it.

    Its shapers see the change from that branch, not what other parts of a chain added.

    Args:
      branch: the name of the branch.
      guidance: what is to act on it.

    Example:
      >>> guidance = relative_to("cond", chain(cfg(7.5), rescale(0.7)))
      >>> sorted(guidance.needs)
      ['cond', 'uncond']
    """
    names = needed(branch)
    check_guidance(guidance, "relative_to's guidance")

    def update(prediction: Prediction, state: Any, context: Context) -> tuple[Prediction, Any]:
        own, base = context.branches[branch], context.base
        guided, state = guidance.update(own, state, context._replace(base=own))
        x0, eps = prediction.x0 + (guided.x0 - base.x0), prediction.eps + (guided.eps - base.eps)
        return prediction._replace(x0=x0, eps=eps), state

    def wanted(state: Any, step: Step) -> dict[str, Any]:
        # Where nothing within is wanted the base stands in for this branch too, so it is wanted always.
        return wants(guidance, state, step) | {branch: True}

    return guidance._replace(needs=guidance.needs | names, update=update, wants=wanted)


def on_channels(guidance: Guidance, channels: int) -> Guidance:
    """A guidance of the first channels alone, along the last axis; the others stay as they would be without it.

    `x0_c = guided_c` for c < channels, x0_c as before for the others, and eps alike. The guidance sees all channels: a norm or
    a deviation that it takes is over all of them.

    Args:
      guidance: what to confine.
      channels: how many are guided.

    Raises:
      TypeError: if there is no guidance, or channels is no integer.
      ValueError: if channels is not from 1 to the number that x has.

    Example:
      >>> denoise = denoiser(lambda x, t, c: 0 * x + c, predicts="x0")  # it says what it is told
      >>> two = branches(denoise, cond=jnp.array([[1.0, 1.0]]), uncond=jnp.array([[0.0, 0.0]]))
      >>> path, keys = levels(schedules.flow(), 4, spacings.trailing()), jax.random.split(jax.random.key(0), 1)
      >>> print(sample(keys, two, on_channels(cfg(4.0), 1), ddim(), path, (2,)))
      [[4. 1.]]

    Reference: Peebles & Xie 2023, arXiv:2212.09748, whose released code guides 3 of the latents' 4 channels.
    """
    check_guidance(guidance, "on_channels's guidance")
    check_count(channels, "on_channels's channels")

    def update(prediction: Prediction, state: Any, context: Context) -> tuple[Prediction, Any]:
        if channels > context.x.shape[-1]:
            raise ValueError(f"on_channels(guidance, {channels}) asks for more channels than x of shape {context.x.shape} has.")
        guided, state = guidance.update(prediction, state, context)
        first = lambda own, before: jnp.concatenate([own[..., :channels], before[..., channels:]], axis=-1)
        return jax.tree.map(first, guided, prediction), state

    return guidance._replace(update=update)


def needed(*names: str) -> frozenset[str]:
    """The names of branches, checked to be names.

    Raises:
      TypeError: telling what is no string: a condition, say.
    """
    for name in names:
        check_name(name)
    return frozenset(names)


def own_space(name: str, context: Context) -> None:
    """Raises inside of `in_space`, for what has a space of its own.

    Raises:
      ValueError: naming the guidance.
    """
    if context.space != "x0":
        raise ValueError(
            f"{name} has a space of its own, but stands in in_space({context.space!r}, ...); put it beside: "
            f"chain({name}(...), in_space({context.space!r}, ...))."
        )


def wants(guidance: Guidance, state: Any, step: Step) -> dict[str, Any]:
    """Which of its branches a guidance wants in a step: `{name: True or a boolean scalar}`."""
    return dict.fromkeys(guidance.needs, True) if guidance.wants is None else guidance.wants(state, step)


def only(gate: Array, wanted: dict[str, Any]) -> dict[str, Any]:
    """What is wanted where a gate is open too; branches that were wanted alike share one boolean."""
    shared = {id(now): gate if now is True else gate & now for now in wanted.values()}
    return {name: shared[id(now)] for name, now in wanted.items()}


def move(prediction: Prediction, x0: Array, level: NoiseLevel) -> Prediction:
    """The prediction with another x0, its eps moved along so that `alpha x0 + sigma eps` stays what it was."""
    ratio = expand(divide(level.alpha, level.sigma), x0)
    return prediction._replace(x0=x0, eps=prediction.eps - ratio * (x0 - prediction.x0))


def _where(inside: Callable[[Step], Array], guidance: Guidance) -> Guidance:
    """A guidance in some steps only; its branches are wanted in these alone."""

    def update(prediction: Prediction, state: Any, context: Context) -> tuple[Prediction, Any]:
        return jax.lax.cond(
            inside(context.step),
            lambda prediction, state: guidance.update(prediction, state, context),
            lambda prediction, state: (prediction, state),
            prediction,
            state,
        )

    def wanted(state: Any, step: Step) -> dict[str, Any]:
        return only(inside(step), wants(guidance, state, step))

    return guidance._replace(update=update, wants=wanted)


def _check_parts(parts: tuple[Guidance, ...], name: str) -> None:
    for part in parts:
        if isinstance(part, list):
            raise TypeError(f"{name}'s parts must be guidances, got {told(part)}; give them one by one: {name}(*parts).")
        check_guidance(part, f"each of {name}'s parts")


def _together(parts: tuple[Guidance, ...], update: Callable[..., Any]) -> Guidance:
    """Several guidances as one: the states side by side, a branch wanted where any part wants it."""

    def wanted(states: tuple[Any, ...], step: Step) -> dict[str, Any]:
        union: dict[str, Any] = {}
        shared: dict[tuple[int, int], Any] = {}

        def either(a: Any, b: Any) -> Any:
            if a is True or b is True:
                return True
            return a if a is b else shared.setdefault((id(a), id(b)), a | b)

        for part, state in zip(parts, states, strict=True):
            for name, now in wants(part, state, step).items():
                union[name] = either(union[name], now) if name in union else now
        return union

    needs = functools.reduce(frozenset.union, (part.needs for part in parts), frozenset[str]())
    init = lambda x: tuple(part.init(x) for part in parts)
    return Guidance(needs, init, update, wanted, any(part.pullback for part in parts))
